"""Google ID tokens: how one service shows another who it is."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from threading import Lock

import httpx
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2 import id_token

__all__ = ["GoogleAuthError", "IdTokenAuth"]


class IdTokenAuth(httpx.Auth):
    """Adds a Google ID token to each request, sync or async; safe to share.

    The token comes from the metadata server or from service-account credentials,
    and is kept until shortly before it expires.

    Args:
        audience: service URL of the callee, also when a tag's URL is called.

    Raises:
        GoogleAuthError: no token is to be had (from the request being sent).
    """

    def __init__(self, audience: str) -> None:
        self._audience = audience
        self._credentials: Credentials | None = None
        self._refreshing = Lock()

    def token(self) -> str:
        """Return a token that is valid for some minutes at least."""
        credentials = self._credentials
        if credentials is not None and credentials.valid:
            return str(credentials.token)
        with self._refreshing:
            if self._credentials is None or not self._credentials.valid:
                transport = Request()
                credentials = self._credentials or id_token.fetch_id_token_credentials(
                    self._audience, transport
                )
                credentials.refresh(transport)
                self._credentials = credentials
            return str(self._credentials.token)

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Send `request` with the token in its ``Authorization`` header."""
        request.headers["Authorization"] = f"Bearer {self.token()}"
        yield request

    async def token_soon(self) -> str:
        """Return a token as `token` does, without keeping the event loop waiting."""
        credentials = self._credentials
        if credentials is not None and credentials.valid:
            return str(credentials.token)
        # google-auth's transport is synchronous.
        return await asyncio.to_thread(self.token)

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send `request` with the token in its ``Authorization`` header."""
        request.headers["Authorization"] = f"Bearer {await self.token_soon()}"
        yield request
