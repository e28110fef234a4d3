"""The function that functions-framework serves."""

from fastapi import FastAPI
from starlette.requests import Request

from functions.logs import configure_logging
from functions.proxy.api import create_app
from functions.proxy.settings import get_settings

configure_logging(project=get_settings().firestore_project)

_app = create_app(get_settings())


async def proxy(_request: Request) -> FastAPI:
    """Answer any request: the framework runs what this returns as an ASGI response."""
    return _app
