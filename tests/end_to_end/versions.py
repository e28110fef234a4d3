"""Versions that need no training: copies of a registered one, whole or damaged."""

import json
import uuid
from collections.abc import Callable

from google.cloud import storage

from functions.predict.bundle import GOLDEN, MANIFEST, SCORES, digest
from local.settings import ARTIFACTS_BUCKET, MODEL
from tests.end_to_end.conftest import Loop

SERVING = "serving/"

Damage = Callable[[dict[str, bytes]], None]
"""Changes the files of a bundle, name -> content, in place."""


def whole(_files: dict[str, bytes]) -> None:
    """No damage."""


def register_copy(loop: Loop, version: str, damage: Damage = whole) -> str:
    """Register a copy of a version, its bundle told apart by its manifest; return its version."""
    uri = loop.registry.get_model_version_download_uri(MODEL, version)
    bucket = storage.Client().bucket(ARTIFACTS_BUCKET)
    prefix = f"{uri.removeprefix(f'gs://{ARTIFACTS_BUCKET}/')}/"
    model = {
        blob.name.removeprefix(prefix): blob.download_as_bytes()
        for blob in bucket.list_blobs(prefix=prefix)
    }
    files = {
        name.removeprefix(SERVING): model.pop(name)
        for name in list(model)
        if name.startswith(SERVING)
    }
    manifest = {**json.loads(files[MANIFEST]), "data_digest": uuid.uuid4().hex * 2}
    files[MANIFEST] = json.dumps(manifest).encode()
    damage(files)
    folder = f"copies/{uuid.uuid4().hex}"
    model |= {f"{SERVING}{name}": content for name, content in files.items()}
    for name, content in model.items():
        bucket.blob(f"{folder}/{name}").upload_from_string(content)
    run_id = loop.registry.get_model_version(MODEL, version).run_id
    copied = loop.registry.create_model_version(
        MODEL, source=f"gs://{ARTIFACTS_BUCKET}/{folder}", run_id=run_id
    )
    return str(copied.version)


def flip_a_bit(files: dict[str, bytes]) -> None:
    content = bytearray(files[SCORES])
    content[-1] ^= 1
    files[SCORES] = bytes(content)


def remove_manifest(files: dict[str, bytes]) -> None:
    del files[MANIFEST]


def change_golden_texts(files: dict[str, bytes]) -> None:
    """Whole and sealed, but the torch module never gave these scores."""
    lines = [json.loads(line) for line in files[GOLDEN].splitlines()]
    lines[3]["score"] = 1 - lines[3]["score"]
    content = files[GOLDEN] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    manifest = json.loads(files[MANIFEST])
    manifest["files"][GOLDEN] = {"sha256": digest(content), "bytes": len(content)}
    files[MANIFEST] = json.dumps(manifest).encode()


def claim_another_format(files: dict[str, bytes]) -> None:
    """Promote copies it; predict, which knows the format, refuses to start."""
    manifest = json.loads(files[MANIFEST])
    files[MANIFEST] = json.dumps({**manifest, "format_version": 99}).encode()
