"""Entry point of the image: ``python -m functions.predict``."""

import gc
import signal
import sys

from functions.predict.loading import Loading
from functions.predict.settings import parse


def main() -> None:
    """Read the settings, load the model and serve until SIGTERM."""
    # Until the server handles the signal itself, and ends what is under way first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Nothing that is made at the start is garbage.
    gc.disable()
    settings = parse(sys.argv[1:])
    with Loading(settings.model_uri, timeout=settings.storage_timeout_seconds) as loading:
        # Imported only now, while the child process reads.
        from functions.predict.start import load_app
        from functions.server import serve_app

        app = load_app(settings, loading)
    gc.enable()
    serve_app(app, host=settings.host, port=settings.port, workers=settings.workers)


if __name__ == "__main__":
    main()
