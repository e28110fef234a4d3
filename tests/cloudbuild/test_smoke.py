"""The smoke test beside proxies that misbehave; beside a good one it runs in end_to_end."""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

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
    public: bool = True
    """A request without an ID token is answered."""
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
        if path == "/statistics":
            return 200, {}
        name = path.rpartition("/")[2]
        if method == "DELETE":
            del self.stored[name]
            return 204, None
        text = "another" if self.forgets else self.stored[name]
        return 200, {**STORED, "id": name, "text": text, "score": 0.5}


@contextmanager
def serving(proxy: Proxy, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Serve `proxy` over HTTP, or over HTTPS with `tls`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = self.headers.get("Idempotency-Key", "")
            if proxy.public or "Authorization" in self.headers:
                status, content = proxy.answer(
                    self.command, self.path, key, json.loads(body) if body else {}
                )
            else:
                status, content = 403, {"title": "Forbidden", "status": 403}
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
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        proxy.url = f"https://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with serving(Proxy()) as proxy:
        yield proxy


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Behind HTTPS, where it is called with an ID token."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    chain, trusted = tmp_path / "chain.pem", tmp_path / "trusted.pem"
    trusted.write_bytes(certificate.public_bytes(encoding))
    private = key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(private + trusted.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    # Google's tokens are none of its business: the front end of Cloud Run reads them.
    monkeypatch.setattr("functions.identity.IdTokenAuth.token", lambda _: "token")
    with serving(Proxy(public=False), context) as proxy:
        yield proxy


def smoke(proxy: Proxy, *arguments: str) -> Result:
    return CliRunner().invoke(main, (f"--url={proxy.url}", *arguments))


def test_a_good_proxy_is_asked_and_left_as_it_was(proxy: Proxy) -> None:
    result = smoke(proxy)
    assert result.exit_code == 0, result.output
    assert "version 3 is served" in result.stdout
    assert len(proxy.keys) == 2
    assert proxy.stored == {}


def test_strangers_are_refused(deployed: Proxy) -> None:
    result = smoke(deployed)
    assert result.exit_code == 0, result.output
    assert "strangers are refused" in result.stdout


def test_a_proxy_that_answers_strangers_fails_but_where_it_is_public(deployed: Proxy) -> None:
    deployed.public = True
    result = smoke(deployed)
    assert result.exit_code == 1
    assert "answers a stranger with 200" in result.stderr
    assert deployed.keys == []
    result = smoke(deployed, "--public")
    assert result.exit_code == 0, result.output
    assert "strangers" not in result.stdout


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
