"""Predictions, statistics and rollouts in Firestore.

Collections:

- ``predictions``: one document a prediction (fields of `Prediction`, and `schema_version`);
- ``statistics``: counters, one document per UTC day, model version and shard (fields of
  `Counter`, and `shard`, `schema_version`), each prediction counted in the same commit
  that creates its document;
- ``rollouts``: written by promote; ``rollouts/status``, and one document a ledger entry.
"""

import base64
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import quote

from google.api_core import exceptions
from google.api_core.retry import AsyncRetry
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore
from google.cloud.firestore_v1.field_path import FieldPath

from functions.problem import Problem
from functions.proxy.settings import Settings
from functions.proxy.statistics import Counter

SCHEMA_VERSION = 1

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Snapshot = firestore.DocumentSnapshot[firestore.AsyncDocumentReference]
_RETRY_AFTER_SECONDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answered request, as stored.

    Attributes:
        id: the document's name, 32 hex digits.
        text: the review.
        is_positive_user_answered: what the user said, or None.
        is_positive_model_answered: what the model said.
        mlflow_run_id: run that trained the model.
        inference_elapsed: seconds that the model took.
        timestamp: when the request was answered; aware, UTC, microseconds.
        score: the model's probability of "positive".
        model_version: version in the model registry.
        revision: Cloud Run revision that answered, or None.
        request_digest: tells whether a retry is the same request.
        explanation: compressed explanation, kept only for a retry to return it.
    """

    id: str
    text: str
    is_positive_user_answered: bool | None
    is_positive_model_answered: bool
    mlflow_run_id: str
    inference_elapsed: float
    timestamp: datetime
    score: float
    model_version: str
    revision: str | None
    request_digest: str
    explanation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the list of predictions, which is ordered by time and then id."""

    timestamp: datetime
    id: str


class AlreadyStored(Exception):
    """There is a prediction with this id."""


class Unconfirmed(Exception):
    """Firestore did not say whether it stored the prediction: it may have."""


class Store:
    """The proxy's view of Firestore. Make one inside a running event loop and keep it.

    Every method raises `Problem` 503 when Firestore can't be reached in time.
    """

    def __init__(self, settings: Settings) -> None:
        self._project = settings.firestore_project
        self._database = settings.firestore_database
        self._timeout = settings.firestore_timeout_seconds
        self._shards = settings.statistics_shards
        self._client: firestore.AsyncClient | None = None
        self._retry = AsyncRetry(
            predicate=_is_transient, initial=0.1, maximum=1.0, timeout=self._timeout
        )

    async def add(self, prediction: Prediction, counter: Counter) -> None:
        """Create `prediction` and count it, both or neither.

        Raises:
            AlreadyStored: there is a prediction with this id; nothing was counted.
            Unconfirmed: it may have been stored and counted, or not.
        """
        document = asdict(prediction) | {"schema_version": SCHEMA_VERSION}
        del document["id"]
        if prediction.explanation is None:
            del document["explanation"]
        # Shards keep many predictions of one day from contending for one document.
        shard = random.randrange(self._shards)  # noqa: S311
        name = f"{counter.day}_{quote(counter.model_version, safe='')}_{shard}"
        increments = {
            "day": counter.day,
            "model_version": counter.model_version,
            "shard": shard,
            "schema_version": SCHEMA_VERSION,
            "count": firestore.Increment(counter.count),
            "answered": firestore.Increment(counter.answered),
            "correct": firestore.Increment(counter.correct),
            "positive": firestore.Increment(counter.positive),
            "score_sum": firestore.Increment(counter.score_sum),
        }
        async with self._connection() as client:
            batch = client.batch()
            # The precondition "does not exist" makes the commit safe to repeat.
            batch.create(client.collection("predictions").document(prediction.id), document)
            batch.set(client.collection("statistics").document(name), increments, merge=True)
            try:
                await batch.commit(retry=self._retry, timeout=self._timeout)
            except exceptions.AlreadyExists as error:
                raise AlreadyStored(prediction.id) from error
            except exceptions.GoogleAPIError as error:
                if _is_refusal(error):
                    raise
                raise Unconfirmed(prediction.id) from error

    async def get(self, prediction_id: str) -> Prediction | None:
        """Return the prediction, or None when there is none."""
        async with self._connection() as client:
            snapshot = await (
                client.collection("predictions")
                .document(prediction_id)
                .get(retry=self._retry, timeout=self._timeout)
            )
        return _prediction(snapshot) if snapshot.exists else None

    async def newest(self, limit: int, after: Position | None) -> list[Prediction]:
        """Return up to `limit` predictions, newest first, those after `after` only."""
        async with self._connection() as client:
            collection = client.collection("predictions")
            query = collection.order_by("timestamp", direction=firestore.Query.DESCENDING).order_by(
                FieldPath.document_id(), direction=firestore.Query.DESCENDING
            )
            if after:
                query = query.start_after(
                    {"timestamp": after.timestamp, "__name__": collection.document(after.id)}
                )
            return [_prediction(snapshot) for snapshot in await self._read(query.limit(limit))]

    async def counters(self) -> list[Counter]:
        """Return every counter."""
        async with self._connection() as client:
            snapshots = await self._read(client.collection("statistics"))
        return [_from(Counter, snapshot.to_dict() or {}) for snapshot in snapshots]

    async def rollouts(
        self, limit: int
    ) -> tuple[dict[str, object] | None, list[dict[str, object]]]:
        """Return the rollout's status, if any, and its newest `limit` ledger entries.

        Both as plain JSON values; an entry has its document's name as `id`.
        """
        async with self._connection() as client:
            collection = client.collection("rollouts")
            status = await collection.document("status").get(
                retry=self._retry, timeout=self._timeout
            )
            # One more: the status document may have a field `at` of its own.
            newest = await self._read(
                collection.order_by("at", direction=firestore.Query.DESCENDING).limit(limit + 1)
            )
        ledger = [
            {"id": entry.id} | _json_object(entry.to_dict() or {})
            for entry in newest
            if entry.id != "status"
        ]
        return _json_object(status.to_dict() or {}) if status.exists else None, ledger[:limit]

    async def _read(
        self, query: firestore.AsyncQuery | firestore.AsyncCollectionReference
    ) -> list[_Snapshot]:
        # get() reads the answer's stream to its end, so a retry starts it anew.
        async def read() -> list[_Snapshot]:
            return list(await query.get(retry=None, timeout=self._timeout))

        return await self._retry(read)()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[firestore.AsyncClient]:
        client = self._client
        try:
            if client is None:
                client = firestore.AsyncClient(project=self._project, database=self._database)
                self._client = client
            yield client
        except (exceptions.GoogleAPIError, GoogleAuthError, Unconfirmed) as error:
            _log.error("Firestore failed: %s", type(error.__cause__ or error).__name__)
            # gRPC waits up to two minutes before it tries a broken channel again; a
            # new client connects at once. Requests under way keep the old one.
            if self._client is client:
                self._client = None
            if isinstance(error, Unconfirmed):
                raise
            raise Problem(
                503,
                "The database can't be reached. Try again.",
                retry_after=_RETRY_AFTER_SECONDS,
            ) from error


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, exceptions.ServiceUnavailable | exceptions.Aborted)


def _is_refusal(error: exceptions.GoogleAPIError) -> bool:
    # Anything else, a lost connection as well as a time-out, may come after the commit.
    return isinstance(error, exceptions.ClientError) and not isinstance(error, exceptions.Cancelled)


def _prediction(snapshot: _Snapshot) -> Prediction:
    return _from(Prediction, (snapshot.to_dict() or {}) | {"id": snapshot.id})


def _from(kind: Callable[..., _T], document: Mapping[str, object]) -> _T:
    """Make a dataclass of the fields it knows: a later version may store more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in document.items() if name in names})


def _json_object(document: Mapping[str, object]) -> dict[str, object]:
    return {name: _json(value) for name, value in document.items()}


def _json(value: object) -> object:
    """Return a Firestore value as JSON has it: timestamps RFC 3339, bytes base64."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return _json_object(value)
        case list() | tuple():
            return [_json(item) for item in value]
        case firestore.AsyncDocumentReference():
            return value.path
        case _:
            return str(value)
