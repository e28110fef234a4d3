"""The judgement of a step."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.promote.answers import Answers
from functions.promote.bake import Figures, Next, Signals, judge
from functions.promote.outcomes import Outcomes
from functions.promote.policy import Policy

POLICY = Policy(
    bake_seconds=60,
    max_bake_seconds=600,
    min_requests=50,
    max_error_ratio=0.02,
    max_latency_ratio=2,
    latency_floor_seconds=0.1,
)
SERVED = Figures(1000, 0, 0.1)


@pytest.mark.parametrize(
    ("age", "candidate", "served", "follows", "words"),
    [
        (30, Figures(500, 0, 0.1), SERVED, Next.WAIT, "30 of 60 s"),
        (60, Figures(500, 0, 0.1), SERVED, Next.ADVANCE, "500 requests, 0 failed"),
        (60, Figures(49, 0, 0.1), SERVED, Next.WAIT, "at least 50 needed"),
        (600, Figures(49, 0, 0.1), SERVED, Next.RECHECK, "after 600 s"),
        (600, Figures(), Figures(), Next.RECHECK, "0 requests"),
        # At once, though the step is young.
        (5, Figures(100, 5, 0.1), SERVED, Next.BACK, "5 of 100 requests failed"),
        # One failure says little of few.
        (60, Figures(5, 1, 0.1), SERVED, Next.WAIT, "5 requests, 1 failed"),
        (60, Figures(5, 2, 0.1), SERVED, Next.BACK, "2 of 5 requests failed"),
        # What is served fails as often: not the candidate's fault.
        (60, Figures(100, 5, 0.1), Figures(1000, 50, 0.1), Next.ADVANCE, "5 failed"),
        (60, Figures(100, 0, 0.21), SERVED, Next.BACK, "p95 210 ms against 100 ms"),
        (60, Figures(100, 0, 0.19), SERVED, Next.ADVANCE, "p95 190 ms"),
        (60, Figures(100, 0, 0.09), Figures(1000, 0, 0.01), Next.ADVANCE, "p95 90 ms"),
        (60, Figures(100, 0, 9.0), Figures(10, 0, 0.1), Next.ADVANCE, "p95 9000 ms"),
    ],
)
def test_what_follows(
    age: float, candidate: Figures, served: Figures, follows: Next, words: str
) -> None:
    verdict = judge(age, Signals(candidate, served), POLICY)
    assert verdict.next is follows
    assert words in verdict.reason


@given(st.floats(0, 10_000), st.sampled_from([None, Signals(problem="UNAVAILABLE")]))
def test_a_lack_of_data_is_never_a_way_back(age: float, signals: Signals | None) -> None:
    verdict = judge(age, signals, POLICY)
    assert verdict.next is (Next.RECHECK if age >= 600 else Next.WAIT)
    assert "monitoring tells nothing" in verdict.reason


@given(st.floats(0, 10_000), st.integers(0, 500), st.integers(0, 500), st.floats(0, 5))
def test_one_that_does_as_well_as_what_is_served_never_goes_back(
    age: float, requests: int, errors: int, seconds: float
) -> None:
    figures = Figures(requests, min(errors, requests), seconds)
    assert judge(age, Signals(figures, figures), POLICY).next is not Next.BACK


def test_users_who_agree_less_send_it_back_at_once_also_without_monitoring() -> None:
    worse = (Answers(200, 120), Answers(200, 180))
    for problem in ("", "UNAVAILABLE"):
        signals = Signals(Figures(500, 0, 0.1), SERVED, problem=problem, answers=worse)
        verdict = judge(1, signals, POLICY)
        assert (verdict.next, verdict.gate) == (Next.BACK, "answers")
        assert "users agree with 120 of 200 answers of the candidate" in verdict.reason


def test_what_the_proxy_saw_fail_sends_it_back_before_monitoring_tells() -> None:
    failing = (Outcomes(100, 5), Outcomes(1000, 2))
    for problem in ("", "UNAVAILABLE"):
        signals = Signals(problem=problem, outcomes=failing)
        verdict = judge(1, signals, POLICY)
        assert (verdict.next, verdict.gate) == (Next.BACK, "errors")
        assert verdict.reason == (
            "of the proxy's own, 5 of 100 requests failed, against 2 of 1000 served: "
            "more than 2.00% above"
        )


@pytest.mark.parametrize(
    "outcomes",
    [
        # One failure says little of few, and the budget is that of the first 50.
        (Outcomes(1, 1), Outcomes(1000, 0)),
        # What is served fails as often.
        (Outcomes(100, 5), Outcomes(1000, 50)),
        (Outcomes(10**6, 0), Outcomes(0, 0)),
    ],
)
@given(st.floats(0, 10_000), st.sampled_from(["", "UNAVAILABLE"]))
def test_what_the_proxy_saw_go_well_advances_nothing(
    outcomes: tuple[Outcomes, Outcomes], age: float, problem: str
) -> None:
    signals = Signals(Figures(10, 0, 0.1), SERVED, problem=problem)
    assert judge(age, replace(signals, outcomes=outcomes), POLICY) == judge(age, signals, POLICY)


OUTCOMES = st.builds(Outcomes, st.integers(0, 10**6), st.integers(0, 10**6)).map(
    lambda item: Outcomes(item.requests + item.failed, item.failed)
)


@given(OUTCOMES, OUTCOMES)
def test_outcomes_since_are_counts_also_where_predictions_were_deleted(
    now: Outcomes, earlier: Outcomes
) -> None:
    new = now.since(earlier)
    assert 0 <= new.failed <= new.requests
    assert new.failed == max(0, now.failed - earlier.failed)


def test_outcomes_since_leave_out_what_was_there() -> None:
    assert Outcomes(100, 7).since(Outcomes(60, 2)) == Outcomes(40, 5)


@given(st.floats(0, 10_000), st.integers(0, 10_000))
def test_users_who_agree_advance_nothing(age: float, agreeing: int) -> None:
    better = (Answers(agreeing, agreeing), Answers(10_000, 5_000))
    for problem in ("", "UNAVAILABLE"):
        signals = Signals(Figures(10, 0, 0.1), SERVED, problem=problem)
        with_answers = replace(signals, answers=better)
        assert judge(age, with_answers, POLICY) == judge(age, signals, POLICY)


def test_a_policy_may_give_users_no_say() -> None:
    policy = replace(POLICY, answers_error_rate=0)
    worse = (Answers(200, 0), Answers(200, 200))
    assert judge(1, Signals(SERVED, SERVED, answers=worse), policy).next is Next.WAIT
