"""The plain ``POST /predictions``, past FastAPI.

FastAPI's layers take half a millisecond of a request, a third of all that the proxy does
for a prediction. What is not plain, or not valid, goes to FastAPI, which refuses it in its
own words: both ways give the same answers.
"""

import re

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.access_log import send_problem
from functions.problem import Problem
from functions.proxy.callers import caller_name
from functions.proxy.creation import Backends, Order, create
from functions.proxy.middleware import STARTED
from functions.proxy.schemas import PredictionRequest

_EXPLAIN = {b"": False, b"explain=false": False, b"explain=true": True}
_HEADERS = frozenset(
    {
        b"authorization",
        b"content-type",
        b"idempotency-key",
        b"x-greenroom-caller",
        b"x-serverless-authorization",
    }
)
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_CALLER = re.compile(r"[\x20-\x7e]{1,128}")


class FastLane:
    """Answers what is plain, and passes the rest on.

    Args:
        app: the whole API.
        backends: its backends.
    """

    def __init__(self, app: ASGIApp, backends: Backends) -> None:
        self._app = app
        self._backends = backends
        self._trusted_fronts = backends.settings.trusted_fronts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whose body comes in one piece."""
        if (
            scope["type"] != "http"
            or scope["path"] != "/predictions"
            or scope["method"] != "POST"
            or scope["query_string"] not in _EXPLAIN
        ):
            await self._app(scope, receive, send)
            return
        message = await receive()
        order = self._order(scope, message.get("body", b""))
        if order is None:
            pending: list[Message] = [message]

            async def again() -> Message:
                return pending.pop() if pending else await receive()

            await self._app(scope, again, send)
            return
        try:
            created, replayed = await create(self._backends, order, scope)
        except Problem as problem:
            await send_problem(problem, send)
            return
        content = created.model_dump_json(exclude_unset=True).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        if replayed:
            headers.append((b"idempotent-replayed", b"true"))
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _order(self, scope: Scope, body: bytes) -> Order | None:
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            if name in _HEADERS:
                text = name.decode("ascii")
                if text in headers:
                    return None
                headers[text] = value.decode("latin-1")
        key, caller = headers.get("idempotency-key"), headers.get("x-greenroom-caller")
        if (
            headers.get("content-type") != "application/json"
            or (key is not None and not _KEY.fullmatch(key))
            or (caller is not None and not _CALLER.fullmatch(caller))
        ):
            return None
        try:
            request = PredictionRequest.model_validate_json(body)
        except ValidationError:
            return None
        return Order(
            request=request,
            explain=_EXPLAIN[scope["query_string"]],
            key=key,
            caller=caller_name(headers, caller, self._trusted_fronts),
            started=scope[STARTED],
        )
