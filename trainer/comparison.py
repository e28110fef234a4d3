"""Compare a new model with the version in production, and say whether it may follow it.

The digest of a text alone decides which split it is in: with the same shares, no text
of today's test split was in the training split of the served version, whatever file it
was trained on, so that the comparison is fair to both. A version trained with other
shares may have seen some of these texts, which only makes it harder on the new model.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from functions.predict.bundle import FILES, MANIFEST, BundleError, Metric, read_bundle
from functions.predict.scorer import Scorer
from trainer.evaluation import Floats, Integers, Labels, Ranking, interval, resamples
from trainer.flavor import SERVING_FOLDER

PROMOTE_ON = ("alias:production", "stage:Production")
"""What names the version to serve, in order: promote's own default."""
AUROC_FLOOR = 0.8
BEHAVIOUR_FLOOR = 0.7
"""A model that gives all texts the same score reaches 0.63."""
MARGIN = 0.01
"""How much of the served version's AUROC a new one may lose."""
BOOTSTRAP_SAMPLES = 1000
MAX_REASON = 500
"""Longest ``validation_reason``, in characters."""


class NotComparable(Exception):
    """There is no served version to compare with; the message says why."""


@dataclass(frozen=True)
class Served:
    """The version in production, ready to score."""

    version: str
    because: str
    """What names it, such as ``alias:production``."""
    scorer: Scorer
    threshold: float
    """Least score that it calls positive."""


@dataclass(frozen=True)
class Comparison:
    """A new model beside the served version, on the same texts."""

    version: str
    """The served version."""
    texts: int
    auroc: float
    """Of the new model."""
    served_auroc: float
    served_balanced_accuracy: float
    """At the served version's own threshold."""
    auroc_difference: Metric
    """New less served, with its 95 % interval."""
    balanced_accuracy_difference: Metric
    """New less served, each at its own threshold, with its 95 % interval."""

    def metrics(self) -> dict[str, float]:
        """Return the figures by name, for MLflow."""
        result = {
            "served_auroc": self.served_auroc,
            "served_balanced_accuracy": self.served_balanced_accuracy,
        }
        for name, metric in (
            ("difference_auroc", self.auroc_difference),
            ("difference_balanced_accuracy", self.balanced_accuracy_difference),
        ):
            low, high = _bounds(metric)
            result |= {name: metric.value, f"{name}_low": low, f"{name}_high": high}
        return result


@dataclass(frozen=True)
class Validation:
    """Whether a new model may be promoted."""

    passed: bool
    reasons: list[str]
    """What was looked at and found, what failed before the rest."""
    against: str | None
    """The served version that it was compared with, if it was."""


def load_served(
    client: mlflow.MlflowClient, model: str, *, sources: Sequence[str] = PROMOTE_ON
) -> Served:
    """Return the version that the registry names for production, as promote finds it.

    Args:
        client: of the MLflow server.
        model: name of the registered model.
        sources: ``alias:NAME`` or ``stage:NAME``; the first that names a version wins,
            and of several versions in a stage the one changed last.

    Raises:
        NotComparable: no version is named, or its bundle is gone or can't be read.
        mlflow.exceptions.MlflowException: the registry can't be asked.
    """
    found, because = _find(client, model, sources)
    version = str(found.version)
    try:
        folder = client.get_model_version_download_uri(model, version).rstrip("/")
        bundle = read_bundle(_download(f"{folder}/{SERVING_FOLDER}", client.tracking_uri))
    except (
        *(BundleError, MlflowException, OSError),
        *(GoogleAPIError, GoogleAuthError, RequestException),
    ) as error:
        words = " ".join(str(error).split())
        raise NotComparable(f"version {version} ({because}) can't be read: {words}") from error
    return Served(version, because, bundle.scorer, bundle.manifest.threshold)


def compare(
    labels: Labels,
    candidate_scores: Floats,
    served_scores: Floats,
    *,
    threshold: float,
    served_threshold: float,
    version: str,
    seed: int,
) -> Comparison:
    """Return how much better the new model is than the served version on a test split.

    The intervals are percentile intervals of a paired bootstrap: both models are
    judged on each resample, so that what makes a text hard for both cancels out
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).

    Args:
        labels: bool[N], both kinds present.
        candidate_scores: float64[N] of the new model.
        served_scores: float64[N] of the served version, for the same texts.
        threshold: least score that the new model calls positive.
        served_threshold: least score that the served version calls positive.
        version: the served version.
        seed: of the resampling.

    Raises:
        ValueError: the labels are of one kind.
    """
    rankings = Ranking(labels, candidate_scores), Ranking(labels, served_scores)
    right = np.stack(
        [
            labels == (candidate_scores >= threshold),
            labels == (served_scores >= served_threshold),
        ]
    ).astype(np.float64)

    def judge(counts: Integers) -> Floats:
        """Return float64[2 metrics, 2 models]."""
        positive, negative = counts * labels, counts * ~labels
        balanced = right @ positive / positive.sum() + right @ negative / negative.sum()
        return np.array([[ranking.auroc(counts) for ranking in rankings], balanced / 2])

    whole = judge(np.ones(len(labels), np.int64))
    differences = np.array(
        [
            np.subtract(*judge(counts).T)
            for counts in resamples(labels, BOOTSTRAP_SAMPLES, seed=seed)
        ]
    )
    auroc, balanced_accuracy = (
        Metric(float(new - served), *interval(resampled))
        for (new, served), resampled in zip(whole, differences.T.tolist(), strict=True)
    )
    return Comparison(
        version=version,
        texts=len(labels),
        auroc=float(whole[0, 0]),
        served_auroc=float(whole[0, 1]),
        served_balanced_accuracy=float(whole[1, 1]),
        auroc_difference=auroc,
        balanced_accuracy_difference=balanced_accuracy,
    )


def verdict(
    *,
    auroc: float,
    behaviour: float,
    comparison: Comparison | str,
    auroc_floor: float = AUROC_FLOOR,
    behaviour_floor: float = BEHAVIOUR_FLOOR,
    margin: float = MARGIN,
) -> Validation:
    """Return whether a new model may be promoted, and why.

    It may when its figures reach their floors and it is shown to be not worse than
    the served version by more than the margin: the whole interval of the difference
    in AUROC lies above ``-margin`` (a test of non-inferiority; Piaggio et al., JAMA
    308, 2012). A test split too small to show it fails, and the reason says so.

    Args:
        auroc: on the test split.
        behaviour: share of the behavioural tests passed, 0 to 1.
        comparison: with the served version; or, in words, why there is none, which is
            no reason to fail.
        auroc_floor: least AUROC.
        behaviour_floor: least share of the behavioural tests.
        margin: most that the AUROC may fall.
    """
    checks = [
        _floor("AUROC", auroc, auroc_floor),
        _floor("share of behavioural tests passed", behaviour, behaviour_floor),
    ]
    if isinstance(comparison, str):
        checks.append((True, f"not compared: {comparison}"))
    else:
        checks.append(_no_worse(comparison, margin))
    return Validation(
        all(passed for passed, _ in checks),
        [reason for _, reason in sorted(checks, key=lambda check: check[0])],
        None if isinstance(comparison, str) else comparison.version,
    )


def tags(validation: Validation) -> dict[str, str]:
    """Return the tags of the run and of the model version, which promote reads.

    ``validation`` is ``passed`` or ``failed``, ``validation_reason`` the reasons in at
    most 500 characters, ``validation_against`` the served version, if there was one.
    """
    reason = "; ".join(validation.reasons)
    if len(reason) > MAX_REASON:
        reason = f"{reason[: MAX_REASON - 1]}…"
    result = {
        "validation": "passed" if validation.passed else "failed",
        "validation_reason": reason,
    }
    if validation.against is not None:
        result["validation_against"] = validation.against
    return result


def _find(
    client: mlflow.MlflowClient, model: str, sources: Sequence[str]
) -> tuple[ModelVersion, str]:
    try:
        for source in sources:
            kind, _, name = source.partition(":")
            if kind == "alias":
                number = client.get_registered_model(model).aliases.get(name)
                versions = [] if number is None else [client.get_model_version(model, str(number))]
            else:
                versions = [
                    version
                    for version in client.search_model_versions(f"name='{model}'")
                    if (version.current_stage or "").lower() == name.lower()
                ]
            if versions:
                newest = max(
                    versions, key=lambda item: (item.last_updated_timestamp or 0, int(item.version))
                )
                return newest, source
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    raise NotComparable(f"no version of {model} is in production ({', '.join(sources)})")


def _download(uri: str, tracking_uri: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as target:
        folder = Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=target, tracking_uri=tracking_uri
            )
        )
        names = (MANIFEST, *FILES)
        return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def _floor(name: str, value: float, floor: float) -> tuple[bool, str]:
    # Written so that NaN fails.
    if value >= floor:
        return True, f"{name} {value:.4f} reaches {floor:g}"
    return False, f"{name} {value:.4f} is below {floor:g}"


def _no_worse(comparison: Comparison, margin: float) -> tuple[bool, str]:
    difference = comparison.auroc_difference
    low, high = _bounds(difference)
    version = f"version {comparison.version}"
    figures = (
        f"AUROC {comparison.auroc:.4f} against {comparison.served_auroc:.4f}, "
        f"difference {difference.value:+.4f} [{low:+.4f}, {high:+.4f}] "
        f"on {comparison.texts:,} texts"
    )
    if low > -margin:
        return True, f"not worse than {version} by {margin:g} or more: {figures}"
    if high < -margin:
        return False, f"worse than {version} by more than {margin:g}: {figures}"
    return False, (
        f"not shown to be within {margin:g} of {version}: {figures}; "
        "more texts in the test split would tell"
    )


def _bounds(metric: Metric) -> tuple[float, float]:
    assert metric.low is not None  # noqa: S101  # `compare` always estimates them
    assert metric.high is not None  # noqa: S101
    return metric.low, metric.high
