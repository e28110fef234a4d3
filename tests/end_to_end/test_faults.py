"""Kill each program of the stack under load: what is lost, who notices, what recovers."""

import asyncio
import logging
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

import httpx
import pytest
from google.cloud import storage

from functions.promote.bundles import Bundles, StorageUnavailable
from functions.promote.deadline import Deadline
from local import programs, services
from local.demo import Stream, send_steadily
from local.processes import Processes
from local.settings import ARTIFACTS_BUCKET, MODEL, SERVING_BUCKET, load_settings
from tests.bundles import make_bundle
from tests.end_to_end.conftest import Loop
from tests.end_to_end.versions import register_copy

log = logging.getLogger(__name__)

# Promote's callers allow it a minute, as Cloud Scheduler does.
ANSWER_SECONDS = {"predictions": 30, "predict": 30, "promote": 60}
RECOVERY_SECONDS = 150
DOWN_SECONDS = 4
WELL_SECONDS = 1.5

# What a client may see of a fault. A time-out of its own, or any 500, is never among it.
UNHARMED = frozenset[str]()
PROBLEM = frozenset({"502 problem", "503 problem", "504 problem"})
FRONT_END = frozenset({"503 front end", "504 front end"})
CLOSED = frozenset({"no connection"})


@dataclass(frozen=True)
class Fault:
    """One row: what is killed, who starts it again, and what callers see until then."""

    killed: str
    again_by: str
    predictions: frozenset[str]
    """Failures that callers of the proxy may see."""
    predict: frozenset[str]
    """Failures that callers of predict may see."""
    promote: frozenset[str]
    """Failures that callers of promote may see."""
    lost: str = "nothing"

    def allowed(self, caller: str) -> frozenset[str]:
        allowed: frozenset[str] = getattr(self, caller)
        return allowed


ITSELF, UP = "Cloud Run", "local up"
# The emulator holds its documents in memory, where Firestore itself does not: the one
# case in which something acknowledged is lost.
EXPORT = "predictions stored after the last export"

# fmt: off
FAULTS = [
    #     killed        again by  POST /predictions     POST /predict        promote's POST /
    Fault("predict",    ITSELF,   PROBLEM,              FRONT_END,           UNHARMED),
    Fault("proxy",      ITSELF,   FRONT_END,            UNHARMED,            UNHARMED),
    Fault("promote",    ITSELF,   UNHARMED,             UNHARMED,            FRONT_END),
    Fault("mlflow-api", ITSELF,   UNHARMED,             UNHARMED,            PROBLEM),
    Fault("scheduler",  UP,       UNHARMED,             UNHARMED,            UNHARMED),
    Fault("storage",    UP,       UNHARMED,             UNHARMED,            UNHARMED),
    Fault("postgres",   UP,       UNHARMED,             UNHARMED,            PROBLEM),
    Fault("firestore",  UP,       PROBLEM,              UNHARMED,            UNHARMED, EXPORT),
    Fault("cloud_run",  UP,       CLOSED | FRONT_END | PROBLEM,
                                                        CLOSED | FRONT_END,
                                                                    CLOSED | FRONT_END | PROBLEM),
]
# fmt: on


@dataclass(frozen=True)
class Answer:
    caller: str
    sent_at: float
    seconds: float
    what: str


@dataclass
class Load:
    """Callers that never rest, each request on a connection of its own.

    The callers of the proxy send a request again, with its Idempotency-Key, until it is
    acknowledged; also the last one, so that in the end each key stands for one prediction.
    """

    loop: Loop
    answers: list[Answer] = field(default_factory=list)
    acknowledged: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Idempotency-Key -> id, and when the request that was acknowledged was sent."""
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def failures(self, caller: str) -> Counter[str]:
        return Counter(
            answer.what for answer in self.answers if answer.caller == caller and answer.what
        )

    def slowest(self) -> dict[str, float]:
        return {
            caller: round(max(a.seconds for a in self.answers if a.caller == caller), 1)
            for caller in ANSWER_SECONDS
        }

    def wait_until_well(self) -> None:
        """Wait until every caller is answered well for a while."""
        since, deadline = time.monotonic(), time.monotonic() + RECOVERY_SECONDS
        while True:
            recent = [answer for answer in self.answers if answer.sent_at >= since]
            if bad := [answer for answer in recent if answer.what]:
                assert time.monotonic() < deadline, Counter((a.caller, a.what) for a in bad)
                since = max(answer.sent_at for answer in bad) + 1e-6
            all_were_answered = {answer.caller for answer in recent} == ANSWER_SECONDS.keys()
            if not bad and all_were_answered and time.monotonic() - since > WELL_SECONDS:
                return
            assert time.monotonic() < deadline, "there are no answers"
            time.sleep(0.05)

    async def _run(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(limits=limits) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(3):
                tasks.create_task(self._store(client))
            tasks.create_task(self._predict(client))
            tasks.create_task(self._tick(client))

    async def _store(self, client: httpx.AsyncClient) -> None:
        url = f"{self.loop.url('proxy')}/predictions"
        number = 0
        while not self._stopping.is_set():
            number += 1
            key = uuid.uuid4().hex
            body = {"text": f"very good cafe {number}", "is_positive_user_answered": number % 2 > 0}
            deadline = time.monotonic() + RECOVERY_SECONDS
            while time.monotonic() < deadline:
                sent_at = time.monotonic()
                headers = {"Idempotency-Key": key}
                response = await self._post(client, "predictions", url, body, headers)
                await asyncio.sleep(0.05)
                if response is not None and response.status_code == 201:
                    self.acknowledged[key] = (response.json()["id"], sent_at)
                    break

    async def _predict(self, client: httpx.AsyncClient) -> None:
        while not self._stopping.is_set():
            url = f"{self.loop.url('predict')}/predict"
            await self._post(client, "predict", url, {"text": "not good at all"}, {})
            await asyncio.sleep(0.05)

    async def _tick(self, client: httpx.AsyncClient) -> None:
        while not self._stopping.is_set():
            await self._post(client, "promote", f"{self.loop.url('promote')}/", None, {})
            await asyncio.sleep(0.5)

    async def _post(
        self,
        client: httpx.AsyncClient,
        caller: str,
        url: str,
        body: object,
        headers: dict[str, str],
    ) -> httpx.Response | None:
        sent_at, response = time.monotonic(), None
        try:
            response = await client.post(
                url, json=body, headers=headers, timeout=ANSWER_SECONDS[caller]
            )
            what = _failure(response)
        except httpx.TimeoutException:
            what = "no answer in time"
        except httpx.TransportError:
            what = "no connection"
        self.answers.append(Answer(caller, sent_at, time.monotonic() - sent_at, what))
        return response


def _failure(response: httpx.Response) -> str:
    if response.is_success:
        return ""
    content_type = response.headers.get("content-type", "")
    kind = {"application/problem+json": "problem", "text/plain; charset=utf-8": "front end"}
    return f"{response.status_code} {kind.get(content_type, content_type)}"


def stored(loop: Loop) -> set[str]:
    """Return the ids of all predictions, each once, as many as the statistics count."""
    url, found = f"{loop.url('proxy')}/predictions?limit=1000", list[str]()
    while url:
        page = loop.http.get(url).raise_for_status()
        found += [item["id"] for item in page.json()]
        following = page.links.get("next", {}).get("url")
        url = str(page.url.join(following)) if following else ""
    statistics = loop.http.get(f"{loop.url('proxy')}/statistics").json()["statistics"]
    assert statistics["predictions"] == len(found)
    assert len(set(found)) == len(found)
    return set(found)


def running(loop: Loop, name: str) -> list[int]:
    """Return the process ids of a program, or of a service's instances."""
    program = loop.stack.running().get(name)
    return loop.instances(name) if program is None else [program]


def check_none_was_slow(load: Load) -> None:
    slowest = load.slowest()
    assert all(seconds < ANSWER_SECONDS[caller] for caller, seconds in slowest.items()), slowest


def kill(loop: Loop, name: str) -> list[int]:
    """Kill a program or a service's instances as the kernel does when memory is out."""
    victims = running(loop, name)
    assert victims, f"{name} does not run"
    # Their groups: a wrapper's child, or a server's worker, is the program itself.
    signal_groups(victims, signal.SIGKILL)
    return victims


def signal_groups(processes: list[int], number: signal.Signals) -> None:
    groups = set()
    for process in processes:
        # One that ended since it was looked for needs no signal.
        with suppress(ProcessLookupError):
            groups.add(os.getpgid(process))
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


def has_ended(process: int) -> bool:
    """Return whether a process has closed all it had open; it may still be a zombie."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait(condition: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            if condition():
                return
        except (httpx.HTTPError, ValueError) as error:
            message = f"{message.partition(' (')[0]} ({error!r})"
        assert time.monotonic() < deadline, message
        time.sleep(0.1)


def up(loop: Loop) -> None:
    loop.stack.up(lambda _title, _address: None)


def status_is_written(loop: Loop, since: datetime) -> bool:
    status = loop.http.get(f"{loop.url('proxy')}/rollouts").json()["status"]
    return datetime.fromisoformat(status["at"]) > since and status["error"] is None


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.killed}-is-killed")
def test_what_was_acknowledged_is_kept_and_all_recovers(loop: Loop, fault: Fault) -> None:
    if fault.killed == "postgres" and loop.stack.running()["postgres"] is None:
        pytest.skip("MLflow's database is SQLite here")
    version = loop.served()
    before = stored(loop)
    if fault.lost == EXPORT:
        programs.export_firestore(loop.settings)

    with Load(loop) as load:
        load.wait_until_well()
        assert not any(answer.what for answer in load.answers)
        killed_at = time.monotonic()
        victims = kill(loop, fault.killed)
        if fault.again_by == UP:
            time.sleep(DOWN_SECONDS)
            up(loop)
        load.wait_until_well()
        recovered_at = datetime.now().astimezone()
    assert set(running(loop, fault.killed)).isdisjoint(victims)

    summary = {caller: dict(load.failures(caller)) for caller in ANSWER_SECONDS}
    log.info("%d acknowledged, slowest %s, %s", len(load.acknowledged), load.slowest(), summary)
    for caller, failures in summary.items():
        allowed = fault.allowed(caller)
        assert failures.keys() <= allowed, caller
        # What stays down for seconds is felt, or the row says too much.
        assert failures or not allowed or fault.again_by == ITSELF, caller
    check_none_was_slow(load)

    kept = {
        prediction
        for prediction, sent_at in load.acknowledged.values()
        if fault.lost == "nothing" or sent_at > killed_at
    }
    for prediction in kept:
        loop.http.get(f"{loop.url('proxy')}/predictions/{prediction}").raise_for_status()
    assert stored(loop) == before | kept

    assert loop.served() == version
    # The scheduler's own ticks, and what they write for readers.
    wait(lambda: status_is_written(loop, recovered_at), "promote's status is not written")


@contextmanager
def asked_steadily(loop: Loop) -> Iterator[Stream]:
    """Ask predict all the while; what comes back is complete afterwards."""
    stream, stopping = Stream(), threading.Event()

    async def ask() -> None:
        stop = asyncio.Event()
        url = f"{loop.url('predict')}/predict"
        client = asyncio.create_task(send_steadily(url, stream, stop))
        await asyncio.to_thread(stopping.wait)
        stop.set()
        await client

    thread = threading.Thread(target=lambda: asyncio.run(ask()))
    thread.start()
    try:
        yield stream
    finally:
        stopping.set()
        thread.join()


def at_random_moments(_loop: Loop, chance: random.Random, number: int) -> None:
    # The instance that runs already is quick. A fresh one takes two to four seconds until
    # its first write: some are killed before it, some after.
    longest = 0.5 if number == 0 else chance.choice([0.3, 1, 2, 3, 4, 5])
    time.sleep(longest * chance.uniform(0.6, 1))


def right_after_a_write(loop: Loop, _chance: random.Random, _number: int) -> None:
    """Between what it changed in Cloud Run and what it would write down next."""
    client, name = services.client(loop.settings), services.service_name("predict")
    before = client.get_service(name=name).generation
    deadline = time.monotonic() + 20
    while client.get_service(name=name).generation == before and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "kills", "seed"), [(at_random_moments, 9, 11), (right_after_a_write, 4, 12)]
)
def test_promote_killed_between_any_two_of_its_calls_gets_there(
    loop: Loop, moment: Callable[[Loop, random.Random, int], None], kills: int, seed: int
) -> None:
    before = loop.served()
    assert before is not None
    version = register_copy(loop, before)
    chance = random.Random(seed)
    served = []
    with asked_steadily(loop) as stream:
        loop.set_stage(version)
        for number in range(kills):
            moment(loop, chance, number)
            signal_groups(loop.instances("promote"), signal.SIGKILL)
            served.append(loop.served())
        wait(lambda: loop.served() == version, f"version {version} is not served")
        wait(lambda: kind(loop) == "idle", "promote does not come to rest")
    log.info("served at each kill: %s", served)
    assert served[0] == before
    assert not stream.failures
    assert set(stream.versions) == {before, version}
    ledger = loop.http.get(f"{loop.url('proxy')}/rollouts").json()["ledger"]
    events = [entry["event"] for entry in ledger if entry["version"] == version]
    assert events == ["promoted"]
    tags = loop.registry.get_model_version(MODEL, version).tags
    assert (
        tags["serving_revision"] == loop.http.get(f"{loop.url('predict')}/model").json()["revision"]
    )


@pytest.mark.slow
def test_a_promotion_waits_for_a_storage_that_is_gone(loop: Loop) -> None:
    before = loop.served()
    assert before is not None
    version = register_copy(loop, before)
    with asked_steadily(loop) as stream:
        kill(loop, "storage")
        try:
            loop.set_stage(version)
            response = loop.http.post(f"{loop.url('promote')}/")
            assert _failure(response) == "503 problem"
            assert "gs://" in response.json()["detail"]
            assert response.elapsed.total_seconds() < ANSWER_SECONDS["promote"]
            assert loop.served() == before
        finally:
            up(loop)
        # Not blocked for what was no fault of its own.
        wait(lambda: loop.served() == version, f"version {version} is not served")
    assert not stream.failures


def kind(loop: Loop) -> str:
    action = loop.status()["action"]
    assert isinstance(action, dict)
    return str(action["kind"])


def test_a_firestore_that_hangs_is_a_503_and_each_prediction_is_stored_once(loop: Loop) -> None:
    before = stored(loop)
    program = loop.stack.running()["firestore"]
    assert program is not None
    with Load(loop) as load:
        load.wait_until_well()
        signal_groups([program], signal.SIGSTOP)
        try:
            time.sleep(8)
        finally:
            signal_groups([program], signal.SIGCONT)
        load.wait_until_well()
    assert load.failures("predictions").keys() == {"503 problem"}
    assert not load.failures("predict")
    assert not load.failures("promote")
    check_none_was_slow(load)
    assert stored(loop) == before | {prediction for prediction, _ in load.acknowledged.values()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A stack's data folder with very little room for its storage."""
    folder = tmp_path / "storage"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("a file system can't be mounted here")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_bundle_that_finds_the_disk_full_is_copied_whole_once_there_is_room(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(small_disk, ports={}, free_ports=True)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", settings.url("storage"))
    program, processes = programs.storage(settings), Processes(small_disk)
    processes.start(program)
    try:
        processes.wait(program)
        client = storage.Client()
        for name in (ARTIFACTS_BUCKET, SERVING_BUCKET):
            client.create_bucket(name)
        # Large enough for the disk to be full in the middle of a file.
        files = make_bundle({f"word{number}": 1.0 for number in range(200)})
        for name, content in files.items():
            blob = client.bucket(ARTIFACTS_BUCKET).blob(f"run/artifacts/serving/{name}")
            blob.upload_from_string(content)
        bundles = Bundles(
            model=MODEL, artifacts_bucket=ARTIFACTS_BUCKET, serving_bucket=SERVING_BUCKET
        )
        source = f"gs://{ARTIFACTS_BUCKET}/run/artifacts"
        target = bundles.locate(source, Deadline(60))
        filler = small_disk / "storage" / ARTIFACTS_BUCKET / "filler"
        free = shutil.disk_usage(filler.parent).free
        filler.write_bytes(bytes(free - 3 * 4096))
        with pytest.raises(StorageUnavailable):
            bundles.stage(source, target, Deadline(4))
        filler.unlink()
        bundles.stage(source, target, Deadline(60))
        folder = target.removeprefix(f"gs://{SERVING_BUCKET}/")
        for name, content in files.items():
            assert client.bucket(SERVING_BUCKET).blob(folder + name).download_as_bytes() == content
    finally:
        processes.stop("storage")
