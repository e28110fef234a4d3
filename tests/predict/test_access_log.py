"""The line of a request, whatever became of it."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from functions.access_log import AccessLog

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/export", "headers": []}


async def break_off(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise OSError("the database is gone")


async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise OSError("the database is gone")


async def be_cancelled(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("app", [break_off, fail, be_cancelled])
async def test_what_fails_or_ends_before_its_end_is_logged_as_an_error(
    app: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async def receive() -> Any:
        raise AssertionError("nothing here reads a body")

    async def send(_message: Any) -> None:
        pass

    try:
        await AccessLog(app)(dict(SCOPE), receive, send)
    except (OSError, asyncio.CancelledError):
        assert app is not fail
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    requests = [line["httpRequest"] for line in lines if "httpRequest" in line]
    assert [(request["requestUrl"], request["status"]) for request in requests] == [
        ("/export", 500)
    ]
