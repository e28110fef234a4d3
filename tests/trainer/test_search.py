"""The search for parameters, on an objective that costs nothing and a real MLflow store."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from trainer.parameters import Parameters
from trainer.search import (
    BEST_METRIC,
    EPOCH_METRIC,
    NUMBER_TAG,
    STATE_TAG,
    TRIAL_METRIC,
    Report,
    SearchError,
    search,
    search_space,
)

BASE = Parameters(ngrams=1, min_frequency=2, embedding_dim=16, learning_rate=0.05, epochs=4)
TRIALS = 9
SEED = 2


def smooth(parameters: Parameters, report: Report) -> float:
    """Learn for some epochs; best with long n-grams and a learning rate above the base's."""
    distance = abs(math.log10(parameters.learning_rate / 0.2))
    value = 0.95 - 0.1 * distance - 0.05 * (3 - parameters.ngrams)
    for epoch in range(1, parameters.epochs + 1):
        report(epoch, value - 0.02 / epoch)
    return value


class Store:
    """An MLflow store of one experiment."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("reviews", str(folder / "artifacts"))

    def parent(self) -> str:
        """Make the run of a training and return its id."""
        tags = {"mlflow.user": "ada", "mlflow.source.name": "trainer", "owner": "ada"}
        run_id: str = self.client.create_run(self.experiment, tags=tags).info.run_id
        return run_id

    def nested(self, parent: str) -> list[Run]:
        """Return the runs of the parent's trials by number, the older first."""
        runs = self.client.search_runs(
            [self.experiment],
            f"tags.`mlflow.parentRunId` = '{parent}'",
            order_by=["attributes.start_time ASC"],
        )
        return sorted(runs, key=lambda run: int(run.data.tags[NUMBER_TAG]))

    def states(self, parent: str) -> Counter[tuple[str, str]]:
        """Count the trials by state and by status of the run."""
        return Counter(
            (run.data.tags.get(STATE_TAG, ""), run.info.status) for run in self.nested(parent)
        )

    def history(self, parent: str) -> list[tuple[dict[str, str], str, float | None]]:
        """Return parameters, state and value of the trials that count, by number."""
        return [
            (run.data.params, run.data.tags[STATE_TAG], run.data.metrics.get(TRIAL_METRIC))
            for run in self.nested(parent)
            if run.data.tags[STATE_TAG] != "interrupted"
        ]

    def text(self, parent: str, name: str) -> str:
        """Return an artifact of the parent."""
        return Path(self.client.download_artifacts(parent, f"search/{name}")).read_text()


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("search"))


@pytest.fixture
def store(shared_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store.uri)
    return shared_store


@pytest.fixture(scope="module")
def finished(shared_store: Store) -> tuple[str, Parameters]:
    """A search from start to end: its parent and what it found."""
    parent = shared_store.parent()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", shared_store.uri)
        return parent, search(
            smooth, BASE, trials=TRIALS, seed=SEED, parent_run_id=parent, progress=False
        )


@given(
    base=st.builds(
        Parameters,
        ngrams=st.integers(1, 8),
        min_frequency=st.integers(1, 100),
        embedding_dim=st.integers(1, 300),
        learning_rate=st.floats(1e-6, 100),
        epochs=st.integers(1, 50),
        batch_size=st.integers(0, 5000),
    ),
    fixed=st.sets(st.sampled_from(["ngrams", "epochs", "learning_rate", "seed"])),
)
def test_any_base_is_in_the_space_and_what_is_fixed_is_not(
    base: Parameters, fixed: set[str]
) -> None:
    space = search_space(base, fixed)
    assert not fixed & space.keys()
    assert space.keys() | fixed >= {"ngrams", "learning_rate", "embedding_dim", "epochs"}
    for name, values in space.items():
        inside = values.to_internal_repr(getattr(base, name))
        assert values._contains(inside), name


def test_the_first_trial_is_the_base_and_a_better_one_is_found(
    store: Store, finished: tuple[str, Parameters]
) -> None:
    parent, best = finished
    first = store.nested(parent)[0].data
    assert first.params == {name: str(value) for name, value in vars(BASE).items()}
    silent: Report = lambda epoch, value: None  # noqa: E731
    assert first.metrics[TRIAL_METRIC] == smooth(BASE, silent) < smooth(best, silent)
    assert replace(best, **{name: getattr(BASE, name) for name in search_space(BASE)}) == BASE


def test_each_trial_is_a_nested_run_with_its_epochs(
    store: Store, finished: tuple[str, Parameters]
) -> None:
    parent, _ = finished
    nested = store.nested(parent)
    assert [run.data.tags[NUMBER_TAG] for run in nested] == [str(n) for n in range(TRIALS)]
    assert nested[3].info.run_name == "trial-003"
    states = store.states(parent)
    assert states.keys() == {("complete", "FINISHED"), ("pruned", "FINISHED")}
    for run in nested:
        assert run.data.tags["mlflow.user"] == "ada"
        assert "owner" not in run.data.tags
        history = store.client.get_metric_history(run.info.run_id, EPOCH_METRIC)
        steps = [metric.step for metric in history]
        assert steps == list(range(1, len(steps) + 1))
        epochs = int(run.data.params["epochs"])
        if run.data.tags[STATE_TAG] == "pruned":
            assert 2 <= len(steps) < epochs
            assert run.data.metrics[TRIAL_METRIC] == history[-1].value
        else:
            assert len(steps) == epochs


def test_the_parent_names_the_best_trial_and_shows_the_search(
    store: Store, finished: tuple[str, Parameters]
) -> None:
    parent, best = finished
    complete = [run for run in store.nested(parent) if run.data.tags[STATE_TAG] == "complete"]
    winner = max(complete, key=lambda run: run.data.metrics[TRIAL_METRIC])
    tags = store.client.get_run(parent).data.tags
    assert tags["best_trial"] == winner.data.tags[NUMBER_TAG]
    assert tags["best_trial_run_id"] == winner.info.run_id
    found = {name: getattr(best, name) for name in search_space(BASE)}
    assert {name: tags[f"best_{name}"] for name in found} == {
        name: str(value) for name, value in found.items()
    }
    assert json.loads(store.text(parent, "best_parameters.json")) == found
    history = store.client.get_metric_history(parent, BEST_METRIC)
    assert [metric.step for metric in history] == list(range(TRIALS))
    values = [metric.value for metric in history]
    assert values == sorted(values)
    assert values[-1] == winner.data.metrics[TRIAL_METRIC]
    files = {Path(item.path).name for item in store.client.list_artifacts(parent, "search")}
    assert files == {
        "best_parameters.json",
        "trials.csv",
        "history.png",
        "epochs.png",
        "slices.png",
        "importances.png",
    }


def test_the_table_has_every_trial(store: Store, finished: tuple[str, Parameters]) -> None:
    parent, _ = finished
    rows = list(csv.DictReader(io.StringIO(store.text(parent, "trials.csv"))))
    for row, run in zip(rows, store.nested(parent), strict=True):
        assert row["trial"] == run.data.tags[NUMBER_TAG]
        assert row["state"].lower() == run.data.tags[STATE_TAG]
        assert float(row["value"]) == run.data.metrics[TRIAL_METRIC]
        assert row["run_id"] == run.info.run_id
        assert row["learning_rate"] == run.data.params["learning_rate"]
        assert float(row["seconds"]) > 0
        history = store.client.get_metric_history(run.info.run_id, EPOCH_METRIC)
        assert row["last_epoch"] == str(len(history))


def test_the_seed_decides_the_trials(store: Store, finished: tuple[str, Parameters]) -> None:
    parent, best = finished
    again, other = store.parent(), store.parent()
    assert (
        search(smooth, BASE, trials=TRIALS, seed=SEED, parent_run_id=again, progress=False) == best
    )
    assert store.history(again) == store.history(parent)
    search(smooth, BASE, trials=2, seed=SEED + 1, parent_run_id=other, progress=False)
    first, second = store.history(other)
    assert first == store.history(parent)[0]
    assert second != store.history(parent)[1]


def test_an_interrupted_search_goes_on_as_if_nothing_had_been(
    store: Store, finished: tuple[str, Parameters]
) -> None:
    parent = store.parent()
    fitted = 0

    def impatient(parameters: Parameters, report: Report) -> float:
        nonlocal fitted
        fitted += 1
        if fitted == TRIALS - 1:
            report(1, 0.9)
            raise KeyboardInterrupt
        return smooth(parameters, report)

    with pytest.raises(KeyboardInterrupt):
        search(impatient, BASE, trials=TRIALS, seed=SEED, parent_run_id=parent, progress=False)
    assert store.states(parent)["interrupted", "KILLED"] == 1
    assert "best_trial" not in store.client.get_run(parent).data.tags

    best = search(impatient, BASE, trials=TRIALS, seed=SEED, parent_run_id=parent, progress=False)
    assert fitted == TRIALS + 1
    assert store.history(parent) == store.history(finished[0])
    assert best == finished[1]


def test_a_killed_process_loses_one_trial(store: Store, finished: tuple[str, Parameters]) -> None:
    parent = store.parent()
    program = f"""
import os, signal
from tests.trainer.test_search import BASE, SEED, TRIALS, smooth
from trainer.search import search
fits = iter(range(TRIALS))
def objective(parameters, report):
    if next(fits) == 4:
        report(1, 0.9)
        os.kill(os.getpid(), signal.SIGKILL)
    return smooth(parameters, report)
search(objective, BASE, trials=TRIALS, seed=SEED, parent_run_id="{parent}", progress=False)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=120)
    assert done.returncode == -signal.SIGKILL
    before = store.states(parent)
    assert before.total() == 5
    assert before["", "RUNNING"] == 1

    fits = 0

    def counted(parameters: Parameters, report: Report) -> float:
        nonlocal fits
        fits += 1
        return smooth(parameters, report)

    best = search(counted, BASE, trials=TRIALS, seed=SEED, parent_run_id=parent, progress=False)
    assert fits == TRIALS - 4
    assert store.states(parent)["interrupted", "KILLED"] == 1
    assert store.states(parent).total() == TRIALS + 1
    assert store.history(parent) == store.history(finished[0])
    assert best == finished[1]


def test_sigterm_ends_the_trial_and_the_search(
    store: Store, finished: tuple[str, Parameters]
) -> None:
    parent = store.parent()
    before = signal.getsignal(signal.SIGTERM)

    def terminated(parameters: Parameters, report: Report) -> NoReturn:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("still running")

    with pytest.raises(SystemExit) as stopped:
        search(terminated, BASE, trials=2, seed=0, parent_run_id=parent, progress=False)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert store.states(parent) == {("interrupted", "KILLED"): 1}
    assert signal.getsignal(signal.SIGTERM) is before
    assert search(smooth, BASE, trials=1, seed=0, parent_run_id=parent, progress=False) == BASE
    assert store.history(parent) == store.history(finished[0])[:1]


def test_a_search_can_be_made_longer(store: Store, finished: tuple[str, Parameters]) -> None:
    parent = store.parent()
    for trials in (1, 3):
        search(smooth, BASE, trials=trials, seed=SEED, parent_run_id=parent, progress=False)
    assert store.history(parent) == store.history(finished[0])[:3]


def test_a_trial_that_fails_is_replaced(store: Store) -> None:
    parent = store.parent()
    fits = 0

    def fragile(parameters: Parameters, report: Report) -> float:
        nonlocal fits
        fits += 1
        if fits == 2:
            raise MemoryError("no room")
        if fits == 3:
            report(1, math.nan)
        return smooth(parameters, report)

    search(fragile, BASE, trials=3, seed=0, parent_run_id=parent, progress=False)
    assert store.states(parent) == {("complete", "FINISHED"): 3, ("failed", "FAILED"): 2}
    for run, words in zip(
        store.nested(parent)[1:3],
        ("MemoryError: no room", "the validation value is nan at epoch 1"),
        strict=True,
    ):
        assert run.data.tags[STATE_TAG] == "failed"
        path = store.client.download_artifacts(run.info.run_id, "failure.txt")
        assert words in Path(path).read_text()
    # They keep their numbers, and don't count, when the search goes on.
    search(fragile, BASE, trials=4, seed=0, parent_run_id=parent, progress=False)
    assert fits == 6
    assert [run.data.tags[NUMBER_TAG] for run in store.nested(parent)] == list("012345")


def test_a_value_that_is_not_a_number_fails_the_trial(store: Store) -> None:
    parent = store.parent()
    with pytest.raises(SearchError, match=f"all 2 trials failed.*{parent}"):
        search(
            lambda parameters, report: math.nan,
            BASE,
            trials=2,
            seed=0,
            parent_run_id=parent,
            progress=False,
        )
    assert store.states(parent) == {("failed", "FAILED"): 2}


def test_what_parameters_cannot_cause_stops_the_search(store: Store) -> None:
    def full_disk(parameters: Parameters, report: Report) -> NoReturn:
        raise OSError("no space left on device")

    parent = store.parent()
    with pytest.raises(OSError, match="no space left"):
        search(full_disk, BASE, trials=5, seed=0, parent_run_id=parent, progress=False)
    assert store.states(parent) == {("interrupted", "KILLED"): 1}


def test_a_trial_that_mlflow_refuses_stops_the_search(store: Store) -> None:
    parent = store.parent()

    def deleted(parameters: Parameters, report: Report) -> float:
        store.client.delete_run(store.nested(parent)[0].info.run_id)
        return smooth(parameters, report)

    with pytest.raises(MlflowException, match="active"):
        search(deleted, BASE, trials=1, seed=0, parent_run_id=parent, progress=False)
    search(smooth, BASE, trials=1, seed=0, parent_run_id=parent, progress=False)
    assert store.states(parent) == {("complete", "FINISHED"): 1}


def test_what_is_fixed_is_not_searched(store: Store) -> None:
    parent = store.parent()
    fixed = search_space(BASE).keys() - {"learning_rate"}
    best = search(smooth, BASE, trials=5, seed=0, parent_run_id=parent, progress=False, fixed=fixed)
    assert replace(best, learning_rate=BASE.learning_rate) == BASE
    assert len({run.data.params["learning_rate"] for run in store.nested(parent)}) == 5
    assert "best_ngrams" not in store.client.get_run(parent).data.tags
    with pytest.raises(SearchError, match="all parameters are fixed"):
        search(
            smooth,
            BASE,
            trials=5,
            seed=0,
            parent_run_id=parent,
            progress=False,
            fixed=search_space(BASE),
        )


@pytest.mark.parametrize(
    ("other", "fixed", "words"),
    [
        (replace(BASE, patience=9), (), "trial-000 .* was made with patience 2, not 9"),
        (replace(BASE, ngrams=2), ("ngrams",), "made with ngrams 1, not 2"),
        (replace(BASE, learning_rate=50.0), (), "made by another search"),
    ],
)
def test_the_trials_of_another_search_are_refused(
    store: Store,
    finished: tuple[str, Parameters],
    other: Parameters,
    fixed: tuple[str, ...],
    words: str,
) -> None:
    with pytest.raises(SearchError, match=words):
        search(
            smooth,
            other,
            trials=20,
            seed=SEED,
            parent_run_id=finished[0],
            progress=False,
            fixed=fixed,
        )


def test_a_deleted_trial_is_made_up_for(store: Store) -> None:
    parent = store.parent()
    search(smooth, BASE, trials=4, seed=0, parent_run_id=parent, progress=False)
    for run in store.nested(parent)[:2]:
        store.client.delete_run(run.info.run_id)
    search(smooth, BASE, trials=4, seed=0, parent_run_id=parent, progress=False)
    assert [run.data.tags[NUMBER_TAG] for run in store.nested(parent)] == list("2345")
    # The base is among what was deleted, and is tried again first.
    assert store.nested(parent)[2].data.params["ngrams"] == str(BASE.ngrams)
    assert store.nested(parent)[2].data.params["learning_rate"] == str(BASE.learning_rate)


def test_nested_runs_of_others_are_left_alone(store: Store) -> None:
    parent = store.parent()
    other = store.client.create_run(store.experiment, tags={"mlflow.parentRunId": parent})
    search(smooth, BASE, trials=1, seed=0, parent_run_id=parent, progress=False)
    assert store.client.get_run(other.info.run_id).info.status == "RUNNING"


def test_a_parent_that_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(MlflowException, match="not found"):
        search(smooth, BASE, trials=1, seed=0, parent_run_id="0" * 32, progress=False)


def test_progress_shows_the_best_and_nothing_of_optuna(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    parent = store.parent()
    search(smooth, BASE, trials=2, seed=0, parent_run_id=parent)
    shown = capfd.readouterr()
    best = store.client.get_run(parent).data.metrics[BEST_METRIC]
    assert "2/2" in shown.err
    assert f"best={best:.4f}" in shown.err
    search(smooth, BASE, trials=2, seed=0, parent_run_id=parent, progress=False)
    quiet = capfd.readouterr()
    assert (shown.out, quiet.out, quiet.err) == ("", "", "")
