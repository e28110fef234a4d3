"""Typed client of the proxy's HTTP API, for programs and for the page.

Needs httpx, pydantic and google-auth. Fields that a later proxy adds are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, TypeVar

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from functions.identity import GoogleAuthError, IdTokenAuth

_T = TypeVar("_T")

ErrorKind = Literal[
    "timeout", "unreachable", "refused", "invalid", "unavailable", "busy", "nonsense", "failed"
]


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


UtcTime = Annotated[datetime, AfterValidator(_in_utc)]
"""An aware time in UTC; the API writes it without a zone."""

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Document(BaseModel):
    # A caller's text may be among the values.
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, protected_namespaces=())


class IsPositive(_Document):
    """The user's answer, if given, beside the model's."""

    user_answered: bool | None
    model_answered: bool


class Details(_Document):
    """Where an answer comes from; `inference_elapsed` in seconds."""

    mlflow_run_id: str
    inference_elapsed: Seconds
    timestamp: UtcTime


class Contribution(_Document):
    """One n-gram's share of the logit; `start` and `end` are code points of the text."""

    token: str
    start: Count
    end: Count
    contribution: float


class PredictionCreated(_Document):
    """The answer to a review.

    Attributes:
        id: names the stored prediction.
        text: the review.
        is_positive: the user's and the model's answer.
        details: run, seconds that the model took, and time.
        score: the model's probability of "positive".
        model_version: version in the model registry.
        revision: Cloud Run revision that answered.
        git_commit: commit that the model was trained from; None: not known.
        data_digest: digest of the data that it was trained on; None: not known.
        predict_elapsed: seconds until predict's answer was there, as the proxy saw it.
        elapsed: seconds of the whole request, until the prediction was to be written.
        bias: the logit of an empty text; only with an explanation.
        explanation: each n-gram's share; with the bias they add up to the logit.
    """

    id: str
    text: str
    is_positive: IsPositive
    details: Details
    score: Rate
    model_version: str
    revision: str | None = None
    git_commit: str | None = None
    data_digest: str | None = None
    predict_elapsed: Seconds | None = None
    elapsed: Seconds | None = None
    bias: float | None = None
    explanation: list[Contribution] | None = None


class PredictionItem(_Document):
    """A stored prediction; the fields are those of `PredictionCreated`."""

    id: str
    text: str
    is_positive_user_answered: bool | None
    is_positive_model_answered: bool
    mlflow_run_id: str
    inference_elapsed: Seconds
    timestamp: UtcTime
    score: Rate
    model_version: str
    revision: str | None = None
    git_commit: str | None = None
    data_digest: str | None = None
    predict_elapsed: Seconds | None = None
    elapsed: Seconds | None = None


class Page(_Document):
    """Some predictions, newest first; `next_cursor` is None on the last page."""

    items: list[PredictionItem]
    next_cursor: str | None


class Confusion(_Document):
    """Answered predictions by what the model said, and whether the user agreed."""

    true_positive: Count
    true_negative: Count
    false_positive: Count
    false_negative: Count


class Latency(_Document):
    """Seconds of whole requests; the percentiles within the width of a histogram's bucket."""

    p50: Seconds
    p95: Seconds
    mean: Seconds


class Capped(_Document):
    """Answers with at most some of each caller, model version and day."""

    answered: Count
    correct: Count


class Measures(_Document):
    """What a set of predictions says.

    Attributes:
        correctness_rate: correct / answered; None with no answers yet.
        correctness_interval: its Wilson interval of 95 %; None with no answers yet.
        predictions: predictions made.
        answered: predictions for which the user gave an answer.
        correct: answered predictions where user and model agree.
        positive_rate: share that the model called positive; None with no predictions.
        mean_score: mean of the model's scores; None with no predictions.
        confusion: the answered ones, four ways.
        latency: of the requests; None with no predictions.
    """

    correctness_rate: Rate | None
    correctness_interval: tuple[Rate, Rate] | None
    predictions: Count
    answered: Count
    correct: Count
    positive_rate: Rate | None
    mean_score: Rate | None
    confusion: Confusion
    latency: Latency | None


class VersionMeasures(Measures):
    """The measures of one model version."""

    model_version: str


class VersionStatistics(VersionMeasures):
    """The measures of one model version; `capped` are those answers that count in a rollout."""

    capped: Capped


class DayStatistics(Measures):
    """The measures of one UTC day, and of each model version on it."""

    day: date
    by_model_version: list[VersionMeasures]


class RevisionStatistics(_Document):
    """How often a Cloud Run revision answered, and how often it failed to."""

    revision: str
    model_version: str | None
    predictions: Count
    failed: Count


class Statistics(Measures):
    """The measures of everything, or of a range of days.

    Attributes:
        by_model_version: versions in rising order.
        by_day: days of the range that have predictions, oldest first.
        by_revision: revisions that were asked on those days.
    """

    by_model_version: list[VersionStatistics]
    by_day: list[DayStatistics]
    by_revision: list[RevisionStatistics]


class Rollouts(_Document):
    """What promote says it serves, and its ledger's newest entries."""

    status: dict[str, Any] | None
    ledger: list[dict[str, Any]]


class _StatisticsAnswer(_Document):
    statistics: Statistics


class ClientError(Exception):
    """The proxy did not do what it was asked; the message is for people.

    Attributes:
        kind: ``timeout``: no answer in time, it may have been done; ``unreachable``: no
            connection, or a broken one; ``refused``: the caller may not call; ``invalid``: the
            request is wrong, or what it names is not there; ``unavailable``: model or
            database can't answer now; ``busy``: too many requests; ``nonsense``: an answer
            that is not the API's; ``failed``: anything else that is the service's fault.
        status: HTTP status, or None without an answer.
        retry_after: seconds to wait before another try, where the service says so.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after


class Client:
    """Calls the proxy. Safe to share between threads; every method raises `ClientError`.

    Args:
        base_url: address of the proxy.
        audience: audience of the Google ID token (the proxy's service URL); None: no token.
        timeout: seconds to wait for a connection, and between two parts of an answer. A
            cold start of the model takes several.
        caller: names the end user to the proxy, 1 to 128 printable ASCII characters; the
            proxy heeds it from callers that it trusts, and keeps a digest only.
    """

    def __init__(
        self,
        base_url: str,
        *,
        audience: str | None = None,
        timeout: float = 30.0,
        caller: str | None = None,
    ) -> None:
        self._caller = caller
        self._http = httpx.Client(
            base_url=base_url,
            timeout=timeout,
            auth=IdTokenAuth(audience) if audience else None,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self,
        text: str,
        *,
        is_positive: bool | None = None,
        explain: bool = False,
        key: str | None = None,
        caller: str | None = None,
    ) -> PredictionCreated:
        """Ask for a prediction, and leave the user's own answer if there is one.

        Args:
            text: the review, 5 to 5,120 characters.
            is_positive: what the user says; None: nothing, or later by `answer`.
            explain: also ask for each n-gram's share.
            key: names this request, so that a second try counts once; 1 to 255 printable
                ASCII characters.
            caller: names the end user, instead of the constructor's.
        """
        headers = self._headers(caller)
        if key is not None:
            headers["Idempotency-Key"] = _printable(key, 255)
        return self._ask(
            PredictionCreated,
            "POST",
            "predictions",
            params={"explain": "true"} if explain else {},
            json={"text": text, "is_positive_user_answered": is_positive},
            headers=headers,
        )

    def answer(
        self, prediction_id: str, is_positive: bool | None, *, caller: str | None = None
    ) -> PredictionItem:
        """Set, change or (with None) take back the user's answer to a prediction."""
        return self._ask(
            PredictionItem,
            "PUT",
            f"predictions/{_segment(prediction_id)}/answer",
            json={"is_positive_user_answered": is_positive},
            headers=self._headers(caller),
        )

    def get(self, prediction_id: str) -> PredictionItem:
        """Return one prediction."""
        return self._ask(PredictionItem, "GET", f"predictions/{_segment(prediction_id)}")

    def delete(self, prediction_id: str) -> None:
        """Delete a prediction; the statistics no longer count it."""
        self._send("DELETE", f"predictions/{_segment(prediction_id)}")

    def predictions(
        self,
        *,
        limit: int = 100,
        cursor: str | None = None,
        model_version: str | None = None,
        day: date | None = None,
        disagreements: bool = False,
    ) -> Page:
        """Return a page of predictions, newest first.

        Args:
            limit: most predictions, 1 to 1,000.
            cursor: `Page.next_cursor` of the page before, with the same filters.
            model_version: only those of this version.
            day: only those of this UTC day.
            disagreements: only those whose user does not agree with the model.
        """
        filters = _filters(model_version, day, disagreements)
        if cursor is not None:
            filters["cursor"] = cursor
        response = self._send("GET", "predictions", params={"limit": str(limit)} | filters)
        following = response.links.get("next", {}).get("url")
        return Page(
            items=_read(list[PredictionItem], response),
            next_cursor=httpx.URL(following).params.get("cursor") if following else None,
        )

    def statistics(self, *, since: date | None = None, until: date | None = None) -> Statistics:
        """Return the statistics of all time, or of the UTC days from `since` to `until`.

        Both days are included. With neither of them the measures by day are of the last 30.
        """
        params = {
            name: day.isoformat() for name, day in (("since", since), ("until", until)) if day
        }
        return self._ask(_StatisticsAnswer, "GET", "statistics", params=params).statistics

    def rollouts(self, limit: int = 100) -> Rollouts:
        """Return what is served, and the ledger's newest `limit` entries (1 to 1,000)."""
        return self._ask(Rollouts, "GET", "rollouts", params={"limit": str(limit)})

    def export(
        self,
        format: Literal["csv", "jsonl"] = "csv",
        *,
        model_version: str | None = None,
        day: date | None = None,
        disagreements: bool = False,
    ) -> Iterator[bytes]:
        """Yield a file of predictions, newest first, in parts as they arrive.

        Args:
            format: ``csv``, safe to open in a spreadsheet, or ``jsonl``: JSON lines.
            model_version: only those of this version.
            day: only those of this UTC day.
            disagreements: only those whose user does not agree with the model.
        """
        params = {"format": format} | _filters(model_version, day, disagreements)
        with (
            _failures_told(),
            self._http.stream("GET", "predictions/export", params=params) as response,
        ):
            if not response.is_success:
                response.read()
                raise _error(response)
            yield from response.iter_bytes()

    def _headers(self, caller: str | None) -> dict[str, str]:
        name = self._caller if caller is None else caller
        return {} if name is None else {"X-Greenroom-Caller": _printable(name, 128)}

    def _ask(self, kind: type[_T], method: str, path: str, **request: Any) -> _T:
        return _read(kind, self._send(method, path, **request))

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        with _failures_told():
            response = self._http.request(method, path, **request)
        if not response.is_success:
            raise _error(response)
        return response


def _segment(name: str) -> str:
    # The API's ids are hexadecimal digits; anything else could lead to another path.
    if not (name.isascii() and name.isalnum()):
        raise ClientError("There is no prediction with this id.", kind="invalid")
    return name


def _printable(value: str, longest: int) -> str:
    if not re.fullmatch(rf"[\x20-\x7e]{{1,{longest}}}", value):
        raise ClientError(
            f"Names of callers and requests are 1 to {longest} printable ASCII characters.",
            kind="invalid",
        )
    return value


def _filters(model_version: str | None, day: date | None, disagreements: bool) -> dict[str, str]:
    filters = {}
    if model_version is not None:
        filters["model_version"] = model_version
    if day is not None:
        filters["day"] = day.isoformat()
    if disagreements:
        filters["disagreements"] = "true"
    return filters


@contextmanager
def _failures_told() -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise ClientError("The answer takes longer than usual. Try again.", kind="timeout") from (
            error
        )
    except (httpx.HTTPError, GoogleAuthError) as error:
        raise ClientError(
            "The service can't be reached. Try again soon.", kind="unreachable"
        ) from error
    except (UnicodeError, httpx.InvalidURL) as error:
        # A lone surrogate in a text, or a header that is not ASCII.
        raise ClientError("The request can't be sent as text.", kind="invalid") from error


def _read(kind: type[_T], response: httpx.Response) -> _T:
    try:
        return TypeAdapter(kind).validate_json(response.content)
    except ValidationError as error:
        raise ClientError(
            "The service's answer makes no sense. Try again.",
            kind="nonsense",
            status=response.status_code,
        ) from error


class _Problem(_Document):
    detail: str


_KINDS: dict[int, ErrorKind] = {
    401: "refused",
    403: "refused",
    408: "timeout",
    429: "busy",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
}


def _error(response: httpx.Response) -> ClientError:
    status = response.status_code
    kind = _KINDS.get(status, "invalid" if 400 <= status < 500 else "failed")
    try:
        message = _Problem.model_validate_json(response.content).detail
    except ValidationError:
        # Not the proxy's own words: Cloud Run's, or those of something between.
        message = f"The service answered {status}. Try again later."
        kind = "nonsense" if status < 400 else kind
    seconds = response.headers.get("retry-after", "")
    # The header's other form, a date, is never the proxy's.
    retry_after = float(seconds) if re.fullmatch("[0-9]{1,6}", seconds) else None
    return ClientError(message, kind=kind, status=status, retry_after=retry_after)
