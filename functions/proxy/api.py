"""The proxy's HTTP API."""

import hashlib
import json
import re
import secrets
import time
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from functools import cached_property
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from functions.access_log import AccessLog
from functions.problem import Problem, answer_http_exception, answer_problem
from functions.proxy.callers import answered_by, caller_digest, caller_name
from functions.proxy.commits import AlreadyStored
from functions.proxy.connection import RETRY_AFTER_SECONDS, Unconfirmed
from functions.proxy.cursor import read_cursor, write_cursor
from functions.proxy.description import CREATED, EXPORTED, LISTED, describe, problems
from functions.proxy.export import MEDIA_TYPES, write_file
from functions.proxy.lineage import Lineages
from functions.proxy.middleware import STARTED, BodyLimit, InFlightLimit
from functions.proxy.prediction import Filters, Position, Prediction
from functions.proxy.predictor import PredictFailed, Predictor
from functions.proxy.schemas import (
    AnswerRequest,
    Day,
    Explanation,
    Health,
    Pong,
    PredictionCreated,
    PredictionItem,
    PredictionRequest,
    RolloutsAnswer,
    StatisticsAnswer,
)
from functions.proxy.settings import Settings
from functions.proxy.statistics import fold
from functions.proxy.storage import Store

_ID = re.compile(r"[0-9a-f]{32}")
_MAX_ERRORS = 20
_MAX_NAME_LENGTH = 100
_DEFAULT_DAYS = 30
_MAX_DAYS = 366

_ITEMS = TypeAdapter(list[PredictionItem])
_STATISTICS = TypeAdapter(StatisticsAnswer)

PredictionId = Annotated[
    str,
    Path(description="Id of a prediction.", examples=["5b3cd1b1f0a04f9f8c0b2d9a8f5c7e11"]),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="A retry with the same key and request gets the first answer, counted once.",
        examples=["7c9e6679-7425-40de-944b-e07fc1f90ae7"],
    ),
]
CallerHeader = Annotated[
    str | None,
    Header(
        alias="X-Greenroom-Caller",
        min_length=1,
        max_length=128,
        pattern=r"^[\x20-\x7e]+$",
        description="Names the end user, from a front end that the proxy trusts.",
        examples=["session-42"],
    ),
]


def create_app(settings: Settings) -> FastAPI:
    """Return the API. Its connections open at the first request that needs them."""
    app = FastAPI(
        title="Greenroom",
        description="Is it a positive review? Ask the model, and say what you think.",
        version="1",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    backends = _Backends(settings)

    @app.post(
        "/predictions",
        status_code=201,
        response_model=PredictionCreated,
        responses=CREATED | problems(413, 422, 502, 503, 504),
    )
    async def create_prediction(
        request: Request,
        body: PredictionRequest,
        explain: bool = False,
        idempotency_key: IdempotencyKey = None,
        caller: CallerHeader = None,
    ) -> Response:
        """Ask the model about a review, and store its answer and the user's own."""
        name = caller_name(request.headers, caller, settings.trusted_fronts)
        started = request.scope[STARTED]
        creation = _Creation(backends, settings, body, explain, idempotency_key, name, started)
        created, replayed = await creation.run()
        response = _json(created, status=201)
        if replayed:
            response.headers["Idempotent-Replayed"] = "true"
        return response

    @app.get(
        "/predictions",
        response_model=list[PredictionItem],
        responses=LISTED | problems(422, 503),
    )
    async def list_predictions(
        filters: Annotated[Filters, Depends(_filters)],
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: Annotated[
            str | None, Query(max_length=200, description="From the Link header's next page.")
        ] = None,
    ) -> Response:
        """Return predictions, newest first; the Link header names the next page."""
        after = _position(cursor)
        # One more than asked for tells whether there is a next page.
        found = await backends.store.newest(limit + 1, after, filters)
        page = found[:limit]
        items = [PredictionItem.model_validate(prediction) for prediction in page]
        response = Response(_ITEMS.dump_json(items), media_type="application/json")
        if len(found) > limit:
            last = Position(page[-1].timestamp, page[-1].id)
            query = _query(filters) | {"limit": limit, "cursor": write_cursor(last)}
            response.headers["Link"] = f'</predictions?{urlencode(query)}>; rel="next"'
        return response

    @app.get(
        "/predictions/export",
        response_class=StreamingResponse,
        responses=EXPORTED | problems(422, 503),
    )
    async def export_predictions(
        filters: Annotated[Filters, Depends(_filters)],
        format: Annotated[
            Literal["csv", "jsonl"],
            Query(description="CSV that is safe to open in a spreadsheet, or JSON lines."),
        ] = "csv",
    ) -> Response:
        """Return all predictions as a file, newest first."""
        pages = backends.store.every(filters)
        # The first page before the answer begins: its failure can still be told.
        first = await anext(pages)
        return StreamingResponse(
            write_file(format, _chain(first, pages)),
            media_type=MEDIA_TYPES[format],
            headers={"Content-Disposition": f'attachment; filename="predictions.{format}"'},
        )

    @app.get(
        "/predictions/{prediction_id}",
        response_model=PredictionItem,
        responses=problems(404, 422, 503),
    )
    async def get_prediction(prediction_id: PredictionId) -> Response:
        """Return one prediction."""
        known = _is_id(prediction_id)
        return _item(await backends.store.get(prediction_id) if known else None)

    @app.put(
        "/predictions/{prediction_id}/answer",
        response_model=PredictionItem,
        responses=problems(404, 413, 422, 503),
    )
    async def answer_prediction(
        request: Request,
        prediction_id: PredictionId,
        body: AnswerRequest,
        caller: CallerHeader = None,
    ) -> Response:
        """Set, change or take back the user's answer; the statistics follow."""
        if not _is_id(prediction_id):
            return _item(None)
        name = caller_name(request.headers, caller, settings.trusted_fronts)
        try:
            prediction = await backends.store.commits.answer(
                prediction_id,
                body.is_positive_user_answered,
                caller=caller_digest(name),
                answered_by=answered_by(name, prediction_id),
            )
        except Unconfirmed as error:
            raise _unconfirmed("The answer may have been changed. Send it again.") from error
        return _item(prediction)

    @app.delete(
        "/predictions/{prediction_id}", status_code=204, responses=problems(404, 413, 422, 503)
    )
    async def delete_prediction(prediction_id: PredictionId) -> Response:
        """Delete a prediction for good; the statistics no longer count it."""
        try:
            known = _is_id(prediction_id)
            deleted = await backends.store.commits.delete(prediction_id) if known else False
        except Unconfirmed as error:
            raise _unconfirmed("It may have been deleted. Try again.") from error
        if not deleted:
            _item(None)
        return Response(status_code=204)

    @app.get("/statistics", response_model=StatisticsAnswer, responses=problems(422, 503))
    async def get_statistics(
        since: Annotated[Day | None, Query(description="First UTC day of a range.")] = None,
        until: Annotated[
            Day | None, Query(description="Last UTC day of a range of at most 366 days.")
        ] = None,
    ) -> Response:
        """Return how often user and model agree, how sure that is, and how fast answers were.

        Of all time, with the last 30 days one by one; or of a range of days.
        """
        first, last = _range(since, until)
        all_time = since is None and until is None
        shards = await backends.store.shards(since=first, until=last, with_totals=all_time)
        statistics = fold(shards, since=first, until=last, all_time=all_time)
        content = _STATISTICS.dump_json(StatisticsAnswer(statistics=statistics))
        return Response(content, media_type="application/json")

    @app.get("/rollouts", response_model=RolloutsAnswer, responses=problems(422, 503))
    async def get_rollouts(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
        """Return what is being served, and the newest entries of the rollout ledger."""
        status, ledger = await backends.store.rollouts(limit)
        return _json(RolloutsAnswer(status=status, ledger=ledger))

    @app.get("/health", responses=problems())
    async def health() -> Health:
        """Say that the process answers."""
        return Health(status="ok")

    @app.get("/ping", responses=problems())
    async def ping() -> Pong:
        """Answer with a pong."""
        return Pong(ping="pong")

    app.add_exception_handler(Problem, answer_problem)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_middleware(BodyLimit)
    app.add_middleware(InFlightLimit, limit=settings.max_in_flight)
    app.add_middleware(AccessLog)
    describe(app)
    return app


class _Backends:
    """Predict and Firestore, connected on first use: the server forks before that."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor(self._settings)

    @cached_property
    def lineages(self) -> Lineages:
        return Lineages(self.predictor)

    @cached_property
    def store(self) -> Store:
        return Store(self._settings)


class _Creation:
    """One request for a prediction."""

    def __init__(
        self,
        backends: _Backends,
        settings: Settings,
        request: PredictionRequest,
        explain: bool,
        key: str | None,
        caller: str,
        started: float,
    ) -> None:
        self._backends = backends
        self._kept = timedelta(days=settings.retention_days) or None
        self._request = request
        self._explain = explain
        self._key = key
        self._caller = caller
        self._started = started
        self._id = secrets.token_hex(16) if key is None else _id_of(key)
        self._digest = _digest(request, explain)

    async def run(self) -> tuple[PredictionCreated, bool]:
        """Return the answer, and whether it is an earlier one, given again."""
        store = self._backends.store
        if self._key is not None and (first := await store.get(self._id)):
            return self._replay(first), True
        prediction, explanation = await self._predict()
        try:
            await store.commits.create(prediction, caller_digest(self._caller))
        except AlreadyStored:
            # Without a key: our own commit had succeeded, its answer was lost, and the
            # repeated commit met it. With one: that, or the same request came twice at once.
            if self._key is not None:
                earlier = await store.get(self._id)
                if earlier is None:
                    raise Problem(
                        503,
                        "The prediction was just deleted. Try again.",
                        retry_after=RETRY_AFTER_SECONDS,
                    ) from None
                return self._replay(earlier), True
        except Unconfirmed as error:
            raise _unconfirmed(self._advice()) from error
        user = self._request.is_positive_user_answered
        return PredictionCreated.of(prediction, user, explanation), False

    async def _predict(self) -> tuple[Prediction, Explanation | None]:
        asked = time.perf_counter()
        try:
            answer = await self._backends.predictor.predict(
                self._request.text, explain=self._explain
            )
        except PredictFailed as error:
            today = datetime.now(UTC).date().isoformat()
            self._backends.store.commits.count_failure(today, error.revision)
            raise
        answered = time.perf_counter()
        lineage = await self._backends.lineages.of(answer)
        explanation = Explanation.of(answer) if self._explain else None
        user, now = self._request.is_positive_user_answered, datetime.now(UTC)
        prediction = Prediction(
            id=self._id,
            text=self._request.text,
            is_positive_user_answered=user,
            is_positive_model_answered=bool(answer.is_positive_review),
            mlflow_run_id=answer.details.mlflow_run_id,
            inference_elapsed=answer.details.inference_elapsed,
            timestamp=now,
            score=answer.score,
            model_version=answer.model_version,
            revision=answer.known_revision,
            git_commit=lineage.git_commit,
            data_digest=lineage.data_digest,
            predict_elapsed=answered - asked,
            elapsed=time.perf_counter() - self._started,
            request_digest=self._digest,
            answered_by=None if user is None else answered_by(self._caller, self._id),
            explanation=_pack(explanation) if self._key is not None else None,
            expire_at=now + self._kept if self._kept else None,
        )
        return prediction, explanation

    def _replay(self, first: Prediction) -> PredictionCreated:
        if not secrets.compare_digest(first.request_digest, self._digest):
            raise Problem(422, "This Idempotency-Key was used for another request. Use a new key.")
        user = self._request.is_positive_user_answered
        return PredictionCreated.of(first, user, _unpack(first.explanation))

    def _advice(self) -> str:
        advice = "The prediction may have been stored. "
        if self._key is not None:
            return f"{advice}Retry with the same Idempotency-Key: it is stored and counted once."
        return (
            f"{advice}A retry may store it a second time. To retry safely another time, send "
            "an Idempotency-Key with the first request too."
        )


def _json(document: BaseModel, status: int = 200) -> Response:
    # Already checked: FastAPI would check it once more.
    content = document.model_dump_json(exclude_unset=True)
    return Response(content, status_code=status, media_type="application/json")


def _item(prediction: Prediction | None) -> Response:
    if prediction is None:
        raise Problem(404, "There is no prediction with this id.")
    return _json(PredictionItem.model_validate(prediction))


def _is_id(prediction_id: str) -> bool:
    # Only our own form of id reaches Firestore, which refuses or reserves others.
    return _ID.fullmatch(prediction_id) is not None


def _unconfirmed(advice: str) -> Problem:
    return Problem(
        503, f"The database did not confirm in time. {advice}", retry_after=RETRY_AFTER_SECONDS
    )


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


def _filters(
    model_version: Annotated[
        str | None,
        Query(
            min_length=1, max_length=63, description="Only those of this version.", examples=["10"]
        ),
    ] = None,
    day: Annotated[Day | None, Query(description="Only those of this UTC day.")] = None,
    disagreements: Annotated[
        bool, Query(description="Only those whose user does not agree with the model.")
    ] = False,
) -> Filters:
    begin = None if day is None else datetime.combine(day, clock(), UTC)
    return Filters(model_version=model_version, day=begin, disagreements=disagreements)


def _query(filters: Filters) -> dict[str, str | int]:
    query: dict[str, str | int] = {}
    if filters.model_version is not None:
        query["model_version"] = filters.model_version
    if filters.day is not None:
        query["day"] = filters.day.date().isoformat()
    if filters.disagreements:
        query["disagreements"] = "true"
    return query


def _range(since: date | None, until: date | None) -> tuple[str, str]:
    today = datetime.now(UTC).date()
    last = until or max(today, since or today)
    if since is not None:
        first = since
    else:
        first = date.fromordinal(max(1, last.toordinal() - _DEFAULT_DAYS + 1))
    if first > last:
        raise Problem(422, "The range ends before it begins: give since first, then until.")
    if (last - first).days >= _MAX_DAYS:
        raise Problem(422, f"The range is longer than {_MAX_DAYS} days: ask for less.")
    return first.isoformat(), last.isoformat()


async def _chain(
    first: list[Prediction], others: AsyncIterator[list[Prediction]]
) -> AsyncIterator[list[Prediction]]:
    yield first
    async for page in others:
        yield page


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
