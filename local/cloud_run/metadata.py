"""The metadata server: tells a container which project it runs in, and who it is.

In the cloud every instance has one of its own at one address. Here there is one
listener for each service account, and an instance is told which by its environment.
"""

import asyncio
import hashlib
import json
import logging
import secrets
import socket
from collections.abc import Mapping
from functools import partial
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from local.cloud_run.config import CloudRunConfig
from local.cloud_run.identity import Issuer

logger = logging.getLogger(__name__)

_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_ACCESS_TOKEN_SECONDS = 3599
_ACCOUNTS = "/computeMetadata/v1/instance/service-accounts/"


class MetadataServers:
    """All listeners, by service account.

    Args:
        config: of the stand-in.
        issuer: makes the ID tokens.
    """

    def __init__(self, config: CloudRunConfig, issuer: Issuer) -> None:
        self._config = config
        self._issuer = issuer
        self._addresses: dict[str, str] = {}
        self._runners: list[web.ServerRunner] = []
        self._listening = asyncio.Lock()

    async def start(self) -> None:
        """Listen for the callers that the configuration names.

        Raises:
            OSError: a port is taken.
        """
        for email, port in self._config.metadata_ports.items():
            await self._listen(email, port)

    async def close(self) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()

    async def environment(self, email: str) -> dict[str, str]:
        """The variables by which Google's libraries find the account's listener.

        Raises:
            OSError: there is none yet, and it can't be started.
        """
        async with self._listening:
            if email not in self._addresses:
                await self._listen(email, 0)
        address = self._addresses[email]
        return {
            "GCE_METADATA_HOST": address,
            # google-auth asks this one whether there is a metadata server at all.
            "GCE_METADATA_IP": address,
            "GCE_METADATA_ROOT": address,
        }

    async def _listen(self, email: str, port: int) -> None:
        listener = socket.create_server(("127.0.0.1", port))
        runner = web.ServerRunner(web.Server(partial(self._handle, email), access_log=None))
        await runner.setup()
        self._runners.append(runner)
        await web.SockSite(runner, listener, shutdown_timeout=1).start()
        self._addresses[email] = f"127.0.0.1:{listener.getsockname()[1]}"
        logger.info(
            "metadata server listens",
            extra={"service_account": email, "address": self._addresses[email]},
        )

    async def _handle(self, email: str, request: web.BaseRequest) -> web.Response:
        response = self._answer(email, request)
        response.headers["Metadata-Flavor"] = "Google"
        response.headers["Server"] = "Metadata Server for Serverless"
        return response

    def _answer(self, email: str, request: web.BaseRequest) -> web.Response:
        if request.headers.get("Metadata-Flavor") != "Google":
            return _text("Missing Metadata-Flavor:Google header.", 403)
        # Set by proxies: somebody may be reaching through one from outside.
        if "X-Forwarded-For" in request.headers:
            return _text("Request contains an X-Forwarded-For header.", 403)
        if request.method != "GET":
            return _text("Only GET is allowed.", 405)
        url = urlsplit(request.raw_path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path.startswith(_ACCOUNTS):
            return self._account(email, url.path.removeprefix(_ACCOUNTS), query)
        config = self._config
        values = {
            "/": "computeMetadata/\n",
            "/computeMetadata/v1/project/project-id": config.project,
            "/computeMetadata/v1/project/numeric-project-id": config.project_number,
            "/computeMetadata/v1/instance/region": (
                f"projects/{config.project_number}/regions/{config.region}"
            ),
            "/computeMetadata/v1/instance/id": hashlib.sha256(email.encode()).hexdigest(),
        }
        value = values.get(url.path)
        return _not_found() if value is None else _text(value)

    def _account(self, email: str, path: str, query: Mapping[str, str]) -> web.Response:
        about = {"aliases": ["default"], "email": email, "scopes": list(_SCOPES)}
        recursive = query.get("recursive", "").lower() == "true"
        if not path:
            if recursive:
                return _json({"default": about, email: about})
            return _text(f"default/\n{email}/\n")
        account, slash, leaf = path.partition("/")
        if account not in ("default", email) or not slash:
            return _not_found()
        match leaf:
            case "":
                if recursive:
                    return _json(about)
                return _text("aliases\nemail\nidentity\nscopes\ntoken\n")
            case "aliases":
                return _text("default\n")
            case "email":
                return _text(email)
            case "scopes":
                return _text("".join(f"{scope}\n" for scope in _SCOPES))
            case "token":
                return _json(
                    {
                        "access_token": f"ya29.c.{secrets.token_urlsafe(96)}",
                        "expires_in": _ACCESS_TOKEN_SECONDS,
                        "token_type": "Bearer",
                    }
                )
            case "identity":
                if not query.get("audience"):
                    return _text("non-empty audience parameter required", 400)
                if query.get("format", "standard") not in ("standard", "full"):
                    return _text("format must be standard or full", 400)
                return _text(self._issuer.issue(email, query["audience"]))
        return _not_found()


def _text(text: str, status: int = 200) -> web.Response:
    return web.Response(status=status, text=text, content_type="text/plain")


def _json(value: object) -> web.Response:
    return web.Response(text=json.dumps(value), content_type="application/json")


def _not_found() -> web.Response:
    return _text("404 page not found", 404)
