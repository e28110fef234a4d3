"""What every request passes: the access log with the trace, and the limit on bodies."""

import asyncio
import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.logs import current_trace, parse_trace, request_fields
from functions.problem import Problem

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024 * 1024
_DRAIN_BYTES = 32 * 1024 * 1024
_DRAIN_SECONDS = 2


class AccessLog:
    """Logs one line a request, and answers 500 for what nothing else caught.

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


class BodyLimit:
    """Answers 413 to a body above the limit, counted while reading it."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application with the whole body at hand, or refuse the body."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                await self._refuse(scope, receive, send, more)
                return

        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, more: bool) -> None:
        problem = Problem(413, f"The body is above {self._max_bytes} bytes. Send less.")

        async def hold_open(message: Message) -> None:
            if message["type"] == "http.response.body":
                message["more_body"] = True
            await send(message)

        await problem.response()(scope, receive, hold_open)
        # The answer is out. A client that reads only after it has sent everything
        # would still lose it to a connection reset, so take what it sends for a while.
        drained = 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while more and drained < _DRAIN_BYTES:
                    message = await receive()
                    drained += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
