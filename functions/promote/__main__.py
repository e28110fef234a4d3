"""Entry point of the image: ``python -m functions.promote``."""

from functions.promote.settings import parse_arguments
from functions.server import serve


def main() -> None:
    """Read the settings and serve until SIGTERM."""
    settings = parse_arguments()
    serve("promote", host=settings.host, port=settings.port, workers=settings.workers)


if __name__ == "__main__":
    main()
