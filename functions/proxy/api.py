"""The proxy's HTTP API."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from datetime import time as clock
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.routing import Route

from functions.access_log import AccessLog
from functions.problem import Problem, answer_http_exception, answer_problem
from functions.proxy.callers import caller_digest, caller_name
from functions.proxy.connection import Unconfirmed
from functions.proxy.creation import Backends, Order, create, log_answer, unconfirmed
from functions.proxy.cursor import read_cursor, write_cursor
from functions.proxy.description import (
    ALWAYS_ANSWERED,
    CREATED,
    CURSOR_EXAMPLE,
    EXPORTED,
    LISTED,
    describe,
    problems,
)
from functions.proxy.export import MEDIA_TYPES, write_file
from functions.proxy.fast_lane import FastLane
from functions.proxy.middleware import STARTED, BodyLimit, InFlightLimit
from functions.proxy.prediction import Filters, Position, Prediction
from functions.proxy.schemas import (
    AnswerRequest,
    Day,
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

_ID = re.compile(r"[0-9a-f]{32}")
_MAX_ERRORS = 20
_MAX_NAME_LENGTH = 100
_DEFAULT_DAYS = 30
_MAX_DAYS = 366

_ITEMS = TypeAdapter(list[PredictionItem])
_STATISTICS = TypeAdapter(StatisticsAnswer)

Explain = Annotated[
    bool,
    Query(description="Also say what each word and phrase adds to the verdict.", examples=[True]),
]
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
    backends = Backends(settings)

    @app.post(
        "/predictions",
        status_code=201,
        response_model=PredictionCreated,
        responses=CREATED | problems(400, 413, 422, 502, 503, 504),
    )
    async def create_prediction(
        request: Request,
        body: PredictionRequest,
        explain: Explain = False,
        idempotency_key: IdempotencyKey = None,
        caller: CallerHeader = None,
    ) -> Response:
        """Ask the model about a review, and store its answer and the user's own."""
        name = caller_name(request.headers, caller, settings.trusted_fronts)
        order = Order(
            request=body,
            explain=explain,
            key=idempotency_key,
            caller=name,
            started=request.scope[STARTED],
        )
        created, replayed = await create(backends, order, request.scope)
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
        limit: Annotated[
            int, Query(ge=1, le=1000, description="Most predictions.", examples=[20])
        ] = 100,
        cursor: Annotated[
            str | None,
            Query(
                max_length=200,
                description="From the Link header's next page.",
                examples=[CURSOR_EXAMPLE],
            ),
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
            Query(
                description="CSV that is safe to open in a spreadsheet, or JSON lines.",
                examples=["jsonl"],
            ),
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
        responses=problems(400, 404, 413, 422, 503),
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
            prediction, is_new = await backends.store.commits.answer(
                prediction_id,
                body.is_positive_user_answered,
                caller=caller_digest(name),
            )
        except Unconfirmed as error:
            raise unconfirmed("The answer may have been changed. Send it again.") from error
        if prediction is not None and is_new:
            log_answer(
                request.scope,
                prediction.is_positive_user_answered,
                prediction.is_positive_model_answered,
                prediction.model_version,
            )
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
            raise unconfirmed("It may have been deleted. Try again.") from error
        if not deleted:
            _item(None)
        return Response(status_code=204)

    @app.get("/statistics", response_model=StatisticsAnswer, responses=problems(422, 503))
    async def get_statistics(
        since: Annotated[
            Day | None, Query(description="First UTC day of a range.", examples=["2021-02-01"])
        ] = None,
        until: Annotated[
            Day | None,
            Query(
                description="Last UTC day of a range of at most 366 days.", examples=["2021-02-28"]
            ),
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
    async def get_rollouts(
        limit: Annotated[
            int, Query(ge=1, le=1000, description="Most entries.", examples=[20])
        ] = 100,
    ) -> Response:
        """Return what is being served, and the newest entries of the rollout ledger."""
        status, ledger = await backends.store.rollouts(limit)
        return _json(RolloutsAnswer(status=status, ledger=ledger))

    @app.get("/health", responses=ALWAYS_ANSWERED)
    async def health() -> Health:
        """Say that the process answers."""
        return Health(status="ok")

    @app.get("/ping", responses=ALWAYS_ANSWERED)
    async def ping() -> Pong:
        """Answer with a pong."""
        return Pong(ping="pong")

    app.add_exception_handler(Problem, answer_problem)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    # The last one added is the first that a request passes.
    app.add_middleware(FastLane, backends=backends)
    app.add_middleware(BodyLimit)
    app.add_middleware(InFlightLimit, limit=settings.max_in_flight)
    app.add_middleware(AccessLog)
    describe(app)
    return app


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


def _filters(
    model_version: Annotated[
        str | None,
        Query(
            min_length=1, max_length=63, description="Only those of this version.", examples=["10"]
        ),
    ] = None,
    day: Annotated[
        Day | None, Query(description="Only those of this UTC day.", examples=["2021-02-04"])
    ] = None,
    disagreements: Annotated[
        bool,
        Query(description="Only those whose user does not agree with the model.", examples=[True]),
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


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    response = await answer_http_exception(request, error)
    if response.status_code == 405:
        # Starlette names the methods of the first route alone.
        response.headers["Allow"] = ", ".join(_methods(request.app, request.scope["path"]))
    return response


def _methods(app: FastAPI, path: str) -> list[str]:
    routes = [route for route in app.routes if isinstance(route, Route)]
    first = next((route.path for route in routes if route.path_regex.match(path)), None)
    return sorted({name for route in routes if route.path == first for name in route.methods or ()})


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
