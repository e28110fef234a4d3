"""Client of the predict service."""

import asyncio
import logging
from typing import Annotated, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from functions.identity import GoogleAuthError, IdTokenAuth
from functions.logs import current_trace
from functions.problem import Problem
from functions.proxy.settings import Settings

_log = logging.getLogger(__name__)

# A request that never reached predict, or whose connection broke. Scoring has no
# side effect, so sending it a second time is safe.
_CONNECTION_FAILURES = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)

_RETRY_AFTER_SECONDS = 2


class Contribution(BaseModel):
    """One n-gram's share of the logit; offsets are code points of the text."""

    token: str
    start: int
    end: int
    contribution: float


class Answer(BaseModel):
    """What predict says about one text."""

    class Details(BaseModel):
        """Where the answer comes from; `inference_elapsed` is in seconds."""

        mlflow_run_id: Annotated[str, Field(max_length=128)]
        inference_elapsed: Annotated[float, Field(ge=0)]

    # A text may be among the values, and errors are logged.
    model_config = ConfigDict(
        hide_input_in_errors=True, allow_inf_nan=False, protected_namespaces=()
    )

    is_positive_review: Literal[0, 1]
    details: Details
    score: Annotated[float, Field(ge=0, le=1)]
    model_version: Annotated[str, Field(min_length=1, max_length=128)]
    revision: Annotated[str, Field(max_length=128)] | None = None
    bias: float | None = None
    explanation: list[Contribution] | None = None


class Predictor:
    """Asks predict. Make one inside a running event loop and keep it."""

    def __init__(self, settings: Settings) -> None:
        self._timeout_seconds = settings.predict_timeout_seconds
        self._http = httpx.AsyncClient(
            base_url=str(settings.predict_url),
            timeout=settings.predict_timeout_seconds,
            limits=httpx.Limits(max_connections=200, max_keepalive_connections=50),
            auth=IdTokenAuth(settings.predict_audience) if settings.predict_audience else None,
        )

    async def predict(self, text: str, *, explain: bool) -> Answer:
        """Return predict's answer for `text`.

        Args:
            text: the review.
            explain: also ask for the bias and each n-gram's share.

        Raises:
            Problem: 503 when predict can't be reached or says it can't answer now,
                504 when it takes too long, 502 when its answer makes no sense.
        """
        try:
            # httpx's time-outs are per read; this one is for the whole answer.
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._post(text, explain=explain)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _problem(504, "The model takes too long to answer.") from error
        except httpx.TransportError as error:
            raise _problem(503, "The model can't be reached.") from error
        except GoogleAuthError as error:
            raise _problem(503, "There is no identity to call the model with.") from error
        return _read(response, explain=explain)

    async def _post(self, text: str, *, explain: bool) -> httpx.Response:
        try:
            return await self._post_once(text, explain=explain)
        except _CONNECTION_FAILURES:
            return await self._post_once(text, explain=explain)

    async def _post_once(self, text: str, *, explain: bool) -> httpx.Response:
        trace = current_trace.get()
        return await self._http.post(
            "predict",
            params={"explain": "true"} if explain else {},
            json={"text": text},
            headers={"traceparent": trace.traceparent} if trace else {},
        )


def _read(response: httpx.Response, *, explain: bool) -> Answer:
    if response.status_code in (429, 503):
        raise _problem(503, "The model is not ready to answer.")
    if response.status_code != 200:
        _log.error("predict answered %d", response.status_code)
        raise _problem(502, "The model's service failed.")
    try:
        answer = Answer.model_validate_json(response.content)
    except ValidationError as error:
        _log.error("predict's answer has %d errors", error.error_count())
        raise _problem(502, "The model's answer makes no sense.") from error
    if explain and (answer.bias is None or answer.explanation is None):
        _log.error("predict's answer lacks the explanation")
        raise _problem(502, "The model's answer lacks the explanation.")
    return answer


def _problem(status: int, detail: str) -> Problem:
    return Problem(
        status,
        f"{detail} Nothing was stored; try again.",
        retry_after=_RETRY_AFTER_SECONDS,
    )
