"""This machine's settings of pip, for builds: present while a RUN runs, never in an image."""

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

# Settings that hold paths or addresses, several of them apart by white space.
_PLACES = ("cert", "constraint", "extra-index-url", "find-links", "index-url")


@contextmanager
def build_volumes() -> Iterator[list[str]]:
    """Give the volumes that make pip in a build find what it finds here, until the block's end.

    pip's settings may come from several files and the environment: they become one file.
    """
    settings = _settings()
    config = configparser.RawConfigParser()
    config["global"] = settings
    with TemporaryDirectory() as folder:
        file = Path(folder) / "pip.conf"
        with file.open("w") as output:
            config.write(output)
        places = {
            str(path)
            for name in _PLACES
            for value in settings.get(name, "").split()
            if (path := _local_path(value)) is not None
        }
        yield [
            f"{file}:/etc/pip.conf:ro",
            *(f"{path}:{path}:ro" for path in sorted(_outermost(places))),
        ]


def _settings() -> dict[str, str]:
    """Return pip's settings that hold for ``pip install``, by name."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings: dict[str, str] = {}
    # The environment goes first in pip, and so comes last here.
    for origin in ("global.", "install.", ":env:."):
        for line in listed.splitlines():
            if line.startswith(origin):
                name, _, value = line.removeprefix(origin).partition("=")
                settings[name] = ast.literal_eval(value)
    return settings


def _local_path(value: str) -> Path | None:
    """Return the file or folder that a setting's value names, if it names one here."""
    address = urlsplit(value)
    if address.scheme not in ("", "file"):
        return None
    path = Path(unquote(address.path))
    return path if path.is_absolute() and path.exists() else None


def _outermost(paths: set[str]) -> Iterator[str]:
    # A simple index refers to the files beside it, by ../..
    for path in paths:
        yield str(Path(path).parent) if Path(path).name == "simple" else path
