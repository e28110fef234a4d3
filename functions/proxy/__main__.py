"""Entry point of the image: ``python -m functions.proxy``."""

import sys

from functions.logs import configure_logging
from functions.proxy.api import create_app
from functions.proxy.settings import Settings
from functions.server import serve_app
from functions.settings import parse


def main() -> None:
    """Read the settings and serve until SIGTERM."""
    settings = parse(Settings, sys.argv[1:])
    configure_logging(project=settings.firestore_project)
    # Without functions-framework's own layers: they cost as much as the whole API does.
    app = create_app(settings)
    serve_app(app, host=settings.host, port=settings.port, workers=settings.workers)


if __name__ == "__main__":
    main()
