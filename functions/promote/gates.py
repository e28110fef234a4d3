"""The gates: what a candidate must show at its own address before it gets traffic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from functions.promote.bundles import GoldenText
from functions.promote.plan import Model

TIMEOUT_SECONDS = 30.0
BATCH = 500


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

    def check(
        self, uri: str, model: Model, revision: str, golden: Sequence[GoldenText]
    ) -> Failure | None:
        """Return the first gate that fails, or None when all are passed.

        Args:
            uri: address of the candidate's tag.
            model: what it must serve.
            revision: what it must be.
            golden: what it must answer.

        Raises:
            CandidateSilent: it can't be reached or is not ready.
        """
        with httpx.Client(base_url=uri, timeout=TIMEOUT_SECONDS) as client:
            return self._check_identity(client, model, revision) or self._check_golden(
                client, golden
            )

    def _check_identity(self, client: httpx.Client, model: Model, revision: str) -> Failure | None:
        answer = _ask(client, "GET", "/model")
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

    def _check_golden(self, client: httpx.Client, golden: Sequence[GoldenText]) -> Failure | None:
        for start in range(0, len(golden), BATCH):
            part = golden[start : start + BATCH]
            answer = _ask(client, "POST", "/predict:batch", {"texts": [item.text for item in part]})
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


def _ask(
    client: httpx.Client, method: str, path: str, body: dict[str, list[str]] | None = None
) -> dict[str, object]:
    try:
        response = client.request(method, path, json=body)
        response.raise_for_status()
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise CandidateSilent(f"{method} {path}: {error}") from error
    if not isinstance(answer, dict):
        raise CandidateSilent(f"{method} {path}: the answer is no object")
    return answer
