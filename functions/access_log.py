"""What every request to a service passes first: access log, trace, the last resort for errors."""

import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.logs import current_trace, parse_trace, request_fields
from functions.problem import Problem

_log = logging.getLogger(__name__)


class AccessLog:
    """Logs one line a request, and answers 500 for what nothing else caught.

    Every line logged meanwhile carries the request's trace. Plain ASGI, since it is
    part of every prediction's latency.

    Must be the outermost middleware: functions-framework would start a second
    response for an exception that reaches it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and log what it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = current_trace.set(parse_trace(Headers(scope=scope)))
        try:
            try:
                await self._app(scope, receive, watch)
            except Exception:
                _log.exception("Unexpected error")
                if status:
                    raise
                problem = Problem(500, "Something went wrong here. Try again later.")
                await problem.response()(scope, receive, watch)
            _log.log(
                logging.ERROR if status >= 500 else logging.INFO,
                "%s answered %d",
                scope["method"],
                status,
                extra={
                    "fields": request_fields(
                        method=scope["method"], path=scope["path"], status=status, started=started
                    )
                },
            )
        finally:
            current_trace.reset(token)
