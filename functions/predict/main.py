"""The function ``predict`` for functions-framework's ASGI server.

The bundle is loaded while this module is: before the server forks, and so that a
wrong bundle ends the start-up with a message, and such a revision gets no traffic.
"""

import logging
import sys

from starlette.applications import Starlette
from starlette.requests import Request

from functions.logs import configure_logging
from functions.predict.app import create_app
from functions.predict.bundle import Bundle, BundleError
from functions.predict.settings import Settings
from functions.predict.storage import load_bundle
from functions.settings import current


def _load(settings: Settings) -> Bundle | None:
    if not settings.model_uri:
        logging.warning("no model: MODEL_URI is empty; /predict answers 503")
        return None
    try:
        bundle = load_bundle(settings.model_uri, timeout=settings.storage_timeout_seconds)
    except BundleError as error:
        logging.critical("the model can't be served: %s", error)
        sys.exit(1)
    logging.info("serving model version %s from %s", settings.model_version, settings.model_uri)
    return bundle


configure_logging()
_settings = current(Settings)
_app = create_app(
    _load(_settings),
    model_version=_settings.model_version,
    revision=_settings.k_revision,
)


async def predict(_request: Request) -> Starlette:
    """Hand each request to the application, which the server awaits as a response."""
    return _app
