"""A training that is cut off goes on where it was, and ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from google.cloud import storage

from tests.emulators import StorageEmulator
from tests.trainer.conftest import EXPERIMENT, Trained
from trainer import training
from trainer.checkpoints import CheckpointError, Checkpoints
from trainer.parameters import Parameters
from trainer.reviews import SAMPLE
from trainer.training import Outcome

EPOCHS = 40
"""So many that the training lasts for some seconds."""
OPTIONS = ("--epochs=40", "--patience=40", "--embedding-dim=4", "--batch-size=16", "--no-progress")


@pytest.fixture(params=["folder", "bucket"])
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    storage_emulator: StorageEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """A folder, or a place in a bucket."""
    if request.param == "folder":
        return str(tmp_path / "checkpoints")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_emulator.url)
    storage_emulator.upload("greenroom-staging", "made", {"empty": b""})
    return f"gs://greenroom-staging/{tmp_path.name}"


class TestPlaces:
    def test_what_is_kept_is_found_by_the_same_training_only(self, place: str) -> None:
        kept = Checkpoints(place, {"data": "a"})
        assert kept.unfinished_run() is None
        assert kept.load() is None
        kept.begin("run")
        kept.save(b"first")
        kept.save(b"second")
        again = Checkpoints(place, {"data": "a"})
        assert again.unfinished_run() == "run"
        assert again.load() == b"second"
        other = Checkpoints(place, {"data": "b"})
        assert other.unfinished_run() is None
        other.begin("other")
        again.clear()
        assert again.unfinished_run() is None
        assert again.load() is None
        assert other.unfinished_run() == "other"

    def test_the_one_that_began_last_goes_on(self, place: str) -> None:
        """Two at once wrote each other's state, and both ended in the same run."""
        first, second = Checkpoints(place, {}), Checkpoints(place, {})
        first.begin("run")
        first.save(b"first")
        second.begin("run")
        with pytest.raises(CheckpointError, match="was started a second time"):
            first.save(b"late")
        assert second.load() == b"first"
        second.save(b"second")
        second.clear()
        with pytest.raises(CheckpointError, match="was started a second time"):
            first.check()

    def test_a_place_that_refuses_is_named(self, place: str, tmp_path: Path) -> None:
        if place.startswith("gs://"):
            refusing = "gs://no-such-bucket/checkpoints"
        else:
            (tmp_path / "file").touch()
            refusing = str(tmp_path / "file")
        with pytest.raises(CheckpointError, match=f"^{refusing}/[0-9a-f]+/run_id: can't be"):
            Checkpoints(refusing, {}).begin("run")


class Training:
    """``python -m trainer train`` on the sample, as a process that can be killed."""

    def __init__(self, folder: Path, place: str, name: str) -> None:
        self.tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.command = [
            *(sys.executable, "-m", "trainer", "train", *OPTIONS),
            *(f"--tracking-uri={self.tracking_uri}", f"--run-name={name}"),
            *(f"--checkpoints={place}", "--register=yelp-model"),
        ]
        self.folder = folder

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> tuple[dict[str, object], str]:
        """Return the last line of a run to the end, and all that it said."""
        process = self.start()
        out, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        return json.loads(out.splitlines()[-1]), out + errors

    def epochs(self, run_id: str) -> list[int]:
        """Return the epochs of which the run knows the validation loss, in order of arrival."""
        history = mlflow.MlflowClient(self.tracking_uri).get_metric_history(
            run_id, "validation_loss"
        )
        return [metric.step for metric in history]


def is_under_way(place: str) -> bool:
    """Return whether the state of a training is kept in `place`."""
    if not place.startswith("gs://"):
        return any(Path(place).glob("*/last.ckpt"))
    bucket, _, prefix = place.removeprefix("gs://").partition("/")
    blobs = storage.Client(project="test").list_blobs(bucket, prefix=f"{prefix}/")
    return any(blob.name.endswith(".ckpt") for blob in blobs)


def test_cut_off_after_the_registration_it_is_not_registered_again(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry got a second version of the same run, and the first one no verdict."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.tracking_uri)

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    def train() -> Outcome:
        parameters = Parameters(epochs=1, embedding_dim=2, ngrams=1)
        return training.train(
            SAMPLE,
            parameters,
            experiment=EXPERIMENT,
            register="cut-off",
            checkpoints=tmp_path,
            progress=False,
        )

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_model_version_tag", kill)
        with pytest.raises(Killed):
            train()
    [before] = trained.client.search_model_versions("name='cut-off'")
    outcome = train()
    [after] = trained.client.search_model_versions("name='cut-off'")
    assert (after.version, after.run_id) == (before.version, before.run_id)
    assert (str(after.version), after.run_id) == (outcome.model_version, outcome.run_id)
    assert "validation" in after.tags


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_metrics(place: str, tmp_path: Path) -> None:
    whole, _ = Training(tmp_path, f"{tmp_path}/undisturbed", "whole").finish()
    training = Training(tmp_path, place, "cut off")
    process = training.start()
    while not is_under_way(place):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    answer, said = training.finish()
    run_id = str(answer.pop("run_id"))
    assert f"going on with run {run_id}, which was cut off" in said
    client = mlflow.MlflowClient(training.tracking_uri)
    run = client.get_run(run_id)
    assert run.info.run_name == "cut off"
    assert run.info.status == "FINISHED"
    # It did not begin at the first epoch again; what was not sent yet when it was killed is gone.
    steps = training.epochs(run_id)
    assert EPOCHS // 2 < len(set(steps)) <= EPOCHS
    assert len(steps) <= EPOCHS + 1

    del whole["run_id"], whole["model_version"], answer["model_version"]
    assert answer == whole
    # Nothing is left to go on with: the next one starts anew.
    assert not is_under_way(place)
