"""How many answers of one caller count where a caller must not count too often.

Each caller has some slots a day and model version, kept in ``callers``: one document a
caller, day and version, with the number of slots taken. It is written in the same
commit as the answer, under the condition that nobody else has changed it meanwhile.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from google.cloud import firestore
from google.cloud.firestore_v1.types import WriteResult
from google.protobuf.timestamp_pb2 import Timestamp

from functions.proxy.connection import Connection

COLLECTION = "callers"
# The number is of no use once its day is over.
_KEPT = timedelta(days=2)
_MAX_REMEMBERED = 20_000


def slots_name(caller: str, model_version: str, moment: datetime) -> str:
    """Return the document's name.

    Args:
        caller: digest of the caller's name.
        model_version: version that the answered prediction is of.
        moment: when the answer was given, UTC.
    """
    return f"{caller}_{moment.date().isoformat()}_{quote(model_version, safe='')}"


@dataclass(frozen=True, slots=True)
class _Taken:
    count: int
    update_time: Timestamp | None
    """Of the document as it was read or written; None: there is none."""


class Slots:
    """The slots as this process knows them: what is full stays so without another read.

    Args:
        limit: slots for each name.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[str, _Taken] = OrderedDict()

    def is_full(self, name: str) -> bool:
        """Say whether there is surely no slot left."""
        known = self._known.get(name)
        return self._limit == 0 or (known is not None and known.count >= self._limit)

    async def load(
        self, names: Iterable[str], connection: Connection, client: firestore.AsyncClient
    ) -> None:
        """Read the names that are not known yet, in one call."""
        unknown = []
        for name in names:
            if name in self._known:
                self._known.move_to_end(name)
            else:
                unknown.append(client.collection(COLLECTION).document(name))
        if unknown:
            for snapshot in await connection.read_all(client, unknown):
                count = (snapshot.to_dict() or {}).get("count", 0)
                self._remember(snapshot.id, _Taken(count, snapshot.update_time))

    def free(self, name: str) -> int:
        """Return how many slots are left of a name that is known."""
        known = self._known.get(name)
        return 0 if known is None else max(0, self._limit - known.count)

    def write(
        self,
        taken: Mapping[str, int],
        batch: firestore.AsyncWriteBatch,
        client: firestore.AsyncClient,
    ) -> None:
        """Add to `batch` that slots are taken: name -> how many."""
        for name, number in taken.items():
            known = self._known[name]
            document = client.collection(COLLECTION).document(name)
            content = {
                "count": known.count + number,
                "expire_at": datetime.now(UTC) + _KEPT,
                "schema_version": 1,
            }
            if known.update_time is None:
                batch.create(document, content)
            else:
                unchanged = client.write_option(last_update_time=known.update_time)
                batch.update(document, content, option=unchanged)

    def written(self, taken: Mapping[str, int], results: list[WriteResult]) -> None:
        """Take note of what `write` has added, given its part of the commit's results."""
        for (name, number), result in zip(taken.items(), results, strict=True):
            self._remember(name, _Taken(self._known[name].count + number, result.update_time))

    def forget(self, names: Iterable[str]) -> None:
        """Read these again before the next use: they may have been changed."""
        for name in names:
            self._known.pop(name, None)

    def _remember(self, name: str, taken: _Taken) -> None:
        self._known[name] = taken
        while len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
