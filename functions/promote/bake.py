"""Judge a step: may the candidate have more traffic, on what its requests show."""

from dataclasses import dataclass
from enum import StrEnum

from functions.promote.answers import Answers, find_worse
from functions.promote.outcomes import Outcomes
from functions.promote.policy import Policy

ERRORS_GATE = "errors"
LATENCY_GATE = "latency"
ANSWERS_GATE = "answers"


@dataclass(frozen=True)
class Figures:
    """The requests to one revision since the step began."""

    requests: int = 0
    errors: int = 0
    """Those answered with 5xx."""
    p95_seconds: float | None = None
    """95th percentile of the latency; None: no request was seen."""


@dataclass(frozen=True)
class Signals:
    """What monitoring shows of a step, or why it shows nothing."""

    candidate: Figures = Figures()  # frozen
    served: Figures = Figures()
    problem: str = ""
    answers: tuple[Answers, Answers] | None = None
    """What users said since the rollout began, of the candidate and of what is served."""
    outcomes: tuple[Outcomes, Outcomes] | None = None
    """What the proxy saw since the rollout began, of the candidate and of what is served."""


class Next(StrEnum):
    """What follows for the step."""

    WAIT = "wait"
    ADVANCE = "advance"
    RECHECK = "recheck"
    """Monitoring can't tell: the golden texts, sent once more, must."""
    BACK = "back"


@dataclass(frozen=True)
class Verdict:
    """What follows, and why, in words."""

    next: Next
    reason: str
    gate: str = ""
    """For BACK: the budget that is exceeded."""


def judge(age_seconds: float, signals: Signals | None, policy: Policy) -> Verdict:
    """Return what follows for a step that began `age_seconds` ago.

    A lack of data never sends the candidate back. Errors do at once, as soon as the
    budget of the first `min_requests` requests is spent, whatever the others will
    answer; latency needs `min_requests` requests to either revision. What the proxy saw
    fail does as well, by the same budget, and users who agree less: both also when
    monitoring tells nothing. That neither objects advances nothing.
    """
    if signals is not None and signals.outcomes is not None:
        mine, theirs = signals.outcomes
        failures = _failures((mine.requests, mine.failed), (theirs.requests, theirs.failed), policy)
        if failures is not None:
            return Verdict(Next.BACK, f"of the proxy's own, {failures}", ERRORS_GATE)
    if signals is not None and signals.answers is not None and policy.answers_error_rate:
        candidate_answers, served_answers = signals.answers
        rate = policy.answers_error_rate
        if worse := find_worse(candidate_answers, served_answers, alpha=rate):
            return Verdict(Next.BACK, worse, ANSWERS_GATE)
    aged = age_seconds >= policy.max_bake_seconds
    if signals is None or signals.problem:
        problem = signals.problem if signals is not None else "it was not asked"
        reason = f"monitoring tells nothing: {problem}"
        return Verdict(Next.RECHECK if aged else Next.WAIT, reason)
    if spent := _exceeded(signals, policy):
        return spent
    candidate = signals.candidate
    seen = f"{candidate.requests} requests, {candidate.errors} failed{_latency(signals)}"
    if age_seconds < policy.bake_seconds:
        return Verdict(Next.WAIT, f"{seen}; {age_seconds:.0f} of {policy.bake_seconds:g} s")
    if candidate.requests >= policy.min_requests:
        return Verdict(Next.ADVANCE, seen)
    few = f"{seen}, at least {policy.min_requests} needed"
    if aged:
        return Verdict(Next.RECHECK, f"{few}, after {age_seconds:.0f} s")
    return Verdict(Next.WAIT, few)


def _exceeded(signals: Signals, policy: Policy) -> Verdict | None:
    candidate, served = signals.candidate, signals.served
    failures = _failures(
        (candidate.requests, candidate.errors), (served.requests, served.errors), policy
    )
    if failures is not None:
        return Verdict(Next.BACK, failures, ERRORS_GATE)
    if (
        candidate.p95_seconds is not None
        and served.p95_seconds is not None
        and min(candidate.requests, served.requests) >= policy.min_requests
        and candidate.p95_seconds
        > max(policy.max_latency_ratio * served.p95_seconds, policy.latency_floor_seconds)
    ):
        return Verdict(
            Next.BACK,
            f"more than {policy.max_latency_ratio:g} times as slow{_latency(signals)}",
            LATENCY_GATE,
        )
    return None


def _failures(candidate: tuple[int, int], served: tuple[int, int], policy: Policy) -> str | None:
    """Return in words that the budget of failures is spent; both: requests, and those failed."""
    requests, failed = candidate
    usual = served[1] / served[0] if served[0] else 0.0
    if failed <= (usual + policy.max_error_ratio) * max(requests, policy.min_requests):
        return None
    return (
        f"{failed} of {requests} requests failed, against {served[1]} of {served[0]} served: "
        f"more than {policy.max_error_ratio:.2%} above"
    )


def _latency(signals: Signals) -> str:
    mine, theirs = signals.candidate.p95_seconds, signals.served.p95_seconds
    if mine is None:
        return ""
    against = "" if theirs is None else f" against {theirs * 1000:.0f} ms"
    return f", p95 {mine * 1000:.0f} ms{against}"
