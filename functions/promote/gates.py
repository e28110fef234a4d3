"""The gates: what a candidate must show at its own address before it gets traffic."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from functions.identity import GoogleAuthError, IdTokenAuth
from functions.promote.bundles import GoldenText
from functions.promote.deadline import Deadline
from functions.promote.plan import Model

TIMEOUT_SECONDS = 30.0
BATCH = 500
MAX_ANSWER_BYTES = 16 * 1024**2

# Answers that say something of the way to the candidate, or of its load, not of itself.
_NO_VERDICT = frozenset({401, 403, 408, 429})


class CandidateSilent(Exception):
    """The candidate does not answer: no verdict, look again at the next tick."""


@dataclass(frozen=True)
class Failure:
    """A gate that the candidate did not pass."""

    gate: str
    reason: str


class Gates:
    """The gates, asked over HTTP.

    Args:
        golden_tolerance: largest difference between a golden score and the answer.
    """

    def __init__(self, *, golden_tolerance: float) -> None:
        self._tolerance = golden_tolerance
        self._identities: dict[str, IdTokenAuth] = {}

    def check(
        self,
        uri: str,
        audience: str,
        model: Model,
        revision: str,
        golden: Sequence[GoldenText],
        deadline: Deadline,
    ) -> Failure | None:
        """Return the first gate that fails, or None when all are passed.

        Args:
            uri: address of the candidate's tag.
            audience: address of the service, which the ID token must name.
            model: what it must serve.
            revision: what it must be.
            golden: what it must answer.
            deadline: end of the tick.

        Raises:
            CandidateSilent: it can't be reached or is not ready.
            OutOfTime: the deadline has passed.
        """
        auth = self._identities.setdefault(audience, IdTokenAuth(audience))
        try:
            with httpx.Client(base_url=uri, auth=auth) as client:
                candidate = _Candidate(client, deadline)
                return self._check_identity(candidate, model, revision) or self._check_golden(
                    candidate, golden
                )
        except _Refused as error:
            return Failure("answer", str(error))

    def _check_identity(
        self, candidate: "_Candidate", model: Model, revision: str
    ) -> Failure | None:
        answer = candidate.ask("GET", "/model")
        digest = model.bundle_uri.rstrip("/").rpartition("/")[2]
        for name, expected in (
            ("revision", revision),
            ("model_version", model.version),
            ("manifest_sha256", digest),
        ):
            if answer.get(name) != expected:
                gate = "bundle" if name == "manifest_sha256" else "identity"
                return Failure(gate, f"{name} is {answer.get(name)!r}, must be {expected!r}")
        return None

    def _check_golden(
        self, candidate: "_Candidate", golden: Sequence[GoldenText]
    ) -> Failure | None:
        for start in range(0, len(golden), BATCH):
            part = golden[start : start + BATCH]
            answer = candidate.ask(
                "POST", "/predict:batch", {"texts": [item.text for item in part]}
            )
            predictions = answer.get("predictions")
            if not isinstance(predictions, list) or len(predictions) != len(part):
                return Failure("golden", "the answer has not one prediction for each text")
            for item, prediction in zip(part, predictions, strict=True):
                score = prediction.get("score") if isinstance(prediction, dict) else None
                # Written so that NaN fails.
                if not (
                    isinstance(score, int | float)
                    and math.fabs(score - item.score) <= self._tolerance
                ):
                    return Failure(
                        "golden",
                        f"text {item.text[:40]!r} scores {score}, training gave {item.score}",
                    )
        return None


class _Refused(Exception):
    """The candidate answered, and what it said is a verdict."""


class _Candidate:
    """Asks the candidate, for no longer than the tick has, and reads no more than is sane."""

    def __init__(self, client: httpx.Client, deadline: Deadline) -> None:
        self._client = client
        self._deadline = deadline

    def ask(
        self, method: str, path: str, body: dict[str, list[str]] | None = None
    ) -> dict[str, object]:
        try:
            status, content = self._request(method, path, body)
        except (httpx.HTTPError, GoogleAuthError) as error:
            raise CandidateSilent(f"{method} {path}: {error!r}") from error
        if status in _NO_VERDICT or status >= 500:
            raise CandidateSilent(f"{method} {path}: {status}")
        if not 200 <= status < 300:
            raise _Refused(f"{method} {path}: {status}")
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _Refused(f"{method} {path}: the answer is no JSON") from error
        if not isinstance(answer, dict):
            raise _Refused(f"{method} {path}: the answer is no object")
        return answer

    def _request(
        self, method: str, path: str, body: dict[str, list[str]] | None
    ) -> tuple[int, bytes]:
        timeout = self._deadline.within(TIMEOUT_SECONDS)
        content = bytearray()
        with self._client.stream(method, path, json=body, timeout=timeout) as response:
            for chunk in response.iter_bytes():
                # httpx's time-out is for each read: one that trickles is cut here.
                self._deadline.within(TIMEOUT_SECONDS)
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise _Refused(f"{method} {path}: more than {MAX_ANSWER_BYTES} bytes")
        return response.status_code, bytes(content)
