"""Read from the proxy how often users agree with each version of the model."""

from collections.abc import Mapping

import httpx
from pydantic import BaseModel, Field, ValidationError

from functions.identity import GoogleAuthError, IdTokenAuth
from functions.promote.answers import Answers
from functions.promote.deadline import Deadline

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 8 * 1024**2


class FeedbackUnavailable(Exception):
    """The proxy does not tell; the message says why."""


class _Version(BaseModel):
    model_version: str
    answered: int = Field(ge=0)
    correct: int = Field(ge=0)


class _Statistics(BaseModel):
    by_model_version: list[_Version]


class _Document(BaseModel):
    statistics: _Statistics


class Feedback:
    """The users' answers, as the proxy counts them.

    Args:
        proxy_url: address of the proxy's service, also the audience of the ID token.
    """

    def __init__(self, proxy_url: str) -> None:
        self._url = proxy_url.rstrip("/")
        self._auth = IdTokenAuth(self._url)

    def read(self, deadline: Deadline) -> Mapping[str, Answers]:
        """Return version -> answers, of all time.

        Raises:
            FeedbackUnavailable: the proxy can't be asked, or answers something else.
            OutOfTime: the deadline has passed.
        """
        timeout = deadline.within(TIMEOUT_SECONDS)
        try:
            with httpx.Client(auth=self._auth, timeout=timeout) as client:
                answer = client.get(f"{self._url}/statistics").raise_for_status()
            document = _Document.model_validate_json(answer.content[:MAX_BYTES])
        except (httpx.HTTPError, GoogleAuthError, ValidationError) as error:
            message = " ".join(str(error).split())[:300]
            raise FeedbackUnavailable(f"the proxy: {message}") from error
        return {
            item.model_version: Answers(item.answered, item.correct)
            for item in document.statistics.by_model_version
        }
