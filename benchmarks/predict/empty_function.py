"""Baseline: a function that does nothing, with an answer of the size ``ANSWER_BYTES``."""

import os

from starlette.requests import Request
from starlette.responses import Response

_ANSWER = b" " * int(os.environ["ANSWER_BYTES"])


async def empty(_request: Request) -> Response:
    """Answer without a look at the question."""
    return Response(_ANSWER, media_type="application/json")
