"""The sample of reviews: large, mixed and varied enough to show a training with."""

import re
from collections import Counter

import pytest

from trainer.parameters import Parameters
from trainer.reviews import SAMPLE, Reviews, position_of, read_reviews, split_of


@pytest.fixture(scope="module")
def sample() -> Reviews:
    return read_reviews(SAMPLE, max_bad_share=0)


def test_it_is_large_enough(sample: Reviews) -> None:
    assert len(sample.reviews) >= 800


def test_no_row_is_bad_or_repeated(sample: Reviews) -> None:
    assert not sample.skipped
    assert not sample.duplicates


def test_every_star_is_there(sample: Reviews) -> None:
    stars = Counter(review.stars for review in sample.reviews)
    assert stars.keys() == {1, 2, 3, 4, 5}
    assert min(stars.values()) >= 80


def test_both_kinds_are_frequent(sample: Reviews) -> None:
    negative = sum(not review.is_positive for review in sample.reviews) / len(sample.reviews)
    assert 0.45 <= negative <= 0.65


def test_every_split_can_be_judged(sample: Reviews) -> None:
    parameters = Parameters()
    kinds = Counter(
        (
            split_of(
                position_of(review.text),
                validation_share=parameters.validation_share,
                test_share=parameters.test_share,
            ),
            review.is_positive,
        )
        for review in sample.reviews
    )
    assert len(kinds) == 6
    assert min(kinds.values()) >= 40


def test_lengths_are_those_of_reviews(sample: Reviews) -> None:
    lengths = sorted(len(review.text.split()) for review in sample.reviews)
    assert sum(5 <= length <= 200 for length in lengths) >= 0.95 * len(lengths)
    # Not all alike: the longest tenth is several times as long as the shortest.
    assert lengths[len(lengths) * 9 // 10] > 4 * lengths[len(lengths) // 10]


def test_no_two_share_a_phrase(sample: Reviews) -> None:
    """Texts filled into templates would share long runs of words, and leak across splits."""
    owner: dict[tuple[str, ...], int] = {}
    for number, review in enumerate(sample.reviews):
        words = re.findall(r"[\w']+", review.text.lower())
        for start in range(len(words) - 7):
            run = tuple(words[start : start + 8])
            assert owner.setdefault(run, number) == number, " ".join(run)
