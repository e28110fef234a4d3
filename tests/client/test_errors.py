"""What the client makes of a service that does not answer as the proxy does."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from functions.client import Client, ClientError
from local.settings import free_port


@dataclass
class Service:
    """Answers everything in one way."""

    url: str
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False


@pytest.fixture
def service() -> Iterator[Service]:
    port = free_port()
    service = Service(f"http://127.0.0.1:{port}")

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(service.delay)
            self.send_response(service.status)
            for name, value in service.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(service.body) + service.cut))
            self.end_headers()
            self.wfile.write(service.body)

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815  # the base class's names

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield service
    server.shutdown()
    server.server_close()


CALLS: list[Callable[[Client], object]] = [
    lambda client: client.predict("very good cafe"),
    lambda client: client.answer("0" * 32, True),
    lambda client: client.get("0" * 32),
    lambda client: client.delete("0" * 32),
    lambda client: client.predictions(),
    lambda client: client.statistics(),
    lambda client: client.rollouts(),
    lambda client: list(client.export()),
]


def failure(service: Service, call: Callable[[Client], object]) -> ClientError:
    with Client(service.url, timeout=0.5) as client, pytest.raises(ClientError) as raised:
        call(client)
    return raised.value


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "refused"),
        (403, "refused"),
        (404, "invalid"),
        (422, "invalid"),
        (429, "busy"),
        (500, "failed"),
        (502, "unavailable"),
        (503, "unavailable"),
        (504, "unavailable"),
        (302, "nonsense"),
    ],
)
def test_a_status_has_a_kind(
    service: Service, call: Callable[[Client], object], status: int, kind: str
) -> None:
    service.status, service.headers = status, {"Retry-After": "7"}
    error = failure(service, call)
    assert (error.kind, error.status, error.retry_after) == (kind, status, 7.0)
    assert str(status) in str(error)


@pytest.mark.parametrize("value", ["soon", "-1", "", "inf", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_another_retry_after_says_nothing(service: Service, value: str) -> None:
    service.status, service.headers = 503, {"Retry-After": value}
    assert failure(service, CALLS[0]).retry_after is None


def test_the_services_own_words_are_passed_on(service: Service) -> None:
    service.status, service.body = 422, b'{"detail": "Use a new key."}'
    assert str(failure(service, CALLS[0])) == "Use a new key."


@pytest.mark.parametrize("call", [CALLS[0], CALLS[4], CALLS[5], CALLS[6]])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"statistics": 1}', b"\xff"])
def test_nonsense_is_told(service: Service, call: Callable[[Client], object], body: bytes) -> None:
    service.body = body
    assert failure(service, call).kind == "nonsense"


@pytest.mark.parametrize("call", CALLS)
def test_silence_and_broken_connections(service: Service, call: Callable[[Client], object]) -> None:
    service.cut = True
    assert failure(service, call).kind in ("unreachable", "timeout")
    service.delay = 2
    assert failure(service, call).kind == "timeout"


def test_nobody_there() -> None:
    nobody = Service(f"http://127.0.0.1:{free_port()}")
    for call in CALLS:
        error = failure(nobody, call)
        assert (error.kind, error.status) == ("unreachable", None)


@pytest.mark.parametrize("name", ["", "é", "line\nbreak", "\ud800", "x" * 256])
def test_names_that_are_no_header(service: Service, name: str) -> None:
    for call in (
        lambda client: client.predict("very good cafe", caller=name),
        lambda client: client.predict("very good cafe", key=name),
        lambda client: client.answer("0" * 32, True, caller=name),
    ):
        assert failure(service, call).kind == "invalid"
