"""Read a serving bundle from Cloud Storage."""

import re

from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

from functions.predict.bundle import (
    MANIFEST,
    Bundle,
    BundleError,
    digest,
    read_bundle,
    read_manifest,
)

# Larger than any manifest, far smaller than the memory of the smallest instance.
MAX_MANIFEST_BYTES = 16 * 1024**2


def load_bundle(uri: str, *, timeout: float) -> Bundle:
    """Read and verify the bundle in a folder of a bucket.

    The manifest comes first; only the files that it names are read, and each is
    refused when it is not exactly as large as the manifest says. Where the last
    part of `uri` is a SHA-256, the manifest must have that digest.

    Args:
        uri: ``gs://BUCKET/PATH``, with or without a slash at its end.
        timeout: seconds to keep trying each file for, with back-off.

    Raises:
        BundleError: the bundle is missing, can't be read, or is not valid. The
            message names the file.
    """
    bucket_name, _, path = uri.removeprefix("gs://").partition("/")
    path = path.rstrip("/")
    retry = DEFAULT_RETRY.with_timeout(timeout)
    try:
        client = storage.Client()
    except (GoogleAuthError, OSError) as error:  # OSError: there is no project
        raise BundleError(f"{uri}: can't be read: {error}") from error
    bucket = client.bucket(bucket_name)

    def read(name: str, size: int) -> bytes:
        blob = bucket.blob(f"{path}/{name}")
        try:
            # One byte more than expected, so that a longer file shows.
            content: bytes = blob.download_as_bytes(end=size, timeout=timeout, retry=retry)
        except (GoogleAPIError, GoogleAuthError, RequestException) as error:
            raise BundleError(f"{uri}: {name}: can't be read: {error}") from error
        return content

    try:
        files = {MANIFEST: read(MANIFEST, MAX_MANIFEST_BYTES)}
        name = path.rpartition("/")[2]
        actual = digest(files[MANIFEST])
        if re.fullmatch("[0-9a-f]{64}", name) and actual != name:
            raise BundleError(f"{uri}: {MANIFEST}: SHA-256 {actual}, the folder's name says {name}")
        for name, entry in read_manifest(files[MANIFEST]).files.items():
            files[name] = read(name, entry.bytes)
    finally:
        # The server forks after this: no open connection may be shared.
        client.close()
    return read_bundle(files)
