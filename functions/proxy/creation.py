"""Makes one prediction: asks predict, and stores its answer."""

import hashlib
import json
import secrets
import time
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

from starlette.types import Scope

from functions.access_log import LOG_FIELDS
from functions.problem import Problem
from functions.proxy.callers import caller_digest
from functions.proxy.commits import AlreadyStored
from functions.proxy.connection import RETRY_AFTER_SECONDS, Unconfirmed
from functions.proxy.prediction import Prediction
from functions.proxy.predictor import PredictFailed, Predictor
from functions.proxy.schemas import Explanation, PredictionCreated, PredictionRequest
from functions.proxy.settings import Settings
from functions.proxy.storage import Store


class Backends:
    """Predict and Firestore, connected on first use: the server may fork before that.

    Args:
        settings: of the proxy.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def predictor(self) -> Predictor:
        """Predict."""
        return Predictor(self.settings)

    @cached_property
    def store(self) -> Store:
        """Firestore."""
        return Store(self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request for a prediction.

    Attributes:
        request: its body.
        explain: also return each n-gram's share.
        key: of the header ``Idempotency-Key``, or None.
        caller: name of whoever asks.
        started: `time.perf_counter` of when the request came in, in seconds.
    """

    request: PredictionRequest
    explain: bool
    key: str | None
    caller: str
    started: float


async def create(backends: Backends, order: Order, scope: Scope) -> tuple[PredictionCreated, bool]:
    """Return the answer, and whether it is an earlier one, given again.

    Args:
        backends: predict and Firestore.
        order: what is asked for.
        scope: of the request, whose line in the log tells of a new answer.

    Raises:
        Problem: 422 for a key that was used for another request; 502, 503 or 504 where
            predict or Firestore fail.
    """
    created, replayed = await _Creation(backends, order).run()
    if not replayed:
        answer = created.is_positive
        log_answer(scope, answer.user_answered, answer.model_answered, created.model_version)
    return created, replayed


def log_answer(scope: Scope, user: bool | None, model: bool, model_version: str) -> None:
    """Let the request's line in the log say whether the user agrees with the model."""
    if user is not None:
        scope[LOG_FIELDS] |= {"agreed": user is model, "model_version": model_version}


def unconfirmed(advice: str) -> Problem:
    """Return the problem of a commit that may have been done; `advice` says what to do."""
    return Problem(
        503, f"The database did not confirm in time. {advice}", retry_after=RETRY_AFTER_SECONDS
    )


class _Creation:
    """One request for a prediction."""

    def __init__(self, backends: Backends, order: Order) -> None:
        self._backends = backends
        self._kept = timedelta(days=backends.settings.retention_days) or None
        self._request = order.request
        self._explain = order.explain
        self._key = order.key
        self._caller = order.caller
        self._started = order.started
        self._id = secrets.token_hex(16) if order.key is None else _id_of(order)
        self._digest = _digest(order.request, order.explain)

    async def run(self) -> tuple[PredictionCreated, bool]:
        store = self._backends.store
        if self._key is not None and (first := await store.get(self._id, expired=True)):
            return self._replay(first), True
        prediction, explanation = await self._predict()
        try:
            await store.commits.create(prediction, caller_digest(self._caller))
        except AlreadyStored:
            # Without a key: our own commit had succeeded, its answer was lost, and the
            # repeated commit met it. With one: that, or the same request came twice at once.
            if self._key is not None:
                earlier = await store.get(self._id, expired=True)
                if earlier is None:
                    raise Problem(
                        503,
                        "The prediction was just deleted. Try again.",
                        retry_after=RETRY_AFTER_SECONDS,
                    ) from None
                return self._replay(earlier), True
        except Unconfirmed as error:
            raise unconfirmed(self._advice()) from error
        user = self._request.is_positive_user_answered
        return PredictionCreated.of(prediction, user, explanation), False

    async def _predict(self) -> tuple[Prediction, Explanation | None]:
        asked = time.perf_counter()
        try:
            answer, lineage = await self._backends.predictor.predict(
                self._request.text, explain=self._explain
            )
        except PredictFailed as error:
            today = datetime.now(UTC).date().isoformat()
            await self._backends.store.commits.count_failure(today, error.revision)
            raise
        answered = time.perf_counter()
        explanation = Explanation.of(answer) if self._explain else None
        user, now = self._request.is_positive_user_answered, datetime.now(UTC)
        prediction = Prediction(
            id=self._id,
            text=self._request.text,
            is_positive_user_answered=user,
            is_positive_model_answered=bool(answer.is_positive_review),
            mlflow_run_id=answer.details.mlflow_run_id,
            inference_elapsed=answer.details.inference_elapsed,
            timestamp=now,
            score=answer.score,
            model_version=answer.model_version,
            revision=answer.known_revision,
            git_commit=lineage.git_commit,
            data_digest=lineage.data_digest,
            predict_elapsed=answered - asked,
            elapsed=time.perf_counter() - self._started,
            request_digest=self._digest,
            explanation=_pack(explanation) if self._key is not None else None,
            expire_at=now + self._kept if self._kept else None,
        )
        return prediction, explanation

    def _replay(self, first: Prediction) -> PredictionCreated:
        if not secrets.compare_digest(first.request_digest, self._digest):
            raise Problem(422, "This Idempotency-Key was used for another request. Use a new key.")
        user = self._request.is_positive_user_answered
        return PredictionCreated.of(first, user, _unpack(first.explanation))

    def _advice(self) -> str:
        advice = "The prediction may have been stored. "
        if self._key is not None:
            return f"{advice}Retry with the same Idempotency-Key: it is stored and counted once."
        return (
            f"{advice}A retry may store it a second time. To retry safely another time, send "
            "an Idempotency-Key with the first request too."
        )


def _id_of(order: Order) -> str:
    # A key is the caller's own: another caller may use the same.
    plain = json.dumps(["prediction", order.caller, order.key])
    return hashlib.sha256(plain.encode()).hexdigest()[:32]


def _digest(request: PredictionRequest, explain: bool) -> str:
    plain = json.dumps([request.text, request.is_positive_user_answered, explain])
    return hashlib.sha256(plain.encode()).hexdigest()


def _pack(explanation: Explanation | None) -> bytes | None:
    # Compressed, since a long text's explanation could outgrow a document.
    return zlib.compress(explanation.model_dump_json().encode()) if explanation else None


def _unpack(packed: bytes | None) -> Explanation | None:
    return Explanation.model_validate_json(zlib.decompress(packed)) if packed else None
