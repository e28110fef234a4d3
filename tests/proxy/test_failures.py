"""Predict or Firestore failing: a clear answer in time, and nothing half done."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.emulators import FirestoreEmulator
from tests.proxy.conftest import PREDICT_TIMEOUT_SECONDS, PROJECT, FakePredict, Reply, running_proxy

CAFE = {"text": "very good cafe", "is_positive_user_answered": True}


def nonsense(**changes: object) -> bytes:
    answer = FakePredict().answer("very good cafe", explain=False)
    return json.dumps(answer | changes).encode()


def assert_stored_nothing(proxy: httpx.Client) -> None:
    assert proxy.get("/predictions").json() == []
    assert proxy.get("/statistics").json()["statistics"]["predictions"] == 0


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply(status=500), 502),
        (Reply(status=503), 503),
        (Reply(status=429), 503),
        (Reply(status=403), 502),
        (Reply(status=302, headers={"Location": "/"}), 502),
        (Reply(delay=PREDICT_TIMEOUT_SECONDS + 1), 504),
        (Reply(body=b""), 502),
        (Reply(body=b"<html>"), 502),
        (Reply(body=b"\xff"), 502),
        (Reply(body=b"[]"), 502),
        (Reply(body=b"{}"), 502),
        (Reply(body=nonsense(is_positive_review=2)), 502),
        (Reply(body=nonsense(score=1.5)), 502),
        (Reply(body=nonsense(score=float("nan"))), 502),
        (Reply(body=nonsense(details=None)), 502),
        (Reply(body=nonsense(model_version="")), 502),
        (Reply(body=nonsense(model_version="__10__")), 502),
        (Reply(body=nonsense(text="another text")), 502),
        (Reply(body=b" " * 17 * 1024**2), 502),
    ],
)
def test_predict_failing_stores_nothing(
    proxy: httpx.Client, predict: FakePredict, reply: Reply, status: int
) -> None:
    predict.reply = reply
    started = time.monotonic()

    response = proxy.post("/predictions", json=CAFE)

    assert time.monotonic() - started < PREDICT_TIMEOUT_SECONDS + 0.9
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["retry-after"]) > 0
    assert len(predict.requests) == (3 if reply.status in (429, 503) else 1)
    assert_stored_nothing(proxy)


def test_an_explanation_that_was_asked_for_must_be_there(
    proxy: httpx.Client, predict: FakePredict
) -> None:
    predict.reply = Reply(body=nonsense())

    assert proxy.post("/predictions?explain=true", json=CAFE).status_code == 502
    assert_stored_nothing(proxy)


def test_predict_refusing_connections(proxy: httpx.Client, predict: FakePredict) -> None:
    predict.close()
    response = proxy.post("/predictions", json=CAFE)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert_stored_nothing(proxy)

    predict.open()
    assert proxy.post("/predictions", json=CAFE).status_code == 201


def test_firestore_gone_and_back(
    predict: FakePredict, emulator: FirestoreEmulator, tmp_path: Path
) -> None:
    with (
        running_proxy(
            tmp_path / "proxy.log",
            f"--predict-url={predict.url}",
            "--firestore-timeout-seconds=2",
            FIRESTORE_EMULATOR_HOST=emulator.host,
            GOOGLE_CLOUD_PROJECT=PROJECT,
        ) as url,
        httpx.Client(base_url=url, timeout=20) as proxy,
    ):
        assert proxy.post("/predictions", json=CAFE).status_code == 201
        emulator.kill()
        try:
            for method, path in [
                ("POST", "/predictions"),
                ("GET", "/predictions"),
                ("GET", "/predictions/" + "0" * 32),
                ("GET", "/statistics"),
                ("GET", "/rollouts"),
            ]:
                started = time.monotonic()
                response = proxy.request(method, path, json=CAFE if method == "POST" else None)
                assert time.monotonic() - started < 3
                assert response.status_code == 503
                assert response.headers["content-type"] == "application/problem+json"
                assert int(response.headers["retry-after"]) > 0
            assert proxy.get("/health").status_code == 200
        finally:
            emulator.start()

        # Guards against gRPC's reconnection back-off, which grows to two minutes.
        deadline = time.monotonic() + 10
        while proxy.get("/statistics").status_code == 503:
            assert time.monotonic() < deadline
        # The emulator's memory is empty again: nothing was kept to be written later.
        assert_stored_nothing(proxy)
        assert proxy.post("/predictions", json=CAFE).status_code == 201
        assert len(proxy.get("/predictions").json()) == 1


class Relay:
    """The network between the proxy and Firestore.

    Args:
        upstream: host:port that connections are passed on to.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.rpartition(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.answers_pass = threading.Event()
        self.answers_pass.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self._upstream[0], int(self._upstream[2])))
            for source, target, gate in (
                (client, server, None),
                (server, client, self.answers_pass),
            ):
                threading.Thread(target=_pump, args=(source, target, gate), daemon=True).start()

    def close(self) -> None:
        """Take no new connections."""
        self.answers_pass.set()
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket, gate: threading.Event | None) -> None:
    try:
        while content := source.recv(65_536):
            if gate is not None:
                gate.wait()
            target.sendall(content)
        target.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # one side is gone


@pytest.fixture
def relay(emulator: FirestoreEmulator) -> Iterator[Relay]:
    relay = Relay(emulator.host)
    yield relay
    relay.close()


@pytest.mark.parametrize(("headers", "stored"), [({}, 3), ({"Idempotency-Key": "a key"}, 2)])
def test_a_commit_whose_answer_is_late_may_have_been_stored(
    predict: FakePredict, relay: Relay, tmp_path: Path, headers: dict[str, str], stored: int
) -> None:
    """Guards against "nothing was stored" where it was: a retry then counted twice."""
    with (
        running_proxy(
            tmp_path / "proxy.log",
            f"--predict-url={predict.url}",
            "--firestore-timeout-seconds=2",
            FIRESTORE_EMULATOR_HOST=relay.host,
            GOOGLE_CLOUD_PROJECT=PROJECT,
        ) as url,
        httpx.Client(base_url=url, timeout=20) as proxy,
        ThreadPoolExecutor() as threads,
    ):
        assert proxy.post("/predictions", json=CAFE).status_code == 201
        # Between looking for a first answer and storing, predict is asked.
        predict.reply = Reply(delay=0.5)
        under_way = threads.submit(proxy.post, "/predictions", json=CAFE, headers=headers)
        while len(predict.requests) < 2:
            time.sleep(0.01)
        relay.answers_pass.clear()
        response = under_way.result(20)
        relay.answers_pass.set()

        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        detail = response.json()["detail"]
        assert "may have been stored" in detail
        assert "Idempotency-Key" in detail

        predict.reply = Reply()
        retry = proxy.post("/predictions", json=CAFE, headers=headers)
        assert retry.status_code == 201
        assert ("idempotent-replayed" in retry.headers) == bool(headers)
        assert proxy.get("/statistics").json()["statistics"]["predictions"] == stored


def test_no_credentials(predict: FakePredict, tmp_path: Path) -> None:
    """Guards against an UnboundLocalError, and so 500, where the client can't even be made."""
    with running_proxy(
        tmp_path / "proxy.log",
        f"--predict-url={predict.url}",
        GOOGLE_CLOUD_PROJECT=PROJECT,
        HOME=str(tmp_path),
        NO_GCE_CHECK="true",
    ) as url:
        for _ in range(2):
            response = httpx.get(f"{url}/statistics", timeout=20)
            assert response.status_code == 503
            assert response.headers["content-type"] == "application/problem+json"
            assert "database" in response.json()["detail"]


def test_logs_are_json_without_the_callers_text(proxy: httpx.Client, proxy_log: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    proxy.post("/predictions", json={"text": "a secret review"}, headers=headers)
    proxy.post("/predictions?text=a+secret", json={"text": ["a secret"]}, headers=headers)

    # A request's line is written after its answer is sent.
    deadline = time.monotonic() + 10
    while (text := proxy_log.read_text()).count(trace) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)

    assert "secret" not in text
    accepted, refused = [json.loads(line) for line in text.splitlines()][-2:]
    assert accepted["severity"] == "INFO"
    assert accepted["httpRequest"]["status"] == 201
    assert accepted["httpRequest"]["latency"].endswith("s")
    assert accepted["logging.googleapis.com/trace"].endswith(f"/traces/{trace}")
    assert refused["httpRequest"]["status"] == 422
    assert refused["httpRequest"]["requestUrl"] == "/predictions"


def test_the_log_tells_once_whether_the_user_agrees(proxy: httpx.Client, proxy_log: Path) -> None:
    trace = "1bf7651916cd43dd8448eb211c80319d"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "Idempotency-Key": "agrees"}
    body = {"text": "very good cafe", "is_positive_user_answered": True}
    made = [proxy.post("/predictions", json=body, headers=headers) for _ in range(2)]
    assert made[0].json()["id"] == made[1].json()["id"]
    proxy.post("/predictions?explain=1", json=body, headers=headers | {"Idempotency-Key": "other"})
    path = f"/predictions/{made[0].json()['id']}/answer"
    for answer in (False, False, None):
        proxy.put(path, json={"is_positive_user_answered": answer}, headers=headers)

    deadline = time.monotonic() + 10
    while (text := proxy_log.read_text()).count(trace) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = [json.loads(line) for line in text.splitlines() if trace in line]
    assert [line.get("agreed") for line in lines] == [True, None, True, False, None, None]
    assert {line["model_version"] for line in lines if "agreed" in line} == {"10"}
