"""Google ID tokens for calls from this service to another one."""

import asyncio
from collections.abc import AsyncGenerator

import httpx
from google.auth import exceptions
from google.auth.credentials import Credentials
from google.auth.transport.requests import Request
from google.oauth2 import id_token

from functions.problem import Problem


class IdTokenAuth(httpx.Auth):
    """Adds a Google ID token to each request.

    The token comes from the metadata server or from service-account credentials,
    and is kept until shortly before it expires.

    Args:
        audience: service URL of the callee, also when a tag's URL is called.

    Raises:
        Problem: 503, while no token is to be had (from the request being sent).
    """

    def __init__(self, audience: str) -> None:
        self._audience = audience
        self._credentials: Credentials | None = None
        self._refreshing = asyncio.Lock()

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send `request` with the token in its ``Authorization`` header."""
        request.headers["Authorization"] = f"Bearer {await self._token()}"
        yield request

    async def _token(self) -> str:
        async with self._refreshing:
            if self._credentials is None or not self._credentials.valid:
                try:
                    # google-auth's transport is synchronous.
                    self._credentials = await asyncio.to_thread(self._fetch)
                except exceptions.GoogleAuthError as error:
                    raise Problem(
                        503, "No identity to call the model with. Try again.", retry_after=5
                    ) from error
            return str(self._credentials.token)

    def _fetch(self) -> Credentials:
        transport = Request()
        credentials = self._credentials or id_token.fetch_id_token_credentials(
            self._audience, transport
        )
        credentials.refresh(transport)
        return credentials
