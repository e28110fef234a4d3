"""The gates that need no request: what training measured and wrote into the bundles."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from functions.promote.plan import GateResult
from functions.promote.policy import Policy

AUROC = "auroc"
BEHAVIOUR = "behaviour"


class Metric(BaseModel):
    """A figure of the test split, with its 95 % interval if training gave one."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float | None = None
    high: float | None = None


def judge(
    metrics: Mapping[str, Metric], served: Mapping[str, Metric] | None, policy: Policy
) -> list[GateResult]:
    """Return the gates ``metrics``, ``comparison`` and ``behaviour``, in this order.

    A missing AUROC fails if there is a floor: a bundle that hides how good it is can't
    be told from a bad one. A missing behavioural share is skipped, since older bundles
    have none.

    The comparison fails only when the whole interval of the candidate lies below the
    served value less the margin. The two may have been measured on different texts, so
    overlapping intervals prove nothing; the paired comparison on the same texts is
    training's, and reaches promote as the tag ``validation``.

    Args:
        metrics: of the candidate's manifest.
        served: of the served version's manifest; None: nothing is served.
        policy: floors and margin.
    """
    return [
        _floor("metrics", "AUROC", metrics.get(AUROC), policy.auroc_floor, needed=True),
        _compare(metrics.get(AUROC), served, policy.auroc_margin),
        _floor(
            "behaviour",
            "share of behavioural tests passed",
            metrics.get(BEHAVIOUR),
            policy.behaviour_floor,
            needed=False,
        ),
    ]


def _floor(
    gate: str, name: str, metric: Metric | None, floor: float, *, needed: bool
) -> GateResult:
    if floor <= 0:
        return GateResult(gate=gate, outcome="skipped", reason=f"no floor for the {name} is set")
    if metric is None:
        return GateResult(
            gate=gate,
            outcome="failed" if needed else "skipped",
            reason=f"the bundle has no {name}",
        )
    # Written so that NaN fails.
    if metric.value >= floor:
        reason = f"{name} {metric.value:.4f} reaches {floor:g}"
        return GateResult(gate=gate, outcome="passed", reason=reason)
    reason = f"{name} {metric.value:.4f} is below {floor:g}"
    return GateResult(gate=gate, outcome="failed", reason=reason)


def _compare(
    metric: Metric | None, served: Mapping[str, Metric] | None, margin: float
) -> GateResult:
    def result(outcome: str, reason: str) -> GateResult:
        return GateResult.model_validate(
            {"gate": "comparison", "outcome": outcome, "reason": reason}
        )

    if served is None:
        return result("skipped", "nothing is served to compare with")
    if metric is None or AUROC not in served:
        whose = "the candidate's" if metric is None else "the served version's"
        return result("skipped", f"{whose} bundle has no AUROC")
    best = metric.value if metric.high is None else metric.high
    figures = (
        f"AUROC {metric.value:.4f}, at best {best:.4f}, against {served[AUROC].value:.4f} served"
    )
    if best >= served[AUROC].value - margin:
        return result("passed", f"not shown to be worse by more than {margin:g}: {figures}")
    return result("failed", f"worse by more than {margin:g}: {figures}")
