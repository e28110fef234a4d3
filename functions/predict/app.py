"""The HTTP API of predict."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from functions.access_log import AccessLog
from functions.predict.bundle import Bundle, Manifest
from functions.problem import Problem, answer_http_exception, answer_problem

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


class ExplanationItem(msgspec.Struct):
    """What one n-gram adds to the logit; offsets are code points of the text."""

    token: str
    start: int
    end: int
    contribution: float


class Answer(msgspec.Struct, omit_defaults=True):
    """Answer to one text."""

    text: str
    is_positive_review: int
    details: Details
    score: float
    model_version: str
    revision: str
    bias: float | msgspec.UnsetType = msgspec.UNSET
    explanation: list[ExplanationItem] | msgspec.UnsetType = msgspec.UNSET


class BatchAnswer(msgspec.Struct):
    """Answers in the order of the texts, each encoded as soon as it is there."""

    predictions: list[msgspec.Raw]


class ModelAnswer(msgspec.Struct):
    """Answer of ``GET /model``."""

    manifest: Manifest
    manifest_sha256: str
    model_version: str
    revision: str


def create_app(bundle: Bundle | None, *, model_version: str, revision: str) -> Starlette:
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

    def answer(served: Bundle, text: str, explain: bool) -> Answer:
        start = time.perf_counter()
        result = Answer(
            text=text,
            is_positive_review=0,
            details=Details(served.manifest.mlflow_run_id, 0.0),
            score=0.0,
            model_version=model_version,
            revision=revision,
        )
        if explain:
            explanation = served.scorer.explain(text)
            result.score = explanation.score
            result.bias = explanation.bias
            result.explanation = [ExplanationItem(*item) for item in explanation.contributions]
        else:
            result.score = served.scorer.score(text)
        result.is_positive_review = int(result.score >= served.manifest.threshold)
        result.details.inference_elapsed = time.perf_counter() - start
        return result

    async def predict(request: Request) -> Response:
        served = ready()
        body = await _read_body(request, MAX_BODY)
        question = _decode(decode_question, body)
        return _json(encode(answer(served, question.text, _wants_explanation(request))))

    async def predict_batch(request: Request) -> Response:
        served = ready()
        body = await _read_body(request, MAX_BATCH_BODY)
        texts = _decode(decode_batch, body).texts
        if len(texts) > MAX_BATCH_TEXTS:
            raise Problem(413, f"{len(texts)} texts; at most {MAX_BATCH_TEXTS} in one batch.")
        explain = _wants_explanation(request)
        if explain:
            _check_explainable(texts)
        predictions = [
            msgspec.Raw(encode(answer(served, text, explain))) async for text in _in_turns(texts)
        ]
        return _json(encode(BatchAnswer(predictions)))

    async def model(_request: Request) -> Response:
        served = ready()
        return _json(encode(ModelAnswer(served.manifest, served.digest, model_version, revision)))

    async def is_ready(_request: Request) -> Response:
        ready()
        return _json(encode({"status": "ready", "model_version": model_version}))

    async def health(_request: Request) -> Response:
        return _json(encode({"status": "ok"}))

    async def ping(_request: Request) -> Response:
        return _json(encode({"ping": "pong"}))

    return Starlette(
        routes=[
            Route("/predict", predict, methods=["POST"]),
            Route("/predict:batch", predict_batch, methods=["POST"]),
            Route("/model", model),
            Route("/health", health),
            Route("/ready", is_ready),
            Route("/ping", ping),
        ],
        middleware=[Middleware(AccessLog)],
        exception_handlers={Problem: answer_problem, HTTPException: answer_http_exception},
    )


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


async def _read_body(request: Request, limit: int) -> bytes:
    # Counted while it arrives: a body without Content-Length is limited as well.
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise Problem(413, f"The body is larger than {limit} bytes.")
    return bytes(body)


def _decode(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(422, f"The body is not what is expected: {error}.") from error


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


def _wants_explanation(request: Request) -> bool:
    value = request.query_params.get("explain", "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise Problem(422, "explain must be true or false.")
    return value in ("true", "1")
