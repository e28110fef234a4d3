"""Read from the proxy what users say of each version, and how each revision answered it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import httpx
from pydantic import BaseModel, Field, ValidationError

from functions.identity import GoogleAuthError, IdTokenAuth
from functions.promote.answers import Answers
from functions.promote.deadline import Deadline
from functions.promote.outcomes import Outcomes

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 8 * 1024**2


class FeedbackUnavailable(Exception):
    """The proxy does not tell; the message says why."""


@dataclass(frozen=True)
class Counts:
    """What the proxy has counted since a day."""

    answers: Mapping[str, Answers]
    """By model version; of each caller only so many a day, where the proxy tells those apart."""
    outcomes: Mapping[str, Outcomes] | None
    """By revision; None: this proxy does not count them."""


class _Answered(BaseModel):
    answered: int = Field(ge=0)
    correct: int = Field(ge=0)


class _Version(_Answered):
    model_version: str
    capped: _Answered | None = None


class _Revision(BaseModel):
    revision: str
    predictions: int = Field(ge=0)
    failed: int = Field(ge=0)


class _Statistics(BaseModel):
    by_model_version: list[_Version]
    by_revision: list[_Revision] | None = None


class _Document(BaseModel):
    statistics: _Statistics


class Feedback:
    """What the proxy counts.

    Args:
        proxy_url: address of the proxy's service, also the audience of the ID token.
    """

    def __init__(self, proxy_url: str) -> None:
        self._url = proxy_url.rstrip("/")
        self._auth = IdTokenAuth(self._url)

    def read(self, since: date, deadline: Deadline) -> Counts:
        """Return what was counted from the beginning of a UTC day until now.

        Raises:
            FeedbackUnavailable: the proxy can't be asked, or answers something else.
            OutOfTime: the deadline has passed.
        """
        timeout = deadline.within(TIMEOUT_SECONDS)
        try:
            with httpx.Client(auth=self._auth, timeout=timeout) as client:
                answer = client.get(
                    f"{self._url}/statistics", params={"since": since.isoformat()}
                ).raise_for_status()
            document = _Document.model_validate_json(answer.content[:MAX_BYTES])
        except (httpx.HTTPError, GoogleAuthError, ValidationError) as error:
            message = " ".join(str(error).split())[:300]
            raise FeedbackUnavailable(f"the proxy: {message}") from error
        statistics = document.statistics
        answers = {}
        for item in statistics.by_model_version:
            counted = item.capped or item
            answers[item.model_version] = Answers(counted.answered, counted.correct)
        outcomes = None
        if statistics.by_revision is not None:
            outcomes = {
                item.revision: Outcomes(item.predictions + item.failed, item.failed)
                for item in statistics.by_revision
            }
        return Counts(answers, outcomes)
