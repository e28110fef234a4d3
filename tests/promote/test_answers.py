"""The test of users' answers, looked at on every tick of many rollouts."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.promote.answers import MIN_ANSWERS, Answers, bound, find_worse

TICKS = 150
ANSWERS_A_TICK = 10


def roll_out(chance: random.Random, *, candidate: float, served: float, share: float) -> int | None:
    """Return after how many answers the candidate is called worse; None: never."""
    given, right = [0, 0], [0, 0]
    for _ in range(TICKS):
        for _ in range(ANSWERS_A_TICK):
            side = int(chance.random() < share)
            given[side] += 1
            right[side] += chance.random() < (served, candidate)[side]
        if find_worse(Answers(given[1], right[1]), Answers(given[0], right[0])):
            return sum(given)
    return None


class TestSimulation:
    @pytest.mark.parametrize(("rate", "share"), [(0.85, 0.1), (0.85, 0.5), (0.6, 0.5)])
    def test_equal_models_are_rarely_taken_back(self, rate: float, share: float) -> None:
        """Of 1,000 rollouts, each looked at 150 times; a test for one look would stop a quarter."""
        chance = random.Random(7)
        stopped = [roll_out(chance, candidate=rate, served=rate, share=share) for _ in range(1000)]
        assert sum(answers is not None for answers in stopped) <= 50

    def test_a_loss_of_ten_points_is_caught(self) -> None:
        chance = random.Random(7)
        stopped = sorted(
            roll_out(chance, candidate=0.75, served=0.85, share=0.5) or 10**9 for _ in range(200)
        )
        assert stopped[len(stopped) // 2] < 700
        assert stopped[int(len(stopped) * 0.9)] < TICKS * ANSWERS_A_TICK

    def test_a_better_model_is_not_taken_back(self) -> None:
        chance = random.Random(7)
        stopped = [roll_out(chance, candidate=0.9, served=0.8, share=0.5) for _ in range(300)]
        assert stopped == [None] * 300


SIDES = st.integers(1, 10**6).flatmap(
    lambda given: st.builds(Answers, st.just(given), st.integers(0, given))
)


class TestBound:
    @given(SIDES, SIDES)
    def test_it_lies_above_the_difference(self, candidate: Answers, served: Answers) -> None:
        assert candidate.rate - served.rate < bound(candidate, served)

    @given(SIDES, SIDES)
    def test_the_surer_the_further(self, candidate: Answers, served: Answers) -> None:
        bounds = [bound(candidate, served, alpha=alpha) for alpha in (0.001, 0.05, 0.3)]
        assert bounds == sorted(bounds, reverse=True)

    @given(SIDES, SIDES)
    def test_too_few_say_nothing(self, candidate: Answers, served: Answers) -> None:
        few = Answers(min(candidate.given, MIN_ANSWERS - 1), 0)
        assert find_worse(few, served) is None
        assert find_worse(candidate, few) is None

    def test_it_says_what_was_seen(self) -> None:
        reason = find_worse(Answers(500, 300), Answers(500, 450))
        assert reason is not None
        assert reason.startswith("users agree with 300 of 500 answers of the candidate and 450 of")


class TestSince:
    @given(SIDES, SIDES)
    def test_it_is_a_count_of_answers(self, now: Answers, earlier: Answers) -> None:
        """Also where predictions were deleted meanwhile."""
        new = now.since(earlier)
        assert 0 <= new.right <= new.given <= now.given

    def test_it_leaves_out_what_was_there(self) -> None:
        assert Answers(10, 7).since(Answers(4, 3)) == Answers(6, 4)
