"""The proxy as a real process, between a Firestore emulator and a fake predict."""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore

from local.settings import free_port
from tests.emulators import FirestoreEmulator
from tests.proxy.relay import FirestoreRelay

ROOT = Path(__file__).parents[2]
PROJECT = "greenroom-proxy"
PREDICT_TIMEOUT_SECONDS = 1.0
TRUSTED_FRONT = "ui@greenroom.iam.gserviceaccount.com"
ANSWERS_PER_CALLER = 5


@dataclass
class Reply:
    """What the fake predict answers; `delay` in seconds."""

    status: int = 200
    body: bytes | None = None
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


class FakePredict:
    """Predict at the network's edge: positive exactly if the text has "good" in it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.reset()
        self._server: ThreadingHTTPServer | None = None

    def reset(self) -> None:
        """Answer as predict does, and forget the requests."""
        self.reply = Reply()
        # These first, one each.
        self.replies: list[Reply] = []
        self.model_version = "10"
        self.revision = "predict-00001-abc"
        self.lineage = {"X-Greenroom-Git-Commit": "0ea995f", "X-Greenroom-Data-Digest": "9f86d08"}
        self.requests: list[dict[str, str]] = []

    def answer(self, text: str, *, explain: bool) -> dict[str, object]:
        """Return predict's answer."""
        positive = "good" in text
        answer: dict[str, object] = {
            "text": text,
            "is_positive_review": int(positive),
            "details": {"mlflow_run_id": "3acade02674549b1", "inference_elapsed": 0.00093},
            "score": 0.75 if positive else 0.25,
            "model_version": self.model_version,
            "revision": self.revision,
        }
        if explain:
            token = {"token": text.split()[0], "start": 0, "end": 4, "contribution": 0.5}
            answer |= {"bias": 0.25, "explanation": [token]}
        return answer

    def open(self) -> None:
        """Listen."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fake.requests.append({"path": self.path, **self.headers})
                reply = fake.replies.pop(0) if fake.replies else fake.reply
                time.sleep(reply.delay)
                text = json.loads(body)["text"]
                content = reply.body
                if content is None:
                    answer = fake.answer(text, explain="explain=true" in self.path)
                    content = json.dumps(answer).encode()
                self._answer(reply.status, content, fake.lineage | reply.headers)

            def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                # A connection kept alive would outlive close().
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 200
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # the proxy hung up on a slow answer

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening: connections are refused."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def token(**claims: str) -> str:
    """Return an ID token as Cloud Run passes it on, once it has verified it."""
    parts = ({"alg": "RS256"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return ".".join(part.rstrip("=") for part in encoded) + ".SIGNATURE_REMOVED_BY_GOOGLE"


@contextmanager
def running_proxy(log: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """Run the proxy from its own environment; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                str(ROOT / ".venvs/proxy/bin/python"),
                *("-m", "functions.proxy", "--host=127.0.0.1", f"--port={port}"),
                *arguments,
            ],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]} | environment,
            stdout=output,
            stderr=sys.stderr,
            start_new_session=True,
        )
    try:
        wait_for(f"{url}/health", process)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError("the proxy did not start")


@pytest.fixture(scope="session")
def predict_server() -> Iterator[FakePredict]:
    fake = FakePredict()
    fake.open()
    yield fake
    fake.close()


@pytest.fixture(scope="session")
def proxy_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proxy") / "stdout.log"


@pytest.fixture(scope="session")
def watched_firestore(firestore_emulator: FirestoreEmulator) -> Iterator[FirestoreRelay]:
    relay = FirestoreRelay(firestore_emulator.host)
    yield relay
    relay.close()


@pytest.fixture(scope="session")
def proxy_url(
    watched_firestore: FirestoreRelay, predict_server: FakePredict, proxy_log: Path
) -> Iterator[str]:
    arguments = [
        f"--predict-url={predict_server.url}",
        f"--predict-timeout-seconds={PREDICT_TIMEOUT_SECONDS}",
        f"--trusted-fronts={TRUSTED_FRONT}",
        f"--answers-per-caller={ANSWERS_PER_CALLER}",
        "--retention-days=30",
    ]
    with running_proxy(
        proxy_log,
        *arguments,
        FIRESTORE_EMULATOR_HOST=watched_firestore.host,
        GOOGLE_CLOUD_PROJECT=PROJECT,
    ) as url:
        yield url


@pytest.fixture
def predict(predict_server: FakePredict) -> Iterator[FakePredict]:
    predict_server.reset()
    yield predict_server
    if predict_server._server is None:
        predict_server.open()


@pytest.fixture
def emulator(firestore_emulator: FirestoreEmulator) -> FirestoreEmulator:
    """The emulator without documents."""
    firestore_emulator.clear(PROJECT)
    return firestore_emulator


@pytest.fixture
def proxy(
    proxy_url: str, predict: FakePredict, emulator: FirestoreEmulator
) -> Iterator[httpx.Client]:
    """A client of the proxy; predict answers and Firestore is empty.

    A caller of its own: the proxy remembers whose answers count no more.
    """
    headers = {"Authorization": f"Bearer {token(email=secrets.token_hex(8))}"}
    with httpx.Client(base_url=proxy_url, timeout=20, headers=headers) as client:
        yield client


@pytest.fixture
def database(
    emulator: FirestoreEmulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[firestore.Client]:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", emulator.host)
    client = firestore.Client(project=PROJECT, credentials=AnonymousCredentials())
    yield client
    client.close()
