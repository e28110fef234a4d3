"""The command line of the trainer.

It runs as a process where that is quick; else here, where torch is imported already.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from functions.predict.bundle import MANIFEST, SCORES, VOCABULARY
from local.settings import free_port
from tests.emulators import StorageEmulator
from tests.trainer.conftest import EXPERIMENT, Trained
from trainer import data_lock
from trainer.__main__ import main
from trainer.reviews import SAMPLE


def run(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run ``python -m trainer`` in `folder`; no answer within three minutes is a failure."""
    return subprocess.run(
        [sys.executable, "-m", "trainer", *arguments],
        cwd=folder,
        # The home folder keeps matplotlib's list of fonts, which takes seconds to make.
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_help_names_every_option_with_its_default(tmp_path: Path) -> None:
    done = run(tmp_path, "train", "--help")
    assert done.returncode == 0
    for words in ("--data", "--register", "--tracking-uri", "MLFLOW_TRACKING_URI", "--ngrams"):
        assert words in done.stdout
    assert "[default: 200000" in " ".join(done.stdout.split())
    assert "train " in run(tmp_path, "--help").stdout


def test_help_does_not_wait_for_the_slow_imports() -> None:
    program = "import sys, trainer.__main__; print({'torch', 'mlflow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data=missing.csv"], "'missing.csv' does not exist"),
        (["--data=."], "is a directory"),
        (["--ngrams=0"], "'--ngrams'"),
        (["--epochs=many"], "'--epochs'"),
        (["--test-share=0.9"], "'--test-share'"),
        (["--unknown"], "--unknown"),
        ([], "'--tracking-uri'"),
    ],
)
def test_wrong_arguments_end_it_with_a_usage_message(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    address = ["--tracking-uri=http://127.0.0.1:1"] if arguments else []
    done = run(tmp_path, "train", *address, *arguments)
    assert done.returncode == 2
    assert "Usage: python -m trainer train" in done.stderr
    assert words in done.stderr


def test_an_mlflow_that_does_not_answer_is_named_soon() -> None:
    """MLflow's own patience left a mistyped address without a word for over four minutes."""
    address = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    done = CliRunner().invoke(main, ["train"], env={"MLFLOW_TRACKING_URI": address})
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: MLflow at {address}: ")
    assert "Connection refused" in done.stderr
    assert time.monotonic() - start < 60


def test_an_artifact_store_that_refuses_is_named(
    storage_emulator: StorageEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a traceback: artifacts go straight to Cloud Storage, past MLflow's errors."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_emulator.url)
    tracking_uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    store = "gs://no-such-bucket/mlflow/1"
    mlflow.MlflowClient(tracking_uri).create_experiment(EXPERIMENT, artifact_location=store)
    done = CliRunner().invoke(
        main,
        [
            *("train", f"--tracking-uri={tracking_uri}", f"--experiment={EXPERIMENT}"),
            *("--no-progress", "--epochs=1", "--embedding-dim=2"),
        ],
    )
    assert done.exit_code == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"Error: the artifact store {store}: 404 ")


def test_data_that_is_refused_is_explained(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.tracking_uri)
    data = tmp_path / "reviews.csv"
    data.write_text("stars,text\n5,good\n9,bad\n")
    done = CliRunner().invoke(main, ["train", f"--data={data}"])
    assert done.exit_code == 1
    assert f"Error: {data}: 1 of 2 rows are unusable (1 with stars outside 0 to 5)" in done.stderr


def test_names_that_mlflow_refuses_are_told_before_the_data_is_read(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole training was spent on a model that could not be registered."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.tracking_uri)
    data = tmp_path / "reviews.csv"
    data.write_text("not read")
    deleted = trained.client.create_experiment("deleted")
    trained.client.delete_experiment(deleted)
    for option, words in (
        ("--register=yelp/model", "'yelp/model'"),
        ("--register=", "'name'"),
        ("--register=yelp's", "apostrophe"),
        ("--experiment=", "Invalid experiment name"),
        ("--experiment=deleted", "deleted"),
    ):
        done = CliRunner().invoke(main, ["train", f"--data={data}", option])
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: MLflow at ")
        assert words in done.stderr


def test_without_data_it_trains_what_git_pins(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a training on other data than the lock names, in any bit."""
    content = SAMPLE.read_bytes()
    lock = tmp_path / "data.lock"
    (tmp_path / "reviews.csv").write_bytes(content)
    version = data_lock.load()
    data_lock.write(replace(version, uri=str(tmp_path / "reviews.csv")), lock)
    monkeypatch.setattr(data_lock.load, "__defaults__", (lock,))
    arguments = ["train", f"--tracking-uri={trained.tracking_uri}", "--no-progress", "--epochs=1"]
    assert CliRunner().invoke(main, [*arguments, "--experiment=pinned"]).exit_code == 0
    (tmp_path / "reviews.csv").write_bytes(content + b"5,one more\n")
    done = CliRunner().invoke(main, [*arguments, "--experiment=never-made"])
    assert done.exit_code == 1
    assert "reviews.csv is not what data.lock names: 2,114 rows" in done.stderr
    assert trained.client.get_experiment_by_name("never-made") is None


def test_a_search_registers_the_best(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.tracking_uri)
    options = ("--tune=3", "--embedding-dim=4", "--epochs=2", "--register=tuned", "--no-progress")
    done = CliRunner().invoke(main, ["train", f"--data={SAMPLE}", "--experiment=tuning", *options])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout.splitlines()[-1])
    client = trained.client
    run = client.get_run(answer["run_id"])
    trials = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )
    assert len(trials) == 3
    best = max(trials, key=lambda trial: trial.data.metrics.get("trial_auroc", 0.0))
    # What was given stays as it is; what was found is what the model is trained with.
    for trial in trials:
        assert (trial.data.params["embedding_dim"], trial.data.params["epochs"]) == ("4", "2")
    for name in ("ngrams", "min_frequency", "learning_rate"):
        assert run.data.params[name] == best.data.params[name]
    assert client.get_model_version("tuned", "1").run_id == run.info.run_id
    assert {item.path for item in client.list_artifacts(run.info.run_id, "search")} >= {
        *("search/history.png", "search/trials.csv")
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small disk")
def test_a_full_disk_is_told_before_time_is_spent(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"can't mount: {mounted.stderr.decode().strip()}")
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    try:
        done = CliRunner().invoke(
            main, ["train", f"--tracking-uri={trained.tracking_uri}", "--experiment=full"]
        )
    finally:
        subprocess.run(["umount", small], check=True)
    assert done.exit_code == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"Error: {small} has 1 MiB left where a model of this size takes ")
    assert trained.client.get_experiment_by_name("full") is None


def test_a_second_training_gives_the_same_numbers(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same code, data and seed: the same model, to the last bit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # the argument goes first
    done = CliRunner().invoke(
        main,
        [
            *("train", f"--tracking-uri={trained.tracking_uri}", f"--experiment={EXPERIMENT}"),
            *("--no-progress", "--run-name=again", "--seed=0"),
        ],
    )
    assert done.exit_code == 0, done.output
    *_, last = done.stdout.splitlines()
    answer = json.loads(last)
    run_id = answer.pop("run_id")
    assert answer == {
        "model": None,
        "model_version": None,
        "validation": "passed",
        **{name: metric.value for name, metric in trained.outcome.metrics.items()},
    }
    assert f"run {run_id} of experiment {EXPERIMENT}" in done.stdout

    client = trained.client
    assert client.get_run(run_id).info.run_name == "again"
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    [model] = [
        model
        for model in client.search_logged_models([experiment.experiment_id])
        if model.source_run_id == run_id
    ]
    again = Path(model.artifact_location) / "serving"
    files = trained.bundle()
    for name in (SCORES, VOCABULARY):
        assert (again / name).read_bytes() == files[name]
    manifest = json.loads((again / MANIFEST).read_text())
    assert manifest["metrics"] == json.loads(files[MANIFEST])["metrics"]
    # Nothing is left where the command ran, such as checkpoints.
    assert not list(tmp_path.iterdir())
