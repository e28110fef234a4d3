"""Client of the predict service."""

import asyncio
import json
import logging
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from functions.identity import GoogleAuthError, IdTokenAuth
from functions.logs import current_trace
from functions.problem import Problem
from functions.proxy.settings import Settings

_log = logging.getLogger(__name__)

# A request that never reached predict, or whose connection broke. Scoring has no
# side effect, so sending it again is safe.
_CONNECTION_FAILURES = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
_BUSY = (429, 503)
_ATTEMPTS = 3
_FIRST_PAUSE_SECONDS = 0.1

_RETRY_AFTER_SECONDS = 2
_MAX_RETRY_AFTER_SECONDS = 120
_MAX_CONNECTIONS = 200
# The longest text's explanation is a tenth of it.
_MAX_BYTES = 16 * 1024**2

# As they are used in the names of Firestore's documents and fields.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_REVISION_HEADER = "X-Greenroom-Revision"
_GIT_COMMIT_HEADER = "X-Greenroom-Git-Commit"
_DATA_DIGEST_HEADER = "X-Greenroom-Data-Digest"
_LINEAGE = re.compile(r"[\x21-\x7e]{1,128}")


class _Document(BaseModel):
    # A text may be among the values, and errors are logged.
    model_config = ConfigDict(
        hide_input_in_errors=True, allow_inf_nan=False, protected_namespaces=()
    )


class Contribution(_Document):
    """One n-gram's share of the logit; offsets are code points of the text."""

    token: str
    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    contribution: float


class Answer(_Document):
    """What predict says about one text."""

    class Details(_Document):
        """Where the answer comes from; `inference_elapsed` is in seconds."""

        mlflow_run_id: Annotated[str, Field(max_length=128)]
        inference_elapsed: Annotated[float, Field(ge=0)]

    text: str
    is_positive_review: Literal[0, 1]
    details: Details
    score: Annotated[float, Field(ge=0, le=1)]
    model_version: Name
    revision: Annotated[str, Field(max_length=63)] | None = None
    bias: float | None = None
    explanation: list[Contribution] | None = None

    @property
    def known_revision(self) -> str | None:
        """The revision, where it has the form of one."""
        return self.revision if self.revision and _REVISION.fullmatch(self.revision) else None


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where the model comes from that gave an answer; each None: not known."""

    git_commit: str | None
    data_digest: str | None


class PredictFailed(Problem):
    """Predict gave no answer that could be used; nothing was stored.

    Attributes:
        revision: the Cloud Run revision that failed, or None: not known.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        revision: str | None = None,
        retry_after: int = _RETRY_AFTER_SECONDS,
    ) -> None:
        super().__init__(
            status, f"{detail} Nothing was stored; try again.", retry_after=retry_after
        )
        self.revision = revision


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def retry_after(self) -> int | None:
        """Seconds to wait, where predict says so in seconds."""
        seconds = self.headers.get("Retry-After", "")
        return int(seconds) if re.fullmatch("[0-9]{1,6}", seconds) else None

    @property
    def revision(self) -> str | None:
        """The Cloud Run revision that answered, where it says so."""
        revision = self.headers.get(_REVISION_HEADER, "")
        return revision if _REVISION.fullmatch(revision) else None

    @property
    def lineage(self) -> Lineage:
        """Where the model comes from, as far as predict says so."""
        return Lineage(self._lineage(_GIT_COMMIT_HEADER), self._lineage(_DATA_DIGEST_HEADER))

    def _lineage(self, name: str) -> str | None:
        value = self.headers.get(name, "")
        return value if _LINEAGE.fullmatch(value) else None


class Predictor:
    """Asks predict. Make one inside a running event loop and keep it.

    With aiohttp: with 32 requests at once, httpx's pool of connections took more time
    than all the rest of a request.
    """

    def __init__(self, settings: Settings) -> None:
        self._timeout_seconds = settings.predict_timeout_seconds
        base = str(settings.predict_url).rstrip("/")
        self._predict = f"{base}/predict"
        audience = settings.predict_audience
        self._auth = IdTokenAuth(audience) if audience else None
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS),
            # The whole answer has one time-out, set where it is asked for.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_proxy_of(base),
        )

    async def predict(self, text: str, *, explain: bool) -> tuple[Answer, Lineage]:
        """Return predict's answer for `text`, and where its model comes from.

        Args:
            text: the review.
            explain: also ask for the bias and each n-gram's share.

        Raises:
            PredictFailed: 503 when predict can't be reached or says it can't answer now,
                504 when it takes too long, 502 when its answer makes no sense.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds) as limit:
                response = await self._ask(text, explain=explain, limit=limit)
        except TimeoutError as error:
            raise PredictFailed(504, "The model takes too long to answer.") from error
        except _CONNECTION_FAILURES as error:
            raise PredictFailed(503, "The model can't be reached.") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise PredictFailed(502, "The model's answer makes no sense.") from error
        except GoogleAuthError as error:
            raise PredictFailed(503, "There is no identity to call the model with.") from error
        return _read(response, text, explain=explain), response.lineage

    async def _ask(self, text: str, *, explain: bool, limit: asyncio.Timeout) -> _Response:
        url = f"{self._predict}?explain=true" if explain else self._predict
        body = json.dumps({"text": text}, ensure_ascii=False).encode()
        for attempt in range(1, _ATTEMPTS):
            # Jitter: callers that failed together do not come again together.
            pause = _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311
            try:
                response = await self._send(url, body)
                if response.status not in _BUSY:
                    return response
                pause = max(pause, response.retry_after or 0)
                if _remaining(limit) <= pause:
                    return response
            except _CONNECTION_FAILURES:
                if _remaining(limit) <= pause:
                    raise
            await asyncio.sleep(pause)
        return await self._send(url, body)

    async def _send(self, url: str, body: bytes) -> _Response:
        headers = {"Content-Type": "application/json"}
        if trace := current_trace.get():
            headers["traceparent"] = trace.traceparent
        if self._auth is not None:
            headers["Authorization"] = f"Bearer {await self._auth.token_soon()}"
        async with self._http.post(
            url, data=body, headers=headers, allow_redirects=False
        ) as response:
            content = bytearray()
            async for part in response.content.iter_any():
                content += part
                if len(content) > _MAX_BYTES:
                    response.close()
                    raise ValueError("predict's answer has no end")
            return _Response(response.status, response.headers, bytes(content))


def _remaining(limit: asyncio.Timeout) -> float:
    return (limit.when() or 0) - asyncio.get_running_loop().time()


def _proxy_of(url: str) -> str | None:
    """Return the HTTP proxy that the environment names for `url`.

    Found once: aiohttp itself would look for it again at each request.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _read(response: _Response, text: str, *, explain: bool) -> Answer:
    revision = response.revision
    if response.status in _BUSY:
        wait = response.retry_after or _RETRY_AFTER_SECONDS
        raise PredictFailed(
            503,
            "The model is not ready to answer.",
            revision=revision,
            retry_after=min(wait, _MAX_RETRY_AFTER_SECONDS),
        )
    if response.status != 200:
        _log.error("predict answered %d", response.status)
        raise PredictFailed(502, "The model's service failed.", revision=revision)
    try:
        answer = Answer.model_validate_json(response.content)
    except ValidationError as error:
        _log.error("predict's answer has %d errors", error.error_count())
        raise PredictFailed(502, "The model's answer makes no sense.", revision=revision) from error
    if answer.text != text:
        _log.error("predict's answer is for another text")
        raise PredictFailed(502, "The model's answer makes no sense.", revision=revision)
    if explain:
        if answer.bias is None or answer.explanation is None:
            _log.error("predict's answer lacks the explanation")
            raise PredictFailed(502, "The model's answer lacks the explanation.", revision=revision)
        if any(not share.start <= share.end <= len(text) for share in answer.explanation):
            _log.error("predict's explanation leaves the text")
            raise PredictFailed(502, "The model's answer makes no sense.", revision=revision)
    return answer
