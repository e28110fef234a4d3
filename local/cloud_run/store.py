"""The state on disk: one JSON file, replaced as a whole."""

import fcntl
import json
from pathlib import Path
from typing import Any


class Store:
    """One folder, used by one process at a time.

    Raises:
        RuntimeError: another process holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "state.json"
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{folder} is in use by another stand-in; stop that one") from None

    def load(self) -> dict[str, Any] | None:
        """What was saved last, or None the first time."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        data: dict[str, Any] = json.loads(text)
        return data

    def save(self, data: dict[str, Any]) -> None:
        """Replace the state; a reader, or a restart, sees the old or the new one whole."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(data, indent=1), encoding="utf-8")
        partial.replace(self._path)
