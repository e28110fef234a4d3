"""``python -m ui``: serve the page with Streamlit, in place of this process."""

import os
import sys
from pathlib import Path

from functions.settings import parse
from ui.settings import Settings, environment_of

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    settings = parse(Settings, sys.argv[1:])
    # Streamlit puts the script's own folder on the path, not the root.
    environment = os.environ | environment_of(settings) | {"PYTHONPATH": str(ROOT)}
    options = {
        "server.address": settings.host,
        "server.port": settings.port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "runner.magicEnabled": "false",
        "theme.base": str(ROOT / "ui" / "theme.toml"),
    }
    os.execve(  # noqa: S606  # its arguments are ours
        sys.executable,
        [sys.executable, "-m", "streamlit", "run", str(ROOT / "ui" / "app.py")]
        + [f"--{name}={value}" for name, value in options.items()],
        environment,
    )
