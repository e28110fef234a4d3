"""What every request to a service passes first: access log, trace, the last resort for errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from functions.logs import current_trace, parse_trace, write_request
from functions.problem import MEDIA_TYPE, Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

# Member of the ASGI scope: a dict; what the application puts there goes into the line.
LOG_FIELDS = "greenroom.log_fields"

_TRACE_HEADERS = (b"traceparent", b"x-cloud-trace-context")


class AccessLog:
    """Logs one line a request, and answers 500 for what nothing else caught.

    Every line logged meanwhile carries the request's trace. Plain ASGI, since it is
    part of every prediction's latency.

    Must be the outermost middleware: functions-framework would start a second
    response for an exception that reaches it.

    Args:
        app: what answers.
        headers: added to every answer, lower-case name and value.
    """

    def __init__(self, app: ASGIApp, *, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._app = app
        self._headers = headers

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
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        fields: dict[str, object] = {}
        scope[LOG_FIELDS] = fields
        traces = {
            name.decode("ascii"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _TRACE_HEADERS
        }
        token = current_trace.set(parse_trace(traces) if traces else None)
        try:
            try:
                await self._app(scope, receive, watch)
            except Exception:
                _log.exception("Unexpected error")
                if status:
                    # Whatever was said at first: the answer ends before its end.
                    status = 500
                    raise
                problem = Problem(500, "Something went wrong here. Try again later.")
                await send_problem(problem, watch)
        finally:
            write_request(
                method=scope["method"],
                path=scope["path"],
                status=status or 500,
                seconds=time.perf_counter() - started,
                logger=__name__,
                members=fields,
            )
            current_trace.reset(token)


async def send_problem(problem: Problem, send: Send) -> None:
    """Answer with a problem document, in ASGI."""
    content = problem.content()
    headers = {
        "content-type": MEDIA_TYPE,
        "content-length": str(len(content)),
        **problem.headers,
    }
    start: dict[str, Any] = {
        "type": "http.response.start",
        "status": problem.status,
        "headers": [
            (name.lower().encode("ascii"), value.encode("latin-1"))
            for name, value in headers.items()
        ],
    }
    await send(start)
    await send({"type": "http.response.body", "body": content})
