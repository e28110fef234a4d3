"""Where a training that was cut off finds what it had: a folder, or a place in Cloud Storage."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.sources import is_cloud

_RUN = "run_id"
_CHECKPOINT = "last.ckpt"


class CheckpointError(Exception):
    """Checkpoints can't be kept; the message says where and why."""


class Checkpoints:
    """What one training keeps: its MLflow run, and its state after the last epoch.

    Trainings that differ in what they depend on never meet, in the same place. Of two that
    don't differ, the one that began last goes on, and the other is told so: nothing is locked
    that one which was killed would leave behind.

    Args:
        place: folder, made when missing, or ``gs://BUCKET/PREFIX``.
        identity: what the training depends on, as JSON takes it.

    Raises:
        CheckpointError: there are no credentials for the bucket.
    """

    def __init__(self, place: Path | str, identity: Mapping[str, Any]) -> None:
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.place = f"{str(place).rstrip('/')}/{name}"
        self._token = secrets.token_hex(8)
        self._bucket: Any = None
        self._errors: tuple[type[Exception], ...] = (OSError,)
        if is_cloud(place):
            # Imported for those who need it: a third of a second.
            from google.api_core.exceptions import GoogleAPIError
            from google.auth.exceptions import GoogleAuthError
            from google.cloud import storage
            from requests.exceptions import RequestException

            self._errors = (OSError, GoogleAPIError, GoogleAuthError, RequestException)
            bucket, _, self._prefix = self.place.removeprefix("gs://").partition("/")
            try:
                self._bucket = storage.Client().bucket(bucket)
            except self._errors as error:
                raise CheckpointError(f"{self.place}: {error}") from error

    def unfinished_run(self) -> str | None:
        """Return the MLflow run that was cut off, or None.

        Raises:
            CheckpointError: the place can't be read.
        """
        content = self._get(_RUN)
        return None if content is None else content.decode().partition(" ")[0]

    def begin(self, run_id: str) -> None:
        """Note that `run_id` is under way, in this process.

        Raises:
            CheckpointError: nothing can be written here.
        """
        self._put(_RUN, f"{run_id} {self._token}".encode())

    def check(self) -> None:
        """See that no other process has begun the same training since `begin`.

        Raises:
            CheckpointError: one has; or the place can't be read.
        """
        content = self._get(_RUN)
        if content is None or content.decode().partition(" ")[2] != self._token:
            raise CheckpointError(
                f"{self.place}: the same training was started a second time, and goes on there; "
                "start it once, or give each its own --checkpoints"
            )

    def save(self, content: bytes) -> None:
        """Replace the state; until the new one is whole, the one before stays.

        Raises:
            CheckpointError: it can't be written; or as `check` does.
        """
        self.check()
        self._put(_CHECKPOINT, content)

    def load(self) -> bytes | None:
        """Return the last state, or None when there is none.

        Raises:
            CheckpointError: it can't be read.
        """
        return self._get(_CHECKPOINT)

    def clear(self) -> None:
        """Forget it all: the training has ended well.

        Raises:
            CheckpointError: it can't be removed.
        """
        try:
            if self._bucket is None:
                shutil.rmtree(self.place)
            else:
                blobs = list(self._bucket.client.list_blobs(self._bucket, prefix=self._name("")))
                self._bucket.delete_blobs(blobs)
        except self._errors as error:
            raise CheckpointError(f"{self.place}: can't be removed: {error}") from error

    def _put(self, name: str, content: bytes) -> None:
        try:
            if self._bucket is not None:
                self._bucket.blob(self._name(name)).upload_from_string(content)
                return
            path = Path(self.place, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except self._errors as error:
            raise CheckpointError(f"{self.place}/{name}: can't be written: {error}") from error

    def _get(self, name: str) -> bytes | None:
        try:
            if self._bucket is not None:
                blob = self._bucket.get_blob(self._name(name))
                return None if blob is None else bytes(blob.download_as_bytes())
            path = Path(self.place, name)
            return path.read_bytes() if path.exists() else None
        except self._errors as error:
            raise CheckpointError(f"{self.place}/{name}: can't be read: {error}") from error

    def _name(self, name: str) -> str:
        return f"{self._prefix}/{name}"
