"""Errors as ``application/problem+json`` (RFC 9457).

Starlette is imported only where one of its objects is made or taken: predict
answers without it, and its cold start would pay for the import.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An error to be answered as a problem document.

    Args:
        status: HTTP status, 400 to 599.
        detail: what is wrong and what to do, in words for the caller.
        retry_after: seconds for the ``Retry-After`` header, or None for no header.
        **extensions: further members of the document (RFC 9457, section 3.2).
    """

    def __init__(
        self, status: int, detail: str, *, retry_after: int | None = None, **extensions: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.extensions = extensions

    def content(self) -> bytes:
        """Return the problem document, UTF-8."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.extensions,
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    def response(self) -> Response:
        """Return the problem document as a Starlette response."""
        from starlette.responses import Response

        return Response(
            self.content(),
            status_code=self.status,
            headers=self.headers,
            media_type=MEDIA_TYPE,
        )


async def answer_problem(_request: Request, error: Exception) -> Response:
    """Exception handler for `Problem`, for Starlette's and FastAPI's applications."""
    assert isinstance(error, Problem)  # noqa: S101  # registered for Problem alone
    return error.response()


async def answer_http_exception(_request: Request, error: Exception) -> Response:
    """Exception handler for the framework's own errors: unknown path, wrong method."""
    from starlette.exceptions import HTTPException

    assert isinstance(error, HTTPException)  # noqa: S101  # registered for HTTPException alone
    response = Problem(error.status_code, error.detail).response()
    response.headers.update(error.headers or {})
    return response
