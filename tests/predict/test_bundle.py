"""A bundle is served whole and as it was built, or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.predict import bundle as bundle_module
from functions.predict.bundle import (
    GOLDEN,
    MANIFEST,
    SCORES,
    VOCABULARY,
    BundleError,
    digest,
    read_bundle,
    read_golden,
    read_manifest,
)
from tests.bundles import make_bundle

FILES = make_bundle()


@contextmanager
def suppress_bundle_errors(files: dict[str, bytes]) -> Iterator[None]:
    message = None
    try:
        yield
    except BundleError as error:
        message = str(error)
    assert message is None or message.split(":")[0] in files


def resealed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return `files` with a manifest that fits them: damage that digests can't show."""
    manifest = json.loads(files[MANIFEST])
    for name in manifest["files"]:
        manifest["files"][name] = {"sha256": digest(files[name]), "bytes": len(files[name])}
    return {**files, MANIFEST: json.dumps(manifest).encode()}


def test_what_was_built_is_read_back() -> None:
    bundle = read_bundle(FILES)
    assert bundle.digest == digest(FILES[MANIFEST])
    for item in read_golden(FILES[GOLDEN]):
        assert bundle.scorer.score(item.text) == pytest.approx(item.score, abs=1e-6)


@pytest.mark.parametrize("name", [MANIFEST, VOCABULARY, SCORES, GOLDEN])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(BundleError, match=name):
        read_bundle({key: value for key, value in FILES.items() if key != name})


@given(st.sampled_from([VOCABULARY, SCORES, GOLDEN]), st.data())
@settings(max_examples=200)
def test_a_flipped_bit_is_found_and_named(name: str, data: st.DataObject) -> None:
    content = bytearray(FILES[name])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BundleError, match=f"^{name}: SHA-256 .* the manifest says"):
        read_bundle({**FILES, name: bytes(content)})


@given(st.sampled_from([VOCABULARY, SCORES, GOLDEN]), st.data())
def test_a_truncated_file_is_found(name: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(FILES[name]) - 1))
    with pytest.raises(BundleError, match=f"^{name}: {length} bytes, the manifest says"):
        read_bundle({**FILES, name: FILES[name][:length]})


@given(st.sampled_from([MANIFEST, VOCABULARY, SCORES, GOLDEN]), st.binary(max_size=300), st.data())
@settings(max_examples=300)
def test_hostile_bytes_never_crash_the_reader(name: str, noise: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(FILES[name])))
    files = {**FILES, name: FILES[name][:at] + noise + FILES[name][at + len(noise) :]}
    if name != MANIFEST:
        files = resealed(files)
    # Whatever the bytes, the reader returns a bundle or says which file is wrong.
    with suppress_bundle_errors(files):
        read_bundle(files)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", 2),
        ("kind", "transformer"),
        ("tokenizer", "spacy"),
        ("ngrams", 0),
        ("ngrams", 10**9),
        ("threshold", 1.5),
        ("labels", ["one"]),
        ("files", {}),
        ("mlflow_run_id", 7),
    ],
)
def test_a_manifest_of_another_form_is_refused_by_field(field: str, value: object) -> None:
    manifest = {**json.loads(FILES[MANIFEST]), field: value}
    with pytest.raises(BundleError, match=field):
        read_bundle({**FILES, MANIFEST: json.dumps(manifest).encode()})


NONSENSE = [
    (VOCABULARY, FILES[VOCABULARY] + b"more\n", "5 scores|6 scores"),
    (VOCABULARY, FILES[VOCABULARY][:-1], "last line has no end"),
    (VOCABULARY, b"\xff\n", "vocabulary.txt: 'utf-8'"),
    (VOCABULARY, FILES[VOCABULARY].replace(b"bad", b"good"), "twice"),
    (SCORES, b"\x80\x04.", "scores.safetensors"),
    (GOLDEN, b'{"text": "x", "score": 2}\n', "must be 0 to 1"),
    (GOLDEN, b'{"text": "x", "score": 0.5}\n', "at least 20"),
]


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize(("name", "content", "message"), NONSENSE)
def test_sealed_nonsense_is_refused(
    name: str, content: bytes, message: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "IS_COMPILED", is_compiled)
    with pytest.raises(BundleError, match=message):
        read_bundle(resealed({**FILES, name: content}))


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("view", [bytes, memoryview])
def test_files_may_be_views_of_memory(
    view: type, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "IS_COMPILED", is_compiled)
    bundle = read_bundle({name: view(content) for name, content in FILES.items()})
    assert bundle.scorer.score("not good") == read_bundle(FILES).scorer.score("not good")


@pytest.mark.parametrize("at", [0, 3, 7, 8, 15, 16, 20])
@pytest.mark.parametrize("damage", [b"\xff", b"\xc3\n", b"\xe2\x80\n", b"\xf0\x9f\x98"])
def test_what_is_no_utf8_is_found_wherever_it_lies(
    at: int, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is looked at piece by piece, and a character may lie across two."""
    monkeypatch.setattr(bundle_module, "_PIECE_BYTES", 8)
    whole = "<unk>\néé é\n😀😀\nabcdef\nğ\n".encode()
    monkeypatch.setattr(bundle_module, "MIN_GOLDEN_TEXTS", 0)
    content = whole[:at] + damage + whole[at:]
    with pytest.raises(UnicodeDecodeError) as expected:
        content.decode()
    with pytest.raises(BundleError) as found:
        read_bundle(resealed({**FILES, VOCABULARY: content}))
    assert f"in position {expected.value.start}: {expected.value.reason}" in str(found.value)


HOSTILE = {
    "list": "[" * 100_000 + "]" * 100_000,
    "object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "open": "[" * 100_000,
    "float": "1e999",
    "negative": "-1e999",
    "integer": "9" * 30,
    "long": "9" * 5_000,
    "nan": "NaN",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("field", ["unknown", "ngrams", "threshold", "metrics", "files"])
def test_hostile_json_in_the_manifest_is_refused(field: str, kind: str) -> None:
    """Guards against a RecursionError instead of BundleError for a deep unknown field."""
    manifest = {**json.loads(FILES[MANIFEST]), field: "@"}
    content = json.dumps(manifest).replace('"@"', HOSTILE[kind]).encode()
    if field == "unknown" and kind in ("float", "negative", "integer", "long"):
        read_manifest(content)  # a number that is skipped does no harm
        return
    with pytest.raises(BundleError, match=f"^{MANIFEST}: "):
        read_manifest(content)


def test_a_count_beyond_any_data_is_refused() -> None:
    """Guards against GET /model failing with OverflowError: JSON reads it, but can't write it."""
    manifest = json.loads(FILES[MANIFEST])
    manifest["reference"]["score"]["counts"] = [10**30]
    with pytest.raises(BundleError, match="counts"):
        read_manifest(json.dumps(manifest).encode())


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("field", ["unknown", "text", "score"])
def test_hostile_json_in_the_golden_texts_is_refused(field: str, kind: str) -> None:
    """Guards against a RecursionError instead of BundleError for a deep unknown field."""
    first, *rest = FILES[GOLDEN].splitlines()
    item = json.dumps({**json.loads(first), field: "@"}).replace('"@"', HOSTILE[kind])
    content = b"\n".join([item.encode(), *rest])
    if field == "unknown" and kind in ("float", "negative", "integer", "long"):
        read_golden(content)
        return
    with pytest.raises(BundleError, match=f"^{GOLDEN}: line 1: "):
        read_golden(content)


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(BundleError, match="finite"):
        make_bundle({"good": float("inf"), "bad": 0.0, "a": 0.0, "b": 0.0})
