"""Start one function under functions-framework's ASGI server."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from functions_framework._http.asgi import StarletteApplication

if TYPE_CHECKING:
    from starlette.types import ASGIApp

# Cloud Run sends SIGKILL ten seconds after SIGTERM: requests in flight get
# most of that, and the process still ends by itself.
GRACEFUL_TIMEOUT_SECONDS = 8

# Longer than any front end's idle time: less would cut a request that is being sent.
# gunicorn's default of two seconds does just that.
KEEP_ALIVE_SECONDS = 620


def serve(target: str, *, host: str, port: int, workers: int) -> None:
    """Serve the function `target` of ``functions/<target>/main.py`` until SIGTERM.

    Does not return: the server ends the process.

    Args:
        target: name of the folder and of the function in its ``main.py``.
        host: address to bind.
        port: port to bind.
        workers: number of forked server processes.
    """
    from functions_framework.aio import create_asgi_app

    source = Path(__file__).parent / target / "main.py"
    _serve_forked(create_asgi_app(target, str(source), "http"), host, port, workers)


def serve_app(app: ASGIApp, *, host: str, port: int, workers: int) -> None:
    """Serve an application until SIGTERM, without functions-framework's own layers around it.

    Those find the function of a request, and cost more than a prediction. One worker is
    this process itself: no supervisor takes memory and time to start beside it, and what
    ends it ends the container, which Cloud Run replaces.

    Does not return: the server ends the process, with status 0 after SIGTERM.

    Args:
        app: an ASGI application that needs no lifespan.
        host: address to bind.
        port: port to bind.
        workers: number of server processes; several are forked and share memory.
    """
    if workers > 1:
        _serve_forked(app, host, port, workers)
        return
    # uvicorn raises the signal again once it has ended: to be ignored by then.
    signal.signal(signal.SIGTERM, lambda *_: None)
    StarletteApplication(
        app,
        host,
        port,
        debug=False,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACEFUL_TIMEOUT_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    ).run()
    sys.exit(0)


def _serve_forked(app: ASGIApp, host: str, port: int, workers: int) -> None:
    from functions_framework._http import create_server

    create_server(
        app,
        debug=False,
        workers=workers,
        graceful_timeout=GRACEFUL_TIMEOUT_SECONDS,
        keepalive=KEEP_ALIVE_SECONDS,
        # Its socket would be a file, where no file can be written.
        control_socket_disable=True,
    ).run(host, port)
