"""A run is made again: what must be as it was, and whether the same scores come out."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import git
import mlflow
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tests.emulators import StorageEmulator
from tests.trainer.mlflow_store import EXPERIMENT, _store, mlflow_store
from tests.trainer.test_lineage import DATA, ORIGIN, make_repository, root, write
from trainer import data_lock, lineage, reproduction, training
from trainer.data_lock import DataVersion
from trainer.lineage import LeftOut, Origin, Record
from trainer.parameters import Parameters
from trainer.reproduction import (
    ELSEWHERE_TOLERANCE,
    compare,
    compare_scores,
    default_tolerance,
    reproduce,
)

__all__ = ["_store", "mlflow_store"]

MODEL = "reproduced-model"
PARAMETERS = Parameters(epochs=1, seed=7)


def record_of(origin: Origin, data: DataVersion = DATA) -> Record:
    content = lineage.to_json(origin, data, vars(PARAMETERS), {"seed": 7})
    return lineage.parse(content)


def with_code(**changes: Any) -> Origin:
    return replace(ORIGIN, code=replace(ORIGIN.code, **changes))


def with_environment(**changes: Any) -> Origin:
    return replace(ORIGIN, environment=replace(ORIGIN.environment, **changes))


def test_the_same_is_no_difference() -> None:
    assert compare(record_of(ORIGIN), ORIGIN, DATA) == []


@pytest.mark.parametrize(
    ("here", "name"),
    [
        (with_code(commit="ab" * 20), "code.commit"),
        (with_code(commit=None), "code.commit"),
        (with_code(diff=b"other"), "code.changes"),
        (with_code(diff=b""), "code.changes"),
        (with_code(left_out=()), "code: a.csv"),
        (with_code(left_out=(LeftOut("a.csv", "not text", "ab" * 32),)), "code: a.csv"),
        (with_environment(lock_sha256="ef" * 32), "lock"),
        (with_environment(lock_sha256=None), "lock"),
        (with_environment(lock_differences=()), "installed: click is 1, locked is ==2"),
        (with_environment(packages={"torch": "2.12.0+cpu"}), "torch"),
        (with_environment(packages={}), "torch"),
    ],
)
def test_other_code_and_packages_matter(here: Origin, name: str) -> None:
    (found,) = compare(record_of(ORIGIN), here, DATA)
    assert (found.name, found.matters) == (name, True)
    assert found.run != found.here


@pytest.mark.parametrize(
    ("here", "name"),
    [
        (with_environment(packages={"torch": "2.13.0+cu130"}), "torch"),
        (with_environment(cpu="another"), "cpu"),
        (with_environment(gpus=()), "gpus"),
        (with_environment(python="3.11.9"), "python"),
        (with_environment(platform="macOS"), "platform"),
        (with_environment(image_digest="sha256:1"), "image_digest"),
    ],
)
def test_another_machine_is_named_and_does_not_matter(here: Origin, name: str) -> None:
    (found,) = compare(record_of(ORIGIN), here, DATA)
    assert (found.name, found.matters) == (name, False)


def test_other_content_matters_and_a_copy_of_it_does_not() -> None:
    record = record_of(ORIGIN)
    (found,) = compare(record, ORIGIN, replace(DATA, sha256="00" * 32))
    assert (found.name, found.matters) == ("data.sha256", True)
    (found,) = compare(record, ORIGIN, DataVersion("copy.csv", DATA.sha256, 0))
    assert (found.name, found.matters) == ("data.generation", False)


def test_a_parameter_that_the_run_did_not_know_matters() -> None:
    record = record_of(ORIGIN)
    parameters = {name: value for name, value in record.parameters.items() if name != "seed"}
    (found,) = compare(replace(record, parameters=parameters), ORIGIN, DATA)
    assert (found.name, found.run, found.here) == ("parameters.seed", "unknown", "0")
    assert found.matters


def test_changes_that_no_diff_shows_matter_even_when_nothing_seems_to_differ() -> None:
    here = with_code(diff=b"", left_out=())
    (found,) = compare(record_of(here), here, DATA)
    assert (found.name, found.matters) == ("code.changes", True)


def test_code_without_a_commit_is_never_the_same() -> None:
    here = with_code(commit=None, dirty=False, diff=b"", left_out=())
    (found,) = compare(record_of(here), here, DATA)
    assert (found.name, found.matters) == ("code.commit", True)


def test_the_same_image_has_the_same_code() -> None:
    run = with_environment(image_digest="sha256:1")
    here = replace(with_code(commit=None, diff=b""), environment=run.environment)
    assert compare(record_of(run), here, DATA) == []


SCORES = st.dictionaries(
    st.sampled_from(["test_auroc", "test_f1", "test_ece", "validation_loss"]),
    st.floats(0, 1) | st.just(float("nan")),
)


@given(run=SCORES, again=SCORES, tolerance=st.floats(0, 1))
def test_scores_are_the_same_within_the_tolerance(
    run: dict[str, float], again: dict[str, float], tolerance: float
) -> None:
    scores = compare_scores(run, again, tolerance=tolerance)
    names = [score.name for score in scores]
    assert names == sorted({name for name in run | again if name.startswith("test_")})
    for score in scores:
        if score.name not in run or score.name not in again:
            assert not score.same
        else:
            both = (run[score.name], again[score.name])
            nan = [value != value for value in both]
            assert score.same == (
                all(nan) or (not any(nan) and abs(both[0] - both[1]) <= tolerance)
            )


def test_the_same_scores_are_the_same_without_any_tolerance() -> None:
    assert [score.same for score in compare_scores({"test_a": 0.1}, {"test_a": 0.1}, tolerance=0)]


def test_only_the_same_kind_of_machine_without_a_gpu_gives_the_same_bits() -> None:
    environment = replace(ORIGIN.environment, gpus=())
    assert default_tolerance(environment, environment) == 0
    assert default_tolerance(environment, replace(environment, platform="later kernel")) == 0
    for other in ({"cpu": "another"}, {"packages": {"torch": "2.14.0"}}):
        assert default_tolerance(environment, replace(environment, **other)) == ELSEWHERE_TOLERANCE
    assert default_tolerance(ORIGIN.environment, ORIGIN.environment) == ELSEWHERE_TOLERANCE


class Made(NamedTuple):
    """A run to make again, from a repository of its own."""

    run_id: str
    data: Path
    repository: git.Repo


@pytest.fixture(scope="module")
def made(_store: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    repository = make_repository(folder / "repository")
    data = folder / "reviews.csv"
    # Enough for some of both kinds in each split.
    sample = Path(data_lock.load().uri)
    data.write_text("".join(sample.read_text().splitlines(keepends=True)[:400]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", _store)
        patch.setattr(lineage, "_PACKAGE", root(repository) / "trainer")
        outcome = training.train(
            data,
            PARAMETERS,
            experiment=EXPERIMENT,
            run_name="first",
            register=MODEL,
            progress=False,
        )
    mlflow.MlflowClient(_store).set_registered_model_alias(MODEL, "production", "1")
    return Made(outcome.run_id, data, repository)


Run = Callable[..., tuple[Result, dict[str, Any]]]


@pytest.fixture
def run(made: Made, mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`reproduce` with the code of the run; returns what it says and its last line."""
    monkeypatch.setattr(lineage, "_PACKAGE", root(made.repository) / "trainer")

    def call(*arguments: str) -> tuple[Result, dict[str, Any]]:
        done = CliRunner().invoke(reproduce, ["--tracking-uri", mlflow_store, *arguments])
        lines = done.stdout.splitlines()
        last = lines[-1] if lines else ""
        return done, json.loads(last) if last.startswith("{") else {}

    return call


def test_the_same_again_gives_the_same_scores(made: Made, run: Run) -> None:
    done, answer = run(f"models:/{MODEL}@production")
    assert done.exit_code == 0, done.output
    assert "code, data and environment are those of the run" in done.stdout
    assert (answer["run_id"], answer["reproduced"]) == (made.run_id, True)
    assert (answer["differences"], answer["tolerance"]) == ([], 0)
    assert answer["scores"]["test_auroc"][0] == answer["scores"]["test_auroc"][1]
    again = mlflow.get_run(answer["again_run_id"])
    assert again.data.tags["reproduces"] == made.run_id
    assert again.data.tags["reproduced"] == "true"
    assert again.info.experiment_id == mlflow.get_run(made.run_id).info.experiment_id
    assert len(mlflow.MlflowClient().search_model_versions(f"name='{MODEL}'")) == 1


def test_other_code_is_refused_with_the_way_back(made: Made, run: Run) -> None:
    path = root(made.repository) / "trainer/a.py"
    before = path.read_bytes()
    path.write_bytes(b"changed\n")
    try:
        done, answer = run(made.run_id)
    finally:
        path.write_bytes(before)
    assert done.exit_code == 1
    assert answer["reproduced"] is False
    assert answer["again_run_id"] is None
    assert [item["name"] for item in answer["differences"]] == ["code.changes"]
    assert f"git checkout {made.repository.head.commit.hexsha}" in done.stdout
    assert "--force" in done.stdout


def test_the_way_back_to_changed_code_leads_there(
    made: Made, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    repository = made.repository.clone(str(here))
    monkeypatch.setattr(lineage, "_PACKAGE", here / "trainer")
    write(here, {"trainer/a.py": b"changed\n", "trainer/new.py": b"new\n"})
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run() as changed:
        lineage.log(
            lineage.collect({}),
            data=DataVersion(str(made.data), "00" * 32, 1),
            parameters=PARAMETERS,
            seeds={},
        )
    repository.git.reset("--hard")
    repository.git.clean("--force")
    run_id = changed.info.run_id
    done, answer = run(run_id, "--check-only")
    assert [item["name"] for item in answer["differences"]] == ["data.sha256", "code.changes"]
    assert f"mlflow artifacts download -r {run_id} -a code.diff -d /tmp" in done.stdout
    assert "git apply /tmp/code.diff" in done.stdout
    patch = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="code.diff", dst_path=str(tmp_path)
    )
    repository.git.apply(patch)
    done, answer = run(run_id, "--check-only")
    assert [item["name"] for item in answer["differences"]] == ["data.sha256"]


def test_other_data_is_refused_unless_forced_and_then_scores_otherwise(
    made: Made, run: Run, tmp_path: Path
) -> None:
    lines = made.data.read_text().splitlines(keepends=True)
    other = tmp_path / "other.csv"
    other.write_text("".join(lines[:300]))
    done, answer = run(made.run_id, "--data", str(other))
    assert done.exit_code == 1
    assert [item["name"] for item in answer["differences"]] == ["data.sha256"]
    done, answer = run(made.run_id, "--data", str(other), "--force")
    assert done.exit_code == 1
    assert answer["reproduced"] is False
    assert "differs" in done.stdout
    assert mlflow.get_run(answer["again_run_id"]).data.tags["reproduced"] == "false"
    done, answer = run(made.run_id, "--data", str(other), "--force", "--tolerance", "1e9")
    assert (done.exit_code, answer["reproduced"]) == (0, True)


def test_another_seed_than_the_record_names_gives_other_scores(made: Made, run: Run) -> None:
    client = mlflow.MlflowClient()
    kept = mlflow.artifacts.load_text(f"runs:/{made.run_id}/lineage.json")
    record = json.loads(kept)
    record["parameters"]["seed"] += 1
    client.log_text(made.run_id, json.dumps(record), "lineage.json")
    try:
        done, answer = run(made.run_id)
    finally:
        client.log_text(made.run_id, kept, "lineage.json")
    assert (done.exit_code, answer["differences"], answer["reproduced"]) == (1, [], False)


def test_data_that_went_is_found_by_the_lock_or_named(
    made: Made, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    moved = made.data.rename(made.data.with_name("moved.csv"))
    try:
        done, _ = run(made.run_id, "--check-only")
        assert done.exit_code == 1
        assert f"{made.data} is not here: name the data of the run with --data" in done.stderr
        assert run(made.run_id, "--check-only", "--data", str(moved))[0].exit_code == 0
        lock = tmp_path / "data.lock"
        content = mlflow.artifacts.load_text(f"runs:/{made.run_id}/lineage.json")
        data_lock.write(replace(lineage.parse(content).data, uri=str(moved)), lock)
        monkeypatch.setattr(reproduction, "DATA_LOCK", lock)
        assert run(made.run_id, "--check-only")[0].exit_code == 0
    finally:
        moved.rename(made.data)


def test_an_object_that_was_replaced_is_not_taken_for_the_data(
    made: Made, run: Run, storage_emulator: StorageEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_emulator.url)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "greenroom")
    content = made.data.read_bytes()
    uri = storage_emulator.upload("again", "reviews", {"all.csv": content}) + "/all.csv"
    trained = training.train(uri, PARAMETERS, experiment=EXPERIMENT, progress=False)
    data = lineage.parse(mlflow.artifacts.load_text(f"runs:/{trained.run_id}/lineage.json")).data
    assert data.uri == uri
    assert data.generation is not None
    done, answer = run(trained.run_id)
    assert (done.exit_code, answer["differences"], answer["reproduced"]) == (0, [], True)
    storage_emulator.upload("again", "reviews", {"all.csv": content})
    done, _ = run(trained.run_id, "--check-only")
    assert done.exit_code == 1
    assert f"there is no such object with generation {data.generation}" in done.stderr
    assert "name a copy of the run's data with --data" in done.stderr
    # Its content is the same, so it may be named.
    done, answer = run(trained.run_id, "--check-only", "--data", uri)
    assert done.exit_code == 0
    assert [item["name"] for item in answer["differences"]] == ["data.generation"]


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("0" * 32, 1, "not found"),
        ("models:/", 2, "is not models:/NAME/VERSION or models:/NAME@ALIAS"),
        (f"models:/{MODEL}/latest", 2, "is not models:/NAME/VERSION"),
        (f"models:/{MODEL}/99", 1, "not found"),
        (f"models:/{MODEL}@nobody", 1, "not found"),
    ],
)
def test_a_run_that_is_not_there_is_said_so(run: Run, name: str, status: int, words: str) -> None:
    done, _ = run(name)
    assert done.exit_code == status
    assert words in done.stderr


def test_a_run_of_older_code_is_said_so(run: Run) -> None:
    with mlflow.start_run() as older:
        mlflow.log_text("{}", "data.json")
    done, _ = run(older.info.run_id)
    assert done.exit_code == 1
    assert "has no lineage.json: it was made by code that did not keep it" in done.stderr


def test_a_run_that_failed_is_said_so(run: Run) -> None:
    failed = mlflow.start_run()
    mlflow.end_run("FAILED")
    done, _ = run(failed.info.run_id)
    assert done.exit_code == 1
    assert "is FAILED: it has no model to compare" in done.stderr


@pytest.mark.slow
def test_from_a_checkout_of_its_own(mlflow_store: str, tmp_path: Path) -> None:
    """The whole way as people go it: train, change the code, go back, make it again."""
    checkout = tmp_path / "checkout"
    package = Path(lineage.__file__).parent
    for folder in (package, package.parent / "functions"):
        shutil.copytree(
            folder, checkout / folder.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    repository = make_repository(checkout, {".gitignore": b"__pycache__/\n"})

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *arguments, "--tracking-uri", mlflow_store],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout.splitlines()[-1])

    status, trained = call("train", "--epochs", "1", "--experiment", EXPERIMENT)
    assert status == 0
    status, answer = call("reproduce", trained["run_id"])
    assert (status, answer["differences"], answer["reproduced"]) == (0, [], True)
    golden = checkout / "trainer/golden.py"
    golden.write_text(golden.read_text() + "# changed\n")
    status, answer = call("reproduce", trained["run_id"])
    assert (status, answer["again_run_id"]) == (1, None)
    assert [item["name"] for item in answer["differences"]] == ["code.changes"]
    repository.git.checkout(repository.head.commit.hexsha)
    repository.git.checkout("--", ".")
    assert call("reproduce", trained["run_id"], "--check-only")[0] == 0
