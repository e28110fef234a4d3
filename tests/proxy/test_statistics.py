"""Counting and folding, as properties: exact in any order, and undone without a trace."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from random import Random
from typing import Any

import pytest
from google.cloud import firestore
from hypothesis import given
from hypothesis import strategies as st

from functions.proxy.counters import Changes, bucket_of, tally, upper_bound
from functions.proxy.documents import month_increments, total_increments
from functions.proxy.prediction import Prediction
from functions.proxy.statistics import Shards, Statistics, fold, percentile, wilson_interval

FIRST, LAST = date(2021, 1, 30), date(2021, 3, 2)


@st.composite
def one_prediction(draw: st.DrawFn) -> Prediction:
    day = draw(st.dates(FIRST, LAST))
    return Prediction(
        id="0" * 32,
        text="a text",
        is_positive_user_answered=draw(st.none() | st.booleans()),
        is_positive_model_answered=draw(st.booleans()),
        mlflow_run_id="run",
        inference_elapsed=0.001,
        timestamp=datetime.combine(day, draw(st.times()), UTC),
        score=draw(st.floats(0, 1)),
        model_version=str(draw(st.integers(1, 12))),
        revision=draw(st.sampled_from([None, "predict-00001-abc", "predict-00002-abc"])),
        elapsed=draw(st.none() | st.floats(0, 1e4)),
        request_digest="",
        capped_answer=draw(st.none() | st.booleans()),
    )


Document = dict[str, Any]


def merge(stored: Document, update: Mapping[str, Any]) -> None:
    """Do as Firestore does with ``merge=True``: an empty map takes the place of what is there."""
    for name, value in update.items():
        if isinstance(value, firestore.Increment):
            stored[name] = stored.get(name, 0) + value.value
        elif isinstance(value, dict) and value:
            merge(stored.setdefault(name, {}), value)
        else:
            stored[name] = value


class Documents:
    """Firestore's shards in plain Python."""

    def __init__(self, shards: int) -> None:
        self.totals: list[Document] = [{} for _ in range(shards)]
        self.months: dict[tuple[str, int], Document] = {}

    def commit(self, changes: Changes, shard: int) -> None:
        merge(self.totals[shard], total_increments(changes))
        for month in changes.months():
            document = self.months.setdefault((month, shard), {})
            merge(document, month_increments(changes, month))

    def fold(self, first: date = FIRST, last: date = LAST, *, all_time: bool = True) -> Statistics:
        shards = Shards(
            totals=[document.get("versions", {}) for document in self.totals],
            days=[document.get("days", {}) for document in self.months.values()],
            revisions=[document.get("revisions", {}) for document in self.months.values()],
        )
        return fold(shards, since=str(first), until=str(last), all_time=all_time)


def counted(predictions: list[Prediction]) -> Statistics:
    documents, changes = Documents(1), Changes()
    for prediction in predictions:
        changes.add(prediction)
    documents.commit(changes, 0)
    return documents.fold()


predictions = st.lists(one_prediction(), max_size=30)


@given(predictions, st.integers(1, 10), st.randoms(use_true_random=False))
def test_shards_groups_and_order_change_nothing(
    ones: list[Prediction], shards: int, random: Random
) -> None:
    documents = Documents(shards)
    shuffled = [*ones]
    random.shuffle(shuffled)
    while shuffled:
        changes = Changes()
        for _ in range(min(len(shuffled), random.randint(1, 5))):
            changes.add(shuffled.pop())
        documents.commit(changes, random.randrange(shards))

    # Which of two versions a revision is said to serve, where it can't serve two, may differ.
    found, expected = documents.fold(), counted(ones)
    assert replace(found, by_revision=[]) == replace(expected, by_revision=[])


@given(predictions, predictions)
def test_what_is_removed_leaves_no_trace(kept: list[Prediction], removed: list[Prediction]) -> None:
    documents = Documents(2)
    for number, prediction in enumerate([*kept, *removed]):
        changes = Changes()
        changes.add(prediction)
        documents.commit(changes, number % 2)
    for number, prediction in enumerate(removed):
        changes = Changes()
        changes.remove(prediction)
        documents.commit(changes, number % 2)

    found, expected = documents.fold(), counted(kept)
    assert replace(found, by_revision=[]) == replace(expected, by_revision=[])


@given(one_prediction(), st.none() | st.booleans(), st.none() | st.booleans())
def test_a_changed_answer_counts_as_if_given_at_first(
    old: Prediction, user: bool | None, capped: bool | None
) -> None:
    new = replace(old, is_positive_user_answered=user, capped_answer=capped)
    documents = Documents(1)
    added, replaced = Changes(), Changes()
    added.add(old)
    replaced.replace(old, new)
    documents.commit(added, 0)
    documents.commit(replaced, 0)

    assert documents.fold() == counted([new])


@st.composite
def some_changes(draw: st.DrawFn) -> Changes:
    """Return what any commit may hold, also what takes itself back."""
    changes = Changes()
    for one in draw(st.lists(one_prediction(), max_size=6)):
        for kind in draw(st.lists(st.sampled_from(["add", "remove", "answer", "fail"]))):
            if kind == "add":
                changes.add(one)
            elif kind == "remove":
                changes.remove(one)
            elif kind == "answer":
                changes.replace(one, replace(one, is_positive_user_answered=draw(st.booleans())))
            else:
                changes.fail(one.day, one.revision)
    return changes


def has_empty_map(value: object) -> bool:
    return isinstance(value, dict) and (not value or any(map(has_empty_map, value.values())))


@given(some_changes())
def test_no_empty_map_is_merged(changes: Changes) -> None:
    """It would take the place of all counters that are stored there."""
    for update in (
        total_increments(changes),
        *(month_increments(changes, month) for month in changes.months()),
    ):
        assert not any(map(has_empty_map, update.values()))


@given(predictions, some_changes())
def test_what_is_stored_stays(ones: list[Prediction], changes: Changes) -> None:
    documents, first = Documents(1), Changes()
    for one in ones:
        first.add(one)
    documents.commit(first, 0)
    documents.commit(changes, 0)
    for (day, version), counts in changes.versions.items():
        back = Changes()
        back.versions[day, version].subtract(counts)
        documents.commit(back, 0)
    for place, counts in changes.revisions.items():
        back = Changes()
        back.revisions[place].subtract(counts)
        documents.commit(back, 0)

    found, expected = documents.fold(), counted(ones)
    assert replace(found, by_revision=[]) == replace(expected, by_revision=[])
    assert [(item.revision, item.predictions, item.failed) for item in found.by_revision] == [
        (item.revision, item.predictions, item.failed) for item in expected.by_revision
    ]


@given(predictions)
def test_statistics_say_what_the_predictions_say(ones: list[Prediction]) -> None:
    statistics = counted(ones)

    answered = [one for one in ones if one.is_positive_user_answered is not None]
    agreed = [one for one in answered if not one.disagrees]
    assert statistics.predictions == len(ones)
    assert (statistics.answered, statistics.correct) == (len(answered), len(agreed))
    assert sum(item.capped.answered for item in statistics.by_model_version) == sum(
        one.capped_answer is not None for one in ones
    )
    if ones:
        mean = math.fsum(one.score for one in ones) / len(ones)
        assert statistics.mean_score == pytest.approx(mean, abs=1e-9)
        positive = sum(one.is_positive_model_answered for one in ones)
        assert statistics.positive_rate == positive / len(ones)
    for groups in (statistics.by_day, statistics.by_model_version):
        assert sum(group.predictions for group in groups) == len(ones)
        assert sum(group.correct for group in groups) == len(agreed)
    assert sum(item.predictions for item in statistics.by_revision) == len(ones)
    assert [day.day for day in statistics.by_day] == sorted({one.day for one in ones})
    versions = [int(item.model_version) for item in statistics.by_model_version]
    assert versions == sorted({int(one.model_version) for one in ones})


@given(predictions, st.dates(FIRST, LAST), st.integers(0, 40))
def test_a_range_has_its_days_only(ones: list[Prediction], first: date, length: int) -> None:
    last = first + timedelta(days=length)
    documents, changes = Documents(1), Changes()
    for prediction in ones:
        changes.add(prediction)
    documents.commit(changes, 0)

    inside = [one for one in ones if first <= one.timestamp.date() <= last]
    found = documents.fold(first, last, all_time=False)
    assert replace(found, by_revision=[]) == replace(counted(inside), by_revision=[])
    assert documents.fold(first, last).predictions == len(ones)


def test_failures_are_counted_by_revision() -> None:
    documents, changes = Documents(1), Changes()
    changes.fail("2021-02-04", "predict-00001-abc")
    changes.fail("2021-02-04", None)
    changes.fail("2021-01-29", None)
    documents.commit(changes, 0)

    statistics = documents.fold()

    assert [(item.revision, item.failed) for item in statistics.by_revision] == [
        ("predict-00001-abc", 1),
        ("unknown", 1),
    ]
    assert statistics.predictions == 0
    assert statistics.by_day == []


def test_predictions_of_an_older_schema_are_not_counted() -> None:
    old = replace(
        Prediction(
            id="0" * 32,
            text="a text",
            is_positive_user_answered=None,
            is_positive_model_answered=True,
            mlflow_run_id="run",
            inference_elapsed=0.001,
            timestamp=datetime.combine(FIRST, time(), UTC),
            score=0.5,
            model_version="1",
            revision=None,
            request_digest="",
        ),
        is_counted=False,
    )
    changes = Changes()
    changes.remove(old)
    changes.replace(old, replace(old, is_positive_user_answered=True))

    assert changes.totals() == {}
    assert changes.months() == []


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate(answers: tuple[int, int]) -> None:
    successes, trials = answers
    low, high = wilson_interval(successes, trials)

    assert 0 <= low <= successes / trials <= high <= 1
    assert low == pytest.approx(1 - wilson_interval(trials - successes, trials)[1], abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Wilson's intervals as statsmodels 0.14 computes them.
    [(0, 10, 0.0, 0.2775328), (20, 25, 0.6086905, 0.9113942), (500, 1000, 0.4690700, 0.5309300)],
)
def test_known_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-6)


@given(st.floats(0, 500))
def test_a_bucket_holds_its_times(seconds: float) -> None:
    bucket = bucket_of(seconds)

    assert seconds <= upper_bound(bucket) * (1 + 1e-8)
    assert bucket == 0 or seconds >= upper_bound(bucket - 1) * (1 - 1e-8)


@given(st.lists(st.floats(0.001, 500), min_size=1, max_size=50), st.floats(0.01, 1))
def test_percentiles_are_within_a_bucket(times: list[float], share: float) -> None:
    buckets = Counter(map(bucket_of, times))
    exact = sorted(times)[math.ceil(share * len(times) - 1e-9) - 1]

    assert exact / 1.26 <= percentile(buckets, share) <= exact * 1.26


@given(one_prediction())
def test_every_counter_is_a_whole_number(prediction: Prediction) -> None:
    assert all(isinstance(value, int) for value in tally(prediction).values())
