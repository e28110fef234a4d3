"""Copy serving bundles from the registry's bucket to the one that predict reads.

A copy is named by the SHA-256 of its manifest, which names every other file with
its own: what lies there can't change, and deleting the original harms nothing.
"""

import hashlib
from functools import cached_property
from typing import Annotated

from google.api_core.exceptions import (
    GoogleAPIError,
    NotFound,
    PreconditionFailed,
    RequestRangeNotSatisfiable,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from requests.exceptions import RequestException

from functions.promote.deadline import Deadline
from functions.promote.quality import Metric

MANIFEST = "manifest.json"
GOLDEN = "golden.jsonl"
SERVING_FOLDER = "serving"
MAX_MANIFEST_BYTES = 16 * 1024**2
MAX_FILE_BYTES = 2 * 1024**3
MIN_GOLDEN_TEXTS = 20
TIMEOUT_SECONDS = 15.0


class BundleError(ValueError):
    """A bundle is missing, damaged, or lies where it may not."""


class StorageUnavailable(Exception):
    """Cloud Storage does not answer."""


class GoldenText(BaseModel):
    """A text and the score that the torch module gave it."""

    model_config = ConfigDict(frozen=True)

    text: str
    score: Annotated[float, Field(ge=0, le=1)]


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
        try:
            return storage.Client()
        except GoogleAuthError as error:
            raise StorageUnavailable(f"no credentials for Cloud Storage: {error}") from error

    def locate(self, artifacts_uri: str, deadline: Deadline) -> str:
        """Return where the bundle of a logged model is served from, copied yet or not.

        Args:
            artifacts_uri: ``gs://`` folder of the logged model.

        Raises:
            BundleError: it lies outside the registry's bucket, or has no manifest.
            StorageUnavailable: Cloud Storage does not answer.
        """
        manifest = self._read_manifest(artifacts_uri, deadline)
        digest = hashlib.sha256(manifest).hexdigest()
        return f"gs://{self._serving}/{self._model}/{digest}/"

    def stage(self, artifacts_uri: str, bundle_uri: str, deadline: Deadline) -> None:
        """Copy the bundle to `bundle_uri`, every file checked against the manifest.

        The manifest is written last: a bundle that has one is complete. Repeating
        it does no harm.

        Raises:
            BundleError: a file is missing or differs; the message names it.
            StorageUnavailable: Cloud Storage does not answer.
        """
        folder = bundle_uri.removeprefix(f"gs://{self._serving}/").rstrip("/")
        if self._exists(self._serving, f"{folder}/{MANIFEST}", deadline):
            return
        manifest = self._read_manifest(artifacts_uri, deadline)
        if hashlib.sha256(manifest).hexdigest() != folder.rpartition("/")[2]:
            raise BundleError(f"{MANIFEST} changed while it was read")
        for name, (digest, size) in _files(manifest).items():
            source = self._source(artifacts_uri, name)
            content = self._read(self._artifacts, source, size, deadline)
            if len(content) != size:
                found = f"more than {size}" if len(content) > size else str(len(content))
                raise BundleError(f"{name}: {found} bytes, the manifest says {size}")
            if (actual := hashlib.sha256(content).hexdigest()) != digest:
                raise BundleError(f"{name}: SHA-256 {actual}, the manifest says {digest}")
            self._write(f"{folder}/{name}", content, deadline)
        self._write(f"{folder}/{MANIFEST}", manifest, deadline)

    def golden_texts(self, bundle_uri: str, deadline: Deadline) -> list[GoldenText]:
        """Return the golden texts of a staged bundle.

        Raises:
            BundleError: there are too few, or they are malformed.
            StorageUnavailable: Cloud Storage does not answer.
        """
        folder = bundle_uri.removeprefix(f"gs://{self._serving}/").rstrip("/")
        content = self._read(self._serving, f"{folder}/{GOLDEN}", MAX_MANIFEST_BYTES, deadline)
        golden = []
        for line in content.splitlines():
            try:
                golden.append(GoldenText.model_validate_json(line))
            except ValidationError as error:
                raise BundleError(f"{GOLDEN}: {_first(error)}") from error
        if len(golden) < MIN_GOLDEN_TEXTS:
            raise BundleError(f"{GOLDEN}: {len(golden)} texts, at least {MIN_GOLDEN_TEXTS} needed")
        return golden

    def metrics(self, bundle_uri: str, deadline: Deadline) -> dict[str, Metric]:
        """Return what training measured, as the manifest of a staged bundle says.

        Raises:
            BundleError: there is no manifest, or it is malformed.
            StorageUnavailable: Cloud Storage does not answer.
        """
        folder = bundle_uri.removeprefix(f"gs://{self._serving}/").rstrip("/")
        content = self._read(self._serving, f"{folder}/{MANIFEST}", MAX_MANIFEST_BYTES, deadline)
        try:
            return _Manifest.model_validate_json(content).metrics
        except ValidationError as error:
            raise BundleError(f"{MANIFEST}: {_first(error)}") from error

    def _source(self, artifacts_uri: str, name: str) -> str:
        prefix = f"gs://{self._artifacts}/"
        path = artifacts_uri.removeprefix(prefix)
        if not artifacts_uri.startswith(prefix) or ".." in path.split("/"):
            raise BundleError(f"{artifacts_uri} is outside the registry's bucket {self._artifacts}")
        return f"{path.rstrip('/')}/{SERVING_FOLDER}/{name}"

    def _read_manifest(self, artifacts_uri: str, deadline: Deadline) -> bytes:
        source = self._source(artifacts_uri, MANIFEST)
        manifest = self._read(self._artifacts, source, MAX_MANIFEST_BYTES, deadline)
        if len(manifest) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST}: larger than {MAX_MANIFEST_BYTES} bytes")
        return manifest

    def _read(self, bucket: str, path: str, size: int, deadline: Deadline) -> bytes:
        """Return the object, but one byte more than `size` at most."""
        timeout = deadline.within(TIMEOUT_SECONDS)
        try:
            blob = self._client.bucket(bucket).blob(path)
            content: bytes = blob.download_as_bytes(
                end=size, timeout=timeout, retry=DEFAULT_RETRY.with_timeout(timeout)
            )
        except NotFound as error:
            name = path.rpartition("/")[2]
            raise BundleError(f"{name}: not found at gs://{bucket}/{path}") from error
        except RequestRangeNotSatisfiable:
            return b""  # an empty object has no range at all
        except (GoogleAPIError, GoogleAuthError, RequestException) as error:
            raise StorageUnavailable(f"gs://{bucket}/{path}: {error}") from error
        return content

    def _exists(self, bucket: str, path: str, deadline: Deadline) -> bool:
        timeout = deadline.within(TIMEOUT_SECONDS)
        try:
            blob = self._client.bucket(bucket).blob(path)
            return bool(blob.exists(timeout=timeout, retry=DEFAULT_RETRY.with_timeout(timeout)))
        except (GoogleAPIError, GoogleAuthError, RequestException) as error:
            raise StorageUnavailable(f"gs://{bucket}/{path}: {error}") from error

    def _write(self, path: str, content: bytes, deadline: Deadline) -> None:
        timeout = deadline.within(TIMEOUT_SECONDS)
        try:
            # Never over what is there: its name says that it is the same.
            self._client.bucket(self._serving).blob(path).upload_from_string(
                content,
                if_generation_match=0,
                timeout=timeout,
                retry=DEFAULT_RETRY.with_timeout(timeout),
            )
        except PreconditionFailed:
            return
        except (GoogleAPIError, GoogleAuthError, RequestException) as error:
            raise StorageUnavailable(f"gs://{self._serving}/{path}: {error}") from error


class _FileEntry(BaseModel):
    sha256: str
    bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]


class _Manifest(BaseModel):
    files: dict[str, _FileEntry]
    metrics: dict[str, Metric] = {}


def _files(manifest: bytes) -> dict[str, tuple[str, int]]:
    """Return name -> (SHA-256, bytes) of the files that a manifest lists."""
    try:
        entries = _Manifest.model_validate_json(manifest).files
    except ValidationError as error:
        raise BundleError(f"{MANIFEST}: {_first(error)}") from error
    for name in entries:
        if "/" in name or name in ("", ".", "..", MANIFEST):
            raise BundleError(f"{MANIFEST}: {name[:80]!r} is no file name")
    if GOLDEN not in entries:
        raise BundleError(f"{MANIFEST}: lists no {GOLDEN}")
    return {name: (entry.sha256, entry.bytes) for name, entry in entries.items()}


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
