"""Entry point of the image: ``python -m functions.predict``."""

import sys

from functions.predict.settings import Settings
from functions.server import serve
from functions.settings import parse


def main() -> None:
    """Read the settings and serve until SIGTERM."""
    settings = parse(Settings, sys.argv[1:])
    serve("predict", host=settings.host, port=settings.port, workers=settings.workers)


if __name__ == "__main__":
    main()
