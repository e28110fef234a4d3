"""The proxy's HTTP API."""

import hashlib
import json
import re
import secrets
import zlib
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from functions.access_log import AccessLog
from functions.problem import Problem, answer_http_exception, answer_problem
from functions.proxy.cursor import read_cursor, write_cursor
from functions.proxy.middleware import BodyLimit
from functions.proxy.predictor import Predictor
from functions.proxy.schemas import (
    Explanation,
    PredictionCreated,
    PredictionItem,
    PredictionRequest,
    ProblemDocument,
    RolloutsAnswer,
    StatisticsAnswer,
)
from functions.proxy.settings import Settings
from functions.proxy.statistics import count_one, fold
from functions.proxy.storage import AlreadyStored, Position, Prediction, Store, Unconfirmed

_ID = re.compile(r"[0-9a-f]{32}")
_MAX_ERRORS = 20
_MAX_NAME_LENGTH = 100
_RETRY_AFTER_SECONDS = 5

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="A retry with the same key and request gets the first answer, counted once.",
    ),
]


def create_app(settings: Settings) -> FastAPI:
    """Return the API. Its connections open at the first request that needs them."""
    app = FastAPI(
        title="Greenroom",
        description="Is it a positive review? Ask the model, and say what you think.",
        version="1",
        redirect_slashes=False,
        responses={
            code: {"description": description, "content": _PROBLEM_CONTENT}
            for code, description in _PROBLEMS.items()
        },
    )
    backends = _Backends(settings)

    @app.post("/predictions", status_code=201, response_model_exclude_unset=True)
    async def create_prediction(
        request: PredictionRequest,
        response: Response,
        explain: bool = False,
        idempotency_key: IdempotencyKey = None,
    ) -> PredictionCreated:
        """Ask the model about a review, and store its answer and the user's own."""
        return await _create(backends, request, response, explain, idempotency_key)

    @app.get("/predictions")
    async def list_predictions(
        response: Response,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: Annotated[
            str | None, Query(max_length=200, description="From the Link header's next page.")
        ] = None,
    ) -> list[PredictionItem]:
        """Return predictions, newest first; the Link header names the next page."""
        after = _position(cursor)
        # One more than asked for tells whether there is a next page.
        found = await backends.store.newest(limit + 1, after)
        page = found[:limit]
        if len(found) > limit:
            last = Position(page[-1].timestamp, page[-1].id)
            query = urlencode({"limit": limit, "cursor": write_cursor(last)})
            response.headers["Link"] = f'</predictions?{query}>; rel="next"'
        return [PredictionItem.model_validate(prediction) for prediction in page]

    @app.get("/predictions/{prediction_id}")
    async def get_prediction(prediction_id: str) -> PredictionItem:
        """Return one prediction."""
        # Only our own form of id reaches Firestore, which refuses or reserves others.
        known = _ID.fullmatch(prediction_id)
        prediction = await backends.store.get(prediction_id) if known else None
        if prediction is None:
            raise Problem(404, "There is no prediction with this id.")
        return PredictionItem.model_validate(prediction)

    @app.get("/statistics")
    async def get_statistics() -> StatisticsAnswer:
        """Return how often user and model agree: in all, per model version, per day."""
        return StatisticsAnswer(statistics=fold(await backends.store.counters()))

    @app.get("/rollouts")
    async def get_rollouts(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> RolloutsAnswer:
        """Return what is being served, and the newest entries of the rollout ledger."""
        status, ledger = await backends.store.rollouts(limit)
        return RolloutsAnswer(status=status, ledger=ledger)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/ping")
    async def ping() -> dict[str, str]:
        """Answer with a pong."""
        return {"ping": "pong"}

    app.add_exception_handler(Problem, answer_problem)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_middleware(BodyLimit)
    app.add_middleware(AccessLog)
    _describe_problems(app)
    return app


class _Backends:
    """Predict and Firestore, connected on first use: the server forks before that."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor(self._settings)

    @cached_property
    def store(self) -> Store:
        return Store(self._settings)


async def _create(
    backends: _Backends,
    request: PredictionRequest,
    response: Response,
    explain: bool,
    key: str | None,
) -> PredictionCreated:
    prediction_id = secrets.token_hex(16) if key is None else _id_of(key)
    digest = _digest(request, explain)
    if key is not None and (first := await backends.store.get(prediction_id)):
        return _replay(first, digest, response)

    answer = await backends.predictor.predict(request.text, explain=explain)
    explanation = Explanation.of(answer) if explain else None
    user, model = request.is_positive_user_answered, bool(answer.is_positive_review)
    prediction = Prediction(
        id=prediction_id,
        text=request.text,
        is_positive_user_answered=user,
        is_positive_model_answered=model,
        mlflow_run_id=answer.details.mlflow_run_id,
        inference_elapsed=answer.details.inference_elapsed,
        timestamp=datetime.now(UTC),
        score=answer.score,
        model_version=answer.model_version,
        revision=answer.revision,
        request_digest=digest,
        explanation=_pack(explanation) if key is not None else None,
    )
    counter = count_one(
        day=prediction.timestamp.date().isoformat(),
        model_version=answer.model_version,
        user=user,
        model=model,
        score=answer.score,
    )
    try:
        await backends.store.add(prediction, counter)
    except AlreadyStored:
        # Without a key: our own commit had succeeded, its answer was lost, and the
        # repeated commit met it. With one: that, or the same request came twice at once.
        if key is not None:
            first = await backends.store.get(prediction_id)
            if first is None:
                raise Problem(503, "The prediction was just deleted. Try again.") from None
            return _replay(first, digest, response)
    except Unconfirmed as error:
        raise Problem(503, _unconfirmed(key), retry_after=_RETRY_AFTER_SECONDS) from error
    return PredictionCreated.of(prediction, explanation)


def _unconfirmed(key: str | None) -> str:
    if key is not None:
        again = "Retry with the same Idempotency-Key: it is stored and counted once."
    else:
        again = (
            "A retry may store it a second time. To retry safely another time, send an "
            "Idempotency-Key with the first request too."
        )
    return f"The database did not confirm in time: the prediction may have been stored. {again}"


def _replay(first: Prediction, digest: str, response: Response) -> PredictionCreated:
    if not secrets.compare_digest(first.request_digest, digest):
        raise Problem(422, "This Idempotency-Key was used for another request. Use a new key.")
    response.headers["Idempotent-Replayed"] = "true"
    return PredictionCreated.of(first, _unpack(first.explanation))


def _id_of(key: str) -> str:
    return hashlib.sha256(b"prediction:" + key.encode()).hexdigest()[:32]


def _digest(request: PredictionRequest, explain: bool) -> str:
    plain = json.dumps([request.text, request.is_positive_user_answered, explain])
    return hashlib.sha256(plain.encode()).hexdigest()


def _pack(explanation: Explanation | None) -> bytes | None:
    # Compressed, since a long text's explanation could outgrow a document.
    return zlib.compress(explanation.model_dump_json().encode()) if explanation else None


def _unpack(packed: bytes | None) -> Explanation | None:
    return Explanation.model_validate_json(zlib.decompress(packed)) if packed else None


def _position(cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    try:
        return read_cursor(cursor)
    except ValueError:
        raise Problem(
            422, "The cursor is not valid. Take it from the Link header of the page before."
        ) from None


async def _answer_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for it alone
    # Without the values: they are the caller's, and may not even be encodable.
    errors = [
        {"location": [_safe(name) for name in item["loc"]], "detail": item["msg"]}
        for item in error.errors()[:_MAX_ERRORS]
    ]
    return Problem(422, "The request is not valid.", errors=errors).response()


def _safe(name: str | int) -> str | int:
    if isinstance(name, int):
        return name
    return name[:_MAX_NAME_LENGTH].encode("utf-8", "backslashreplace").decode()


_PROBLEMS: dict[int | str, str] = {
    404: "There is no such thing.",
    405: "The path does not take this method.",
    413: "The body is too large.",
    422: "The request is not valid.",
    500: "Something went wrong here.",
    502: "The model's answer made no sense; nothing was stored.",
    503: "The model or the database can't be reached. Nothing was stored, except where the "
    "detail says that it may have been: then retry with the same Idempotency-Key.",
    504: "The model took too long; nothing was stored.",
}
_PROBLEM_CONTENT = {
    "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}
}


def _describe_problems(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
        definitions = schema.pop("$defs", {})
        document["components"]["schemas"].update({"ProblemDocument": schema} | definitions)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
