"""Errors as ``application/problem+json`` (RFC 9457)."""

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


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
        self.retry_after = retry_after
        self.extensions = extensions

    def response(self) -> Response:
        """Return the problem document as a Starlette response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse(
            {
                "type": "about:blank",
                "title": HTTPStatus(self.status).phrase,
                "status": self.status,
                "detail": self.detail,
                **self.extensions,
            },
            status_code=self.status,
            headers=headers,
            media_type="application/problem+json",
        )


async def answer_problem(_request: Request, error: Exception) -> Response:
    """Exception handler for `Problem`, for Starlette's and FastAPI's applications."""
    assert isinstance(error, Problem)  # noqa: S101  # registered for Problem alone
    return error.response()


async def answer_http_exception(_request: Request, error: Exception) -> Response:
    """Exception handler for the framework's own errors: unknown path, wrong method."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for HTTPException alone
    response = Problem(error.status_code, error.detail).response()
    response.headers.update(error.headers or {})
    return response
