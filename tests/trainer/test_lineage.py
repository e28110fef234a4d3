"""Lineage: what Git, the environment and MLflow say of a run."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import git
import mlflow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.mlflow_store import _store, artifacts, mlflow_store
from trainer import lineage
from trainer.data_lock import DataVersion
from trainer.lineage import Code, LeftOut, LineageError, collect_code, compare_lock, parse, to_json
from trainer.parameters import Parameters

__all__ = ["_store", "mlflow_store"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "trainer/a.py": b"one\ntwo\nthree\n",
    "trainer/b.py": b"print(1)\n",
    "trainer/sample.csv": b"stars,text\n5,good\n",
    "Makefile": b"all:\n",
    ".gitignore": b"ignored.py\n",
}
DATA = DataVersion("gs://reviews/all.csv.gz", "ab" * 32, 7, 1606160384000000)


def make_repository(folder: Path, files: Mapping[str, bytes] = FILES) -> git.Repo:
    write(folder, files)
    repository = git.Repo.init(folder)
    with repository.config_writer() as config:
        config.set_value("user", "name", "someone")
        config.set_value("user", "email", "someone@example.com")
    repository.git.add("--all")
    repository.git.commit("--message", "Begin")
    return repository


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def repository(tmp_path: Path) -> git.Repo:
    return make_repository(tmp_path / "repository")


def root(repository: git.Repo) -> Path:
    return Path(repository.working_dir)


def code_of(repository: git.Repo, environ: Mapping[str, str] | None = None) -> Code:
    return collect_code(root(repository) / "trainer", environ or {})


def test_unchanged_code_is_its_commit(repository: git.Repo) -> None:
    assert code_of(repository) == Code(repository.head.commit.hexsha, dirty=False)


def test_what_git_says_comes_before_the_variables(repository: git.Repo) -> None:
    code = code_of(repository, {"GIT_COMMIT": COMMIT, "GIT_DIRTY": "true"})
    assert code == Code(repository.head.commit.hexsha, dirty=False)


def test_a_new_time_of_change_is_no_change(repository: git.Repo) -> None:
    path = root(repository) / "trainer/a.py"
    content = path.read_bytes()
    path.write_bytes(b"other")
    path.write_bytes(content)
    assert not code_of(repository).dirty


def test_a_change_just_after_the_commit_is_seen(repository: git.Repo) -> None:
    """A copy of the index with a new time made Git trust it, and miss such a change."""
    with repository.config_writer() as config:
        config.set_value("core", "trustctime", "false")
    # All within one second, some time ago.
    time = 1_606_160_384
    path = root(repository) / "trainer/a.py"
    os.utime(path, (time, time))
    repository.git.update_index("--refresh")
    path.write_bytes(b"ONE\ntwo\nthree\n")
    for changed in (path, Path(repository.index.path)):
        os.utime(changed, (time, time))
    assert code_of(repository).dirty


LINES = st.lists(
    st.sampled_from([b"one", b"two", b"  three", b"\xff\xfe", "ü€".encode(), b"", b"+x", b"a\r"])
)
SOURCE = st.tuples(LINES, st.booleans()).map(
    lambda drawn: b"\n".join(drawn[0]) + (b"\n" if drawn[1] else b"")
)
NAMES = ("trainer/a.py", "trainer/new file.py", "functions/é.py", "Makefile", 'q"uote.py')


# Each example starts Git some forty times.
@settings(max_examples=8, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(NAMES), SOURCE),
    deleted=st.booleans(),
    staged=st.booleans(),
)
def test_the_commit_and_the_diff_give_the_code_back(
    changes: dict[str, bytes], deleted: bool, staged: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        here, there = Path(name) / "here", Path(name) / "there"
        repository = make_repository(here)
        shutil.copytree(here, there)
        write(here, changes)
        if deleted:
            (here / "trainer/b.py").unlink()
        if staged:
            repository.git.add("--all")
        code = code_of(repository)
        if code.diff:
            (Path(name) / "code.diff").write_bytes(code.diff)
            git.Repo(there).git.apply("--whitespace=nowarn", str(Path(name) / "code.diff"))
        assert sources(there) == sources(here)
        assert code_of(git.Repo(there)) == code
        assert code.dirty == bool(code.diff)
        repository.close()


def sources(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def test_the_users_index_stays_as_it_is(repository: git.Repo) -> None:
    write(root(repository), {"trainer/a.py": b"changed\n", "trainer/new.py": b"new\n"})
    before = repository.git.status("--porcelain"), Path(repository.index.path).read_bytes()
    assert b"trainer/new.py" in code_of(repository).diff
    assert before == (
        repository.git.status("--porcelain"),
        Path(repository.index.path).read_bytes(),
    )


def test_the_users_settings_do_not_change_the_diff(repository: git.Repo) -> None:
    write(root(repository), {"trainer/a.py": b"one\nTWO\nthree\n"})
    diff = code_of(repository).diff
    with repository.config_writer() as config:
        for name, value in {
            "noprefix": "true",
            "mnemonicPrefix": "true",
            "context": "0",
            "external": "false",
            "algorithm": "patience",
        }.items():
            config.set_value("diff", name, value)
        config.set_value("color", "ui", "always")
    assert code_of(repository).diff == diff
    assert b"\n--- a/trainer/a.py\n+++ b/trainer/a.py\n" in diff


def test_what_is_no_source_text_is_left_out_by_digest(
    repository: git.Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "_MOST_DIFF_BYTES", 5000)
    changed = {
        "trainer/sample.csv": b"stars,text\n1,bad\n",
        "trainer/b.py": b"\0binary",
        "trainer/large.py": b"x" * 10_000,
        "trainer/small.py": b"x\n",
    }
    # Not tracked: data, what .gitignore names, and what may hold secrets.
    unknown = {"data.csv": b"secret", "trainer/ignored.py": b"secret", "key.yaml": b"secret"}
    write(root(repository), {**changed, **unknown})
    code = code_of(repository)
    assert {item.path: item.reason for item in code.left_out} == {
        "trainer/sample.csv": "not source code",
        "trainer/b.py": "not text",
        "trainer/large.py": "the diff would be larger than 5,000 bytes",
    }
    for item in code.left_out:
        assert item.sha256 == hashlib.sha256(changed[item.path]).hexdigest()
    assert b"trainer/small.py" in code.diff
    assert b"secret" not in code.diff
    assert len(code.diff) <= 5000


def test_a_deleted_data_file_is_named(repository: git.Repo) -> None:
    (root(repository) / "trainer/sample.csv").unlink()
    code = code_of(repository)
    assert code.left_out == (LeftOut("trainer/sample.csv", "not source code", None),)
    assert code.dirty


def test_untracked_data_alone_changes_nothing(repository: git.Repo) -> None:
    write(root(repository), {"reviews.csv": b"stars,text\n"})
    assert not code_of(repository).dirty


@pytest.mark.parametrize(
    ("environ", "commit", "dirty"),
    [
        ({}, None, False),
        ({"GIT_COMMIT": COMMIT}, COMMIT, False),
        ({"GIT_COMMIT": COMMIT, "GIT_DIRTY": "false"}, COMMIT, False),
        ({"GIT_COMMIT": COMMIT, "GIT_DIRTY": "true"}, COMMIT, True),
        ({"GIT_COMMIT": "unknown", "GIT_DIRTY": "false"}, None, False),
    ],
)
def test_outside_a_repository_the_variables_of_the_image_count(
    tmp_path: Path, environ: dict[str, str], commit: str | None, dirty: bool
) -> None:
    code = collect_code(tmp_path, environ)
    assert (code.commit, code.dirty, code.diff) == (commit, dirty, b"")
    assert bool(code.note) == dirty


def test_a_project_that_only_has_it_installed_is_not_its_repository(
    repository: git.Repo,
) -> None:
    installed = root(repository) / "env/site-packages/trainer"
    write(installed, {"lineage.py": b""})
    assert collect_code(installed, {"GIT_COMMIT": COMMIT}) == Code(COMMIT, dirty=False)


def test_a_repository_that_can_not_be_read_is_said_so(tmp_path: Path) -> None:
    repository = git.Repo.init(tmp_path)
    write(tmp_path, {"trainer/a.py": b""})
    repository.git.add("--all")
    code = collect_code(tmp_path / "trainer", {"GIT_COMMIT": COMMIT})
    assert code.commit == COMMIT
    assert code.note is not None
    assert code.note.startswith("Git: ")


def test_a_machine_without_git_is_said_so(
    repository: git.Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    code = code_of(repository, {"GIT_COMMIT": COMMIT})
    assert code.commit == COMMIT
    assert "git" in (code.note or "")


def test_the_environment_is_as_locked() -> None:
    environment = lineage.collect({}).environment
    lock = Path(lineage.__file__).with_name(environment.lock)
    assert environment.lock_differences == ()
    assert environment.lock_sha256 == hashlib.sha256(lock.read_bytes()).hexdigest()
    assert environment.packages["mlflow"] == importlib.metadata.version("mlflow")
    assert environment.torch_threads >= 1


def test_differences_from_a_lock_are_named(tmp_path: Path) -> None:
    numpy, torch = (importlib.metadata.version(name) for name in ("numpy", "torch"))
    path = tmp_path / "requirements.lock"
    path.write_text(
        "# locked\n"
        f"numpy=={numpy} \\\n    --hash=sha256:00\n    # via torch\n"
        f"torch=={torch.partition('+')[0]}\n"
        "click==0.1\n"
        'not_there==1 ; python_version < "3" \\\n'
        "greenroom-no-such==2 \\\n"
    )
    installed, differences = compare_lock(path)
    assert installed == {
        "numpy": numpy,
        "torch": torch,
        "click": importlib.metadata.version("click"),
    }
    assert differences == (
        f"click is {installed['click']}, locked is ==0.1",
        "greenroom-no-such is missing, locked is ==2",
    )


ORIGIN = lineage.Origin(
    Code(COMMIT, True, b"diff", (LeftOut("a.csv", "not source code", None),), "a note"),
    lineage.Environment(
        python="3.11.7",
        lock="requirements.lock",
        lock_sha256="cd" * 32,
        lock_differences=("click is 1, locked is ==2",),
        packages={"torch": "2.13.0+cpu"},
        platform="Linux",
        cpu="a processor",
        cpu_count=2,
        torch_threads=2,
        cuda=None,
        gpus=("a GPU",),
        image_digest=None,
    ),
)
NUMBERS = st.integers(0, 2**53) | st.floats(allow_nan=False) | st.none() | st.text()


@given(
    parameters=st.dictionaries(st.text(), NUMBERS),
    seeds=st.dictionaries(st.text(), st.integers(0, 2**64)),
    note=st.none() | st.text(),
    generation=st.none() | st.integers(1, 2**63),
)
def test_what_is_written_can_be_read(
    parameters: dict[str, object],
    seeds: dict[str, int],
    note: str | None,
    generation: int | None,
) -> None:
    origin = replace(ORIGIN, code=replace(ORIGIN.code, note=note))
    data = replace(DATA, generation=generation)
    record = parse(to_json(origin, data, parameters, seeds))
    assert record.origin == replace(origin, code=replace(origin.code, diff=b""))
    assert record.diff_sha256 == hashlib.sha256(b"diff").hexdigest()
    assert (record.data, record.parameters, record.seeds) == (data, parameters, seeds)


def test_what_can_not_be_read_is_said_so() -> None:
    content = json.loads(to_json(ORIGIN, DATA, {}, {}))
    for key in content:
        broken = {name: value for name, value in content.items() if name != key}
        with pytest.raises(LineageError, match=r"lineage\.json can't be read"):
            parse(json.dumps(broken))
    for text in ("", "[]", "{", "null"):
        with pytest.raises(LineageError, match=r"lineage\.json can't be read"):
            parse(text)
    with pytest.raises(LineageError, match="has version 99"):
        parse(json.dumps({**content, "schema_version": 99}))


@pytest.mark.usefixtures("mlflow_store")
def test_mlflow_holds_all_of_it(
    repository: git.Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "_PACKAGE", root(repository) / "trainer")
    monkeypatch.chdir(tmp_path)
    write(root(repository), {"trainer/a.py": b"\xff\n"})
    origin = lineage.collect({"TRAINING_IMAGE_DIGEST": "sha256:12"})
    data = DataVersion("reviews.csv", "ab" * 32, 7)
    with mlflow.start_run() as run:
        lineage.log(origin, data=data, parameters=Parameters(seed=5), seeds={"seed": 5})
    tags = mlflow.get_run(run.info.run_id).data.tags
    assert tags["git_commit"] == tags["mlflow.source.git.commit"]
    assert tags["git_commit"] == repository.head.commit.hexsha
    assert tags["git_dirty"] == "true"
    assert tags["image_digest"] == "sha256:12"
    assert tags["lock_sha256"] == origin.environment.lock_sha256
    folder = artifacts(run.info.run_id)
    assert (folder / "code.diff").read_bytes() == origin.code.diff
    record = parse((folder / "lineage.json").read_text())
    assert record.data == replace(data, uri=str(tmp_path / "reviews.csv"))
    assert record.parameters == asdict(Parameters(seed=5))
    assert record.seeds == {"seed": 5}
    assert record.origin.environment == origin.environment


@pytest.mark.usefixtures("mlflow_store")
def test_a_clean_run_has_no_diff(repository: git.Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_PACKAGE", root(repository) / "trainer")
    with mlflow.start_run() as run:
        lineage.log(lineage.collect({}), data=DATA, parameters=Parameters(), seeds={})
    run_id = run.info.run_id
    assert mlflow.get_run(run_id).data.tags["git_dirty"] == "false"
    assert [path.name for path in artifacts(run_id).iterdir()] == ["lineage.json"]
