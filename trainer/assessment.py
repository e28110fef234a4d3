"""Assess a fitted model on the test split, as it will serve, and say whether it is valid."""

from dataclasses import asdict, dataclass

import mlflow
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torchtext.vocab import Vocab
from tqdm import tqdm

from functions.predict import scorer as scoring
from functions.predict.bundle import Metric, Reference
from functions.predict.scorer import Scorer
from trainer import behaviour, comparison
from trainer.comparison import Comparison, Served, Validation
from trainer.corpus import Corpus
from trainer.evaluation import (
    Floats,
    Labels,
    calibration_error,
    evaluate,
    histogram,
    plot_calibration,
    plot_confusion,
    plot_roc,
    slices,
)
from trainer.fitting import Fitted
from trainer.model import BagLinear
from trainer.reviews import Split
from trainer.tracking import patiently

_SCORE_EDGES = [step / 20 for step in range(21)]
_LENGTH_EDGES = [0.0, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 20000]
_SHARE_EDGES = [step / 20 for step in range(21)]


@dataclass(frozen=True)
class Bars:
    """What a model must reach to be called valid; see `trainer.comparison.verdict`."""

    auroc_floor: float = comparison.AUROC_FLOOR
    """Least AUROC on the test split."""
    behaviour_floor: float = comparison.BEHAVIOUR_FLOOR
    """Least share of the behavioural tests passed."""
    margin: float = comparison.MARGIN
    """Most that the AUROC may be below the served version's."""


@dataclass(frozen=True)
class Assessment:
    """What the test split said."""

    weights: NDArray[np.float32]
    """float32[V]: the number of each n-gram."""
    metrics: dict[str, Metric]
    """What the bundle promises: on the test split, and the share of behavioural tests."""
    logged: dict[str, float]
    """All figures, for MLflow."""
    reference: Reference
    validation: Validation
    """Whether the model may follow the served version."""


def assess(
    corpus: Corpus,
    fitted: Fitted,
    order: int,
    threshold: float,
    served: Served | str,
    bars: Bars,
    *,
    seed: int,
    progress: bool,
) -> Assessment:
    """Judge what will serve: the scorer with the bundle's numbers, not the module.

    Plots and tables go to the active MLflow run.

    Args:
        corpus: the reviews.
        fitted: the model, calibrated.
        order: longest n-gram.
        threshold: least score that is called positive.
        served: the version in production; or, in words, why there is none to compare with.
        bars: what the model must reach to be called valid.
        seed: of the resampling.
        progress: show a bar.
    """
    weights = fitted.model.ngram_scores().numpy().astype(np.float32)
    scorer = _scorer(fitted.vocabulary, weights, fitted.model, order)
    texts, rows = corpus.test_texts, corpus.rows(Split.TEST)
    labels = corpus.labels[rows]
    judged = _judge(scorer, texts, "evaluation", progress=progress)
    scores = _scores(judged)
    metrics = evaluate(labels, scores, threshold=threshold, seed=seed)
    logged = {f"test_{name}": metric.value for name, metric in metrics.items()}
    for name, metric in metrics.items():
        if metric.low is not None and metric.high is not None:
            logged |= {f"test_{name}_low": metric.low, f"test_{name}_high": metric.high}
    logged["test_calibration_error"] = calibration_error(labels, scores)

    behaved = behaviour.run(scorer.score, threshold)
    logged |= behaved.metrics()
    compared: Comparison | str
    if isinstance(served, str):
        compared = served
    else:
        compared = comparison.compare(
            labels,
            scores,
            _scores(_judge(served.scorer, texts, f"version {served.version}", progress=progress)),
            threshold=threshold,
            served_threshold=served.threshold,
            version=served.version,
            seed=seed,
        )
        logged |= compared.metrics()
    validation = comparison.verdict(
        auroc=metrics["auroc"].value, behaviour=behaved.share, comparison=compared, **asdict(bars)
    )
    unknown = [item.unknown_share for item in judged]
    lengths = [item.tokens for item in judged]
    table = slices(
        labels,
        scores,
        threshold=threshold,
        lengths=lengths,
        unknown_shares=unknown,
        stars=[None if np.isnan(value) else float(value) for value in corpus.stars[rows]],
        seed=seed,
    )
    patiently(lambda: _log_pictures(labels, scores, threshold))
    patiently(lambda: _log_tables(table, behaved))
    return Assessment(
        weights=weights,
        metrics={**metrics, "behaviour": Metric(behaved.share)},
        logged=logged,
        reference=Reference(
            histogram(scores.tolist(), _SCORE_EDGES),
            histogram(lengths, _LENGTH_EDGES),
            histogram(unknown, _SHARE_EDGES),
        ),
        validation=validation,
    )


def _scorer(
    vocabulary: Vocab,
    weights: NDArray[np.float32],
    model: BagLinear,
    order: int,
) -> Scorer:
    return Scorer(
        dict(zip(vocabulary.itos, weights.tolist(), strict=True)),
        bias=float(model.linear.bias.item()),
        unknown=float(weights[0]),
        order=order,
    )


def _judge(
    scorer: Scorer, texts: list[str], name: str, *, progress: bool
) -> list[scoring.Assessment]:
    bar = tqdm(texts, desc=name, unit=" reviews", disable=not progress)
    return [scorer.assess(text) for text in bar]


def _scores(judged: list[scoring.Assessment]) -> Floats:
    return np.array([item.score for item in judged])


def _log_pictures(labels: Labels, scores: Floats, threshold: float) -> None:
    mlflow.log_figure(plot_roc(labels, scores), "plots/roc.png")
    mlflow.log_figure(plot_confusion(labels, scores, threshold=threshold), "plots/confusion.png")
    mlflow.log_figure(plot_calibration(labels, scores), "plots/calibration.png")


def _log_tables(table: pd.DataFrame, behaved: behaviour.Report) -> None:
    for name, frame in (
        ("slices", table),
        ("behaviour", behaved.summary()),
        ("behaviour_cases", behaved.table()),
    ):
        mlflow.log_text(frame.to_csv(index=False), f"tables/{name}.csv")
