"""Predictions, statistics and rollouts in Firestore; `functions.proxy.documents` has their form."""

import base64
import math
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter
from google.cloud.firestore_v1.field_path import FieldPath

from functions.proxy.commits import Commits
from functions.proxy.connection import Connection
from functions.proxy.documents import PREDICTIONS, ROLLOUTS, read_prediction
from functions.proxy.prediction import Filters, Position, Prediction
from functions.proxy.settings import Settings
from functions.proxy.sharding import Sharding
from functions.proxy.statistics import Shards

_READ_AT_ONCE = 500


class Store:
    """The proxy's view of Firestore. Make one inside a running event loop and keep it.

    Every method raises `Problem` 503 when Firestore can't be reached in time.

    Attributes:
        commits: makes the changes.
    """

    def __init__(self, settings: Settings) -> None:
        self._connection = Connection(settings)
        self._sharding = Sharding(self._connection, settings.statistics_shards)
        self.commits = Commits(self._connection, self._sharding, slots=settings.answers_per_caller)

    async def get(self, prediction_id: str, *, expired: bool = False) -> Prediction | None:
        """Return the prediction, or None when there is none.

        Args:
            prediction_id: its id.
            expired: also return it when its time is over, and it was not deleted yet.
        """
        async with self._connection.client() as client:
            reference = client.collection(PREDICTIONS).document(prediction_id)
            snapshot = await self._connection.get(reference)
        if not snapshot.exists:
            return None
        found = read_prediction(snapshot)
        return found if expired or not found.is_expired(datetime.now(UTC)) else None

    async def newest(
        self, limit: int, after: Position | None, filters: Filters
    ) -> list[Prediction]:
        """Return up to `limit` predictions, newest first, those after `after` only.

        Fewer: there are no more. What has expired but was not deleted yet is passed over.
        """
        shown: list[Prediction] = []
        now = datetime.now(UTC)
        wanted = limit
        while True:
            found = await self._newest(wanted, after, filters)
            shown += [one for one in found if not one.is_expired(now)]
            if len(found) < wanted or len(shown) >= limit:
                return shown[:limit]
            # Expired ones come together.
            wanted = max(limit, _READ_AT_ONCE)
            after = Position(found[-1].timestamp, found[-1].id)

    async def _newest(
        self, limit: int, after: Position | None, filters: Filters
    ) -> list[Prediction]:
        async with self._connection.client() as client:
            collection = client.collection(PREDICTIONS)
            query = collection.order_by("timestamp", direction=firestore.Query.DESCENDING).order_by(
                FieldPath.document_id(), direction=firestore.Query.DESCENDING
            )
            for condition in _conditions(filters):
                query = query.where(filter=condition)
            if after:
                query = query.start_after(
                    {"timestamp": after.timestamp, "__name__": collection.document(after.id)}
                )
            found = await self._connection.read(query.limit(limit))
        return [read_prediction(snapshot) for snapshot in found]

    async def every(self, filters: Filters) -> AsyncIterator[list[Prediction]]:
        """Yield all predictions, newest first, some at a time; at least once."""
        after = None
        while True:
            found = await self.newest(_READ_AT_ONCE, after, filters)
            yield found
            if len(found) < _READ_AT_ONCE:
                return
            after = Position(found[-1].timestamp, found[-1].id)

    async def shards(self, *, since: str, until: str, with_totals: bool) -> Shards:
        """Return the counters of the months that the days fall in.

        Args:
            since: first UTC day, ``2021-02-04``.
            until: last UTC day.
            with_totals: also those of all time.
        """
        async with self._connection.client() as client:
            totals, monthly = await self._sharding.read(
                client, _months(since, until), with_totals=with_totals
            )
        return Shards(
            totals=[_map(document, "versions") for document in totals],
            days=[_map(document, "days") for document in monthly],
            revisions=[_map(document, "revisions") for document in monthly],
        )

    async def rollouts(
        self, limit: int
    ) -> tuple[dict[str, object] | None, list[dict[str, object]]]:
        """Return the rollout's status, if any, and its newest `limit` ledger entries.

        Both as plain JSON values; an entry has its document's name as `id`.
        """
        async with self._connection.client() as client:
            collection = client.collection(ROLLOUTS)
            status = await self._connection.get(collection.document("status"))
            # One more: the status document may have a field `at` of its own.
            newest = await self._connection.read(
                collection.order_by("at", direction=firestore.Query.DESCENDING).limit(limit + 1)
            )
        ledger = [
            {"id": entry.id} | _json_object(entry.to_dict() or {})
            for entry in newest
            if entry.id != "status"
        ]
        return _json_object(status.to_dict() or {}) if status.exists else None, ledger[:limit]


def _months(since: str, until: str) -> list[str]:
    first, last = (12 * int(day[:4]) + int(day[5:7]) - 1 for day in (since, until))
    return [f"{month // 12:04}-{month % 12 + 1:02}" for month in range(first, last + 1)]


def _map(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name, {})
    return found if isinstance(found, dict) else {}


def _conditions(filters: Filters) -> list[FieldFilter]:
    conditions = []
    if filters.model_version is not None:
        conditions.append(FieldFilter("model_version", "==", filters.model_version))
    if filters.disagreements:
        conditions.append(FieldFilter("disagrees", "==", True))
    if filters.day is not None:
        # A range of the time that the list is ordered by: the same index serves it.
        conditions.append(FieldFilter("timestamp", ">=", filters.day))
        last = filters.day + timedelta(days=1, microseconds=-1)
        conditions.append(FieldFilter("timestamp", "<=", last))
    return conditions


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
