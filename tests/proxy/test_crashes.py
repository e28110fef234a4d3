"""The proxy killed between any two writes: nothing is half done, and a retry counts once."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from local.settings import free_port
from tests.emulators import FirestoreEmulator
from tests.proxy.conftest import PROJECT, ROOT, FakePredict, wait_for
from tests.proxy.relay import FirestoreRelay

CAFE = {"text": "very good cafe", "is_positive_user_answered": True}
NO = {"is_positive_user_answered": False}


class Proxy:
    """A proxy that is killed and started again, at the same address."""

    def __init__(self, predict_url: str, firestore: str) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._arguments = [f"--port={self._port}", f"--predict-url={predict_url}"]
        self._environment = {"FIRESTORE_EMULATOR_HOST": firestore, "GOOGLE_CLOUD_PROJECT": PROJECT}
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(str(ROOT / ".venvs/proxy/bin/python"), "-m", "functions.proxy"),
                *("--host=127.0.0.1", *self._arguments),
            ],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]} | self._environment,
            stdout=subprocess.DEVNULL,
        )
        wait_for(f"{self.url}/health", self._process)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def relay(emulator: FirestoreEmulator) -> Iterator[FirestoreRelay]:
    relay = FirestoreRelay(emulator.host)
    yield relay
    relay.close()


@pytest.fixture
def killed(predict: FakePredict, relay: FirestoreRelay) -> Iterator[Proxy]:
    proxy = Proxy(predict.url, relay.host)
    yield proxy
    proxy.kill()


def ask(proxy: Proxy, method: str, path: str, **request: object) -> int | None:
    """Return the status, or None when the proxy died meanwhile."""
    try:
        return httpx.request(method, f"{proxy.url}{path}", timeout=30, **request).status_code  # type: ignore[arg-type]
    except httpx.TransportError:
        return None


def totals(url: str) -> tuple[int, int, int, int]:
    """Return predictions, answers and right ones, and the length of the list."""
    statistics = httpx.get(f"{url}/statistics", timeout=30).json()["statistics"]
    listed = httpx.get(f"{url}/predictions?limit=1000", timeout=30).json()
    days = sum(day["predictions"] for day in statistics["by_day"])
    assert days == statistics["predictions"]
    return statistics["predictions"], statistics["answered"], statistics["correct"], len(listed)


@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_killed_around_each_commit(killed: Proxy, relay: FirestoreRelay, moment: str) -> None:
    """Creating, answering and deleting are one commit each, so these are all the moments."""
    key = {"Idempotency-Key": "killed"}
    assert ask(killed, "POST", "/predictions", json=CAFE) == 201

    def die(name: str) -> None:
        if name == "Commit":
            relay.before = relay.after = lambda _: None
            killed.kill()

    def killed_once(method: str, path: str, **request: object) -> None:
        setattr(relay, moment, die)
        assert ask(killed, method, path, **request) is None
        killed.start()

    killed_once("POST", "/predictions", json=CAFE, headers=key)
    assert totals(killed.url) in ((1, 1, 1, 1), (2, 2, 2, 2))
    response = httpx.post(f"{killed.url}/predictions", json=CAFE, headers=key, timeout=30)
    assert response.status_code == 201
    # A call that was passed on when the proxy died may have reached Firestore or not.
    assert totals(killed.url) == (2, 2, 2, 2)

    path = f"/predictions/{response.json()['id']}"
    killed_once("PUT", f"{path}/answer", json=NO)
    assert ask(killed, "PUT", f"{path}/answer", json=NO) == 200
    assert totals(killed.url) == (2, 2, 1, 2)

    killed_once("DELETE", path)
    assert ask(killed, "DELETE", path) in (204, 404)
    assert totals(killed.url) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "expected"),
    [
        ("POST", "/predictions", CAFE, 201, (2, 2, 2, 2)),
        ("PUT", "/predictions/{}/answer", NO, 200, (1, 1, 0, 1)),
        ("DELETE", "/predictions/{}", None, 204, (0, 0, 0, 0)),
    ],
)
def test_a_commit_whose_answer_is_lost_counts_once(
    proxy: httpx.Client,
    watched_firestore: FirestoreRelay,
    method: str,
    path: str,
    body: object,
    status: int,
    expected: tuple[int, int, int, int],
) -> None:
    """Firestore has written; the proxy repeats the commit and meets its own write."""
    created = proxy.post("/predictions", json=CAFE).json()
    lost: list[str] = []

    def lose(name: str) -> None:
        if name == "Commit" and not lost:
            lost.append(name)
            raise ConnectionError

    watched_firestore.after = lose
    try:
        response = proxy.request(method, path.format(created["id"]), json=body)
    finally:
        watched_firestore.after = lambda _: None

    assert lost
    assert response.status_code == status
    assert totals(str(proxy.base_url)) == expected


@pytest.mark.slow
def test_killed_at_any_time_with_concurrent_writers(
    predict: FakePredict, emulator: FirestoreEmulator, tmp_path: Path
) -> None:
    """Three proxies, each killed again and again, while callers repeat until they are answered."""
    proxies = [Proxy(predict.url, emulator.host) for _ in range(3)]
    stopping = threading.Event()
    chance = random.Random(7)

    def disturb() -> None:
        while not stopping.wait(chance.uniform(0.5, 2.0)):
            proxy = chance.choice(proxies)
            proxy.kill()
            proxy.start()

    def insist(method: str, path: str, good: tuple[int, ...], **request: object) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            status = ask(random.choice(proxies), method, path, **request)
            if status in good:
                return
            assert status in (None, 503, 504, 502), status
            time.sleep(0.05)
        raise AssertionError("no answer for two minutes")

    def one(number: int) -> tuple[int, int, int]:
        user = (None, True, False)[number % 3]
        key = {"Idempotency-Key": f"{tmp_path.name} {number}"}
        body = {"text": "very good cafe", "is_positive_user_answered": user}
        insist("POST", "/predictions", (201,), json=body, headers=key)
        name = None
        while name is None:
            try:
                url = random.choice(proxies).url
                answer = httpx.post(f"{url}/predictions", json=body, headers=key, timeout=30)
                name = answer.json().get("id")
            except httpx.TransportError:
                time.sleep(0.05)
        if number % 4 == 1:
            user = number % 8 == 1
            answer_body = {"is_positive_user_answered": user}
            insist("PUT", f"/predictions/{name}/answer", (200,), json=answer_body)
        if number % 5 == 2:
            insist("DELETE", f"/predictions/{name}", (204, 404))
            return 0, 0, 0
        return 1, int(user is not None), int(user is True)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        with ThreadPoolExecutor(12) as threads:
            counted = list(threads.map(one, range(240)))
    finally:
        stopping.set()
        disturber.join()
    predictions, answered, correct = (sum(column) for column in zip(*counted, strict=True))
    try:
        assert totals(proxies[0].url) == (predictions, answered, correct, predictions)
    finally:
        for proxy in proxies:
            proxy.kill()
