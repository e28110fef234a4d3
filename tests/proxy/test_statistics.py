"""The folding of counters, as properties."""

import math

from hypothesis import given
from hypothesis import strategies as st

from functions.proxy.statistics import Counter, count_one, fold


@st.composite
def one_prediction(draw: st.DrawFn) -> Counter:
    return count_one(
        day=draw(st.dates().map(str)) if draw(st.booleans()) else "2021-02-04",
        model_version=str(draw(st.integers(1, 12))),
        user=draw(st.none() | st.booleans()),
        model=draw(st.booleans()),
        # Sixteenths add up without rounding.
        score=draw(st.integers(0, 16)) / 16,
    )


def add(one: Counter, other: Counter) -> Counter:
    """Add as Firestore's increments do."""
    return Counter(
        day=one.day,
        model_version=one.model_version,
        count=one.count + other.count,
        answered=one.answered + other.answered,
        correct=one.correct + other.correct,
        positive=one.positive + other.positive,
        score_sum=one.score_sum + other.score_sum,
    )


predictions = st.lists(one_prediction(), max_size=40)


@given(predictions, st.integers(1, 10), st.randoms())
def test_shards_and_order_change_nothing(ones: list[Counter], shards: int, random: object) -> None:
    documents: dict[tuple[str, str, int], Counter] = {}
    for number, one in enumerate(ones):
        key = (one.day, one.model_version, number % shards)
        documents[key] = add(documents[key], one) if key in documents else one
    shuffled = list(documents.values())
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert fold(shuffled) == fold(ones)


@given(predictions)
def test_groups_add_up_to_the_whole(ones: list[Counter]) -> None:
    statistics = fold(ones)

    assert statistics.predictions == len(ones)
    for groups in (statistics.by_day, statistics.by_model_version):
        assert sum(group.predictions for group in groups) == statistics.predictions
        assert sum(group.answered for group in groups) == statistics.answered
        assert sum(group.correct for group in groups) == statistics.correct
    assert [day.day for day in statistics.by_day] == sorted({one.day for one in ones})
    versions = [int(version.model_version) for version in statistics.by_model_version]
    assert versions == sorted({int(one.model_version) for one in ones})


@given(predictions)
def test_rates_are_rates(ones: list[Counter]) -> None:
    statistics = fold(ones)

    assert statistics.correct <= statistics.answered <= statistics.predictions
    assert (statistics.correctness_rate is None) == (statistics.answered == 0)
    assert (statistics.mean_score is None) == (statistics.predictions == 0)
    if statistics.correctness_rate is not None:
        assert math.isclose(
            statistics.correctness_rate * statistics.answered, statistics.correct, abs_tol=1e-9
        )
    for rate in (statistics.correctness_rate, statistics.positive_rate, statistics.mean_score):
        assert rate is None or 0 <= rate <= 1
