"""Users' answers, read from a proxy that answers over real HTTP, sometimes badly."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

import pytest

from functions.identity import IdTokenAuth
from functions.promote.answers import Answers
from functions.promote.deadline import Deadline, OutOfTime
from functions.promote.feedback import Feedback, FeedbackUnavailable
from local.settings import free_port

STATISTICS = {
    "statistics": {
        "correctness_rate": 0.75,
        "by_model_version": [
            {"model_version": "9", "answered": 30, "correct": 20, "predictions": 31},
            {"model_version": "10", "answered": 10, "correct": 10, "predictions": 10},
        ],
    }
}


@contextmanager
def proxy(status: int, content: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/statistics"
            assert self.headers["Authorization"] == "Bearer token"
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with patch.object(IdTokenAuth, "token", lambda _self: "token"):
            yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_answers_by_version() -> None:
    with proxy(200, json.dumps(STATISTICS).encode()) as url:
        answers = Feedback(url).read(Deadline(10))
    assert answers == {"9": Answers(30, 20), "10": Answers(10, 10)}


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (503, b"{}"),
        (200, b""),
        (200, b"[]"),
        (200, b'{"statistics": {"by_model_version": [{"model_version": "9"}]}}'),
        (200, json.dumps(STATISTICS).replace("30", "-1").encode()),
    ],
)
def test_any_other_answer_is_none(status: int, content: bytes) -> None:
    with proxy(status, content) as url, pytest.raises(FeedbackUnavailable, match=r"^the proxy: "):
        Feedback(url).read(Deadline(10))


def test_a_proxy_that_is_down() -> None:
    with (
        patch.object(IdTokenAuth, "token", lambda _self: "token"),
        pytest.raises(FeedbackUnavailable, match="refused"),
    ):
        Feedback(f"http://127.0.0.1:{free_port()}").read(Deadline(10))


def test_a_tick_that_is_out_of_time() -> None:
    with pytest.raises(OutOfTime):
        Feedback("http://127.0.0.1:1").read(Deadline(0))
