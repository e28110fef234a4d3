"""The gates against candidates that answer over real HTTP, some of them badly."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

import pytest

from functions.identity import IdTokenAuth
from functions.promote.bundles import GoldenText
from functions.promote.deadline import Deadline, OutOfTime
from functions.promote.gates import CandidateSilent, Gates, p95
from functions.promote.plan import GateResult, Model
from functions.promote.policy import Policy

MODEL = Model(version="7", run_id="run", bundle_uri="gs://serving/yelp-model/abc/")
POLICY = Policy()
GOLDEN = [GoldenText(text=f"text {number}", score=number / 1000) for number in range(700)]
IDENTITY = {"revision": "predict-1", "model_version": "7", "manifest_sha256": "abc"}

Answer = Callable[[str, dict[str, object]], tuple[int, bytes]]


def good(path: str, body: dict[str, object]) -> tuple[int, bytes]:
    if path == "/model":
        return 200, json.dumps(IDENTITY).encode()
    scores = {item.text: item.score for item in GOLDEN}
    if path == "/predict":
        return 200, json.dumps({"score": scores[str(body["text"])]}).encode()
    texts = body["texts"]
    assert isinstance(texts, list)
    return 200, json.dumps({"predictions": [{"score": scores[text]} for text in texts]}).encode()


@contextmanager
def candidate(answer: Answer, *, trickle: float = 0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            assert self.headers["Authorization"] == "Bearer token"
            status, content = answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for at in range(0, len(content), 1 if trickle else 10**9):
                self.wfile.write(content[at : at + (1 if trickle else 10**9)])
                self.wfile.flush()
                time.sleep(trickle)

        do_GET = do_POST  # noqa: N815  # as http.server calls it

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def run(
    uri: str, *, served: str | None = None, seconds: float = 30, policy: Policy = POLICY
) -> list[GateResult]:
    # Where tokens come from has tests of its own.
    with patch.object(IdTokenAuth, "token", lambda _: "token"):
        return Gates(policy).check(
            uri,
            served or uri,
            MODEL,
            "predict-1",
            GOLDEN,
            Deadline(seconds),
            beside_served=served is not None,
        )


def check(uri: str, *, seconds: float = 30) -> GateResult | None:
    """Return the gate that failed, if one did."""
    last = run(uri, seconds=seconds)[-1]
    return last if last.outcome == "failed" else None


def slow(seconds: float) -> Answer:
    def answer(path: str, body: dict[str, object]) -> tuple[int, bytes]:
        if path == "/predict":
            time.sleep(seconds)
        return good(path, body)

    return answer


def test_one_that_answers_as_it_must_passes() -> None:
    with candidate(good) as uri:
        assert check(uri) is None
        assert [(item.gate, item.outcome) for item in run(uri)] == [
            ("identity", "passed"),
            ("golden", "passed"),
            ("latency", "skipped"),
        ]


def test_one_that_is_slower_than_what_is_served_fails() -> None:
    with candidate(slow(0.05)) as uri, candidate(good) as served:
        strict = Policy(candidate_latency_ratio=2, latency_floor_seconds=0.01)
        result = run(uri, served=served, policy=strict)[-1]
        assert (result.gate, result.outcome) == ("latency", "failed")
        assert "20 calls each" in result.reason
        generous = replace(strict, latency_floor_seconds=20)
        assert run(uri, served=served, policy=generous)[-1].outcome == "passed"
    with candidate(slow(0.05)) as uri, candidate(slow(0.05)) as served:
        patient = replace(strict, candidate_latency_ratio=20)
        assert run(uri, served=served, policy=patient)[-1].outcome == "passed"


def test_a_very_slow_one_is_judged_on_fewer_calls() -> None:
    with (
        patch("functions.promote.gates.LATENCY_SECONDS", 0.5),
        candidate(slow(0.4)) as uri,
        candidate(good) as served,
    ):
        result = run(uri, served=served)[-1]
    assert (result.gate, result.outcome) == ("latency", "failed")


def test_one_that_was_slow_for_a_moment_passes() -> None:
    calls = []

    def answer(path: str, body: dict[str, object]) -> tuple[int, bytes]:
        if path == "/predict":
            calls.append(path)
            time.sleep(0.5 if len(calls) in (5, 6) else 0)
        return good(path, body)

    with candidate(answer) as uri, candidate(slow(0.02)) as served:
        result = run(uri, served=served, policy=Policy(candidate_latency_ratio=4))[-1]
    assert (result.gate, result.outcome) == ("latency", "passed")


def test_latency_is_skipped_while_what_is_served_does_not_answer() -> None:
    with candidate(good) as uri, candidate(lambda _path, _body: (503, b"")) as served:
        result = run(uri, served=served)[-1]
    assert (result.gate, result.outcome) == ("latency", "skipped")
    assert "503" in result.reason


def test_the_p95_passes_over_one_call_in_twenty() -> None:
    assert p95([1.0] * 19 + [9.0]) == 1.0
    assert p95([1.0] * 18 + [9.0] * 2) == 9.0
    assert p95([5.0]) == 5.0


@pytest.mark.parametrize(
    ("name", "gate"),
    [("revision", "identity"), ("model_version", "identity"), ("manifest_sha256", "bundle")],
)
def test_one_that_is_another_is_told_by_what_differs(name: str, gate: str) -> None:
    def answer(path: str, body: dict[str, object]) -> tuple[int, bytes]:
        if path == "/model":
            return 200, json.dumps({**IDENTITY, name: "other"}).encode()
        return good(path, body)

    with candidate(answer) as uri:
        failure = check(uri)
    assert failure is not None
    assert failure.gate == gate
    assert name in failure.reason


@pytest.mark.parametrize(
    "score", ["0.0123", "NaN", "null", '"0.001"', "true", "Infinity", "0.001002"]
)
def test_a_single_golden_score_that_differs_fails(score: str) -> None:
    def answer(path: str, body: dict[str, object]) -> tuple[int, bytes]:
        status, content = good(path, body)
        return status, content.replace(b'{"score": 0.001}', b'{"score": %b}' % score.encode())

    with candidate(answer) as uri:
        failure = check(uri)
    assert failure is not None
    assert failure.gate == "golden"
    assert "'text 1'" in failure.reason


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (404, b"", "404"),
        (422, b"{}", "422"),
        (302, b"", "302"),
        (200, b"", "no JSON"),
        (200, b"[" * 10**5, "no JSON"),
        (200, b"[]", "no object"),
        (200, b"x" * (17 * 1024**2), "more than"),
    ],
)
def test_a_senseless_answer_is_a_verdict(status: int, content: bytes, words: str) -> None:
    with candidate(lambda _path, _body: (status, content)) as uri:
        failure = check(uri)
    assert failure is not None
    assert failure.gate == "answer"
    assert words in failure.reason


@pytest.mark.parametrize("status", [401, 403, 429, 500, 502, 503])
def test_one_that_can_not_be_asked_is_looked_at_again(status: int) -> None:
    with candidate(lambda _path, _body: (status, b"")) as uri, pytest.raises(CandidateSilent):
        check(uri)


def test_one_that_is_not_there_is_looked_at_again() -> None:
    with candidate(good) as uri:
        pass
    with pytest.raises(CandidateSilent):
        check(uri)


def test_one_that_trickles_does_not_hold_the_tick() -> None:
    """Each read is quick enough for the HTTP client's own time-out."""
    started = time.monotonic()
    with candidate(good, trickle=0.2) as uri, pytest.raises(OutOfTime):
        check(uri, seconds=1)
    assert time.monotonic() - started < 10


def test_fewer_predictions_than_texts_fail() -> None:
    def answer(path: str, body: dict[str, object]) -> tuple[int, bytes]:
        return good(path, body) if path == "/model" else (200, b'{"predictions": []}')

    with candidate(answer) as uri:
        failure = check(uri)
    assert failure is not None
    assert failure.reason == "the answer has not one prediction for each text"
