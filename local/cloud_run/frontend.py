"""The HTTP front end: finds the service by host name, chooses a revision, passes on.

It is a server and an HTTP proxy at once: Python resolves no ``*.localhost``, so
callers on this machine set ``HTTP_PROXY`` to it and send absolute URLs.

There are two kinds of door. At the main port callers prove who they are with an ID
token. A service's own port stands for the way of a person: Identity-Aware Proxy where
it is on, else what ``gcloud run services proxy`` does.
"""

import asyncio
import html
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from local.cloud_run.authorization import Denied, as_owner, authorize, passed_on
from local.cloud_run.config import CloudRunConfig
from local.cloud_run.control import Admitted, ControlPlane, NotServing
from local.cloud_run.instances import Instance

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 * 1024 * 1024
# Bodies of known length up to here are held in memory: one write, and a request
# that reached no instance can be sent again.
_SMALL_BODY_BYTES = 256 * 1024
# Shorter than any common server's keep-alive (two seconds up), so that no request is
# sent on a connection that the instance closes at that moment. A connection for each
# request would run out of local ports at some 500 requests a second.
_KEEP_ALIVE_SECONDS = 1.0
_CLIENT_IDLE_SECONDS = 620.0
_CONNECT_ATTEMPTS = 4

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_FOUND = "The requested URL was not found on this server."


@dataclass(frozen=True)
class Target:
    """What a request is for.

    Attributes:
        host: as the client wrote it, with the port.
        path: path and query, as sent.
        service: short name of the service, None when the host is none of ours.
        tag: tag in the host name, if any.
    """

    host: str
    path: str
    service: str | None
    tag: str | None


def parse_target(host: str, raw_path: str) -> Target:
    """Split a request into host, path, service and tag.

    Args:
        host: the Host header.
        raw_path: request target in origin form (``/a?b``) or absolute form
            (``http://service.localhost:8080/a?b``); the latter's host wins.
    """
    path = raw_path
    if not raw_path.startswith("/"):
        scheme, separator, rest = raw_path.partition("://")
        if separator and scheme.lower() in ("http", "https"):
            host, slash, tail = rest.partition("/")
            host, question, query = host.partition("?")
            path = slash + tail or "/" + question + query
    name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    label, dot, domain = name.partition(".")
    if not dot or domain != "localhost":
        return Target(host, path, None, None)
    tag, separator, service = label.partition("---")
    if separator:
        return Target(host, path, service, tag)
    return Target(host, path, label, None)


def is_reserved(path: str) -> bool:
    """Whether Cloud Run's front end keeps the path to itself."""
    bare = path.partition("?")[0]
    return bare.endswith("z") or bare == "/eventlog" or bare.startswith("/_ah/")


class FrontEnd:
    """All listeners of the front end.

    Args:
        config: of the stand-in.
        plane: chooses revisions.
        request_log: gets one JSON line for each request that had a revision.
    """

    def __init__(self, config: CloudRunConfig, plane: ControlPlane, request_log: Path) -> None:
        self._config = config
        self._plane = plane
        request_log.parent.mkdir(parents=True, exist_ok=True)
        self._log = request_log.open("a", encoding="utf-8", buffering=1)
        self._runners: list[web.ServerRunner] = []
        self._session: aiohttp.ClientSession | None = None

    async def listen(self, port: int, service: str | None = None) -> None:
        """Listen on 127.0.0.1.

        Args:
            port: where.
            service: the one service that this listener stands for, whatever the
                host name, and whose callers count as the project's owner; None to go
                by host name.

        Raises:
            OSError: the port is taken.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
                # The deadline of each request is the revision's.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                max_line_size=64 * 1024,
                max_field_size=64 * 1024,
            )
            # aiohttp would send a GET again after a crash, and crash the next instance.
            self._session._retry_connection = False
        server = web.Server(
            partial(self._handle, service),
            access_log=None,
            keepalive_timeout=_CLIENT_IDLE_SECONDS,
            max_line_size=64 * 1024,
            max_field_size=64 * 1024,
        )
        runner = web.ServerRunner(server)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=1).start()

    async def close(self) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()
        if self._session is not None:
            await self._session.close()
        self._log.close()

    async def _handle(self, fixed: str | None, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "CONNECT":
            return _text(405, "This proxy passes on http:// URLs only.")
        target = parse_target(request.host, request.raw_path)
        service, tag = (fixed, None) if fixed is not None else (target.service, target.tag)
        if service is None or not self._plane.has_service(service) or is_reserved(target.path):
            return _text(404, _NOT_FOUND)
        if (request.content_length or 0) > MAX_BODY_BYTES:
            return _text(413, "The request is larger than 32 MiB.", close=True)
        try:
            headers = self._authorize(request, service, at_own_port=fixed is not None)
        except Denied as denial:
            return self._denied(denial, service, target)
        try:
            admitted = self._plane.admit(service, tag)
        except NotServing as reason:
            return _text(reason.status, str(reason))
        started = time.monotonic()
        status = 0
        try:
            response = await self._serve(_Exchange(request, target, headers), admitted)
            status = response.status
            return response
        finally:
            admitted.revision.leave()
            self._record(request, target, admitted, tag, status, time.monotonic() - started)

    def _authorize(
        self, request: web.BaseRequest, service: str, *, at_own_port: bool
    ) -> CIMultiDict[str]:
        message = self._plane.service(service)
        if at_own_port:
            return as_owner(request.headers, message)
        if not self._config.check_callers:
            return passed_on(request.headers)
        return authorize(request.headers, message, self._plane.policy(service), self._plane.issuer)

    def _denied(self, denial: Denied, service: str, target: Target) -> web.Response:
        logger.warning(
            "caller refused",
            extra={"service": service, "status": denial.status, "cause": str(denial)},
        )
        title = "401 Unauthorized" if denial.status == 401 else "403 Forbidden"
        advice = ""
        if self._plane.service(service).iap_enabled:
            port = self._config.service_ports.get(service)
            if port is None:
                advice = "<p>People enter at the service's own port: give it one.</p>"
            else:
                door = f"http://127.0.0.1:{port}/"
                advice = f'<p>People enter at <a href="{door}">{door}</a>.</p>'
        return web.Response(
            status=denial.status,
            content_type="text/html",
            headers=denial.headers,
            text=(
                f"<!doctype html><title>{title}</title><h1>{title}</h1>"
                f"<p>{html.escape(str(denial))}</p>{advice}"
                f"<p><code>{html.escape(target.path.partition('?')[0])}</code></p>\n"
            ),
        )

    async def _serve(self, exchange: "_Exchange", admitted: Admitted) -> web.StreamResponse:
        request = exchange.request
        work: Callable[[Instance], Awaitable[web.StreamResponse]]
        if request.headers.get("Upgrade", "").lower() == "websocket":
            work = partial(self._relay_websocket, exchange)
        else:
            work = partial(self._forward, exchange)
        try:
            async with asyncio.timeout(admitted.timeout_seconds):
                # An instance that ended since it was chosen refuses the connection,
                # before a byte was sent: the request goes to the next one.
                for attempt in range(_CONNECT_ATTEMPTS):
                    instance = await admitted.instance()
                    try:
                        return await work(instance)
                    except aiohttp.ClientConnectorError as error:
                        if isinstance(error.os_error, ConnectionRefusedError):
                            admitted.revision.lost(instance)
                        # Else this machine's fault, such as no free port.
                        await asyncio.sleep(0.1 * attempt)
                    except aiohttp.ClientError:
                        if not exchange.too_large:
                            await admitted.revision.broke_off(instance)
                        raise
                return _text(503, "The service is unavailable: it refuses connections.")
        except TimeoutError:
            return exchange.fail(504, "The request has timed out.")
        except NotServing as reason:
            return exchange.fail(reason.status, str(reason))
        except aiohttp.ClientError as error:
            if exchange.too_large:
                return exchange.fail(413, "The request is larger than 32 MiB.")
            logger.warning(
                "instance broke off", extra={"revision": admitted.revision.spec.revision}
            )
            return exchange.fail(503, f"The service is unavailable: {type(error).__name__}.")

    async def _forward(self, exchange: "_Exchange", instance: Instance) -> web.StreamResponse:
        session = self._client()
        request = exchange.request
        async with session.request(
            request.method,
            exchange.url(instance),
            headers=exchange.headers,
            data=await exchange.body(),
            allow_redirects=False,
        ) as answer:
            headers = _end_to_end(answer.headers)
            length = answer.content_length
            if length is not None and length > MAX_BODY_BYTES and request.method != "HEAD":
                return _text(500, "The response is larger than 32 MiB and not chunked.")
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=headers
            )
            exchange.response = response
            if length is not None and length <= _SMALL_BODY_BYTES and request.method != "HEAD":
                content = await answer.read()
                await response.prepare(request)
                await response.write_eof(content)
                return response
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _relay_websocket(
        self, exchange: "_Exchange", instance: Instance
    ) -> web.StreamResponse:
        request = exchange.request
        offered = [
            name.strip()
            for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")
            if name.strip()
        ]
        headers = CIMultiDict(
            (key, value)
            for key, value in exchange.headers.items()
            if not key.lower().startswith("sec-websocket-")
        )
        try:
            upstream = await self._client().ws_connect(
                exchange.url(instance), headers=headers, protocols=offered, max_msg_size=0
            )
        except aiohttp.WSServerHandshakeError as error:
            return _text(error.status, "The service refused the WebSocket.")
        async with upstream:
            response = web.WebSocketResponse(
                protocols=[upstream.protocol] if upstream.protocol else (), max_msg_size=0
            )
            exchange.response = response
            await response.prepare(request)
            pumps = [
                asyncio.create_task(_pump(response, upstream)),
                asyncio.create_task(_pump(upstream, response)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                await response.close()
        return response

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("listen first")
        return self._session

    def _record(
        self,
        request: web.BaseRequest,
        target: Target,
        admitted: Admitted,
        tag: str | None,
        status: int,
        latency_seconds: float,
    ) -> None:
        line = {
            "timestamp": datetime.now(UTC).isoformat(),
            "service": admitted.service,
            "revision": admitted.revision.spec.revision,
            "tag": tag,
            "method": request.method,
            "path": target.path.partition("?")[0],
            # 0: the client went away before there was an answer.
            "status": status,
            "latency_seconds": round(latency_seconds, 6),
        }
        self._log.write(json.dumps(line) + "\n")


class _Exchange:
    """One request on its way through: what is sent on, and what was answered so far."""

    def __init__(self, request: web.BaseRequest, target: Target, headers: CIMultiDict[str]) -> None:
        self.request = request
        self.headers = _forwarded_headers(request, target, headers)
        self.response: web.StreamResponse | None = None
        self.too_large = False
        self._path = target.path
        self._small: bytes | None = None

    def url(self, instance: Instance) -> URL:
        return URL(f"http://127.0.0.1:{instance.port}{self._path}", encoded=True)

    async def body(self) -> bytes | AsyncIterator[bytes] | None:
        request = self.request
        if not request.can_read_body and self._small is None:
            return None
        if self._small is None:
            if request.headers.get("Expect", "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = request.content_length
            if length is None or length > _SMALL_BODY_BYTES:
                return self._stream()
            self._small = await request.content.read(-1)
        return self._small

    async def _stream(self) -> AsyncIterator[bytes]:
        total = 0
        async for chunk in self.request.content.iter_any():
            total += len(chunk)
            if total > MAX_BODY_BYTES:
                # The client library makes a ClientError of it.
                self.too_large = True
                raise ValueError("request body above the limit")
            yield chunk

    def fail(self, status: int, message: str) -> web.StreamResponse:
        """The answer to give, or the connection's end when half an answer is out."""
        if self.response is not None and self.response.prepared:
            if self.request.transport is not None:
                self.request.transport.abort()
            return self.response
        return _text(status, message, close=True)


async def _pump(
    source: "web.WebSocketResponse | aiohttp.ClientWebSocketResponse",
    sink: "web.WebSocketResponse | aiohttp.ClientWebSocketResponse",
) -> None:
    async for message in source:
        if message.type == aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type == aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)


def _end_to_end(headers: CIMultiDictProxy[str] | CIMultiDict[str]) -> CIMultiDict[str]:
    dropped = _HOP_BY_HOP | {
        name.strip().lower()
        for value in headers.getall("Connection", ())
        for name in value.split(",")
    }
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)


def _forwarded_headers(
    request: web.BaseRequest, target: Target, admitted: CIMultiDict[str]
) -> CIMultiDict[str]:
    headers = _end_to_end(admitted)
    headers["Host"] = target.host
    headers.popall("Expect", None)
    headers.setdefault("X-Forwarded-For", request.remote or "127.0.0.1")
    headers.setdefault("X-Forwarded-Proto", "http")
    parent = headers.get("traceparent", "").split("-")
    if len(parent) >= 4:
        trace, span = parent[1], parent[2]
    else:
        trace = headers.get("X-Cloud-Trace-Context", "").partition("/")[0]
        trace = trace if len(trace) == 32 else secrets.token_hex(16)
        span = secrets.token_hex(8)
        headers["traceparent"] = f"00-{trace}-{span}-01"
    try:
        headers.setdefault("X-Cloud-Trace-Context", f"{trace}/{int(span, 16)};o=1")
    except ValueError:
        logger.debug("a traceparent that is none", extra={"traceparent": "-".join(parent)})
    return headers


def _text(status: int, message: str, *, close: bool = False) -> web.Response:
    response = web.Response(status=status, text=f"{message}\n")
    if close:
        response.force_close()
    return response
