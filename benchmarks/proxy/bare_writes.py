"""Single-document writes through Firestore's own client, as fast as they go.

Run by the proxy's environment: ``python -m benchmarks.proxy.bare_writes SECONDS WRITERS``;
prints the writes a second. ``FIRESTORE_EMULATOR_HOST`` and ``GOOGLE_CLOUD_PROJECT`` say where.
"""

import asyncio
import secrets
import sys
import time
from datetime import UTC, datetime

import uvloop
from google.cloud import firestore

from benchmarks.proxy.seed import prediction
from functions.proxy.documents import prediction_fields

_WARM_UP_SECONDS = 1.0


async def _measure(seconds: float, writers: int) -> float:
    collection = firestore.AsyncClient().collection("bare")
    fields = prediction_fields(prediction(0, 1, datetime.now(UTC)))
    written = 0
    stopping = asyncio.Event()

    async def write() -> None:
        nonlocal written
        while not stopping.is_set():
            await collection.document(secrets.token_hex(16)).create(fields)
            written += 1

    tasks = [asyncio.create_task(write()) for _ in range(writers)]
    await asyncio.sleep(_WARM_UP_SECONDS)
    before, started = written, time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (written - before) / (time.perf_counter() - started)
    stopping.set()
    await asyncio.gather(*tasks)
    return rate


if __name__ == "__main__":
    print(uvloop.run(_measure(float(sys.argv[1]), int(sys.argv[2]))))  # noqa: T201
