"""Client of the proxy: what the page knows of the system."""

from datetime import datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from functions.identity import GoogleAuthError, IdTokenAuth
from ui.settings import Settings

_T = TypeVar("_T")


class _Model(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class IsPositive(_Model):
    """The user's answer, if given, beside the model's."""

    user_answered: bool | None
    model_answered: bool


class Details(_Model):
    """Where an answer comes from; `inference_elapsed` is in seconds, `timestamp` in UTC."""

    mlflow_run_id: str
    inference_elapsed: float
    timestamp: datetime


class Prediction(_Model):
    """The answer to a review; `score` is the probability of positive."""

    id: str
    text: str
    is_positive: IsPositive
    details: Details
    score: float
    model_version: str
    revision: str | None = None

    @property
    def model_probability(self) -> float:
        """The probability of what the model answered, 0 to 1."""
        return self.score if self.is_positive.model_answered else 1 - self.score


class Item(_Model):
    """A prediction in the list of all."""

    text: str
    is_positive_user_answered: bool | None
    is_positive_model_answered: bool
    timestamp: datetime
    score: float
    model_version: str


class Statistics(_Model):
    """Counts over all predictions; `correctness_rate` is None with no answers yet."""

    correctness_rate: float | None
    predictions: int
    answered: int
    correct: int


class _StatisticsAnswer(_Model):
    statistics: Statistics


class ProxyError(Exception):
    """The proxy gave no answer; the message is for the page's user."""


class ProxyClient:
    """Asks the proxy; safe to share between threads. Every method raises `ProxyError`."""

    def __init__(self, settings: Settings) -> None:
        self._http = httpx.Client(
            base_url=str(settings.proxy_url),
            timeout=settings.proxy_timeout_seconds,
            auth=IdTokenAuth(settings.proxy_audience) if settings.proxy_audience else None,
        )

    def predict(self, text: str, *, is_positive: bool, key: str) -> Prediction:
        """Ask for a prediction and leave the user's own answer.

        Args:
            text: the review, 5 to 5,120 characters.
            is_positive: what the user says.
            key: names this request, so that a second try counts once.
        """
        return self._ask(
            Prediction,
            "POST",
            "predictions",
            json={"text": text, "is_positive_user_answered": is_positive},
            headers={"Idempotency-Key": key},
        )

    def latest(self, limit: int) -> list[Item]:
        """Return the newest predictions, at most `limit`."""
        return self._ask(list[Item], "GET", "predictions", params={"limit": limit})

    def statistics(self) -> Statistics:
        """Return the statistics over all predictions."""
        return self._ask(_StatisticsAnswer, "GET", "statistics").statistics

    def _ask(self, kind: type[_T], method: str, path: str, **request: Any) -> _T:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TimeoutException as error:
            raise ProxyError("The answer takes longer than usual. Please try again.") from error
        except (httpx.HTTPError, GoogleAuthError) as error:
            raise ProxyError("The service can't be reached. Please try again soon.") from error
        if response.is_error:
            raise ProxyError(_friendly(response))
        try:
            return TypeAdapter(kind).validate_json(response.content)
        except ValidationError as error:
            raise ProxyError("The service's answer makes no sense. Please try again.") from error


def _friendly(response: httpx.Response) -> str:
    match response.status_code:
        case 401 | 403:
            return "This page may not ask the service. Its operator must allow it."
        case 413 | 422:
            return "The service does not take this text. Please change it."
        case 502 | 503 | 504:
            return "The model can't answer right now. Please try again in a moment."
        case _:
            return "Something went wrong. Please try again."
