"""Which documents share the counters: as many as were ever in use.

``statistics/shards`` holds that number. A process that is told to use more raises it
before it writes to them, so that every reader knows all, and a lower setting loses nothing.
Shards are read by name: no query, whose cost could depend on anything else.
"""

import random
from collections.abc import Sequence

from google.cloud import firestore

from functions.problem import Problem
from functions.proxy.connection import RETRY_AFTER_SECONDS, Conflict, Connection
from functions.proxy.documents import MONTHS, SCHEMA_VERSION, TOTALS

_NUMBER = "shards"
_ATTEMPTS = 8


class Sharding:
    """The shards as this process knows them.

    Args:
        connection: to Firestore.
        wanted: shards that this process writes to.
    """

    def __init__(self, connection: Connection, wanted: int) -> None:
        self._connection = connection
        self._wanted = wanted
        self._known = wanted
        self._is_announced = False

    async def pick(self, client: firestore.AsyncClient) -> str:
        """Return the shard for a commit: at random, so that two seldom want the same.

        Raises:
            Unconfirmed: the number of shards could not be raised for sure.
        """
        if not self._is_announced:
            await self._announce(client)
            self._is_announced = True
        return f"{random.randrange(self._wanted):02}"  # noqa: S311

    async def read(
        self, client: firestore.AsyncClient, months: Sequence[str], *, with_totals: bool
    ) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """Return the documents of the totals and of the months, as they were at one time.

        Args:
            client: lent by the connection.
            months: such as ``2021-02``.
            with_totals: also read the totals.
        """
        totals: list[dict[str, object]] = []
        monthly: list[dict[str, object]] = []
        number = client.collection(TOTALS).document(_NUMBER)
        first, known = 0, self._known
        while first < known:
            shards = [f"{shard:02}" for shard in range(first, known)]
            names = [f"{month}_{shard}" for month in months for shard in shards]
            references = [number, *(client.collection(MONTHS).document(name) for name in names)]
            if with_totals:
                references += [client.collection(TOTALS).document(shard) for shard in shards]
            first = known
            for snapshot in await self._connection.read_all(client, references):
                document = snapshot.to_dict() or {}
                if snapshot.id == _NUMBER:
                    known = max(known, document.get("count", 0))
                elif snapshot.reference.parent.id == TOTALS:
                    totals.append(document)
                else:
                    monthly.append(document)
        self._known = known
        return totals, monthly

    async def _announce(self, client: firestore.AsyncClient) -> None:
        reference = client.collection(TOTALS).document(_NUMBER)
        for _ in range(_ATTEMPTS):
            snapshot = await self._connection.get(reference)
            count = (snapshot.to_dict() or {}).get("count", 0)
            if count < self._wanted:
                batch = client.batch()
                document = {"count": self._wanted, "schema_version": SCHEMA_VERSION}
                if snapshot.exists:
                    unchanged = client.write_option(last_update_time=snapshot.update_time)
                    batch.update(reference, document, option=unchanged)
                else:
                    batch.create(reference, document)
                try:
                    await self._connection.commit(batch)
                except Conflict:
                    continue
            self._known = max(count, self._known)
            return
        raise Problem(
            503,
            "The statistics are being set up. Nothing was stored; try again.",
            retry_after=RETRY_AFTER_SECONDS,
        )
