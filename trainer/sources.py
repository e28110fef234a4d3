"""Where data comes from: a file on this machine or an object in Cloud Storage."""

import contextlib
import gzip
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

_BUFFER_BYTES = 1024**2
_GZIP_MAGIC = b"\x1f\x8b"


class SourceError(Exception):
    """The source does not exist or can't be read; the message says why."""


class Content:
    """The uncompressed content of a source, read once from start to end.

    Args:
        stream: where it is read from.
        generation: of the object in Cloud Storage; None: a file.
    """

    def __init__(self, stream: BinaryIO | gzip.GzipFile, generation: int | None) -> None:
        self.generation = generation
        self._hashing = _HashingReader(stream)
        self.reader = io.BufferedReader(self._hashing, _BUFFER_BYTES)

    def digest(self) -> str:
        """Return the SHA-256 of what was read, as lower-case hex."""
        return self._hashing.sha256.hexdigest()


class _HashingReader(io.RawIOBase):
    """Hash what is read through it, so that the digest costs no second pass."""

    def __init__(self, source: BinaryIO | gzip.GzipFile) -> None:
        self._source = source
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # as io calls it
        content = self._source.read(len(buffer))
        buffer[: len(content)] = content
        self.sha256.update(content)
        return len(content)


@contextlib.contextmanager
def open_source(
    source: Path | str, *, generation: int | None = None, progress: bool = False
) -> Iterator[Content]:
    """Open a source for reading; gzip, told from its first bytes, is unpacked on the way.

    No more than some megabytes of it are in memory at any time.

    Args:
        source: path, or ``gs://BUCKET/OBJECT``.
        generation: of the object; None: the newest. It does not change while it is read.
        progress: show a bar over the bytes read.

    Raises:
        SourceError: there is no such object, or Cloud Storage refuses; also while it is read.
        OSError: the file can't be read.
    """
    opener = _open_cloud(str(source), generation) if is_cloud(source) else _open_file(Path(source))
    with opener as (raw, size, found):
        compressed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        raw.seek(0)
        with tqdm.wrapattr(
            raw, "read", total=size, desc="reading", disable=not progress, delay=1, leave=False
        ) as counted:
            yield Content(gzip.GzipFile(fileobj=counted) if compressed else counted, found)


def is_cloud(source: Path | str) -> bool:
    """Return whether `source` is an object in Cloud Storage."""
    return str(source).startswith("gs://")


@contextlib.contextmanager
def _open_file(path: Path) -> Iterator[tuple[BinaryIO, int, None]]:
    with path.open("rb") as raw:
        yield raw, path.stat().st_size, None


@contextlib.contextmanager
def _open_cloud(uri: str, generation: int | None) -> Iterator[tuple[BinaryIO, int, int]]:
    # Imported for those who need it: a third of a second.
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage
    from requests.exceptions import RequestException

    bucket, _, name = uri.removeprefix("gs://").partition("/")
    if not bucket or not name:
        raise SourceError(f"{uri} is not gs://BUCKET/OBJECT")
    try:
        blob = storage.Client().bucket(bucket).get_blob(name, generation=generation)
        if blob is None:
            raise SourceError(
                "there is no such object"
                if generation is None
                else f"there is no such object with generation {generation}"
            )
        # As it is stored: the library would unpack what is marked as gzip by itself.
        with blob.open("rb", raw_download=True) as raw:
            yield raw, blob.size, int(blob.generation)
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        raise SourceError(f"Cloud Storage: {error}") from error
