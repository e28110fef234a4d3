"""The function ``proxy`` for functions-framework's ASGI server."""

from fastapi import FastAPI
from starlette.requests import Request

from functions.logs import configure_logging
from functions.proxy.api import create_app
from functions.proxy.settings import Settings
from functions.settings import current

_settings = current(Settings)
configure_logging(project=_settings.firestore_project)
_app = create_app(_settings)


async def proxy(_request: Request) -> FastAPI:
    """Hand each request to the application, which the server awaits as a response."""
    return _app
