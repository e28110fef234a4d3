"""Read a serving bundle from Cloud Storage.

Imports Google's client library, which costs more time and memory than all else that
predict does; see `functions.predict.loading` for who imports this.
"""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from google.api_core.exceptions import GoogleAPIError, RequestRangeNotSatisfiable
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

from functions.predict.bundle import MANIFEST, BundleError, digest, read_manifest

# Larger than any manifest, far smaller than the memory of the smallest instance.
MAX_MANIFEST_BYTES = 16 * 1024**2

# One stream from Cloud Storage is slower than the network: large files come in pieces.
_PIECE_BYTES = 8 * 1024**2
_STREAMS = 8

_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 8.0
# A connection over which nothing comes is given up, to try again.
_SILENCE_SECONDS = 15.0


class Place(NamedTuple):
    """Where a file of the bundle lies in the file that all were written to."""

    offset: int
    size: int


class _Piece(NamedTuple):
    name: str
    start: int
    end: int
    """One past its last byte."""
    offset: int
    """Where it goes."""


def download_bundle(uri: str, target: int, *, timeout: float) -> dict[str, Place]:
    """Write the files of the bundle in a folder of a bucket to one file, one after the other.

    The manifest comes first; only the files that it names are read, at once, and no
    more of each than a byte beyond what the manifest says: that it is longer shows.
    Where the last part of `uri` is a SHA-256, the manifest must have that digest.
    What else there is to verify is left to `functions.predict.bundle.read_bundle`.

    Args:
        uri: ``gs://BUCKET/PATH``, with or without a slash at its end.
        target: descriptor of an empty file, for writing.
        timeout: seconds to keep trying for, with back-off, all files together.

    Returns:
        Name -> place in `target`.

    Raises:
        BundleError: the bundle is missing, can't be read, or its manifest is wrong.
            The message names the file.
    """
    deadline = time.monotonic() + timeout
    bucket_name, _, path = uri.removeprefix("gs://").partition("/")
    path = path.rstrip("/")
    try:
        bucket = storage.Client().bucket(bucket_name)
    except (GoogleAuthError, OSError) as error:  # OSError: there is no project
        raise BundleError(f"{uri}: can't be read: {error}") from error

    def read(name: str, start: int, end: int) -> bytes:
        left = max(0.0, deadline - time.monotonic())
        try:
            content: bytes = bucket.blob(f"{path}/{name}").download_as_bytes(
                start=start,
                end=end - 1,
                checksum=None,  # the manifest's digests tell more
                timeout=min(_SILENCE_SECONDS, max(1.0, left)),
                retry=DEFAULT_RETRY.with_timeout(left).with_delay(
                    _FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS
                ),
            )
        except RequestRangeNotSatisfiable:
            return b""
        except (GoogleAPIError, GoogleAuthError, RequestException) as error:
            raise BundleError(f"{uri}: {name}: can't be read: {error}") from error
        return content

    manifest = read(MANIFEST, 0, MAX_MANIFEST_BYTES + 1)
    _check_folder(uri, path, manifest)
    places = {MANIFEST: Place(0, os.pwrite(target, manifest, 0))}
    offset = len(manifest)
    pieces = []
    for name, entry in read_manifest(manifest).files.items():
        size = entry.bytes + 1
        pieces += [
            _Piece(name, start, min(start + _PIECE_BYTES, size), offset + start)
            for start in range(0, size, _PIECE_BYTES)
        ]
        places[name] = Place(offset, 0)
        offset += size

    def fetch(piece: _Piece) -> int:
        return os.pwrite(target, read(piece.name, piece.start, piece.end), piece.offset)

    with ThreadPoolExecutor(_STREAMS) as pool:
        for piece, written in zip(pieces, pool.map(fetch, pieces), strict=True):
            place = places[piece.name]
            places[piece.name] = place._replace(size=place.size + written)
    return places


def _check_folder(uri: str, path: str, manifest: bytes) -> None:
    name = path.rpartition("/")[2]
    actual = digest(manifest)
    if re.fullmatch("[0-9a-f]{64}", name) and actual != name:
        raise BundleError(f"{uri}: {MANIFEST}: SHA-256 {actual}, the folder's name says {name}")
