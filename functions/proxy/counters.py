"""What predictions add to the counters. Pure functions on plain data.

Every counter is a whole number: sums are exact in any order, and taking a prediction
away again leaves what there was before.

========================  =====================================================
``count``                 predictions
``positive``              those that the model called positive
``score_nano``            sum of the scores, in thousand-millionths
``true_positive`` ...     answered ones, by what the model said and whether the
                          user agreed
``capped_answered``       answers among their caller's first ones of a day
``capped_correct``        those of them that agree with the model
``elapsed_micros``        sum of the requests' times, in microseconds
``latency_<bucket>``      requests by their time, in logarithmic buckets
========================  =====================================================
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from functions.proxy.prediction import Prediction

UNKNOWN_REVISION = "unknown"

LATENCY = "latency_"
BUCKETS_PER_DECADE = 10
MIN_SECONDS = 0.001
MAX_BUCKET = 60

Counts = Mapping[str, int]


def bucket_of(seconds: float) -> int:
    """Return the number of the bucket for a request of `seconds`.

    Bucket 0 ends at a millisecond, bucket n at ``0.001 * 10 ** (n / 10)``; the last one,
    60, has everything above 794 s as well.
    """
    if seconds <= MIN_SECONDS:
        return 0
    # Less than a rounding error: 0.01 s is bucket 10's, not 11's.
    exact = BUCKETS_PER_DECADE * math.log10(seconds / MIN_SECONDS) - 1e-9
    return min(MAX_BUCKET, math.ceil(exact))


def upper_bound(bucket: int) -> float:
    """Return the most seconds of a request in this bucket."""
    return float(MIN_SECONDS * 10 ** (bucket / BUCKETS_PER_DECADE))


def tally(prediction: Prediction) -> Counter[str]:
    """Return what one prediction adds to the counters of its version."""
    counts = Counter(count=1, score_nano=round(prediction.score * 1e9))
    model, user = prediction.is_positive_model_answered, prediction.is_positive_user_answered
    if model:
        counts["positive"] = 1
    if user is not None:
        agreed = "true" if user is model else "false"
        counts[f"{agreed}_{'positive' if model else 'negative'}"] = 1
    if prediction.capped_answer is not None:
        counts["capped_answered"] = 1
        counts["capped_correct"] = int(prediction.capped_answer is model)
    if prediction.elapsed is not None:
        counts["elapsed_micros"] = round(prediction.elapsed * 1e6)
        counts[f"{LATENCY}{bucket_of(prediction.elapsed)}"] = 1
    return counts


@dataclass
class Changes:
    """What a commit adds to the statistics' documents.

    Attributes:
        versions: (day, model version) -> counter -> what to add.
        revisions: (day, revision) -> ``predictions`` or ``failed`` -> what to add.
        version_of: revision -> the model version that it serves, where that is known.
    """

    versions: defaultdict[tuple[str, str], Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    revisions: defaultdict[tuple[str, str], Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    version_of: dict[str, str] = field(default_factory=dict)

    def add(self, prediction: Prediction) -> None:
        """Count a new prediction."""
        self._count(prediction, 1)
        self.version_of[prediction.revision or UNKNOWN_REVISION] = prediction.model_version

    def remove(self, prediction: Prediction) -> None:
        """Count a prediction no longer."""
        self._count(prediction, -1)

    def replace(self, old: Prediction, new: Prediction) -> None:
        """Count `new` instead of `old`, the same prediction with another answer."""
        if old.is_counted:
            counts = self.versions[old.day, old.model_version]
            counts.update(tally(new))
            counts.subtract(tally(old))

    def fail(self, day: str, revision: str | None) -> None:
        """Count a request that predict did not answer."""
        self.revisions[day, revision or UNKNOWN_REVISION]["failed"] += 1

    def totals(self) -> dict[str, Counter[str]]:
        """Return version -> counter -> what to add, of all days together."""
        totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for (_, version), counts in self.versions.items():
            totals[version].update(counts)
        return dict(totals)

    def months(self) -> list[str]:
        """Return the months in which something changes, ``2021-02``."""
        return sorted({day[:7] for day, _ in (*self.versions, *self.revisions)})

    def _count(self, prediction: Prediction, sign: int) -> None:
        if not prediction.is_counted:
            return
        counts = self.versions[prediction.day, prediction.model_version]
        for name, value in tally(prediction).items():
            counts[name] += sign * value
        revision = prediction.revision or UNKNOWN_REVISION
        self.revisions[prediction.day, revision]["predictions"] += sign


def add_up(counts: Iterable[Counts]) -> Counter[str]:
    """Return the sum of `counts`, in which negative ones have their place."""
    total: Counter[str] = Counter()
    for one in counts:
        for name, value in one.items():
            total[name] += value
    return total
