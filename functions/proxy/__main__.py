"""``python -m functions.proxy``: serve the API until SIGTERM."""

import sys

from functions.proxy.settings import load_settings
from functions.server import serve

if __name__ == "__main__":
    settings = load_settings(sys.argv[1:])
    serve("proxy", host=settings.host, port=settings.port, workers=settings.workers)
