"""The function ``predict`` for the bare functions-framework command, in development.

The bundle is loaded while this module is: before the server forks, and so that a
wrong bundle ends the start-up with a message. `functions.predict.__main__` serves the
same application without this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from functions.predict.loading import Loading
from functions.predict.settings import parse
from functions.predict.start import load_app

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

_settings = parse()
with Loading(_settings.model_uri, timeout=_settings.storage_timeout_seconds) as _loading:
    _app = load_app(_settings, _loading)


async def predict(_request: Request) -> ASGIApp:
    """Hand each request to the application, which the server awaits as a response."""
    return _app
