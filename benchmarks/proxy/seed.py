"""Predictions put into Firestore as the proxy would have put them there, but faster.

Run by the proxy's environment: ``python -m benchmarks.proxy.seed COUNT``. The documents and
what is counted of them come from the proxy's own code; only that many share a commit.
"""

import asyncio
import hashlib
import sys
from datetime import UTC, datetime, time, timedelta

from google.cloud import firestore

from functions.proxy.counters import Changes
from functions.proxy.documents import (
    MONTHS,
    PREDICTIONS,
    TOTALS,
    month_increments,
    prediction_fields,
    total_increments,
)
from functions.proxy.prediction import Position, Prediction

SHARDS = 10
DAYS = 28
_VERSIONS = ("8", "9", "10")
_TEXT = "The soup was very good and the waiter kind, but we waited for an hour. "
_A_COMMIT = 400
_AT_ONCE = 3


def newest(now: datetime) -> datetime:
    """Return the time of the newest prediction: the begin of a day."""
    return datetime.combine(now.date(), time(), UTC)


def position(number: int, count: int, now: datetime) -> Position:
    """Return the place in the list of prediction `number` of `count`, 0 the newest."""
    moment = newest(now) - timedelta(days=DAYS) * number / count
    return Position(moment, hashlib.sha256(str(number).encode()).hexdigest()[:32])


def prediction(number: int, count: int, now: datetime) -> Prediction:
    """Return prediction `number` of `count`, 0 the newest; days and versions have equal shares."""
    place = position(number, count, now)
    version = _VERSIONS[number % len(_VERSIONS)]
    return Prediction(
        id=place.id,
        text=_TEXT * (1 + number % 4),
        is_positive_user_answered=(None, True, True, False)[number % 4],
        is_positive_model_answered=number % 5 > 1,
        mlflow_run_id="3acade02674549b19044a59186d97db4",
        inference_elapsed=0.0001,
        timestamp=place.timestamp,
        score=(number % 100) / 100,
        model_version=version,
        revision=f"predict-000{version:0>2}-abc",
        git_commit="0ea995f1c0f3d1b2a4e5968778695a4b3c2d1e0f",
        data_digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        predict_elapsed=0.004,
        elapsed=0.005 * (1 + number % 40),
        request_digest=hashlib.sha256(place.id.encode()).hexdigest(),
    )


async def _seed(count: int) -> None:
    client = firestore.AsyncClient()
    now = datetime.now(UTC)
    changes = [Changes() for _ in range(SHARDS)]
    turns = asyncio.Semaphore(_AT_ONCE)

    async def write(start: int) -> None:
        async with turns:
            batch = client.batch()
            for number in range(start, min(start + _A_COMMIT, count)):
                one = prediction(number, count, now)
                reference = client.collection(PREDICTIONS).document(one.id)
                batch.create(reference, prediction_fields(one))
                changes[number % SHARDS].add(one)
            await batch.commit()

    async with asyncio.TaskGroup() as group:
        for start in range(0, count, _A_COMMIT):
            group.create_task(write(start))
    for shard, counted in enumerate(changes):
        batch = client.batch()
        totals = client.collection(TOTALS).document(f"{shard:02}")
        batch.set(totals, total_increments(counted), merge=True)
        for month in counted.months():
            document = client.collection(MONTHS).document(f"{month}_{shard:02}")
            batch.set(document, month_increments(counted, month), merge=True)
        await batch.commit()


if __name__ == "__main__":
    asyncio.run(_seed(int(sys.argv[1])))
