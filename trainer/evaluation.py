"""Evaluate scores against labels: metrics with intervals, histograms, plots."""

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    RocCurveDisplay,
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
)

from functions.predict.bundle import Histogram, Metric

mpl.use("Agg")

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]

BOOTSTRAP_SAMPLES = 200
CONFIDENCE = 0.95


def evaluate(labels: Labels, scores: Floats, *, threshold: float, seed: int) -> dict[str, Metric]:
    """Return accuracy, balanced accuracy, AUROC, F1 and Brier score with 95 % intervals.

    The intervals are percentile bootstrap intervals (Efron and Tibshirani, 1993,
    chapter 13) over the texts.

    Args:
        labels: bool[N], both kinds present.
        scores: float64[N], probability of the positive label.
        threshold: least score that is called positive.
        seed: of the resampling.
    """
    metrics: dict[str, Callable[[Labels, Floats], float]] = {
        "accuracy": lambda y, p: accuracy_score(y, p >= threshold),
        "balanced_accuracy": lambda y, p: balanced_accuracy_score(y, p >= threshold),
        "auroc": roc_auc_score,
        "f1": lambda y, p: f1_score(y, p >= threshold),
        "brier": brier_score_loss,
    }
    generator = np.random.default_rng(seed)
    resampled: dict[str, list[float]] = {name: [] for name in metrics}
    while len(resampled["auroc"]) < BOOTSTRAP_SAMPLES:
        chosen = generator.integers(0, len(labels), len(labels))
        if labels[chosen].all() or not labels[chosen].any():
            continue  # a sample of one kind has no AUROC
        for name, metric in metrics.items():
            resampled[name].append(float(metric(labels[chosen], scores[chosen])))
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    result = {}
    for name, metric in metrics.items():
        low, high = np.quantile(resampled[name], tails)
        result[name] = Metric(float(metric(labels, scores)), float(low), float(high))
    return result


def histogram(values: Sequence[float], edges: Sequence[float]) -> Histogram:
    """Return how many of `values` lie between each two of `edges`; outliers count at the ends."""
    clipped = np.clip(values, edges[0], edges[-1])
    counts, _ = np.histogram(clipped, bins=np.asarray(edges))
    return Histogram(list(edges), [int(count) for count in counts])


def plot_roc(labels: Labels, scores: Floats) -> Figure:
    """Return the ROC curve with the line of chance."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    RocCurveDisplay.from_predictions(labels, scores, ax=axes, name="test", plot_chance_level=True)
    axes.set_title("ROC on the test split")
    return figure


def plot_confusion(labels: Labels, scores: Floats, *, threshold: float) -> Figure:
    """Return the confusion matrix at `threshold`, as counts."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay.from_predictions(
        labels,
        scores >= threshold,
        display_labels=["negative", "positive"],
        ax=axes,
        colorbar=False,
    )
    axes.set_title(f"Confusion on the test split, threshold {threshold:.2f}")
    return figure
