"""Train, evaluate, log and register a model."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import git
import lightning as L
import mlflow
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from mlflow.models import Model
from torch.utils.data import DataLoader
from torchtext.vocab import Vocab
from tqdm import tqdm

from functions.predict.bundle import (
    Lineage,
    Metric,
    Reference,
    build_bundle,
)
from functions.predict.scorer import Scorer
from functions.predict.tokenizer import tokenize
from trainer import flavor
from trainer.evaluation import evaluate, histogram, plot_confusion, plot_roc
from trainer.features import BagBatches, build_vocabulary, extract, to_bags
from trainer.golden import golden_texts
from trainer.model import BagLinear, BagLinearTask
from trainer.parameters import Parameters
from trainer.reviews import Review, Reviews, Splits, read_reviews, split

THRESHOLD = 0.5

_SCORE_EDGES = [step / 20 for step in range(21)]
_LENGTH_EDGES = [0.0, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 20000]
_SHARE_EDGES = [step / 20 for step in range(21)]


@dataclass(frozen=True)
class Outcome:
    """What came out of a training run."""

    run_id: str
    metrics: Mapping[str, Metric]
    """On the test split, by the scorer that serves."""
    model_version: str | None
    """Version in the registry; None when the model was not registered."""


class _Progress(L.Callback):
    """One bar over all steps, with the validation's figures beside it."""

    def __init__(self, steps: int, *, shown: bool) -> None:
        self._bar = tqdm(total=steps, desc="training", unit=" steps", disable=not shown)

    def on_train_batch_end(self, *_: object) -> None:
        self._bar.update()

    def on_validation_end(self, trainer: L.Trainer, _task: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            metrics = {name: f"{value:.4f}" for name, value in trainer.callback_metrics.items()}
            self._bar.set_postfix(epoch=trainer.current_epoch + 1, **metrics)

    def on_fit_end(self, *_: object) -> None:
        self._bar.close()


def train(
    data: Path | str,
    parameters: Parameters,
    *,
    experiment: str,
    run_name: str | None = None,
    register: str | None = None,
    progress: bool = True,
) -> Outcome:
    """Train on a file of reviews and log the run to MLflow.

    The data is read and checked before a run is made. The MLflow server is the one
    that ``MLFLOW_TRACKING_URI`` names.

    Args:
        data: reviews, as `trainer.reviews.read_reviews` takes them.
        parameters: of the model and its training.
        experiment: MLflow experiment, made when missing.
        run_name: name of the run; None: MLflow's choice.
        register: name in the model registry; None: log the model only.
        progress: show progress bars.

    Raises:
        trainer.reviews.DataError: the data can't be trained on.
        mlflow.exceptions.MlflowException: MLflow refused or can't be reached.
    """
    reviews = read_reviews(data, max_bad_share=parameters.max_bad_share, progress=progress)
    _report(data, reviews)
    splits = split(
        reviews.reviews,
        validation_share=parameters.validation_share,
        test_share=parameters.test_share,
    )
    L.seed_everything(parameters.seed, verbose=False)
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=run_name) as run:
        run_id: str = run.info.run_id
        mlflow.log_params(
            {**asdict(parameters), "batch_size": _batch_size(parameters, len(splits.train))}
        )
        mlflow.log_params(
            {
                "data": data if isinstance(data, str) else data.name,
                "data_digest": reviews.digest,
                "rows": reviews.rows,
                "rows_skipped": reviews.skipped.total(),
                "rows_repeated": reviews.duplicates,
                **{f"rows_{name}": len(part) for name, part in splits._asdict().items()},
            }
        )
        # The first artifact: a bucket that refuses is known before time is spent.
        mlflow.log_dict(
            {"digest": reviews.digest, "rows": reviews.rows, "skipped": dict(reviews.skipped)},
            "data.json",
        )
        commit = _current_commit()
        if commit is not None:
            mlflow.set_tag("git_commit", commit)
        model, vocabulary = _fit(splits, parameters, run_id, progress=progress)
        metrics, bundle = _evaluate_and_bundle(
            model,
            vocabulary,
            splits,
            parameters,
            Lineage(
                register or experiment,
                run_id,
                commit,
                os.environ.get("TRAINING_IMAGE_DIGEST"),
                reviews.digest,
            ),
            progress=progress,
        )
        for name, metric in metrics.items():
            mlflow.log_metric(f"test_{name}", metric.value)
        logged = Model.log(
            artifact_path=None,
            name="model",
            flavor=flavor,
            registered_model_name=register,
            model=model,
            bundle=bundle,
        )
    version = logged.registered_model_version
    return Outcome(run_id, metrics, None if version is None else str(version))


def _report(data: Path | str, reviews: Reviews) -> None:
    tqdm.write(
        f"{Path(data).name}: {len(reviews.reviews):,} reviews of {reviews.rows:,} rows, "
        f"{reviews.duplicates:,} repeated"
    )
    for reason, count in reviews.skipped.most_common():
        tqdm.write(f"  skipped {count:,} rows {reason}")


def _batch_size(parameters: Parameters, reviews: int) -> int:
    return parameters.batch_size or min(256, max(16, reviews // 100))


def _fit(
    splits: Splits, parameters: Parameters, run_id: str, *, progress: bool
) -> tuple[BagLinear, Vocab]:
    def documents(part: list[Review], name: str) -> list[list[str]]:
        bar = tqdm(part, desc=f"n-grams, {name}", unit=" reviews", disable=not progress)
        return [extract(review.text, parameters.ngrams) for review in bar]

    train_documents = documents(splits.train, "train")
    vocabulary = build_vocabulary(
        train_documents,
        min_frequency=parameters.min_frequency,
        max_size=parameters.max_vocabulary,
    )
    batch_size = _batch_size(parameters, len(splits.train))
    train_batches = BagBatches(
        to_bags(train_documents, [review.is_positive for review in splits.train], vocabulary),
        batch_size,
        shuffle_seed=parameters.seed,
    )
    validation_batches = BagBatches(
        to_bags(
            documents(splits.validation, "validation"),
            [review.is_positive for review in splits.validation],
            vocabulary,
        ),
        batch_size,
    )
    model = BagLinear(len(vocabulary.itos), parameters.embedding_dim)
    steps = len(train_batches) * parameters.epochs
    task = BagLinearTask(model, parameters.learning_rate, total_steps=steps)
    logger = MLFlowLogger(tracking_uri=mlflow.get_tracking_uri(), run_id=run_id)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The batches are made in memory; loader processes would only copy them.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        best = ModelCheckpoint(folder, monitor="validation_loss", save_weights_only=True)
        callbacks: list[L.Callback] = [
            EarlyStopping("validation_loss", patience=parameters.patience),
            best,
            _Progress(steps, shown=progress),
        ]
        L.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=parameters.epochs,
            callbacks=callbacks,
            logger=logger,
            log_every_n_steps=10,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        ).fit(
            task,
            DataLoader(train_batches, batch_size=None),
            DataLoader(validation_batches, batch_size=None),
        )
        task = BagLinearTask.load_from_checkpoint(
            best.best_model_path,
            weights_only=True,
            model=model,
            learning_rate=parameters.learning_rate,
            total_steps=1,
        )
    return task.model.cpu().eval(), vocabulary


def _evaluate_and_bundle(
    model: BagLinear,
    vocabulary: Vocab,
    splits: Splits,
    parameters: Parameters,
    lineage: Lineage,
    *,
    progress: bool,
) -> tuple[dict[str, Metric], dict[str, bytes]]:
    """Evaluate what will serve: the scorer with the bundle's numbers, not the module."""
    weights = model.ngram_scores().numpy().astype(np.float32)
    bias = float(model.linear.bias.item())
    scorer = Scorer(
        dict(zip(vocabulary.itos, weights.tolist(), strict=True)),
        bias=bias,
        unknown=float(weights[0]),
        order=parameters.ngrams,
    )
    texts = [review.text for review in splits.test]
    labels = np.array([review.is_positive for review in splits.test])
    bar = tqdm(texts, desc="evaluation", unit=" reviews", disable=not progress)
    scores = np.array([scorer.score(text) for text in bar])
    metrics = evaluate(labels, scores, threshold=THRESHOLD, seed=parameters.seed)
    mlflow.log_figure(plot_roc(labels, scores), "plots/roc.png")
    mlflow.log_figure(plot_confusion(labels, scores, threshold=THRESHOLD), "plots/confusion.png")
    bundle = build_bundle(
        lineage=lineage,
        vocabulary=vocabulary.itos,
        scores=weights.tolist(),
        bias=bias,
        ngrams=parameters.ngrams,
        threshold=THRESHOLD,
        metrics=metrics,
        reference=Reference(
            histogram(scores.tolist(), _SCORE_EDGES),
            histogram([len(tokenize(text)) for text in texts], _LENGTH_EDGES),
            histogram([scorer.unknown_share(text) for text in texts], _SHARE_EDGES),
        ),
        golden=golden_texts(_copy(model), dict(vocabulary.stoi), parameters.ngrams),
    )
    return metrics, bundle


def _copy(model: BagLinear) -> BagLinear:
    """Return a copy that may be turned to float64 without touching the original."""
    copy = BagLinear(model.embedding.num_embeddings, model.embedding.embedding_dim)
    copy.load_state_dict(model.state_dict())
    return copy


def _current_commit() -> str | None:
    """Return the Git commit that this code is at, or None outside a repository."""
    try:
        repository = git.Repo(Path(__file__).parent, search_parent_directories=True)
        return repository.head.commit.hexsha
    except (git.InvalidGitRepositoryError, git.NoSuchPathError, ValueError):
        return os.environ.get("GIT_COMMIT")
