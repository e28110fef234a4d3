"""How the proxy starts, ends, and identifies itself."""

import base64
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from local.settings import free_port
from tests.emulators import FirestoreEmulator
from tests.proxy.conftest import PROJECT, ROOT, FakePredict, Reply, running_proxy, wait_for

CAFE = {"text": "very good cafe", "is_positive_user_answered": True}


@dataclass
class MetadataServer:
    """Google's metadata server: gives ID tokens that live an hour."""

    host: str
    audiences: list[str] = field(default_factory=list)

    def token(self, audience: str) -> str:
        """Return an unsigned token for `audience`."""
        parts = [{"alg": "RS256"}, {"aud": audience, "exp": int(time.time()) + 3600}]
        encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts]
        return ".".join(part.decode().rstrip("=") for part in encoded) + ".c2ln"


@pytest.fixture
def metadata() -> Iterator[MetadataServer]:
    port = free_port()
    metadata = MetadataServer(f"127.0.0.1:{port}")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Metadata-Flavor"] != "Google":
                self.send_error(403)
                return
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            if url.path.endswith("/identity"):
                metadata.audiences += query["audience"]
                self._answer("text/html", metadata.token(*query["audience"]))
            else:
                account = {"email": "proxy@greenroom.iam.gserviceaccount.com"}
                self._answer("application/json", json.dumps(account))

        def _answer(self, content_type: str, content: str) -> None:
            self.send_response(200)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield metadata
    server.shutdown()
    server.server_close()


def test_predict_is_called_with_an_identity_token(
    metadata: MetadataServer, predict: FakePredict, emulator: FirestoreEmulator, tmp_path: Path
) -> None:
    audience = "https://predict-123.europe-west1.run.app"
    with running_proxy(
        tmp_path / "proxy.log",
        f"--predict-url={predict.url}",
        f"--predict-audience={audience}",
        FIRESTORE_EMULATOR_HOST=emulator.host,
        GOOGLE_CLOUD_PROJECT=PROJECT,
        GCE_METADATA_HOST=metadata.host,
        GCE_METADATA_IP=metadata.host,
    ) as url:
        for _ in range(3):
            assert httpx.post(f"{url}/predictions", json=CAFE, timeout=20).status_code == 201

    assert metadata.audiences == [audience]  # one token for many calls
    assert len(predict.requests) == 3
    [sent] = {request["Authorization"] for request in predict.requests}
    claims = sent.removeprefix("Bearer ").split(".")[1]
    assert json.loads(base64.urlsafe_b64decode(claims + "=="))["aud"] == audience


def test_without_an_identity_nothing_is_sent(
    predict: FakePredict, emulator: FirestoreEmulator, tmp_path: Path
) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    with running_proxy(
        tmp_path / "proxy.log",
        f"--predict-url={predict.url}",
        "--predict-audience=https://predict.example",
        FIRESTORE_EMULATOR_HOST=emulator.host,
        GOOGLE_CLOUD_PROJECT=PROJECT,
        GCE_METADATA_HOST=nowhere,
        GCE_METADATA_IP=nowhere,
    ) as url:
        response = httpx.post(f"{url}/predictions", json=CAFE, timeout=20)

    assert response.status_code in (503, 504)
    assert response.headers["content-type"] == "application/problem+json"
    assert not predict.requests


def test_the_bare_framework_command_reads_the_environment(
    predict: FakePredict, emulator: FirestoreEmulator
) -> None:
    port = free_port()
    process = subprocess.Popen(
        [
            str(ROOT / ".venvs/proxy/bin/functions-framework"),
            *("--source", "functions/proxy/main.py", "--target", "proxy", "--asgi"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PREDICT_URL": predict.url,
            "FIRESTORE_EMULATOR_HOST": emulator.host,
            "FIRESTORE_PROJECT": PROJECT,
        },
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/health", process)
        assert httpx.post(f"{url}/predictions", json=CAFE, timeout=20).status_code == 201
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(15)


def test_arguments_go_before_the_environment(
    predict: FakePredict, emulator: FirestoreEmulator, tmp_path: Path
) -> None:
    with running_proxy(
        tmp_path / "proxy.log",
        f"--predict-url={predict.url}",
        PORT="1",
        PREDICT_URL="http://127.0.0.1:1",
        FIRESTORE_EMULATOR_HOST=emulator.host,
        GOOGLE_CLOUD_PROJECT=PROJECT,
    ) as url:
        assert httpx.post(f"{url}/predictions", json=CAFE, timeout=20).status_code == 201


def test_predict_is_reached_through_the_environments_http_proxy(
    predict: FakePredict, emulator: FirestoreEmulator, tmp_path: Path
) -> None:
    """Where a name such as predict.localhost can't be resolved, as on one machine."""
    with running_proxy(
        tmp_path / "proxy.log",
        "--predict-url=http://predict.localhost:8080",
        HTTP_PROXY=predict.url,
        NO_PROXY="127.0.0.1",
        FIRESTORE_EMULATOR_HOST=emulator.host,
        GOOGLE_CLOUD_PROJECT=PROJECT,
    ) as url:
        answer = httpx.post(f"{url}/predictions", json=CAFE, timeout=20)

    assert answer.status_code == 201
    assert answer.json()["git_commit"] == "0ea995f"
    assert predict.requests[0]["Host"] == "predict.localhost:8080"
    assert predict.requests[0]["path"] == "http://predict.localhost:8080/predict"


def test_a_request_under_way_survives_the_end(
    predict: FakePredict, emulator: FirestoreEmulator, tmp_path: Path
) -> None:
    predict.reply = Reply(delay=1.5)
    answers: list[int] = []
    with running_proxy(
        tmp_path / "proxy.log",
        f"--predict-url={predict.url}",
        FIRESTORE_EMULATOR_HOST=emulator.host,
        GOOGLE_CLOUD_PROJECT=PROJECT,
    ) as url:
        caller = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url}/predictions", json=CAFE, timeout=20).status_code
            )
        )
        caller.start()
        while not predict.requests:
            time.sleep(0.01)
    # The proxy has got its SIGTERM, and has ended by itself.
    caller.join(10)
    assert answers == [201]


@pytest.mark.parametrize("argument", ["--unknown", "--port=0", "--predict-url=nonsense"])
def test_wrong_settings_end_the_start(argument: str) -> None:
    """Guards against pydantic's traceback where a message was promised."""
    done = subprocess.run(
        [str(ROOT / ".venvs/proxy/bin/python"), "-m", "functions.proxy", argument],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last.startswith("python -m functions.proxy: error: ")
    assert argument.split("=")[0] in last
    assert "Traceback" not in done.stderr
