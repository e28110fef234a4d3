"""What the proxy costs as predictions grow, and beside bare writes: ``make bench-proxy``.

Everything is a ratio of two figures taken by turns in the same run. Progress goes to
standard error; the last line of standard output is JSON.
"""

import argparse
import asyncio
import http.client
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import aiohttp

from benchmarks.predict.load import Target, requests_a_second
from benchmarks.proxy.seed import newest, position
from functions.proxy.cursor import write_cursor
from local.settings import free_port
from tests.emulators import FirestoreEmulator
from tests.proxy.conftest import token
from tests.proxy.relay import FirestoreRelay

ROOT = Path(__file__).parents[2]
PROXY_PYTHON = ROOT / ".venvs/proxy/bin/python"

SMALL = 2_000
PAGE = 20
NEW_CALLERS = 20_000
CONNECTIONS = 64
BODY = json.dumps(
    {
        "text": "The soup was very good and the waiter kind, but we waited for an hour.",
        "is_positive_user_answered": True,
    }
).encode()


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, to try it out")
    parser.add_argument("--shards", type=int, default=10, help="STATISTICS_SHARDS while writing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        figures = _measure(stack, Path(folder), quick=arguments.quick, shards=arguments.shards)
    print(json.dumps(figures))


def _measure(stack: ExitStack, folder: Path, *, quick: bool, shards: int) -> dict[str, float]:
    large = SMALL * (10 if quick else 100)
    _say(f"{os.cpu_count()} processors; {SMALL:,} and {large:,} predictions")
    emulator = FirestoreEmulator(free_port(), folder / "firestore.log")
    stack.callback(emulator.kill)
    emulator.start()
    predict = free_port()
    stack.enter_context(_running(folder, _uvicorn(predict), {}, predict))

    # Writes first: the emulator is slower the more it holds.
    writes = "bench-writes"
    url = stack.enter_context(_proxy(folder, emulator.host, writes, predict, shards))
    post, new_callers, bare = _writes(emulator.host, writes, url, folder, 2 if quick else 5)
    _latency(url, post / 2)

    projects = {SMALL: "bench-small", large: "bench-large"}
    for count, project in projects.items():
        started = time.monotonic()
        _run("seed", str(count), emulator=emulator.host, project=project)
        _say(f"{count:,} predictions put there in {time.monotonic() - started:.0f} s")
    urls = {
        count: stack.enter_context(_proxy(folder, emulator.host, project, predict, shards))
        for count, project in projects.items()
    }
    for count, address in urls.items():
        counted = json.loads(_get(address, "/statistics"))["statistics"]["predictions"]
        if counted != count:
            raise RuntimeError(f"{counted} predictions are counted, not {count}")
    small, many = _by_turns(
        [partial(_get, address, "/statistics") for address in urls.values()],
        20 if quick else 100,
    )
    _say(f"GET /statistics: {small * 1e3:.1f} ms and {many * 1e3:.1f} ms")

    relay = FirestoreRelay(emulator.host)
    stack.callback(relay.close)
    reads = []
    for project in projects.values():
        address = stack.enter_context(_proxy(folder, relay.host, project, predict, shards))
        relay.reads = 0
        _get(address, "/statistics")
        reads.append(relay.reads)
    _say(f"GET /statistics: {reads[0]} and {reads[1]} billed reads")

    # The small size has a thousand pages too.
    day = newest(datetime.now(UTC))
    before = 999 * PAGE
    cursor = write_cursor(position(before - 1, large, day))
    paths = [f"/predictions?limit={PAGE}", f"/predictions?limit={PAGE}&cursor={cursor}"]
    for path, number in zip(paths, (0, before), strict=True):
        _require_page(urls[large], path, position(number, large, day).id)
    first, thousandth = _by_turns(
        [partial(_get, urls[large], path) for path in paths], 3 if quick else 7
    )
    _say(f"page 1: {first * 1e3:.0f} ms, page 1,000: {thousandth * 1e3:.0f} ms")
    return {
        "statistics_200k_vs_2k": round(many / small, 3),
        "billed_reads_2k": reads[0],
        "billed_reads_200k": reads[1],
        "post_vs_bare_writes": round(post / bare, 3),
        "post_of_new_callers_vs_bare_writes": round(new_callers / bare, 3),
        "page_1000_vs_1": round(thousandth / first, 3),
    }


def _writes(
    emulator: str, project: str, url: str, folder: Path, rounds: int
) -> tuple[float, float, float]:
    """Return predictions, those of ever new callers, and bare writes a second, as medians.

    All predictions are answered by their users. Callers who have answered often cost the
    proxy nothing; for new ones it reads and writes how often they have.
    """

    def post(seconds: float, tokens: Sequence[str] = ()) -> float:
        target = Target(_port(url), "/predictions", [BODY], tokens)
        return requests_a_second(target, folder, seconds=seconds, connections=CONNECTIONS, core=0)

    def post_anew(seconds: float) -> float:
        # More than are asked in that time.
        return post(seconds, [token(email=secrets.token_hex(8)) for _ in range(NEW_CALLERS)])

    def bare(seconds: float) -> float:
        arguments = (str(seconds), str(CONNECTIONS))
        return float(_run("bare_writes", *arguments, emulator=emulator, project=project))

    post(5)
    bare(5)
    found = [(post(8), post_anew(8), bare(8)) for _ in range(rounds)]
    posts, anew, bares = (statistics.median(rates) for rates in zip(*found, strict=True))
    _say(
        "POST, of new callers, and bare writes a second: "
        + ", ".join(f"{p:.0f} ({n:.0f}) and {b:.0f}" for p, n, b in found)
    )
    return posts, anew, bares


def _latency(url: str, rate: float) -> None:
    """Say how long predictions take at a fixed rate, counted from when each was due."""

    async def ask() -> list[float]:
        taken: list[float] = []
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS)
        ) as session:

            async def one(due: float) -> None:
                async with session.post(
                    f"{url}/predictions", data=BODY, headers=headers
                ) as response:
                    await response.read()
                    if response.status != 201:
                        raise RuntimeError(f"POST /predictions: {response.status}")
                taken.append(time.perf_counter() - due)

            started = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for number in range(int(rate * 10)):
                    due = started + number / rate
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    group.create_task(one(due))
        return sorted(taken)

    taken = asyncio.run(ask())
    half, most = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
    _say(f"at {rate:.0f} POST a second: p50 {half * 1e3:.1f} ms, p99 {most * 1e3:.1f} ms")


def _by_turns(actions: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the seconds of each action, after two rounds that don't count.

    The lower quartile: what else the machine does only ever adds to them.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    for number in range(rounds + 2):
        for action, taken in zip(actions, seconds, strict=True):
            started = time.perf_counter()
            action()
            if number >= 2:
                taken.append(time.perf_counter() - started)
    return [statistics.quantiles(taken, n=4, method="inclusive")[0] for taken in seconds]


def _get(url: str, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", _port(url), timeout=300)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"GET {path}: {response.status}: {content[:300]!r}")
    return content


def _require_page(url: str, path: str, first: str) -> None:
    page = json.loads(_get(url, path))
    if len(page) != PAGE or page[0]["id"] != first:
        raise RuntimeError(f"GET {path}: {len(page)} predictions, not {PAGE} from {first} on")


def _run(module: str, *arguments: str, emulator: str, project: str) -> str:
    command = [str(PROXY_PYTHON), "-m", f"benchmarks.proxy.{module}", *arguments]
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=_firestore(emulator, project), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr[-2000:]}")
    return done.stdout


def _uvicorn(port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "uvicorn", "benchmarks.proxy.instant_predict:app"),
        *("--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log"),
    ]


@contextmanager
def _proxy(folder: Path, firestore: str, project: str, predict: int, shards: int) -> Iterator[str]:
    port = free_port()
    command = [
        *(str(PROXY_PYTHON), "-m", "functions.proxy", "--host=127.0.0.1", f"--port={port}"),
        *(f"--predict-url=http://127.0.0.1:{predict}", f"--statistics-shards={shards}"),
        # The emulator sorts all documents for each page.
        "--firestore-timeout-seconds=120",
    ]
    with _running(folder, command, _firestore(firestore, project), port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(
    folder: Path, command: Sequence[str], environment: dict[str, str], port: int
) -> Iterator[None]:
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]} | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                _get(f"http://127.0.0.1:{port}", "/health")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[2]} did not start") from None
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _firestore(emulator: str, project: str) -> dict[str, str]:
    return {"FIRESTORE_EMULATOR_HOST": emulator, "GOOGLE_CLOUD_PROJECT": project}


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
