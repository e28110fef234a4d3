"""The limits on requests: how many at once, and how large."""

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.access_log import send_problem
from functions.problem import Problem

# Member of the ASGI scope: `time.perf_counter` of when the request came in, in seconds.
STARTED = "greenroom.started"

MAX_BODY_BYTES = 1024 * 1024
_DRAIN_BYTES = 32 * 1024 * 1024
_DRAIN_SECONDS = 2


_RETRY_AFTER_SECONDS = 1
_ALWAYS_ANSWERED = frozenset({"/health", "/ping"})


class InFlightLimit:
    """Answers 429 where as many requests as allowed are under way already.

    Args:
        app: the application.
        limit: requests at once, of this process.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, or refuse the request before it is read."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS_ANSWERED:
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._limit:
            problem = Problem(
                429,
                f"More than {self._limit} requests at once. Try again in a moment.",
                retry_after=_RETRY_AFTER_SECONDS,
            )
            await send_problem(problem, send)
            return
        scope[STARTED] = time.perf_counter()
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1


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
