"""Search for better parameters: Optuna's trials as nested MLflow runs.

The nested runs are the only store: a search that was ended goes on from what they
hold. (``mlflow.optuna.storage.MlflowStorage`` can't serve here: it makes a parent run
of its own, writes late, and reads a killed run as a pruned trial.)
"""

import contextlib
import math
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from optuna.visualization import matplotlib as plots
from tqdm import tqdm

from trainer.parameters import Parameters

mpl.use("Agg")

EPOCH_METRIC = "validation_auroc"
"""Metric of a nested run: the validation value, the epoch as its step."""
TRIAL_METRIC = "trial_auroc"
"""Metric of a nested run: what the trial came to."""
BEST_METRIC = "best_trial_auroc"
"""Metric of the parent: the best trial's value so far, the trial's number as its step."""
NUMBER_TAG = "trial"
"""Tag of a nested run: the trial's number, from 0."""
STATE_TAG = "trial_state"
"""Tag of a nested run: complete, pruned, failed, interrupted; none while it runs."""
ARTIFACTS = "search"
"""Folder of the parent's artifacts."""

Report = Callable[[int, float], None]
"""Takes an epoch, from 1, and its validation value; raises `optuna.TrialPruned` when the
trial should end, and ValueError when the value is not finite."""
Objective = Callable[[Parameters, Report], float]
"""Fits once with the parameters, reports each epoch, returns the value to maximise."""

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)

# What parameters can cause: too much memory, a loss that is not a number, an empty
# vocabulary; torch raises RuntimeError. Anything else would meet the next trial as well.
_FAULTS = (ArithmeticError, MemoryError, RuntimeError, ValueError)

_FIRST_TRIALS = 5
"""Trials before TPE and the pruner have seen enough: the base and random ones."""


class SearchError(Exception):
    """The search can't go on, or found nothing."""


def search_space(base: Parameters, fixed: Collection[str] = ()) -> dict[str, BaseDistribution]:
    """Return what is searched, by the name of the parameter.

    Each range holds the value of `base`. What bounds cost (``max_vocabulary``,
    ``patience``) or says how data is read and split is not searched.

    Args:
        base: the parameters where the search starts.
        fixed: names of parameters that keep the value of `base`.
    """
    space: dict[str, BaseDistribution] = {
        "ngrams": _integers(1, 3, base.ngrams),
        "min_frequency": _integers(1, 10, base.min_frequency, log=True),
        "embedding_dim": _integers(4, 64, base.embedding_dim, log=True),
        # A rate means something only beside its optimiser: look around the one in use.
        "learning_rate": FloatDistribution(
            base.learning_rate / 10, base.learning_rate * 10, log=True
        ),
        "epochs": _integers(1, 10, base.epochs),
        # Choices, not a range: 0 stands for "by the data".
        "batch_size": CategoricalDistribution(
            sorted({32, 64, 128, 256, 512, 1024, base.batch_size})
        ),
    }
    return {name: values for name, values in space.items() if name not in fixed}


def search(
    objective: Objective,
    base: Parameters,
    *,
    trials: int,
    seed: int,
    parent_run_id: str,
    progress: bool = True,
    fixed: Collection[str] = (),
) -> Parameters:
    """Search for the parameters with the greatest value of `objective`.

    The first trial is `base` itself, so what is found is never worse. The next come
    from the tree-structured Parzen estimator (Bergstra et al., "Algorithms for
    Hyper-Parameter Optimization", 2011). A trial that is among the worst quarter at the
    same epoch is pruned, from the second epoch and the sixth trial on: a quarter, not
    half, because a trial with more epochs is slower at first.

    Each trial is a nested run of the parent. Called again for the same parent, the
    search goes on: complete and pruned trials count, one that was interrupted is run
    again. Trial n depends only on `seed` and the trials before it, so a search that was
    interrupted makes the same trials as one that was not. One process at a time.

    The parent gets the tags ``best_trial``, ``best_trial_run_id`` and ``best_<parameter>``,
    the metric `BEST_METRIC`, and in `ARTIFACTS` a table of the trials, the best
    parameters and plots.

    Args:
        objective: fits once; the greater its value the better.
        base: where to start; also gives all that is not searched.
        trials: complete and pruned trials in all, those of earlier calls included.
        seed: of the choice of parameters.
        parent_run_id: MLflow run to nest the trials in, at the current tracking URI.
        progress: show a progress bar.
        fixed: names of parameters that keep the value of `base`.

    Returns:
        The parameters of the best complete trial.

    Raises:
        SearchError: nothing is left to search, all trials failed, or the parent's trials
            were made with other parameters.
        mlflow.exceptions.MlflowException: MLflow refused or can't be reached. After this
            and any other error that parameters can't cause, the search can be called again.
        SystemExit: on SIGTERM, with the usual status of 143, when nothing else handles it.
    """
    space = search_space(base, fixed)
    if not space:
        raise SearchError("all parameters are fixed: leave at least one to the search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        pruner=optuna.pruners.PercentilePruner(
            75, n_startup_trials=_FIRST_TRIALS, n_warmup_steps=2
        ),
    )
    runs = _NestedRuns(MlflowClient(), parent_run_id)
    runs.restore(study, base, space)
    study.enqueue_trial({name: getattr(base, name) for name in space}, skip_if_exists=True)
    failures = 0
    with (
        _stopped_by_sigterm(),
        tqdm(
            total=max(trials, _count(study, _COUNTED)),
            initial=_count(study, _COUNTED),
            desc="search",
            unit=" trials",
            disable=not progress,
        ) as bar,
    ):
        # A failed trial is replaced by another, within reason.
        while _count(study, _COUNTED) < trials and failures < trials:
            trial = _run_trial(study, objective, base, space, runs, seed)
            if trial.state is TrialState.FAIL:
                failures += 1
                continue
            runs.log_best(study, trial.number)
            bar.update()
            bar.set_postfix(best=f"{study.best_value:.4f}", trial=study.best_trial.number)
    if not _count(study, (TrialState.COMPLETE,)):
        raise SearchError(
            f"all {failures} trials failed: the nested runs of {parent_run_id} say why"
        )
    runs.log_outcome(study, list(space))
    return replace(base, **study.best_params)


class _NestedRuns:
    """The trials as MLflow keeps them: nested runs of one parent."""

    def __init__(self, client: MlflowClient, parent_run_id: str) -> None:
        self._client = client
        self._parent = client.get_run(parent_run_id)

    def restore(
        self, study: optuna.Study, base: Parameters, space: dict[str, BaseDistribution]
    ) -> None:
        """Add the finished trials to `study`; mark the others as killed."""
        finished: dict[int, Run] = {}
        for run in self._read():
            state = run.data.tags.get(STATE_TAG, "interrupted")
            if run.info.status == "RUNNING":
                self.end(run.info.run_id, state)
            if state in _STATES:
                finished[int(run.data.tags[NUMBER_TAG])] = run
        for number in range(max(finished, default=-1) + 1):
            # A gap is a run that was deleted: it keeps its number, and doesn't count.
            study.add_trial(
                self._trial(finished[number], base, space)
                if number in finished
                else create_trial(state=TrialState.FAIL)
            )

    def start(self, number: int, parameters: Parameters) -> str:
        """Make the run of a trial and return its id."""
        inherited = {
            name: value
            for name, value in self._parent.data.tags.items()
            if name.startswith(("mlflow.source.", "mlflow.user"))
        }
        run = self._client.create_run(
            self._parent.info.experiment_id,
            tags={
                **inherited,
                MLFLOW_PARENT_RUN_ID: self._parent.info.run_id,
                NUMBER_TAG: str(number),
            },
            run_name=f"trial-{number:03}",
        )
        run_id: str = run.info.run_id
        self._client.log_batch(
            run_id,
            params=[Param(name, str(value)) for name, value in asdict(parameters).items()],
        )
        return run_id

    def log_epoch(self, run_id: str, epoch: int, value: float) -> None:
        """Log the validation value of an epoch."""
        self._client.log_metric(run_id, EPOCH_METRIC, value, step=epoch)

    def end(self, run_id: str, state: str, value: float | None = None) -> None:
        """End the run of a trial; from then on the trial counts as `state`."""
        now = int(time.time() * 1000)
        metrics = [] if value is None else [Metric(TRIAL_METRIC, value, now, 0)]
        # MLflow writes the tags of a batch last: with the state, the value is there.
        self._client.log_batch(run_id, metrics=metrics, tags=[RunTag(STATE_TAG, state)])
        status = {"failed": "FAILED", "interrupted": "KILLED"}.get(state, "FINISHED")
        self._client.set_terminated(run_id, status)

    def log_failure(self, run_id: str) -> None:
        """Log the traceback of the exception that is being handled."""
        self._client.log_text(run_id, traceback.format_exc(), "failure.txt")

    def log_best(self, study: optuna.Study, number: int) -> None:
        """Log to the parent the best value after trial `number`."""
        self._client.log_metric(
            self._parent.info.run_id, BEST_METRIC, study.best_value, step=number
        )

    def log_outcome(self, study: optuna.Study, names: list[str]) -> None:
        """Log the best trial, the table of all and the plots to the parent."""
        parent_run_id = self._parent.info.run_id
        best = study.best_trial
        tags = {
            "best_trial": best.number,
            "best_trial_run_id": best.user_attrs["run_id"],
            **{f"best_{name}": best.params[name] for name in names},
        }
        self._client.log_batch(
            parent_run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()]
        )
        self._client.log_dict(parent_run_id, best.params, f"{ARTIFACTS}/best_parameters.json")
        self._client.log_text(parent_run_id, _table(study), f"{ARTIFACTS}/trials.csv")
        # Optuna sets a style of its own, for all plots that come later.
        with _experimental(), plt.rc_context():
            # A parameter with one value so far.
            warnings.filterwarnings("ignore", "Attempting to set identical")
            for name, figure in _plots(study).items():
                self._client.log_figure(
                    parent_run_id,
                    figure,
                    f"{ARTIFACTS}/{name}.png",
                    save_kwargs={"bbox_inches": "tight"},
                )
                plt.close(figure)

    def _read(self) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._parent.info.experiment_id],
                f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self._parent.info.run_id}'",
                page_token=token,
            )
            yield from (run for run in page if NUMBER_TAG in run.data.tags)
            token = page.token
            if not token:
                return

    def _trial(self, run: Run, base: Parameters, space: dict[str, BaseDistribution]) -> FrozenTrial:
        logged = run.data.params
        for name, value in asdict(base).items():
            if name not in space and logged.get(name) != str(value):
                raise SearchError(
                    f"{run.info.run_name} of run {self._parent.info.run_id} was made with "
                    f"{name} {logged.get(name)}, not {value}: give the same parameters, or "
                    f"start a new search"
                )
        history = self._client.get_metric_history(run.info.run_id, EPOCH_METRIC)
        epochs = {metric.step: metric.value for metric in history}
        state = _STATES[run.data.tags[STATE_TAG]]
        try:
            trial = create_trial(
                state=state,
                value=run.data.metrics.get(TRIAL_METRIC),
                params={name: _parse(logged[name], space[name]) for name in space},
                distributions=space,
                intermediate_values=epochs,
                user_attrs={"run_id": run.info.run_id},
            )
        except (KeyError, ValueError) as error:
            raise SearchError(
                f"{run.info.run_name} of run {self._parent.info.run_id} was made by another "
                f"search: start a new one ({error})"
            ) from error
        trial.datetime_start = datetime.fromtimestamp(run.info.start_time / 1000)
        # Missing after SIGKILL between the last two writes.
        trial.datetime_complete = datetime.fromtimestamp(
            (run.info.end_time or run.info.start_time) / 1000
        )
        return trial


def _run_trial(
    study: optuna.Study,
    objective: Objective,
    base: Parameters,
    space: dict[str, BaseDistribution],
    runs: _NestedRuns,
    seed: int,
) -> FrozenTrial:
    # A sampler for each trial: its state is then known after an interruption as well.
    with _experimental():
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_FIRST_TRIALS,
            multivariate=True,
            seed=int(np.random.SeedSequence((seed, _count(study))).generate_state(1)[0]),
        )
    trial = study.ask(space)
    parameters = replace(base, **trial.params)
    run_id = runs.start(trial.number, parameters)
    trial.set_user_attr("run_id", run_id)
    try:
        value = objective(parameters, _reporter(trial, parameters, runs, run_id))
        _check(value, "the end")
    except optuna.TrialPruned:
        ended = study.tell(trial, state=TrialState.PRUNED)
        runs.end(run_id, "pruned", ended.value)
    except _FAULTS as error:
        ended = study.tell(trial, state=TrialState.FAIL)
        tqdm.write(f"trial {trial.number} failed: {type(error).__name__}: {error}")
        runs.log_failure(run_id)
        runs.end(run_id, "failed")
    except BaseException:
        # MLflow may be what failed; the search that goes on ends the run then.
        with contextlib.suppress(MlflowException):
            runs.end(run_id, "interrupted")
        raise
    else:
        ended = study.tell(trial, value)
        runs.end(run_id, "complete", value)
    return ended


def _reporter(trial: Trial, parameters: Parameters, runs: _NestedRuns, run_id: str) -> Report:
    def report(epoch: int, value: float) -> None:
        _check(value, f"epoch {epoch}")
        runs.log_epoch(run_id, epoch, value)
        trial.report(value, epoch)
        # After the last epoch there is nothing to save.
        if epoch < parameters.epochs and trial.should_prune():
            raise optuna.TrialPruned

    return report


def _check(value: float, when: str) -> None:
    if not math.isfinite(value):
        raise ValueError(f"the validation value is {value} at {when}")


def _integers(low: int, high: int, base: int, *, log: bool = False) -> IntDistribution:
    return IntDistribution(min(low, base), max(high, base), log=log)


def _parse(text: str, values: BaseDistribution) -> Any:
    """Return the value that MLflow keeps as `text`."""
    if isinstance(values, CategoricalDistribution):
        return {str(choice): choice for choice in values.choices}[text]
    return int(text) if isinstance(values, IntDistribution) else float(text)


def _count(
    study: optuna.Study,
    states: tuple[TrialState, ...] = (*_COUNTED, TrialState.FAIL),
) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _table(study: optuna.Study) -> str:
    table = study.trials_dataframe(attrs=("number", "state", "value", "duration", "params"))
    table["duration"] = table["duration"].dt.total_seconds()
    table["last_epoch"] = pd.array([trial.last_step for trial in study.trials], dtype="Int64")
    table["run_id"] = [trial.user_attrs.get("run_id") for trial in study.trials]
    text: str = table.rename(
        columns=lambda name: {"number": "trial", "duration": "seconds"}.get(
            name, name.removeprefix("params_")
        )
    ).to_csv(index=False)
    return text


def _plots(study: optuna.Study) -> dict[str, Figure]:
    name = "AUROC on the validation split"
    history = plots.plot_optimization_history(study, target_name=name)
    history.set(title="The search", xlabel="trial")
    # Beside the plot it takes half of the picture, inside it covers trials.
    history.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2)
    epochs = plots.plot_intermediate_values(study)
    epochs.set(title="The trials", xlabel="epoch", ylabel=name)
    if legend := epochs.get_legend():
        legend.remove()  # a line for each trial, taller than the plot
    for axes in (history, epochs):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    made: dict[str, Any] = {"history": history, "epochs": epochs}
    values = {trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))}
    if len(values) > 1:  # or there is nothing to explain
        made["slices"] = plots.plot_slice(study, target_name=name)
        for axes in np.ravel(made["slices"]):
            # On a logarithmic axis they lie on top of each other.
            axes.xaxis.set_minor_formatter(NullFormatter())
        # PED-ANOVA (Watanabe et al., 2023): Optuna's default takes longer than all plots.
        made["importances"] = plots.plot_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target_name=name
        )
    # A plot is one axes, or an array of them with several parameters.
    return {name: np.ravel(np.asarray(axes))[0].figure for name, axes in made.items()}


@contextlib.contextmanager
def _experimental() -> Iterator[None]:
    """Keep Optuna from warning that what is used here may change; its version is locked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """End by an exception on SIGTERM, where it would end the process at once."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
