"""The smoke test beside proxies that misbehave; beside a good one it runs in end_to_end."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from click.testing import CliRunner, Result

from cloudbuild.smoke import BAD, GOOD, main

STORED = {
    "is_positive_user_answered": None,
    "is_positive_model_answered": True,
    "mlflow_run_id": "0" * 32,
    "inference_elapsed": 0.001,
    "timestamp": "2026-11-17T12:00:00Z",
    "model_version": "3",
}
DETAILS = ("mlflow_run_id", "inference_elapsed", "timestamp")


@dataclass
class Proxy:
    """Answers as the proxy's API does, but for what a test sets."""

    url: str = ""
    served: str | None = "3"
    scores: dict[str, float] = field(default_factory=lambda: {GOOD: 0.9, BAD: 0.1})
    fails: int = 0
    """POST is answered 503 so many times."""
    stored: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    forgets: bool = False

    def answer(self, method: str, path: str, key: str, body: dict[str, str]) -> tuple[int, object]:
        if path.startswith("/rollouts"):
            return 200, {"status": {"served": {"version": self.served}}, "ledger": []}
        if method == "POST":
            self.keys.append(key)
            if self.fails:
                self.fails -= 1
                return 503, {"title": "Service Unavailable", "status": 503}
            name = f"{len(self.stored):032x}"
            self.stored[name] = body["text"]
            score = self.scores[body["text"]]
            return 201, {
                "id": name,
                "text": body["text"],
                "is_positive": {"user_answered": None, "model_answered": score > 0.5},
                "details": {part: STORED[part] for part in DETAILS},
                "score": score,
                "model_version": "3",
            }
        name = path.rpartition("/")[2]
        if method == "DELETE":
            del self.stored[name]
            return 204, None
        text = "another" if self.forgets else self.stored[name]
        return 200, {**STORED, "id": name, "text": text, "score": 0.5}


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = self.headers.get("Idempotency-Key", "")
            status, content = proxy.answer(
                self.command, self.path, key, json.loads(body) if body else {}
            )
            answer = json.dumps(content).encode() if status != 204 else b""
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_DELETE = do  # noqa: N815  # the server's names

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield proxy
    server.shutdown()
    server.server_close()


def smoke(proxy: Proxy, *arguments: str) -> Result:
    return CliRunner().invoke(main, (f"--url={proxy.url}", *arguments))


def test_a_good_proxy_is_asked_and_left_as_it_was(proxy: Proxy) -> None:
    result = smoke(proxy)
    assert result.exit_code == 0, result.output
    assert "version 3 is served" in result.stdout
    assert len(proxy.keys) == 2
    assert proxy.stored == {}


def test_before_the_first_promotion_there_is_nothing_to_ask(proxy: Proxy) -> None:
    proxy.served = None
    result = smoke(proxy)
    assert result.exit_code == 0
    assert "no version was promoted" in result.stdout
    assert proxy.keys == []


def test_a_model_that_can_not_tell_good_from_bad_fails(proxy: Proxy) -> None:
    proxy.scores = {GOOD: 0.4, BAD: 0.4}
    result = smoke(proxy)
    assert result.exit_code == 1
    assert "no higher than a complaint" in result.stderr
    assert proxy.stored == {}


def test_what_was_stored_is_deleted_also_when_it_is_wrong(proxy: Proxy) -> None:
    proxy.forgets = True
    result = smoke(proxy)
    assert result.exit_code == 1
    assert "another text is stored" in result.stderr
    assert proxy.stored == {}


def test_what_is_being_deployed_is_asked_again_with_the_same_key(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudbuild.smoke._PAUSE_SECONDS", 0.01)
    proxy.fails = 1
    assert smoke(proxy).exit_code == 0
    first, second, other = proxy.keys
    assert first == second != other


def test_patience_ends(proxy: Proxy) -> None:
    proxy.fails = 1000
    result = smoke(proxy, "--patience=0")
    assert result.exit_code == 1
    assert result.stderr.startswith("failed: the proxy: ")
