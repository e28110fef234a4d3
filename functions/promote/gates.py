"""The gates: what a candidate must show at its own address before it gets traffic."""

import json
import math
import time
from collections.abc import Mapping, Sequence

import httpx

from functions.identity import GoogleAuthError, IdTokenAuth
from functions.promote.bundles import GoldenText
from functions.promote.deadline import Deadline
from functions.promote.plan import GateResult, Model
from functions.promote.policy import Policy

TIMEOUT_SECONDS = 30.0
BATCH = 500
LATENCY_CALLS = 20
# One that is too slow is measured once more: a neighbour's load may have hit it alone.
LATENCY_ROUNDS = 2
# The tick has other things to do: a slow candidate is judged on the calls made until then.
LATENCY_SECONDS = 10.0
MAX_ANSWER_BYTES = 16 * 1024**2

# Answers that say something of the way to the candidate, or of its load, not of itself.
_NO_VERDICT = frozenset({401, 403, 408, 429})


class CandidateSilent(Exception):
    """The candidate does not answer: no verdict, look again at the next tick."""


class Gates:
    """The gates, asked over HTTP.

    Args:
        policy: what a candidate must pass.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._identities: dict[str, IdTokenAuth] = {}

    def check(
        self,
        uri: str,
        service_uri: str,
        model: Model,
        revision: str,
        golden: Sequence[GoldenText],
        deadline: Deadline,
        *,
        beside_served: bool,
    ) -> list[GateResult]:
        """Return the gates in order, up to the first that fails.

        Args:
            uri: address of the candidate's tag.
            service_uri: address of the service, which the ID token must name.
            model: what it must serve.
            revision: what it must be.
            golden: what it must answer.
            deadline: end of the tick.
            beside_served: the service serves a model, to compare the latency with.

        Raises:
            CandidateSilent: it can't be reached or is not ready.
            OutOfTime: the deadline has passed.
        """
        auth = self._identities.setdefault(service_uri, IdTokenAuth(service_uri))
        results = []
        with (
            httpx.Client(base_url=uri, auth=auth) as tag,
            httpx.Client(base_url=service_uri, auth=auth) as service,
        ):
            candidate = _Asked(tag, deadline)
            served = _Asked(service, deadline) if beside_served else None
            try:
                for result in (
                    self._check_identity(candidate, model, revision),
                    self._check_golden(candidate, golden),
                    self._check_latency(candidate, served, golden),
                ):
                    results.append(result)
                    if result.outcome == "failed":
                        break
            except _Refused as error:
                results.append(_failed("answer", str(error)))
        return results

    def _check_identity(self, candidate: "_Asked", model: Model, revision: str) -> GateResult:
        answer = candidate.ask("GET", "/model")
        digest = model.bundle_uri.rstrip("/").rpartition("/")[2]
        for name, expected in (
            ("revision", revision),
            ("model_version", model.version),
            ("manifest_sha256", digest),
        ):
            if answer.get(name) != expected:
                gate = "bundle" if name == "manifest_sha256" else "identity"
                return _failed(gate, f"{name} is {answer.get(name)!r}, must be {expected!r}")
        return _passed("identity", f"version {model.version} on {revision}, bundle {digest[:12]}")

    def _check_golden(self, candidate: "_Asked", golden: Sequence[GoldenText]) -> GateResult:
        tolerance = self._policy.golden_tolerance
        for start in range(0, len(golden), BATCH):
            part = golden[start : start + BATCH]
            answer = candidate.ask(
                "POST", "/predict:batch", {"texts": [item.text for item in part]}
            )
            predictions = answer.get("predictions")
            if not isinstance(predictions, list) or len(predictions) != len(part):
                return _failed("golden", "the answer has not one prediction for each text")
            for item, prediction in zip(part, predictions, strict=True):
                score = prediction.get("score") if isinstance(prediction, dict) else None
                # Written so that NaN fails.
                if not (
                    isinstance(score, int | float) and math.fabs(score - item.score) <= tolerance
                ):
                    return _failed(
                        "golden",
                        f"text {item.text[:40]!r} scores {score}, training gave {item.score}",
                    )
        return _passed("golden", f"{len(golden)} texts score as in training")

    def _check_latency(
        self, candidate: "_Asked", served: "_Asked | None", golden: Sequence[GoldenText]
    ) -> GateResult:
        if served is None:
            return _skipped("latency", "nothing is served to compare with")
        policy = self._policy
        ends = time.monotonic() + LATENCY_SECONDS
        for _ in range(LATENCY_ROUNDS):
            try:
                mine, theirs, calls = _race(candidate, served, golden, ends)
            except _ServedSilent as error:
                return _skipped("latency", f"what is served does not answer: {error}")
            figures = f"p95 {mine * 1000:.0f} ms against {theirs * 1000:.0f} ms served"
            figures += f", in {calls} calls each"
            if mine <= max(policy.candidate_latency_ratio * theirs, policy.latency_floor_seconds):
                return _passed("latency", figures)
        return _failed(
            "latency", f"{figures}: more than {policy.candidate_latency_ratio:g} times as long"
        )


def _race(
    candidate: "_Asked", served: "_Asked", golden: Sequence[GoldenText], ends: float
) -> tuple[float, float, int]:
    """Return both p95 latencies in seconds, and of how many calls.

    Both get the same texts in turn, so that a busy machine slows both.
    """
    at_tag: list[float] = []
    at_service: list[float] = []
    # The first call makes the connection, and may start an instance.
    for number, item in enumerate(golden[: LATENCY_CALLS + 1]):
        if number > 1 and time.monotonic() > ends:
            break
        at_tag.append(_seconds(candidate, item.text))
        try:
            at_service.append(_seconds(served, item.text))
        except (CandidateSilent, _Refused) as error:
            raise _ServedSilent(str(error)) from error
    return p95(at_tag[1:]), p95(at_service[1:]), len(at_tag) - 1


def p95(seconds: Sequence[float]) -> float:
    """Return the 95th percentile by nearest rank: one outlier in 20 is none."""
    return sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]


def _seconds(asked: "_Asked", text: str) -> float:
    started = time.monotonic()
    asked.ask("POST", "/predict", {"text": text})
    return time.monotonic() - started


def _passed(gate: str, reason: str) -> GateResult:
    return GateResult(gate=gate, outcome="passed", reason=reason)


def _failed(gate: str, reason: str) -> GateResult:
    return GateResult(gate=gate, outcome="failed", reason=reason)


def _skipped(gate: str, reason: str) -> GateResult:
    return GateResult(gate=gate, outcome="skipped", reason=reason)


class _Refused(Exception):
    """The candidate answered, and what it said is a verdict."""


class _ServedSilent(Exception):
    """What is served does not answer, so that there is nothing to compare with."""


class _Asked:
    """Asks a revision, for no longer than the tick has, and reads no more than is sane."""

    def __init__(self, client: httpx.Client, deadline: Deadline) -> None:
        self._client = client
        self._deadline = deadline

    def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None
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
        self, method: str, path: str, body: Mapping[str, object] | None
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
