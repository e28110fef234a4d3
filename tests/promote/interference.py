"""A network between promote and all that it calls, on which any call may go wrong."""

import http.client
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import unquote, urlsplit

import grpc

from local.settings import free_port

Answer = TypeVar("Answer")

SECONDS = 60.0
# Of one connection, not of the request; and gRPC's own.
HOPS = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding"})
OWN_METADATA = ("grpc-", "user-agent", ":")


class Refused(Exception):
    """Raised by a rule: the call ends with this, passed on or not.

    Args:
        code: gRPC's or HTTP's, as the call is; None: there is no answer.
    """

    def __init__(self, code: grpc.StatusCode | int | None = None) -> None:
        self.code = code


class Rule(Protocol):
    """Looks at each call, named such as ``UpdateService`` or ``POST mlflow set-tag``."""

    def before(self, call: str) -> None:
        """Called before the call is passed on; may wait, or raise `Refused`."""

    def after(self, call: str) -> None:
        """Called when the answer is there, before it is given back; as `before`."""


class Nothing:
    """The rule that lets everything through."""

    def before(self, call: str) -> None: ...

    def after(self, call: str) -> None: ...


class Interference:
    """Two proxies in this process, for gRPC and for HTTP.

    Args:
        apis: gRPC service's package -> ``HOST:PORT`` of who answers it.
        places: port -> what is there, for the names of HTTP calls; others are ``predict``.
    """

    def __init__(self, apis: Mapping[str, str], places: Mapping[int, str]) -> None:
        self.rule: Rule = Nothing()
        self.calls: list[str] = []
        """All that came, in order."""
        self._channels = {package: grpc.insecure_channel(at) for package, at in apis.items()}
        self._places = places
        self._grpc = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        self._grpc.add_generic_rpc_handlers((_AnyMethod(self._pass_grpc),))
        self.grpc_address = f"127.0.0.1:{free_port()}"
        self._grpc.add_insecure_port(self.grpc_address)
        self._http = _Server(("127.0.0.1", 0), self._handler())
        self.http_url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._grpc.start()
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(None).wait()
        for channel in self._channels.values():
            channel.close()

    def _pass(self, call: str, send: Callable[[], Answer]) -> Answer:
        self.calls.append(call)
        self.rule.before(call)
        answer = send()
        self.rule.after(call)
        return answer

    def _pass_grpc(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        package = next(name for name in self._channels if method.startswith(f"/{name}."))
        send = self._channels[package].unary_unary(method)
        metadata = [
            (key, value)
            for key, value in context.invocation_metadata()
            if not key.startswith(OWN_METADATA)
        ]
        try:
            return self._pass(
                method.rpartition("/")[2],
                lambda: bytes(send(request, timeout=SECONDS, metadata=metadata)),
            )
        except Refused as refused:
            context.abort(refused.code or grpc.StatusCode.UNAVAILABLE, "as the test wants it")
            raise
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
            raise

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        interference = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body, url = self.rfile.read(length), urlsplit(self.path)
                place = interference._places.get(url.port or 80, "predict")
                last = unquote(url.path).rpartition("/")[2]
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOPS}

                def send() -> tuple[int, list[tuple[str, str]], bytes]:
                    # Of the front end, the host's name says which revision.
                    behind = http.client.HTTPConnection("127.0.0.1", url.port, timeout=SECONDS)
                    path = f"{url.path}?{url.query}" if url.query else url.path
                    behind.request(self.command, path, body, headers)
                    answer = behind.getresponse()
                    content = answer.read()
                    behind.close()
                    return answer.status, answer.getheaders(), content

                try:
                    answer = interference._pass(f"{self.command} {place} {last}", send)
                except Refused as refused:
                    self.close_connection = True
                    if refused.code is not None:
                        self.answer(int(refused.code), [], b"as the test wants it")
                else:
                    self.answer(*answer)

            def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in HOPS | {"content-length"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815  # as the base says

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Nothing: a client that was killed is meant to be."""


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    def __init__(self, answer: Callable[[str, bytes, grpc.ServicerContext], bytes]) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(method, request, context)
        )
