"""A stub of the proxy at the network's edge."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from local.settings import free_port

ITEM = {
    "id": "5f",
    "text": "very good cafe",
    "is_positive_user_answered": True,
    "is_positive_model_answered": True,
    "mlflow_run_id": "3acade02674549b19044a59186d97db4",
    "inference_elapsed": 0.00093,
    "timestamp": "2021-02-04T20:46:49.484379",
    "score": 0.97,
    "model_version": "10",
    "revision": None,
}


@dataclass
class StubProxy:
    """The proxy's answers, and what it was asked."""

    url: str
    score: float = 0.97
    correctness_rate: float | None = 0.85
    items: list[dict[str, object]] = field(default_factory=lambda: [dict(ITEM)])
    failing: int | None = None
    delay: float = 0.0
    posts: list[tuple[dict[str, object], str]] = field(default_factory=list)

    def post(self, body: dict[str, object]) -> dict[str, object]:
        """Answer a new prediction."""
        return {
            "id": "5f",
            "text": body["text"],
            "is_positive": {
                "user_answered": body["is_positive_user_answered"],
                "model_answered": self.score >= 0.5,
            },
            "details": {
                "mlflow_run_id": ITEM["mlflow_run_id"],
                "inference_elapsed": ITEM["inference_elapsed"],
                "timestamp": ITEM["timestamp"],
            },
            "score": self.score,
            "model_version": "10",
            "revision": "predict-00001-abc",
        }

    def get(self, path: str) -> object:
        """Answer a question."""
        if path == "/predictions":
            return self.items
        return {
            "statistics": {
                "correctness_rate": self.correctness_rate,
                "predictions": 1234,
                "answered": 20 if self.correctness_rate is not None else 0,
                "correct": 17 if self.correctness_rate is not None else 0,
            }
        }


@pytest.fixture
def proxy() -> Iterator[StubProxy]:
    port = free_port()
    stub = StubProxy(f"http://127.0.0.1:{port}")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.posts.append((body, self.headers["Idempotency-Key"]))
            time.sleep(stub.delay)
            self._answer(201, stub.post(body))

        def do_GET(self) -> None:
            self._answer(200, stub.get(urlsplit(self.path).path))

        def _answer(self, status: int, content: object) -> None:
            self.send_response(stub.failing or status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the page gave up waiting

    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield stub
    server.shutdown()
    server.server_close()
