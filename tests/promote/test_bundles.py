"""Copying bundles, against a real storage emulator: whole, from the right place, or not at all."""

import json
from collections.abc import Callable

import pytest

from functions.predict.bundle import GOLDEN, MANIFEST, SCORES, digest, read_bundle
from functions.promote.bundles import BundleError, Bundles, StorageUnavailable
from functions.promote.deadline import Deadline
from functions.promote.quality import Metric
from local.settings import free_port
from tests.bundles import make_bundle
from tests.emulators import StorageEmulator

REGISTRY, SERVING = "promote-registry", "promote-serving"
FILES = make_bundle()
# Never copied: what lies under its own digest is not looked at again.
OTHER = make_bundle(run_id="b" * 32)


@pytest.fixture
def bundles(storage_emulator: StorageEmulator, monkeypatch: pytest.MonkeyPatch) -> Bundles:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_emulator.url)
    storage_emulator.upload(SERVING, "made", {"empty": b""})
    return Bundles(model="yelp-model", artifacts_bucket=REGISTRY, serving_bucket=SERVING)


@pytest.fixture
def upload(
    storage_emulator: StorageEmulator, request: pytest.FixtureRequest
) -> Callable[[dict[str, bytes]], str]:
    """Put files into the registry's bucket, and return the logged model's folder."""

    def put(files: dict[str, bytes]) -> str:
        folder = f"{abs(hash(request.node.name))}/artifacts"
        storage_emulator.upload(REGISTRY, f"{folder}/serving", files)
        return f"gs://{REGISTRY}/{folder}"

    return put


Upload = Callable[[dict[str, bytes]], str]


def with_manifest(**changes: object) -> dict[str, bytes]:
    manifest = {**json.loads(FILES[MANIFEST]), **changes}
    return {**FILES, MANIFEST: json.dumps(manifest).encode()}


def entry(content: bytes) -> dict[str, object]:
    return {"sha256": digest(content), "bytes": len(content)}


def test_a_bundle_is_copied_under_its_own_digest(
    bundles: Bundles, upload: Upload, storage_emulator: StorageEmulator
) -> None:
    source = upload(FILES)
    uri = bundles.locate(source, Deadline(60))
    assert uri == f"gs://{SERVING}/yelp-model/{digest(FILES[MANIFEST])}/"
    for _ in range(2):  # the second time it is there
        bundles.stage(source, uri, Deadline(60))
    copied = {
        name: bundles._read(
            SERVING, f"{uri.removeprefix(f'gs://{SERVING}/')}{name}", 10**9, Deadline(60)
        )
        for name in FILES
    }
    assert copied == FILES
    read_bundle(copied)
    assert len(bundles.golden_texts(uri, Deadline(60))) >= 20
    assert bundles.metrics(uri, Deadline(60))["auroc"] == Metric(value=0.9, low=0.88, high=0.92)


@pytest.mark.parametrize(
    "uri",
    [
        "gs://another-bucket/model",
        f"gs://{REGISTRY}x/model",
        f"gs://{REGISTRY}/../another/model",
        "/tmp/model",
        "https://example.com/model",
    ],
)
def test_a_source_outside_the_registrys_bucket_is_refused(bundles: Bundles, uri: str) -> None:
    with pytest.raises(BundleError, match="outside the registry's bucket"):
        bundles.locate(uri, Deadline(60))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, f"{MANIFEST}: not found"),
        ({**OTHER, SCORES: OTHER[SCORES][:-1] + b"x"}, f"{SCORES}: SHA-256"),
        ({**OTHER, SCORES: OTHER[SCORES] + b"x" * 999}, f"{SCORES}: more than"),
        ({**OTHER, SCORES: OTHER[SCORES][:-1]}, f"{SCORES}: {len(OTHER[SCORES]) - 1} bytes"),
        ({n: c for n, c in OTHER.items() if n != GOLDEN}, f"{GOLDEN}: not found"),
        ({**FILES, MANIFEST: b"{}"}, "files"),
        ({**FILES, MANIFEST: b"\xff"}, MANIFEST),
        # These two ended every tick in an error that is none of ours once.
        ({**FILES, MANIFEST: b"[" * 100_000}, MANIFEST),
        (with_manifest(files={SCORES: {"sha256": "x", "bytes": 1e400}}), MANIFEST),
        (with_manifest(files={SCORES: {"sha256": "x", "bytes": -1}}), "bytes"),
        (with_manifest(files={"../escape": entry(b"")}), "is no file name"),
        (with_manifest(files={SCORES: entry(FILES[SCORES])}), "lists no golden.jsonl"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused_with_the_file(
    bundles: Bundles, upload: Upload, files: dict[str, bytes], reason: str
) -> None:
    source = upload(files) if files else f"gs://{REGISTRY}/nothing"
    with pytest.raises(BundleError, match=reason):
        bundles.stage(source, bundles.locate(source, Deadline(60)), Deadline(60))


@pytest.mark.parametrize(
    "golden",
    [b"", b'{"text": "x", "score": 0.5}\n' * 19, b"[" * 10**5, b'{"text": "x", "score": 1e999}\n'],
)
def test_too_few_or_strange_golden_texts_are_no_evidence(
    bundles: Bundles, storage_emulator: StorageEmulator, golden: bytes
) -> None:
    uri = storage_emulator.upload(SERVING, f"golden/{digest(golden)}", {GOLDEN: golden})
    with pytest.raises(BundleError, match=GOLDEN):
        bundles.golden_texts(uri, Deadline(60))


def test_storage_that_does_not_answer_is_no_verdict(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageUnavailable):
        bundles.locate(f"gs://{REGISTRY}/model", Deadline(2))
