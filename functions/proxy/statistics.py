"""Statistics over all predictions, folded from counters. Pure functions on plain data."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypedDict


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts of one UTC day and one model version, or of one shard of them.

    Attributes:
        day: UTC day, ``2021-02-04``.
        model_version: version in the model registry.
        count: predictions made.
        answered: predictions for which the user gave an answer.
        correct: answered predictions where user and model agree.
        positive: predictions that the model called positive.
        score_sum: sum of the model's scores.
    """

    day: str
    model_version: str
    count: int
    answered: int
    correct: int
    positive: int
    score_sum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a set of counters says.

    Attributes:
        correctness_rate: correct / answered; None with no answers yet.
        predictions: predictions made.
        answered: predictions for which the user gave an answer.
        correct: answered predictions where user and model agree.
        positive_rate: share that the model called positive; None with no predictions.
        mean_score: mean of the model's scores; None with no predictions.
    """

    correctness_rate: float | None
    predictions: int
    answered: int
    correct: int
    positive_rate: float | None
    mean_score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersionSummary(Summary):
    """The summary of one model version."""

    model_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DaySummary(Summary):
    """The summary of one UTC day, ``2021-02-04``."""

    day: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics(Summary):
    """The summary of everything; versions in rising order, days oldest first."""

    by_model_version: list[ModelVersionSummary]
    by_day: list[DaySummary]


class _Measures(TypedDict):
    correctness_rate: float | None
    predictions: int
    answered: int
    correct: int
    positive_rate: float | None
    mean_score: float | None


def count_one(
    *, day: str, model_version: str, user: bool | None, model: bool, score: float
) -> Counter:
    """Return the counter of a single prediction, with the user's and the model's answer."""
    return Counter(
        day=day,
        model_version=model_version,
        count=1,
        answered=int(user is not None),
        correct=int(user is model),
        positive=int(model),
        score_sum=score,
    )


def fold(counters: Iterable[Counter]) -> Statistics:
    """Fold `counters`, in any order and however they are sharded, into statistics."""
    everything = list(counters)
    versions = _group(everything, lambda counter: counter.model_version)
    days = _group(everything, lambda counter: counter.day)
    return Statistics(
        **_measure(everything),
        by_model_version=[
            ModelVersionSummary(model_version=version, **_measure(versions[version]))
            for version in sorted(versions, key=_rising)
        ],
        by_day=[DaySummary(day=day, **_measure(days[day])) for day in sorted(days)],
    )


def _measure(counters: list[Counter]) -> _Measures:
    predictions = sum(counter.count for counter in counters)
    answered = sum(counter.answered for counter in counters)
    correct = sum(counter.correct for counter in counters)
    positive = sum(counter.positive for counter in counters)
    # fsum: the same numbers in another order give the same mean.
    scores = math.fsum(counter.score_sum for counter in counters)
    return {
        "correctness_rate": correct / answered if answered else None,
        "predictions": predictions,
        "answered": answered,
        "correct": correct,
        "positive_rate": positive / predictions if predictions else None,
        "mean_score": scores / predictions if predictions else None,
    }


def _group(counters: list[Counter], key: Callable[[Counter], str]) -> dict[str, list[Counter]]:
    groups: defaultdict[str, list[Counter]] = defaultdict(list)
    for counter in counters:
        groups[key(counter)].append(counter)
    return groups


def _rising(version: str) -> tuple[int, str]:
    # Registry versions are whole numbers: 9 comes before 10.
    return len(version), version
