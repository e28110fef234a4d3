"""Evaluate scores against labels: threshold, calibration, metrics with intervals, plots."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from functions.predict.bundle import Histogram, Metric

mpl.use("Agg")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Labels = NDArray[np.bool_]

BOOTSTRAP_SAMPLES = 200
CONFIDENCE = 0.95
CALIBRATION_BINS = 15
SLICES = 5

# 97.5 % of the standard normal distribution lie below.
_Z = 1.959963984540054
_EPSILON = float(np.finfo(np.float64).eps)
_GRID = 4096


class Calibration(NamedTuple):
    """What makes logits calibrated: ``scale * logit + shift``."""

    scale: float
    """Above 0, so that the order of the texts stays."""
    shift: float
    reason: str | None
    """Why nothing is changed (scale 1, shift 0); None: it was fitted."""


class Ranking:
    """The AUROC of some scores, fast for many weightings of the texts.

    Args:
        labels: bool[N], both kinds present.
        scores: float64[N]

    Raises:
        ValueError: the labels are of one kind.
    """

    def __init__(self, labels: Labels, scores: Floats) -> None:
        _check_kinds(labels)
        self._order = np.argsort(scores, kind="stable")
        self._positive = labels[self._order]
        # Equal scores form one run: their order says nothing.
        self._starts = np.flatnonzero(np.diff(scores[self._order], prepend=-np.inf))

    def auroc(self, counts: Integers) -> float:
        """Return the AUROC where text i is there ``counts[i]`` times; both kinds must be.

        That is the share of pairs of a positive and a negative text in which the
        positive one has the higher score, equal scores counted half (Hanley and
        McNeil, 1982).
        """
        weights = counts[self._order]
        positive = weights * self._positive
        negative = weights - positive
        if len(self._starts) < len(weights):
            positive = np.add.reduceat(positive, self._starts)
            negative = np.add.reduceat(negative, self._starts)
        # Twice the negative texts below, and those at the same score: whole numbers.
        below = 2 * np.cumsum(negative) - negative
        pairs = int(positive.sum()) * int(negative.sum())
        return int(positive @ below) / (2 * pairs)


def resamples(labels: Labels, count: int, *, seed: int) -> Iterator[Integers]:
    """Yield `count` bootstrap samples, each as int64[N]: how often each text is in it.

    Samples of one kind only, which have no AUROC, are drawn again.

    Args:
        labels: bool[N], both kinds present.
        count: samples.
        seed: of the drawing.

    Raises:
        ValueError: the labels are of one kind.
    """
    _check_kinds(labels)
    size = len(labels)
    generator = np.random.default_rng(seed)
    while count:
        counts = np.bincount(generator.integers(0, size, size), minlength=size)
        if 0 < counts @ labels < size:
            count -= 1
            yield counts


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrapped `values`.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def evaluate(labels: Labels, scores: Floats, *, threshold: float, seed: int) -> dict[str, Metric]:
    """Return the metrics, with 95 % bootstrap intervals over the texts (see `interval`).

    ``accuracy``, ``balanced_accuracy`` and ``f1`` at the threshold, ``auroc``,
    ``brier`` and ``log_loss`` (in nats).

    Args:
        labels: bool[N], both kinds present.
        scores: float64[N], probability of the positive label.
        threshold: least score that is called positive.
        seed: of the resampling.

    Raises:
        ValueError: the labels are of one kind.
    """
    called = scores >= threshold
    likelihood = np.clip(np.where(labels, scores, 1 - scores), _EPSILON, 1)
    # One row a quantity that adds up over texts; the metrics follow from the sums.
    additive = np.stack(
        [
            labels & called,
            ~labels & called,
            labels & ~called,
            ~labels & ~called,
            (scores - labels) ** 2,
            -np.log(likelihood),
        ]
    ).astype(np.float64)
    ranking = Ranking(labels, scores)

    def metrics(counts: Integers) -> dict[str, float]:
        return {**_from_sums(additive @ counts), "auroc": ranking.auroc(counts)}

    resampled = [metrics(counts) for counts in resamples(labels, BOOTSTRAP_SAMPLES, seed=seed)]
    return {
        name: Metric(value, *interval([sample[name] for sample in resampled]))
        for name, value in metrics(np.ones(len(labels), np.int64)).items()
    }


def choose_threshold(labels: Labels, scores: Floats) -> float:
    """Return the threshold of the highest accuracy, estimated smoothly.

    Accuracy is what users meet in production, as the rate of answers they agree with:
    both kinds of error cost the same (Elkan, The Foundations of Cost-Sensitive Learning,
    2001, theorem 1), so that for calibrated scores it lies near a half. The best
    threshold among those observed varies much from one small split to the next (Fluss,
    Faraggi and Reiser, Biometrical Journal 47, 2005, for Youden's J). Here the
    distribution of each kind is smoothed first, by a Gaussian kernel over the logits with
    Silverman's bandwidth (1986, equation 3.31), which vanishes as the split grows. Of
    equally good thresholds it is the middle.

    Args:
        labels: bool[N], both kinds present: the validation split, never the test's.
        scores: float64[N], probability of the positive label.

    Returns:
        The threshold, above 0 and below 1, between the least and the highest score.

    Raises:
        ValueError: the labels are of one kind.
    """
    _check_kinds(labels)
    clipped = np.clip(scores, 1e-9, 1 - 1e-9)
    logits = np.log(clipped) - np.log1p(-clipped)
    low, high = float(logits.min()), float(logits.max())
    if high == low:
        return float(clipped[0])
    bandwidths = {kind: _bandwidth(logits[labels == kind], high - low) for kind in (True, False)}
    # The kernel has nothing left at four times its bandwidth.
    margin = 4 * max(bandwidths.values())
    edges = np.linspace(low - margin, high + margin, _GRID + 1)
    below = {
        kind: _smooth_distribution(logits[labels == kind], edges, bandwidths[kind])
        for kind in (True, False)
    }
    inside = (edges >= low) & (edges <= high)
    share = labels.mean()
    accuracy = (1 - share) * below[False] + share * (1 - below[True])
    accuracy = np.where(inside, accuracy, -np.inf)
    best = np.flatnonzero(accuracy >= accuracy.max() - 1e-9)
    plateau = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)[0]
    return float(1 / (1 + np.exp(-edges[plateau].mean())))


def calibrate(labels: Labels, logits: Floats) -> Calibration:
    """Return the line through the logits that makes their sigmoid a calibrated probability.

    Platt scaling (Probabilistic Outputs for Support Vector Machines, 1999): logistic
    regression of the label on the logit, without a penalty, with Platt's targets
    ``(P + 1) / (P + 2)`` and ``1 / (N + 2)`` for P positive and N negative texts in
    place of 1 and 0, so that kinds that don't overlap in a small split give no infinite
    scale. A linear last layer takes it exactly: ``w * scale``, ``b * scale + shift``.

    Args:
        labels: bool[N]: the validation split.
        logits: float64[N], finite.

    Returns:
        The fit; or, with the reason, no change where the labels or the logits are all
        the same, or higher logits don't go with the positive label.
    """
    positive, size = int(labels.sum()), len(labels)
    if positive in (0, size):
        return Calibration(1.0, 0.0, "the labels are all of one kind")
    mean, deviation = float(logits.mean()), float(logits.std())
    if deviation < _EPSILON * max(1.0, abs(mean)) * size:
        return Calibration(1.0, 0.0, "the logits are all the same")
    targets = np.where(labels, (positive + 1) / (positive + 2), 1 / (size - positive + 2))
    # A target between 0 and 1: the text is there with both labels, each with its weight.
    fit = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8).fit(
        np.tile((logits - mean) / deviation, 2)[:, np.newaxis],
        np.repeat([True, False], size),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    slope = float(fit.coef_[0, 0])
    if not slope > _EPSILON:
        return Calibration(1.0, 0.0, "higher logits don't go with the positive label")
    scale = slope / deviation
    return Calibration(scale, float(fit.intercept_[0]) - scale * mean, None)


def calibration_error(labels: Labels, scores: Floats) -> float:
    """Return the expected calibration error, 0 to 1, over 15 bins of equal count.

    The mean distance, over texts, between the mean score and the share of positive
    texts in a text's bin (Naeini, Cooper and Hauskrecht, 2015). Bins of equal count,
    not of equal width, have a like error each (Nixon et al., Measuring Calibration in
    Deep Learning, 2019). Even of perfect scores it is above 0, the less the more texts;
    `evaluate` leaves it out since resampling adds to it, so that an interval would lie
    above the value.

    Args:
        labels: bool[N], at least one.
        scores: float64[N], probability of the positive label.
    """
    bins = _equal_count_bins(scores, CALIBRATION_BINS)
    gaps = np.bincount(bins, weights=labels) - np.bincount(bins, weights=scores)
    return float(np.abs(gaps).sum() / len(labels))


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, `successes` of `count` (Wilson, 1927).

    It stays within 0 to 1 and holds for few texts and shares near 0 and 1.
    """
    share = successes / count
    spread = _Z * np.sqrt(share * (1 - share) / count + (_Z / count) ** 2 / 4)
    low, high = (share + _Z**2 / (2 * count) + np.array([-spread, spread])) / (1 + _Z**2 / count)
    # At shares of 0 and 1 rounding may push a bound past the share.
    return max(0.0, min(share, float(low))), min(1.0, max(share, float(high)))


def slices(
    labels: Labels,
    scores: Floats,
    *,
    threshold: float,
    lengths: Sequence[int],
    unknown_shares: Sequence[float],
    stars: Sequence[float | None],
    seed: int,
) -> pd.DataFrame:
    """Return how well the model does on parts of the texts, one row a part.

    The first row is all texts; then by whole stars where they are known, and by length
    and share of unknown words in up to five parts of about equal count. Columns:
    ``slice``, ``value`` (the range), ``n``, ``positive`` (share), and ``accuracy``,
    ``balanced_accuracy``, ``auroc``, each with its interval in ``..._low`` and
    ``..._high``: Wilson's for accuracy, bootstrapped for the others, which are missing
    in a part of one kind (as one star or five always are).

    Args:
        labels: bool[N], at least one.
        scores: float64[N], probability of the positive label.
        threshold: least score that is called positive.
        lengths: N lengths in tokens.
        unknown_shares: N shares of tokens that the model does not know.
        stars: N ratings, None where the data has none.
        seed: of the resampling.
    """
    groups: list[tuple[str, str, Labels]] = [("all", "", np.ones(len(labels), np.bool_))]
    whole = np.floor(np.array([np.nan if item is None else item for item in stars], np.float64))
    groups += [
        ("stars", f"{value:g}", whole == value) for value in np.unique(whole[~np.isnan(whole)])
    ]
    for name, values in (("length", lengths), ("unknown words", unknown_shares)):
        array = np.asarray(values, np.float64)
        bins = _equal_count_bins(array, SLICES)
        for number in range(bins.max() + 1):
            inside = array[bins == number]
            groups.append((name, _range(inside.min(), inside.max()), bins == number))
    return pd.DataFrame(
        {
            "slice": name,
            "value": value,
            **_judge(labels[chosen], scores[chosen], threshold=threshold, seed=seed),
        }
        for name, value, chosen in groups
    )


def histogram(values: Sequence[float], edges: Sequence[float]) -> Histogram:
    """Return how many of `values` lie between each two of `edges`; outliers count at the ends."""
    clipped = np.clip(values, edges[0], edges[-1])
    counts, _ = np.histogram(clipped, bins=np.asarray(edges))
    return Histogram(list(edges), [int(count) for count in counts])


def plot_roc(labels: Labels, scores: Floats) -> Figure:
    """Return the ROC curve with the line of chance."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    RocCurveDisplay.from_predictions(
        labels, scores, ax=axes, name="this model", plot_chance_level=True
    )
    axes.set(
        title="ROC on the test split",
        xlabel="share of negative texts called positive",
        ylabel="share of positive texts called positive",
    )
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
        cmap="Blues",
        values_format=",",
    )
    axes.set(xlabel="called", ylabel="is")
    axes.set_title(f"Confusion on the test split, threshold {threshold:.2f}")
    return figure


def plot_calibration(labels: Labels, scores: Floats) -> Figure:
    """Return the calibration curve over a histogram of the scores.

    A point for each of up to 15 bins of equal count: the mean score, and the share of
    positive texts with Wilson's 95 % interval (see `wilson`).
    """
    figure = Figure(figsize=(5, 6), layout="constrained")
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = _equal_count_bins(scores, CALIBRATION_BINS)
    sizes = np.bincount(bins)
    positives = np.bincount(bins[labels], minlength=len(sizes))
    shares = positives / sizes
    bounds = np.array(
        [wilson(*pair) for pair in zip(positives.tolist(), sizes.tolist(), strict=True)]
    )
    curve.plot([0, 1], [0, 1], linestyle="--", color="grey", label="perfect")
    curve.errorbar(
        np.bincount(bins, weights=scores) / sizes,
        shares,
        yerr=[shares - bounds[:, 0], bounds[:, 1] - shares],
        fmt="o-",
        markersize=4,
        capsize=2,
        label=f"this model, error {calibration_error(labels, scores):.3f}",
    )
    curve.set_ylabel("share of positive texts")
    curve.set_title("Calibration on the test split")
    curve.legend(loc="upper left")
    counts.hist(
        [scores[~labels], scores[labels]],
        bins=20,
        range=(0, 1),
        stacked=True,
        label=["negative", "positive"],
    )
    counts.set_xlabel("score")
    counts.set_ylabel("texts")
    # Most scores are near 0 and 1: the middle is free.
    counts.legend(loc="upper center")
    return figure


def _check_kinds(labels: Labels) -> None:
    if labels.all() or not labels.any():
        raise ValueError("the labels are all of one kind")


def _from_sums(sums: Floats) -> dict[str, float]:
    hits, false_alarms, misses, rejections, squares, losses = map(float, sums)
    size = hits + false_alarms + misses + rejections
    return {
        "accuracy": (hits + rejections) / size,
        "balanced_accuracy": (hits / (hits + misses) + rejections / (rejections + false_alarms))
        / 2,
        "f1": 2 * hits / (2 * hits + false_alarms + misses),
        "brier": squares / size,
        "log_loss": losses / size,
    }


def _judge(
    labels: Labels, scores: Floats, *, threshold: float, seed: int
) -> Mapping[str, float | None]:
    right = int((labels == (scores >= threshold)).sum())
    both = bool(labels.any() and not labels.all())
    metrics = evaluate(labels, scores, threshold=threshold, seed=seed) if both else {}
    row: dict[str, float | None] = {"n": len(labels), "positive": float(labels.mean())}
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        metric = metrics.get(name)
        if name == "accuracy":
            metric = Metric(right / len(labels), *wilson(right, len(labels)))
        row[name] = metric.value if metric else None
        row[f"{name}_low"] = metric.low if metric else None
        row[f"{name}_high"] = metric.high if metric else None
    return row


def _equal_count_bins(values: Floats, count: int) -> Integers:
    """Return int64[N], the bin of each value, from 0 without gaps; equal values share a bin."""
    edges = np.quantile(values, np.arange(1, count) / count, method="inverted_cdf")
    bins: Integers = np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)[1]
    return bins


def _range(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _bandwidth(values: Floats, span: float) -> float:
    """Return Silverman's bandwidth, or next to nothing where all `values` are equal."""
    deviation = float(values.std())
    quartiles = float(np.subtract(*np.quantile(values, [0.75, 0.25]))) / 1.34
    width = 0.9 * (min(deviation, quartiles) or deviation) * len(values) ** -0.2
    return float(max(width, span / _GRID))


def _smooth_distribution(values: Floats, edges: Floats, bandwidth: float) -> Floats:
    """Return float64[len(edges)]: the share of the smoothed `values` below each edge."""
    step = float(edges[1] - edges[0])
    radius = int(np.ceil(4 * bandwidth / step))
    offsets = np.arange(-radius, radius + 1) * step / bandwidth
    kernel = np.exp(-(offsets**2) / 2)
    counts, _ = np.histogram(values, edges)
    density = np.convolve(counts, kernel / kernel.sum(), mode="same")
    return np.concatenate([[0.0], np.cumsum(density)]) / len(values)
