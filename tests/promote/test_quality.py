"""The gates on training's figures, and on its tags."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.promote.plan import GateResult
from functions.promote.policy import Policy
from functions.promote.quality import Metric, judge
from functions.promote.registry import read_validation

POLICY = Policy(auroc_floor=0.8, auroc_margin=0.02, behaviour_floor=0.7)


def metrics(auroc: float | None = 0.9, behaviour: float | None = 0.9) -> dict[str, Metric]:
    result = {}
    if auroc is not None:
        result["auroc"] = Metric(value=auroc, low=auroc - 0.01, high=auroc + 0.01)
    if behaviour is not None:
        result["behaviour"] = Metric(value=behaviour)
    return result


def outcomes(results: list[GateResult]) -> dict[str, str]:
    return {item.gate: item.outcome for item in results}


def test_a_good_model_passes_all() -> None:
    assert outcomes(judge(metrics(), metrics(), POLICY)) == {
        "metrics": "passed",
        "comparison": "passed",
        "behaviour": "passed",
    }


@pytest.mark.parametrize(
    ("candidate", "served", "gate", "outcome", "words"),
    [
        (metrics(auroc=0.79), None, "metrics", "failed", "0.7900 is below 0.8"),
        (metrics(auroc=math.nan), None, "metrics", "failed", "below"),
        (metrics(auroc=None), None, "metrics", "failed", "no AUROC"),
        (metrics(), None, "comparison", "skipped", "nothing is served"),
        (metrics(), metrics(auroc=None), "comparison", "skipped", "served version's bundle"),
        (metrics(auroc=None), metrics(), "comparison", "skipped", "candidate's bundle"),
        (metrics(auroc=0.86), metrics(auroc=0.9), "comparison", "failed", "worse by more"),
        (metrics(auroc=math.nan), metrics(), "comparison", "failed", "worse"),
        # Below the margin, but its interval reaches over it.
        (metrics(auroc=0.875), metrics(auroc=0.9), "comparison", "passed", "not shown"),
        (metrics(behaviour=0.69), None, "behaviour", "failed", "0.6900 is below 0.7"),
        (metrics(behaviour=None), None, "behaviour", "skipped", "has no share"),
    ],
)
def test_each_gate_has_a_name_and_a_reason(
    candidate: dict[str, Metric],
    served: dict[str, Metric] | None,
    gate: str,
    outcome: str,
    words: str,
) -> None:
    result = next(item for item in judge(candidate, served, POLICY) if item.gate == gate)
    assert result.outcome == outcome
    assert words in result.reason


def test_without_a_floor_a_missing_metric_is_no_failure() -> None:
    policy = Policy(auroc_floor=0, behaviour_floor=0)
    assert set(outcomes(judge({}, None, policy)).values()) == {"skipped"}


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(0, 1)),
    st.floats(0, 1),
    st.floats(0, 0.2),
)
def test_a_better_model_is_never_judged_worse(
    auroc: float, better: float, high: float | None, served: float, margin: float
) -> None:
    auroc, better = sorted((auroc, better))
    policy = Policy(auroc_margin=margin)

    def passes(value: float) -> bool:
        top = None if high is None else max(high, value)
        candidate = {"auroc": Metric(value=value, high=top)}
        results = judge(candidate, {"auroc": Metric(value=served)}, policy)
        return outcomes(results)["comparison"] == "passed"

    assert passes(better) or not passes(auroc)
    assert passes(max(served, auroc))


@pytest.mark.parametrize(
    ("tags", "outcome", "reason"),
    [
        ({}, "skipped", "the version has no such tag"),
        ({"validation": "passed", "validation_reason": "fine"}, "passed", "fine"),
        ({"validation": "failed", "validation_reason": "worse"}, "failed", "worse"),
        ({"validation": "Failed "}, "failed", "training gave no reason"),
        ({"validation": "maybe"}, "skipped", "the tag says 'maybe'"),
    ],
)
def test_the_validation_tag(tags: dict[str, str], outcome: str, reason: str) -> None:
    result = read_validation(tags)
    assert (result.outcome, result.reason) == (outcome, reason)
