"""Start one function under functions-framework's ASGI server."""

from pathlib import Path

from functions_framework._http import create_server
from functions_framework.aio import create_asgi_app

# Cloud Run sends SIGKILL ten seconds after SIGTERM: requests in flight get
# most of that, and the process still ends by itself.
GRACEFUL_TIMEOUT_SECONDS = 8


def serve(target: str, *, host: str, port: int, workers: int) -> None:
    """Serve the function `target` of ``functions/<target>/main.py`` until SIGTERM.

    Does not return: the server ends the process.

    Args:
        target: name of the folder and of the function in its ``main.py``.
        host: address to bind.
        port: port to bind.
        workers: number of forked server processes.
    """
    source = Path(__file__).parent / target / "main.py"
    app = create_asgi_app(target, str(source), "http")
    server = create_server(
        app,
        debug=False,
        workers=workers,
        graceful_timeout=GRACEFUL_TIMEOUT_SECONDS,
        # Keep-alive longer than any front end's idle time would cut a request
        # that is being sent; gunicorn's default of two seconds does just that.
        keepalive=620,
    )
    server.run(host, port)
