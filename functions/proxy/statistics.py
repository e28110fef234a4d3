"""Statistics, folded from the counters. Pure functions on plain data."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from functions.proxy.counters import LATENCY, Counts, add_up, upper_bound

# Standard normal quantile of a two-sided 95 % interval.
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Counters of some shards, as they are stored.

    Attributes:
        totals: one mapping a shard: model version -> counter -> value, of all time.
        days: one mapping a shard: day -> model version -> counter -> value.
        revisions: one mapping a shard: day -> revision -> ``predictions``, ``failed`` and
            ``model_version``.
    """

    totals: list[Mapping[str, Counts]] = field(default_factory=list)
    days: list[Mapping[str, Mapping[str, Counts]]] = field(default_factory=list)
    revisions: list[Mapping[str, Mapping[str, Mapping[str, int | str]]]] = field(
        default_factory=list
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Answered predictions by what the model said, and whether the user agreed."""

    true_positive: int
    true_negative: int
    false_positive: int
    false_negative: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of whole requests; the percentiles within the width of a bucket, 26 %."""

    p50: float
    p95: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What a set of predictions says.

    Attributes:
        correctness_rate: correct / answered; None with no answers yet.
        correctness_interval: its Wilson interval of 95 %; None with no answers yet.
        predictions: predictions made.
        answered: predictions for which the user gave an answer.
        correct: answered predictions where user and model agree.
        positive_rate: share that the model called positive; None with no predictions.
        mean_score: mean of the model's scores; None with no predictions.
        confusion: the answered ones, four ways.
        latency: of the requests; None with no predictions.
    """

    correctness_rate: float | None
    correctness_interval: tuple[float, float] | None
    predictions: int
    answered: int
    correct: int
    positive_rate: float | None
    mean_score: float | None
    confusion: Confusion
    latency: Latency | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capped:
    """Answers, at most some of each caller, model version and day."""

    answered: int
    correct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionMeasures(Measures):
    """The measures of one model version."""

    model_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStatistics(VersionMeasures):
    """The measures of one model version; `capped` are the answers that a rollout heeds."""

    capped: Capped


@dataclass(frozen=True, slots=True, kw_only=True)
class DayStatistics(Measures):
    """The measures of one UTC day, ``2021-02-04``, and of each model version on it."""

    day: str
    by_model_version: list[VersionMeasures]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionStatistics:
    """How often a Cloud Run revision answered, and how often it failed to.

    ``unknown`` stands for failures of which no revision could be told.
    """

    revision: str
    model_version: str | None
    predictions: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics(Measures):
    """The measures of everything; versions in rising order, days oldest first."""

    by_model_version: list[VersionStatistics]
    by_day: list[DayStatistics]
    by_revision: list[RevisionStatistics]


class _Measures(TypedDict):
    correctness_rate: float | None
    correctness_interval: tuple[float, float] | None
    predictions: int
    answered: int
    correct: int
    positive_rate: float | None
    mean_score: float | None
    confusion: Confusion
    latency: Latency | None


def fold(shards: Shards, *, since: str, until: str, all_time: bool) -> Statistics:
    """Fold shards, in any order and however many, into statistics.

    Args:
        shards: the counters.
        since: first UTC day of the range, ``2021-02-04``.
        until: last UTC day of the range, included.
        all_time: the whole and the versions are of all time, else of the range.
    """
    by_day: defaultdict[str, defaultdict[str, list[Counts]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for month in shards.days:
        for day, versions in month.items():
            if since <= day <= until:
                for version, counts in versions.items():
                    by_day[day][version].append(counts)
    days = {day: _add_up_each(versions) for day, versions in by_day.items()}

    totals: defaultdict[str, list[Counts]] = defaultdict(list)
    for group in shards.totals if all_time else days.values():
        for version, counts in group.items():
            totals[version].append(counts)
    versions = _add_up_each(totals)
    return Statistics(
        **_measure(add_up(versions.values())),
        by_model_version=[
            VersionStatistics(
                model_version=version,
                capped=Capped(answered=counts["capped_answered"], correct=counts["capped_correct"]),
                **_measure(counts),
            )
            for version, counts in _rising(versions)
        ],
        by_day=[
            DayStatistics(
                day=day,
                by_model_version=[
                    VersionMeasures(model_version=version, **_measure(counts))
                    for version, counts in _rising(days[day])
                ],
                **_measure(add_up(days[day].values())),
            )
            for day in sorted(days)
            if days[day]
        ],
        by_revision=_revisions(shards, since, until),
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the Wilson score interval of 95 % of a proportion.

    Args:
        successes: 0 to `trials`.
        trials: at least 1.

    References:
        E. B. Wilson, Probable Inference, the Law of Succession, and Statistical
        Inference, Journal of the American Statistical Association 22 (1927).
    """
    rate = successes / trials
    square = _Z * _Z
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = (
        _Z
        * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials * trials))
        / (1 + square / trials)
    )
    # At the ends the interval reaches 0 or 1, which rounding would miss.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def percentile(buckets: Mapping[int, int], share: float) -> float:
    """Return the time in seconds that this share of requests took at most.

    Interpolated in the logarithm between the bounds of the bucket it falls in.

    Args:
        buckets: number of a bucket -> requests in it, at least one in all.
        share: more than 0, at most 1.
    """
    rank = share * sum(buckets.values())
    below = 0
    for bucket in sorted(buckets):
        inside = buckets[bucket]
        if inside > 0 and below + inside >= rank:
            low, high = upper_bound(bucket - 1), upper_bound(bucket)
            return low * math.pow(high / low, max(0.0, rank - below) / inside)
        below += inside
    return upper_bound(max(buckets))


def _measure(counts: Counter[str]) -> _Measures:
    predictions = counts["count"]
    correct = counts["true_positive"] + counts["true_negative"]
    answered = correct + counts["false_positive"] + counts["false_negative"]
    return {
        "correctness_rate": correct / answered if answered else None,
        "correctness_interval": wilson_interval(correct, answered) if answered else None,
        "predictions": predictions,
        "answered": answered,
        "correct": correct,
        "positive_rate": counts["positive"] / predictions if predictions else None,
        "mean_score": counts["score_nano"] / predictions / 1e9 if predictions else None,
        "confusion": Confusion(
            true_positive=counts["true_positive"],
            true_negative=counts["true_negative"],
            false_positive=counts["false_positive"],
            false_negative=counts["false_negative"],
        ),
        "latency": _latency(counts),
    }


def _latency(counts: Counter[str]) -> Latency | None:
    buckets = {
        int(name.removeprefix(LATENCY)): value
        for name, value in counts.items()
        if name.startswith(LATENCY) and value > 0
    }
    if not buckets:
        return None
    return Latency(
        p50=percentile(buckets, 0.5),
        p95=percentile(buckets, 0.95),
        mean=counts["elapsed_micros"] / sum(buckets.values()) / 1e6,
    )


def _revisions(shards: Shards, since: str, until: str) -> list[RevisionStatistics]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    version_of: dict[str, str] = {}
    for month in shards.revisions:
        for day, revisions in month.items():
            if not since <= day <= until:
                continue
            for revision, members in revisions.items():
                for name, value in members.items():
                    if isinstance(value, int):
                        counts[revision][name] += value
                    else:
                        version_of[revision] = value
    return [
        RevisionStatistics(
            revision=revision,
            model_version=version_of.get(revision),
            predictions=counts[revision]["predictions"],
            failed=counts[revision]["failed"],
        )
        for revision in sorted(counts)
        if any(counts[revision].values())
    ]


def _add_up_each(groups: Mapping[str, list[Counts]]) -> dict[str, Counter[str]]:
    """Return group -> sum, without groups in which every prediction was deleted."""
    sums = {name: add_up(counts) for name, counts in groups.items()}
    return {name: counts for name, counts in sums.items() if any(counts.values())}


def _rising(versions: dict[str, Counter[str]]) -> list[tuple[str, Counter[str]]]:
    # Registry versions are whole numbers: 9 comes before 10.
    return sorted(versions.items(), key=lambda item: (len(item[0]), item[0]))
