"""The HTTP API of predict.

Plain ASGI: a framework's request, response and routing objects would cost as much as
a prediction does, and their import a tenth of the cold start.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import parse_qs

import msgspec

from functions.access_log import LOG_FIELDS, AccessLog, send_problem
from functions.predict.bundle import Bundle, Manifest
from functions.problem import Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MAX_TEXT = 20_000
MAX_BODY = 1024**2
MAX_BATCH_BODY = 8 * 1024**2
MAX_BATCH_TEXTS = 1_000
# An explanation is many times as large as its text.
MAX_EXPLAINED_TEXTS = 100
MAX_EXPLAINED_CHARACTERS = 100_000

# As long as one text may be: a batch keeps others waiting no longer than a question does.
_CHARACTERS_A_TURN = 20_000
# What an empty text costs, in characters.
_CHARACTERS_OF_OVERHEAD = 20

_BATCH_START = re.compile(r'\s*\{\s*"texts"\s*:\s*\[\s*')
_BETWEEN_TEXTS = re.compile(r"\s*,\s*")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]{1,128}")

_OPENAPI = Path(__file__).with_name("openapi.json")

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /predict``."""

    text: Text


class BatchQuestion(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /predict:batch``."""

    texts: list[Text]


class Details(msgspec.Struct):
    """Where an answer came from."""

    mlflow_run_id: str
    inference_elapsed: float
    """Seconds spent on tokenizing and scoring."""


class Answer(msgspec.Struct, omit_defaults=True):
    """Answer to one text."""

    text: str
    is_positive_review: int
    details: Details
    score: float
    model_version: str
    revision: str
    bias: float | msgspec.UnsetType = msgspec.UNSET


class ModelAnswer(msgspec.Struct):
    """Answer of ``GET /model``."""

    manifest: Manifest
    manifest_sha256: str
    model_version: str
    revision: str


def create_app(bundle: Bundle | None, *, model_version: str, revision: str) -> ASGIApp:
    """Return the ASGI application.

    Args:
        bundle: what to serve; None: ``/ready``, ``/model`` and predictions answer 503.
        model_version: the registry's version of the model, as answers name it.
        revision: the Cloud Run revision, as answers name it.
    """
    encode = msgspec.json.Encoder().encode
    decode_question = msgspec.json.Decoder(Question).decode
    decode_batch = msgspec.json.Decoder(BatchQuestion).decode

    def ready() -> Bundle:
        if bundle is None:
            raise Problem(503, "No model is served yet: promote one.", retry_after=10)
        return bundle

    def answer(served: Bundle, text: str, explain: bool, usage: _Usage) -> tuple[bytes, ...]:
        bias: float | msgspec.UnsetType = msgspec.UNSET
        start = time.perf_counter()
        if explain:
            assessment, bias, contributions = served.scorer.explain_encoded(text)
        else:
            assessment = served.scorer.assess(text)
        elapsed = time.perf_counter() - start
        score, tokens, unknown = assessment
        usage.tokens += tokens
        usage.unknown += unknown
        content = encode(
            Answer(
                text,
                int(score >= served.manifest.threshold),
                Details(served.manifest.mlflow_run_id, elapsed),
                score,
                model_version,
                revision,
                bias,
            )
        )
        if not explain:
            return (content,)
        # An explanation is many times as large as the rest: it is copied once, when all is joined.
        return (content[:-1], b',"explanation":', contributions, b"}")

    async def predict(scope: Scope, receive: Receive) -> bytes:
        served = ready()
        question = _decode(decode_question, await _read_body(receive, MAX_BODY))
        usage = _Usage()
        content = b"".join(answer(served, question.text, _wants_explanation(scope), usage))
        usage.log(scope, model_version)
        return content

    async def predict_batch(scope: Scope, receive: Receive) -> bytes:
        served = ready()
        texts = _decode(decode_batch, await _read_body(receive, MAX_BATCH_BODY)).texts
        if len(texts) > MAX_BATCH_TEXTS:
            raise Problem(413, f"{len(texts)} texts; at most {MAX_BATCH_TEXTS} in one batch.")
        explain = _wants_explanation(scope)
        if explain:
            _check_explainable(texts)
        usage = _Usage()
        parts: list[bytes] = []
        async for text in _in_turns(texts):
            parts += answer(served, text, explain, usage)
            parts.append(b",")
        usage.log(scope, model_version)
        scope[LOG_FIELDS]["texts"] = len(texts)
        # Without the last comma.
        return b"".join((b'{"predictions":[', *parts[:-1], b"]}"))

    async def model(_scope: Scope, _receive: Receive) -> bytes:
        served = ready()
        return encode(ModelAnswer(served.manifest, served.digest, model_version, revision))

    async def is_ready(_scope: Scope, _receive: Receive) -> bytes:
        ready()
        return encode({"status": "ready", "model_version": model_version})

    async def health(_scope: Scope, _receive: Receive) -> bytes:
        return encode({"status": "ok"})

    async def openapi(_scope: Scope, _receive: Receive) -> bytes:
        return _OPENAPI.read_bytes()

    async def ping(_scope: Scope, _receive: Receive) -> bytes:
        return encode({"ping": "pong"})

    return AccessLog(
        _Router(
            {
                "/predict": _Route("POST", predict),
                "/predict:batch": _Route("POST", predict_batch),
                "/model": _Route("GET, HEAD", model),
                "/health": _Route("GET, HEAD", health),
                "/ready": _Route("GET, HEAD", is_ready),
                "/ping": _Route("GET, HEAD", ping),
                "/openapi.json": _Route("GET, HEAD", openapi),
            }
        ),
        headers=_origin(bundle, revision),
    )


def _origin(bundle: Bundle | None, revision: str) -> list[tuple[bytes, bytes]]:
    """Return the headers that say what answers, those of them that are known."""
    values = {b"x-greenroom-revision": revision}
    if bundle is not None:
        values[b"x-greenroom-git-commit"] = bundle.manifest.git_commit or ""
        values[b"x-greenroom-data-digest"] = bundle.manifest.data_digest
    return [
        (name, value.encode("ascii"))
        for name, value in values.items()
        if _HEADER_VALUE.fullmatch(value)
    ]


class _Usage:
    """What predictions rested on, for the log."""

    __slots__ = ("tokens", "unknown")

    def __init__(self) -> None:
        self.tokens = 0
        self.unknown = 0

    def log(self, scope: Scope, model_version: str) -> None:
        scope[LOG_FIELDS] |= {
            "model_version": model_version,
            "tokens": self.tokens,
            "unknown_share": round(self.unknown / self.tokens, 4) if self.tokens else 0.0,
        }


class _Route(NamedTuple):
    methods: str
    """As the header ``Allow`` lists them."""
    answer: Callable[[Scope, Receive], Awaitable[bytes]]
    """Returns JSON, or raises `Problem`."""


class _Router:
    """Finds who answers, and sends the answer."""

    def __init__(self, routes: dict[str, _Route]) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            route = self._routes.get(scope["path"])
            if route is None:
                raise Problem(404, "Not Found")
            if scope["method"] not in route.methods.split(", "):
                problem = Problem(405, "Method Not Allowed")
                problem.headers["Allow"] = route.methods
                raise problem
            content = await route.answer(scope, receive)
        except Problem as problem:
            await send_problem(problem, send)
            return
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(content)),
            ],
        }
        await send(start)
        await send({"type": "http.response.body", "body": content})


async def _read_body(receive: Receive, limit: int) -> bytes | bytearray:
    message = await receive()
    body: bytes | bytearray = message.get("body", b"")
    if message.get("more_body", False):
        body = bytearray(body)
    # Counted while it arrives: a body without Content-Length is limited as well.
    while len(body) <= limit:
        if message["type"] == "http.disconnect":
            raise Problem(400, "The body ended before its length.")
        if not message.get("more_body", False):
            return body
        message = await receive()
        body += message.get("body", b"")
    raise Problem(413, f"The body is larger than {limit} bytes.")


def _decode(decode: Any, body: bytes | bytearray) -> Any:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # A wrong type has its place in the message; a wrong character has not.
        index = None if isinstance(error, msgspec.ValidationError) else _find_bad_text(body)
        place = "" if index is None else f" - at `$.texts[{index}]`"
        raise Problem(422, f"The body is not what is expected: {error}{place}.") from error


def _find_bad_text(body: bytes | bytearray) -> int | None:
    """Return the index of the first text of a batch that is no Unicode; None: there is none.

    Text by text, and no further than to the first bad one: built as a whole, a hostile
    body would take forty times its size.
    """
    text = body.decode("utf-8", "surrogateescape")
    separator = _BATCH_START.match(text)
    decode_next = json.JSONDecoder().raw_decode
    index = 0
    while separator and text.startswith('"', separator.end()):
        try:
            item, end = decode_next(text, separator.end())
        except ValueError:
            return None
        try:
            item.encode()
        except UnicodeEncodeError:
            return index
        separator = _BETWEEN_TEXTS.match(text, end)
        index += 1
    return None


def _check_explainable(texts: Sequence[str]) -> None:
    characters = sum(map(len, texts))
    if len(texts) > MAX_EXPLAINED_TEXTS or characters > MAX_EXPLAINED_CHARACTERS:
        raise Problem(
            413,
            f"{len(texts)} texts of {characters} characters; with explain=true at most "
            f"{MAX_EXPLAINED_TEXTS} of {MAX_EXPLAINED_CHARACTERS} together in one batch.",
        )


async def _in_turns(texts: Sequence[str]) -> AsyncIterator[str]:
    """Yield each text, and let other requests have their turn now and then."""
    done = 0
    for text in texts:
        yield text
        done += len(text) + _CHARACTERS_OF_OVERHEAD
        if done >= _CHARACTERS_A_TURN:
            done = 0
            await asyncio.sleep(0)


# As nearly everyone writes it: taking a query apart costs as much as half a prediction.
_EXPLAIN = {b"": False, b"explain=true": True, b"explain=false": False}


def _wants_explanation(scope: Scope) -> bool:
    query: bytes = scope["query_string"]
    if (known := _EXPLAIN.get(query)) is not None:
        return known
    value = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("explain", ["false"])[-1]
    if value.lower() not in ("true", "false", "1", "0"):
        raise Problem(422, "explain must be true or false.")
    return value.lower() in ("true", "1")
