"""Train, evaluate, log and register a model, with all that tells where it came from."""

import contextlib
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.validation import _validate_experiment_name, _validate_model_name
from tqdm import tqdm

from functions.predict.bundle import Lineage, Metric, build_bundle
from trainer import comparison, data_card, data_lock, flavor, lineage
from trainer.assessment import Bars, assess
from trainer.checkpoints import Checkpoints
from trainer.comparison import NotComparable, Served, Validation
from trainer.corpus import Corpus, read_corpus
from trainer.data_card import DataCard, Lengths, SplitCounts
from trainer.data_lock import DataVersion
from trainer.evaluation import Calibration, calibrate, choose_threshold
from trainer.fitting import Fitted, batch_size, fit
from trainer.golden import golden_texts
from trainer.model import BagLinear
from trainer.parameters import Parameters
from trainer.reviews import Split, Tally
from trainer.search import Report, search
from trainer.sources import is_cloud
from trainer.tracking import MetricLogger, patiently

# Between two samples of CPU, memory and GPU.
SYSTEM_SECONDS = 5.0


# What logging a model takes on disk: a fixed part, and so many times its weights.
_DISK_BYTES = 64 * 1024**2
_DISK_WEIGHTS = 8


@dataclass(frozen=True)
class Outcome:
    """What came out of a training run."""

    run_id: str
    metrics: Mapping[str, Metric]
    """On the test split, by the scorer that serves."""
    model_version: str | None
    """Version in the registry; None when the model was not registered."""
    validation: Validation
    """Whether the model may follow the served version."""


def train(
    data: Path | str,
    parameters: Parameters,
    *,
    experiment: str,
    generation: int | None = None,
    pinned: DataVersion | None = None,
    run_name: str | None = None,
    register: str | None = None,
    tune: int = 0,
    fixed: Collection[str] = (),
    bars: Bars | None = None,
    checkpoints: Path | str | None = None,
    progress: bool = True,
) -> Outcome:
    """Train on a source of reviews and log the run to MLflow.

    The data is read and checked before a run is made. The MLflow server is the one
    that ``MLFLOW_TRACKING_URI`` names. On a CPU, one thread is used, and the outcome
    depends on no number of cores.

    Args:
        data: reviews, as `trainer.reviews.read_reviews` takes them.
        parameters: of the model and its training.
        experiment: MLflow experiment, made when missing.
        generation: of the object in Cloud Storage; None: the newest.
        pinned: what the data must be; None: whatever it is.
        run_name: name of the run; None: MLflow's choice.
        register: name in the model registry; None: log the model only.
        tune: trials of a search for better parameters, which starts from `parameters`;
            0: none.
        fixed: names of parameters that a search leaves alone.
        bars: what the model must reach to be called valid.
        checkpoints: folder or ``gs://BUCKET/PREFIX`` that outlives this process: the same
            call, made again after it was cut off, goes on in the same run; None: nowhere.
        progress: show progress bars.

    Raises:
        trainer.reviews.DataError: the data can't be trained on.
        trainer.data_lock.LockError: the data is not what is pinned.
        trainer.checkpoints.CheckpointError: checkpoints can't be kept.
        trainer.fitting.FitError: the parameters lead to no model.
        trainer.search.SearchError: no trial of a search succeeded.
        trainer.tracking.TrackingError: metrics could not be sent.
        mlflow.exceptions.MlflowException: MLflow refused or can't be reached.
        OSError: there is not enough room on the disk.
    """
    torch.set_num_threads(1)
    origin = lineage.collect()
    _check_disk(parameters)
    _check_names(experiment, register)
    stages = _Stages()
    with stages("read"):
        corpus = read_corpus(
            data,
            generation=generation,
            validation_share=parameters.validation_share,
            test_share=parameters.test_share,
            max_bad_share=parameters.max_bad_share,
            progress=progress,
        )
    tally = corpus.tally
    version = DataVersion(str(data), tally.digest, tally.rows, tally.generation)
    if pinned is not None:
        data_lock.check(pinned, sha256=tally.digest, rows=tally.rows)
    _report(data, tally)
    kept = None
    if checkpoints is not None:
        identity = {
            "data": tally.digest,
            "parameters": asdict(parameters),
            "tune": tune,
            "fixed": sorted(fixed),
            "experiment": experiment,
            "register": register,
            "commit": origin.code.commit,
            "diff": origin.code.diff_sha256,
        }
        kept = Checkpoints(checkpoints, identity)
    mlflow.set_experiment(experiment)
    with (
        _start_run(run_name, kept) as run,
        MetricLogger(
            run.info.run_id,
            unsent=Path(tempfile.gettempdir(), f"unsent-metrics-{run.info.run_id}.jsonl"),
            system_seconds=SYSTEM_SECONDS,
        ) as logger,
    ):
        run_id: str = run.info.run_id
        if kept is not None:
            kept.begin(run_id)
        with stages("log"):
            # The first artifacts: a bucket that refuses is known before time is spent.
            patiently(lambda: data_card.log_data(_card(corpus, version)))
        if tune:
            with stages("tune"):
                parameters = _search(corpus, parameters, run_id, tune, fixed, progress=progress)
        with stages("log"):
            patiently(lambda: _log_parameters(corpus, version, parameters))
            seeds = {"seed": parameters.seed}
            patiently(lambda: lineage.log(origin, data=version, parameters=parameters, seeds=seeds))
        with stages("fit"):
            fitted = fit(corpus, parameters, logger=logger, checkpoints=kept, progress=progress)
        with stages("evaluate"):
            calibration, threshold = _calibrate(corpus, fitted)
            fitted.model.rescale(calibration.scale, calibration.shift)
            assessment = assess(
                corpus,
                fitted,
                parameters.ngrams,
                threshold,
                _load_served(register),
                bars or Bars(),
                seed=parameters.seed,
                progress=progress,
            )
        logger.log_metrics(
            {
                **assessment.logged,
                "calibration_scale": calibration.scale,
                "calibration_shift": calibration.shift,
                "threshold": threshold,
            }
        )
        with stages("register"):
            bundle = build_bundle(
                lineage=Lineage(
                    register or experiment,
                    run_id,
                    origin.code.commit,
                    origin.environment.image_digest,
                    tally.digest,
                ),
                vocabulary=fitted.vocabulary.itos,
                scores=assessment.weights.tolist(),
                bias=float(fitted.model.linear.bias.item()),
                ngrams=parameters.ngrams,
                threshold=threshold,
                metrics=assessment.metrics,
                reference=assessment.reference,
                golden=golden_texts(
                    _copy(fitted.model), dict(fitted.vocabulary.stoi), parameters.ngrams
                ),
            )
            # A version in the registry has its metrics.
            logger.flush()
            if kept is not None:
                kept.check()
            registered = _register(run_id, fitted.model, bundle, assessment.validation, register)
        logger.log_metrics(stages.seconds())
        logger.flush()
        if kept is not None:
            kept.clear()
    return Outcome(run_id, assessment.metrics, registered, assessment.validation)


class _Stages:
    """How long each part of a training took."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._seconds[name] += time.monotonic() - start

    def seconds(self) -> dict[str, float]:
        """Return the metrics, ``seconds_`` and the part's name."""
        return {f"seconds_{name}": value for name, value in self._seconds.items()}


def _register(
    run_id: str,
    model: BagLinear,
    bundle: Mapping[str, bytes],
    validation: Validation,
    register: str | None,
) -> str | None:
    """Log the model, register it, and say in tags whether it is valid; return its version."""
    client = mlflow.MlflowClient()
    tags = comparison.tags(validation)
    patiently(lambda: mlflow.set_tags(tags))
    version = None if register is None else _version_of(client, register, run_id)
    if version is None:
        logged = Model.log(
            artifact_path=None,
            name="model",
            flavor=flavor,
            registered_model_name=register,
            model=model,
            bundle=bundle,
        )
        if logged.registered_model_version is not None:
            version = str(logged.registered_model_version)
    if register is not None and version is not None:
        for name, value in tags.items():
            client.set_model_version_tag(register, version, name, value)
    return version


def _version_of(client: mlflow.MlflowClient, register: str, run_id: str) -> str | None:
    """Return the version that the run registered before it was cut off."""
    found = client.search_model_versions(f"name='{register}' AND run_id='{run_id}'")
    return str(found[0].version) if found else None


def _check_disk(parameters: Parameters) -> None:
    folder = tempfile.gettempdir()
    weights = 4 * parameters.max_vocabulary * parameters.embedding_dim
    needed = _DISK_BYTES + _DISK_WEIGHTS * weights
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1024**2:,.0f} MiB left where a model of this size takes "
            f"{needed / 1024**2:,.0f}: make room, or set TMPDIR to another folder"
        )


def _check_names(experiment: str, register: str | None) -> None:
    """Let MLflow refuse names, and an experiment that is deleted, before the data is read."""
    # Private, but what its stores call: they would refuse the names only when they are used.
    _validate_experiment_name(experiment)
    if register is not None:
        _validate_model_name(register)
        if "'" in register:
            raise MlflowException.invalid_parameter_value(
                f'Model name "{register}": MLflow can\'t search for a name with an apostrophe.'
            )
    if mlflow.get_experiment_by_name(experiment) is not None:
        mlflow.set_experiment(experiment)


def _report(data: Path | str, tally: Tally) -> None:
    tqdm.write(
        f"{Path(data).name}: {tally.usable:,} reviews of {tally.rows:,} rows, "
        f"{tally.duplicates:,} repeated"
    )
    for reason, count in tally.skipped.most_common():
        tqdm.write(f"  skipped {count:,} rows {reason}")


def _start_run(run_name: str | None, kept: Checkpoints | None) -> mlflow.ActiveRun:
    """Go on with the run that was cut off, or start one."""
    unfinished = None if kept is None else kept.unfinished_run()
    if unfinished is not None:
        try:
            run = mlflow.start_run(run_id=unfinished)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            # Deleted in MLflow meanwhile.
        else:
            tqdm.write(f"going on with run {unfinished}, which was cut off")
            return run
    return mlflow.start_run(run_name=run_name)


def _card(corpus: Corpus, version: DataVersion) -> DataCard:
    stars = corpus.stars[~np.isnan(corpus.stars)]
    values, counts = np.unique(stars, return_counts=True)
    return DataCard(
        version=version,
        reviews=corpus.tally.usable,
        positives=corpus.tally.positive,
        duplicates=corpus.tally.duplicates,
        skipped=corpus.tally.skipped,
        splits={
            split.name.lower(): SplitCounts(
                len(corpus.rows(split)), int(corpus.labels[corpus.rows(split)].sum())
            )
            for split in Split
        },
        lengths=Lengths.of(corpus.characters),
        stars=dict(zip(values.tolist(), counts.tolist(), strict=True)) or None,
    )


def _log_parameters(corpus: Corpus, version: DataVersion, parameters: Parameters) -> None:
    rows = {f"rows_{split.name.lower()}": len(corpus.rows(split)) for split in Split}
    mlflow.log_params(
        {
            **asdict(parameters),
            "batch_size": batch_size(parameters, rows["rows_train"]),
            "data": version.uri if is_cloud(version.uri) else Path(version.uri).name,
            "data_digest": version.sha256,
            "data_generation": version.generation,
            "rows": version.rows,
            "rows_skipped": corpus.tally.skipped.total(),
            "rows_repeated": corpus.tally.duplicates,
            **rows,
        }
    )


def _search(
    corpus: Corpus,
    base: Parameters,
    run_id: str,
    trials: int,
    fixed: Collection[str],
    *,
    progress: bool,
) -> Parameters:
    def objective(parameters: Parameters, report: Report) -> float:
        return fit(corpus, parameters, report=report).auroc

    return search(
        objective,
        base,
        trials=trials,
        seed=base.seed,
        parent_run_id=run_id,
        progress=progress,
        fixed=fixed,
    )


def _calibrate(corpus: Corpus, fitted: Fitted) -> tuple[Calibration, float]:
    """Return the calibration and the threshold after it, from the validation split."""
    labels = corpus.labels[corpus.rows(Split.VALIDATION)]
    logits = fitted.logits(corpus, Split.VALIDATION).double()
    calibration = calibrate(labels, logits.numpy())
    scores = torch.sigmoid(calibration.scale * logits + calibration.shift)
    return calibration, choose_threshold(labels, scores.numpy())


def _load_served(register: str | None) -> Served | str:
    """Return the version in production, or in words why there is none to compare with."""
    if register is None:
        return "the model is not registered"
    try:
        return comparison.load_served(mlflow.MlflowClient(), register)
    except NotComparable as error:
        return str(error)


def _copy(model: BagLinear) -> BagLinear:
    """Return a copy that may be turned to float64 without touching the original."""
    copy = BagLinear(model.embedding.num_embeddings, model.embedding.embedding_dim)
    copy.load_state_dict(model.state_dict())
    return copy
