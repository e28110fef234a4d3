"""Predict as it is, but for versions of the model that have a mood.

``python -m tests.end_to_end.moody_predict MOODS ...``: MOODS is a JSON file, version ->
``{"word": ..., "seconds": ..., "status": ...}``. A request with the word in it, "" being in
all, takes so many seconds more, or is answered with that status.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from functions.predict import start
from functions.predict.__main__ import main

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

load_app = start.load_app


def in_a_mood(inner: App, revision: str, *, word: str, seconds: float = 0, status: int = 0) -> App:
    headers = [(b"x-greenroom-revision", revision.encode())]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await inner(scope, receive, send)
            return
        read = [await receive()]
        while read[-1].get("more_body"):
            read.append(await receive())
        if word.encode() in b"".join(message.get("body", b"") for message in read):
            await asyncio.sleep(seconds)
            if status:
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return

        async def read_again() -> Message:
            return read.pop(0) if read else await receive()

        await inner(scope, read_again, send)

    return app


def load_moody_app(settings: Any, loading: Any) -> Any:
    mood = moods.get(settings.model_version)
    inner: Any = load_app(settings, loading)
    return inner if mood is None else in_a_mood(inner, settings.k_revision, **mood)


if __name__ == "__main__":
    moods = json.loads(Path(sys.argv.pop(1)).read_text())
    start.load_app = load_moody_app
    main()
