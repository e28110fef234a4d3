"""An MLflow server as a process of its own, which can be killed and started again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import mlflow
import pytest

from local.settings import free_port

_START_SECONDS = 120
_STOP_SECONDS = 10


class TrackingServer:
    """MLflow with its database in `folder`.

    Args:
        folder: takes everything that the server writes.
    """

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it; see `wait`."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers=1"),
                    *("--host=127.0.0.1", f"--port={self._port}", "--no-serve-artifacts"),
                    f"--backend-store-uri=sqlite:///{self._folder / 'mlflow.db'}",
                    f"--default-artifact-root={self._folder / 'artifacts'}",
                ],
                env={
                    **os.environ,
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return once it answers."""
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{self.url}/health", timeout=2)
                return
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"MLflow did not start:\n{(self._folder / 'server.log').read_text()}")

    def kill(self) -> None:
        """End it and its workers at once, in the middle of whatever they do."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_STOP_SECONDS)
        self._process = None

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.url)

    def create_run(self) -> str:
        """Return the id of a new run."""
        run_id: str = self.client.create_run("0").info.run_id
        return run_id


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """A running MLflow server, for the whole session; leave it running."""
    server = TrackingServer(tmp_path_factory.mktemp("mlflow-server"))
    server.launch()
    server.wait()
    yield server
    server.kill()


class Door:
    """A reverse proxy before `target` that can refuse requests and lose answers.

    Args:
        target: address of the server behind it.
    """

    def __init__(self, target: str) -> None:
        self.faults: deque[int | None] = deque()
        """What happens to the next requests, one each: a status to answer with; None: the
        request is done, but its answer lost. Then all are let through."""
        self.check: Callable[[str | None], bool] = lambda authorization: True
        """Says from the Authorization header whether a request is let in."""
        self.statuses: list[int] = []
        """Of the answers given, in order."""
        self._behind = httpx.Client(base_url=target, timeout=30)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._behind.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        door = self

        class Handler(BaseHTTPRequestHandler):
            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = door.faults.popleft() if door.faults else 0
                if fault:
                    self.answer(fault, b"")
                elif not door.check(self.headers["Authorization"]):
                    self.answer(401, b"")
                else:
                    answer = door._behind.request(
                        self.command,
                        self.path,
                        content=body,
                        headers={"Content-Type": self.headers.get("Content-Type") or ""},
                    )
                    if fault is not None:
                        self.answer(answer.status_code, answer.content)

            def answer(self, status: int, content: bytes) -> None:
                door.statuses.append(status)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_request  # noqa: N815  # as the base says

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def door(mlflow_server: TrackingServer) -> Iterator[Door]:
    """A door of the test's own to the MLflow server."""
    door = Door(mlflow_server.url)
    yield door
    door.close()
