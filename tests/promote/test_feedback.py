"""Users' answers, read from a proxy that answers over real HTTP, sometimes badly."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

import pytest

from functions.identity import IdTokenAuth
from functions.promote.answers import Answers
from functions.promote.deadline import Deadline, OutOfTime
from functions.promote.feedback import Counts, Feedback, FeedbackUnavailable
from functions.promote.outcomes import Outcomes
from local.settings import free_port

SINCE = date(2026, 11, 23)
EARLIER_PROXY = {
    "statistics": {
        "correctness_rate": 0.75,
        "by_model_version": [
            {"model_version": "9", "answered": 30, "correct": 20, "predictions": 31},
            {"model_version": "10", "answered": 10, "correct": 10, "predictions": 10},
        ],
    }
}
STATISTICS = {
    "statistics": {
        "by_model_version": [
            {
                "model_version": "10",
                "answered": 1000,
                "correct": 0,
                "capped": {"answered": 20, "correct": 15},
            }
        ],
        "by_revision": [
            {"revision": "predict-1", "model_version": "9", "predictions": 90, "failed": 0},
            {"revision": "predict-2", "model_version": None, "predictions": 8, "failed": 2},
        ],
    }
}


@contextmanager
def proxy(status: int, content: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/statistics?since=2026-11-23"
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


def test_capped_answers_by_version_and_outcomes_by_revision() -> None:
    with proxy(200, json.dumps(STATISTICS).encode()) as url:
        counts = Feedback(url).read(SINCE, Deadline(10))
    assert counts == Counts(
        {"10": Answers(20, 15)}, {"predict-1": Outcomes(90, 0), "predict-2": Outcomes(10, 2)}
    )


def test_a_proxy_that_tells_neither_callers_nor_revisions_apart() -> None:
    with proxy(200, json.dumps(EARLIER_PROXY).encode()) as url:
        counts = Feedback(url).read(SINCE, Deadline(10))
    assert counts == Counts({"9": Answers(30, 20), "10": Answers(10, 10)}, None)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (503, b"{}"),
        (200, b""),
        (200, b"[]"),
        (200, b'{"statistics": {"by_model_version": [{"model_version": "9"}]}}'),
        (200, json.dumps(EARLIER_PROXY).replace("30", "-1").encode()),
        (200, json.dumps(STATISTICS).replace('"failed": 2', '"failed": -2').encode()),
    ],
)
def test_any_other_answer_is_none(status: int, content: bytes) -> None:
    with proxy(status, content) as url, pytest.raises(FeedbackUnavailable, match=r"^the proxy: "):
        Feedback(url).read(SINCE, Deadline(10))


def test_a_proxy_that_is_down() -> None:
    with (
        patch.object(IdTokenAuth, "token", lambda _self: "token"),
        pytest.raises(FeedbackUnavailable, match="refused"),
    ):
        Feedback(f"http://127.0.0.1:{free_port()}").read(SINCE, Deadline(10))


def test_a_tick_that_is_out_of_time() -> None:
    with pytest.raises(OutOfTime):
        Feedback("http://127.0.0.1:1").read(SINCE, Deadline(0))
