"""From settings and a bundle that is being read to the application."""

from __future__ import annotations

import gc
import logging
import sys
from typing import TYPE_CHECKING

from functions.logs import configure_logging
from functions.predict.app import create_app
from functions.predict.bundle import IS_COMPILED, BundleError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from functions.predict.loading import Loading
    from functions.predict.settings import Settings


def load_app(settings: Settings, loading: Loading) -> ASGIApp:
    """Return the application, once its model is there and verified.

    Ends the process with status 1 and a message where it can't be: such a revision
    gets no traffic.
    """
    configure_logging()
    if settings.model_uri:
        logging.info("reading the model from %s", settings.model_uri)
    else:
        logging.warning("no model: MODEL_URI is empty; /predict answers 503")
    try:
        bundle = loading.bundle()
    except BundleError as error:
        logging.critical("the model can't be served: %s", error)
        sys.exit(1)
    if bundle is not None:
        scorer = "compiled" if IS_COMPILED else "portable, slower"
        logging.info("serving model version %s (scorer: %s)", settings.model_version, scorer)
    app = create_app(bundle, model_version=settings.model_version, revision=settings.k_revision)
    # Out of the collector's sight: it would go through the whole vocabulary, and its
    # marks would part the memory that forked workers share.
    gc.freeze()
    return app
