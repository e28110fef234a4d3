"""The file that pins the data of the model in production, and the command that writes it."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tests.emulators import StorageEmulator
from trainer import data_lock
from trainer.data_lock import DataVersion, LockError, check, load, write

SHA256 = "ab" * 32
CSV = "stars,text\n5,good food\n1,bad food\n,no stars\n4,good food\n"

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
ROWS = st.integers(1, 10**12)
# What a POSIX path and an object's name may hold.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="/\0")
NAMES = st.text(CHARACTERS, min_size=1).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
BUCKETS = st.from_regex(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", fullmatch=True)
OBJECTS = st.builds("gs://{}/{}".format, BUCKETS, PATHS)


@given(uri=OBJECTS, sha256=DIGESTS, rows=ROWS, generation=st.integers(1, 2**63 - 1))
def test_an_object_is_read_as_it_was_written(
    uri: str, sha256: str, rows: int, generation: int
) -> None:
    version = DataVersion(uri, sha256, rows, generation)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.lock"
        write(version, path)
        assert load(path) == version


@given(path=PATHS, sha256=DIGESTS, rows=ROWS)
def test_a_file_is_found_from_where_the_lock_is_moved_with_it(
    path: str, sha256: str, rows: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        before, after = Path(name) / "before", Path(name) / "after"
        before.mkdir()
        write(DataVersion(str(before / path), sha256, rows), before / "data.lock")
        before.rename(after)
        assert load(after / "data.lock") == DataVersion(str(after / path), sha256, rows)


def test_people_can_read_and_compare_it(tmp_path: Path) -> None:
    path = tmp_path / "data.lock"
    write(DataVersion("gs://bucket/all reviews.csv", SHA256, 7, 1606160384000000), path)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert lines == [
        "uri: gs://bucket/all reviews.csv",
        f"sha256: {SHA256}",
        "rows: 7",
        "generation: 1606160384000000",
    ]


GOOD: dict[str, Any] = {"uri": "gs://b/o", "sha256": SHA256, "rows": 1, "generation": 5}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**GOOD, "uri": None}, "uri: give gs://BUCKET/OBJECT or a path"),
        ({**GOOD, "uri": "gs://bucket"}, "gs://bucket is not gs://BUCKET/OBJECT"),
        ({**GOOD, "sha256": "AB" * 32}, "sha256: give 64 lower-case hex digits"),
        ({**GOOD, "sha256": 12}, "sha256: give 64"),
        ({**GOOD, "rows": 0}, "rows: give a number of at least 1, not 0"),
        ({**GOOD, "rows": True}, "rows: give a number"),
        ({**GOOD, "generation": None}, "generation: give the object's number"),
        ({**GOOD, "generation": "5"}, "generation: give the object's number"),
        ({**GOOD, "uri": "reviews.csv"}, "generation: a file has none"),
        ({**GOOD, "digest": 1}, "digest: unknown key"),
        ([], "not a mapping"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, values: object, words: str) -> None:
    path = tmp_path / "data.lock"
    path.write_text(json.dumps(values))
    with pytest.raises(LockError, match=f"data.lock: .*{words}"):
        load(path)


@pytest.mark.parametrize("content", [b"uri: [", b"\xff", None])
def test_a_file_that_can_not_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "data.lock"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LockError, match=r"data\.lock: can't be read"):
        load(path)


def test_other_content_than_pinned_is_refused() -> None:
    version = DataVersion("reviews.csv", SHA256, 7)
    check(version, sha256=SHA256, rows=7)
    with pytest.raises(LockError, match="7 rows with the SHA-256 cdcdcdcdcdcd, pinned are 7 rows"):
        check(version, sha256="cd" * 32, rows=7)
    with pytest.raises(LockError, match="python -m trainer lock"):
        check(version, sha256=SHA256, rows=8)


def test_the_lock_that_git_holds_is_as_the_command_writes_it(tmp_path: Path) -> None:
    version = load()
    path = Path(version.uri)
    assert path == data_lock.DATA_LOCK.with_name("sample_reviews.csv")
    assert version.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    done = run("--lock-file", str(data_lock.DATA_LOCK))
    assert done.exit_code == 0
    assert json.loads(done.stdout.splitlines()[-1])["changed"] == []


def run(*arguments: str) -> Result:
    return CliRunner().invoke(data_lock.lock, arguments)


def test_it_pins_a_file_and_says_what_changed(tmp_path: Path) -> None:
    data, path = tmp_path / "reviews.csv", tmp_path / "data.lock"
    data.write_text(CSV)
    arguments = ["--lock-file", str(path), "--max-bad-share", "0.5"]
    assert run(*arguments, "--data", str(data)).exit_code == 0
    before = load(path)
    assert before == DataVersion(str(data), hashlib.sha256(CSV.encode()).hexdigest(), 4)
    data.write_text(CSV + "1,never again\n")
    done = run(*arguments)
    after = load(path)
    assert after.rows == 5
    lines = done.stdout.splitlines()
    assert f"sha256     {before.sha256} -> {after.sha256}" in lines
    assert "rows       4 -> 5" in lines
    assert json.loads(lines[-1])["changed"] == ["rows", "sha256"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "no reviews in it"),
        (CSV.encode(), "1 of 4 rows are unusable"),
        (b"stars,text\n5,good\n", "all reviews are of one kind"),
    ],
)
def test_data_that_can_not_be_trained_on_is_not_pinned(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    data, path = tmp_path / "reviews.csv", tmp_path / "data.lock"
    if content is not None:
        data.write_bytes(content)
    done = run("--lock-file", str(path), "--data", str(data))
    assert done.exit_code != 0
    assert words in done.stderr
    assert not path.exists()


def test_without_a_lock_the_data_must_be_named(tmp_path: Path) -> None:
    done = run("--lock-file", str(tmp_path / "data.lock"))
    assert done.exit_code == 2
    assert "name the data with --data" in done.stderr


def test_an_object_is_pinned_at_its_generation(
    storage_emulator: StorageEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_emulator.url)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "greenroom")
    path = tmp_path / "data.lock"
    arguments = ["--lock-file", str(path), "--max-bad-share", "0.5"]
    uri = storage_emulator.upload("pinned", "reviews", {"all.csv": CSV.encode()}) + "/all.csv"
    assert run(*arguments, "--data", uri).exit_code == 0
    before = load(path)
    assert (before.uri, before.rows) == (uri, 4)
    assert before.generation is not None
    storage_emulator.upload("pinned", "reviews", {"all.csv": CSV.encode()})
    done = run(*arguments)
    # The same content, but another object: the older one may be deleted.
    assert json.loads(done.stdout.splitlines()[-1])["changed"] == ["generation"]
    assert (load(path).generation or 0) > before.generation
    done = run(*arguments, "--data", "gs://pinned/missing.csv")
    assert done.exit_code == 1
    assert "there is no such object" in done.stderr
