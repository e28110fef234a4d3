"""Entry point of the image: ``python -m functions.proxy``."""

import sys

from functions.proxy.settings import Settings
from functions.server import serve
from functions.settings import parse


def main() -> None:
    """Read the settings and serve until SIGTERM."""
    settings = parse(Settings, sys.argv[1:])
    serve("proxy", host=settings.host, port=settings.port, workers=settings.workers)


if __name__ == "__main__":
    main()
