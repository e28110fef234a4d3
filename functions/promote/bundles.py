"""Copy serving bundles from the registry's bucket to the one that predict reads.

A copy is named by the SHA-256 of its manifest, which names every other file with
its own: what lies there can't change, and deleting the original harms nothing.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

MANIFEST = "manifest.json"
GOLDEN = "golden.jsonl"
SERVING_FOLDER = "serving"
MAX_MANIFEST_BYTES = 16 * 1024**2
TIMEOUT_SECONDS = 20.0

_RETRY = DEFAULT_RETRY.with_timeout(TIMEOUT_SECONDS)


class BundleError(ValueError):
    """A bundle is missing, damaged, or lies where it may not."""


class StorageUnavailable(Exception):
    """Cloud Storage does not answer."""


@dataclass(frozen=True)
class GoldenText:
    """A text and the score that the torch module gave it."""

    text: str
    score: float


class Bundles:
    """Bundles of one model.

    Args:
        model: name of the model, the folder in the serving bucket.
        artifacts_bucket: the registry's bucket, read.
        serving_bucket: the bucket that predict reads, written.
    """

    def __init__(self, *, model: str, artifacts_bucket: str, serving_bucket: str) -> None:
        self._model = model
        self._artifacts = artifacts_bucket
        self._serving = serving_bucket

    @cached_property
    def _client(self) -> storage.Client:
        return storage.Client()

    def locate(self, artifacts_uri: str) -> str:
        """Return where the bundle of a logged model is served from, copied yet or not.

        Args:
            artifacts_uri: ``gs://`` folder of the logged model.

        Raises:
            BundleError: it lies outside the registry's bucket, or has no manifest.
            StorageUnavailable: Cloud Storage does not answer.
        """
        manifest = self._read(self._artifacts, self._source(artifacts_uri, MANIFEST))
        digest = hashlib.sha256(manifest).hexdigest()
        return f"gs://{self._serving}/{self._model}/{digest}/"

    def stage(self, artifacts_uri: str, bundle_uri: str) -> None:
        """Copy the bundle to `bundle_uri`, every file checked against the manifest.

        The manifest is written last: a bundle that has one is complete. Repeating
        it does no harm.

        Raises:
            BundleError: a file is missing or differs; the message names it.
            StorageUnavailable: Cloud Storage does not answer.
        """
        folder = bundle_uri.removeprefix(f"gs://{self._serving}/").rstrip("/")
        if self._exists(self._serving, f"{folder}/{MANIFEST}"):
            return
        manifest = self._read(self._artifacts, self._source(artifacts_uri, MANIFEST))
        if hashlib.sha256(manifest).hexdigest() != folder.rpartition("/")[2]:
            raise BundleError(f"{MANIFEST} changed while it was read")
        for name, (digest, size) in _files(manifest).items():
            content = self._read(self._artifacts, self._source(artifacts_uri, name))
            if len(content) != size:
                raise BundleError(f"{name}: {len(content)} bytes, the manifest says {size}")
            if (actual := hashlib.sha256(content).hexdigest()) != digest:
                raise BundleError(f"{name}: SHA-256 {actual}, the manifest says {digest}")
            self._write(f"{folder}/{name}", content)
        self._write(f"{folder}/{MANIFEST}", manifest)

    def golden_texts(self, bundle_uri: str) -> list[GoldenText]:
        """Return the golden texts of a staged bundle.

        Raises:
            BundleError: there are none, or they are malformed.
            StorageUnavailable: Cloud Storage does not answer.
        """
        folder = bundle_uri.removeprefix(f"gs://{self._serving}/").rstrip("/")
        lines = self._read(self._serving, f"{folder}/{GOLDEN}").splitlines()
        try:
            items = [json.loads(line) for line in lines]
            return [GoldenText(str(item["text"]), float(item["score"])) for item in items]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{GOLDEN}: {error}") from error

    def _source(self, artifacts_uri: str, name: str) -> str:
        prefix = f"gs://{self._artifacts}/"
        path = artifacts_uri.removeprefix(prefix)
        if not artifacts_uri.startswith(prefix) or ".." in path.split("/"):
            raise BundleError(f"{artifacts_uri} is outside the registry's bucket {self._artifacts}")
        return f"{path.rstrip('/')}/{SERVING_FOLDER}/{name}"

    def _read(self, bucket: str, path: str) -> bytes:
        try:
            content: bytes = (
                self._client.bucket(bucket)
                .blob(path)
                .download_as_bytes(timeout=TIMEOUT_SECONDS, retry=_RETRY)
            )
        except NotFound as error:
            name = path.rpartition("/")[2]
            raise BundleError(f"{name}: not found at gs://{bucket}/{path}") from error
        except (GoogleAPIError, GoogleAuthError, RequestException) as error:
            raise StorageUnavailable(f"gs://{bucket}/{path}: {error}") from error
        return content

    def _exists(self, bucket: str, path: str) -> bool:
        try:
            blob = self._client.bucket(bucket).blob(path)
            return bool(blob.exists(timeout=TIMEOUT_SECONDS, retry=_RETRY))
        except (GoogleAPIError, GoogleAuthError, RequestException) as error:
            raise StorageUnavailable(f"gs://{bucket}/{path}: {error}") from error

    def _write(self, path: str, content: bytes) -> None:
        blob = self._client.bucket(self._serving).blob(path)
        try:
            # Never over what is there: its name says that it is the same.
            blob.upload_from_string(
                content, if_generation_match=0, timeout=TIMEOUT_SECONDS, retry=_RETRY
            )
        except PreconditionFailed:
            return
        except (GoogleAPIError, GoogleAuthError, RequestException) as error:
            raise StorageUnavailable(f"gs://{self._serving}/{path}: {error}") from error


def _files(manifest: bytes) -> dict[str, tuple[str, int]]:
    """Return name -> (SHA-256, bytes) of the files that a manifest lists."""
    try:
        entries: dict[str, dict[str, Any]] = json.loads(manifest)["files"]
        files = {
            name: (str(entry["sha256"]), int(entry["bytes"])) for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{MANIFEST}: {type(error).__name__}: {error}") from error
    for name in files:
        if "/" in name or name in ("", ".", "..", MANIFEST):
            raise BundleError(f"{MANIFEST}: {name!r} is no file name")
    if GOLDEN not in files:
        raise BundleError(f"{MANIFEST}: lists no {GOLDEN}")
    return files
