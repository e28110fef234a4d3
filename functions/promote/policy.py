"""What a candidate must pass, and how fast it may advance."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

# Settings that say when, not what: no reason to try a blocked version again.
_NOT_DECIDING = frozenset(
    {
        "rollout_steps",
        "bake_seconds",
        "max_bake_seconds",
        "gate_timeout_seconds",
        "keep_revisions",
    }
)


@dataclass(frozen=True)
class Policy:
    """What decides about a candidate; `functions.promote.settings` describes each to operators."""

    golden_tolerance: float = 1e-6
    """Largest difference between a golden score and the answer."""
    heed_validation: bool = True
    """A version that training tagged as failed is blocked."""
    auroc_floor: float = 0.8
    """Least AUROC on training's test split."""
    auroc_margin: float = 0.02
    """Most that the AUROC may be below the served version's."""
    behaviour_floor: float = 0.7
    """Least share of the behavioural tests passed."""
    candidate_latency_ratio: float = 3.0
    """Most that the p95 latency at the candidate's tag may be, relative to the served one's."""
    latency_floor_seconds: float = 0.25
    """A p95 latency up to this passes in any case, at the tag and in traffic."""
    gate_timeout_seconds: float = 300
    """How long a candidate may fail to answer before it is blocked."""
    rollout_steps: tuple[int, ...] = (100,)
    """Shares of the traffic in percent, rising, the last one 100."""
    bake_seconds: float = 300
    """Least time at a step below 100."""
    max_bake_seconds: float = 1800
    """After so long at a step with too few requests, golden texts decide."""
    min_requests: int = 50
    """Requests to the candidate that a step needs to be judged by them."""
    max_error_ratio: float = 0.01
    """How much larger the candidate's share of 5xx answers may be than the served revision's."""
    max_latency_ratio: float = 2.0
    """Most that the p95 latency in traffic may be, relative to the served revision's."""
    answers_error_rate: float = 0.05
    """Most rollouts that users' answers may stop though the candidate is no worse; 0: no say."""

    keep_revisions: int = 20
    """Revisions that are left: the newest, and all that anything needs."""

    @cached_property
    def digest(self) -> str:
        """Return the digest of all that decides; what was blocked is tried again with another."""
        deciding = {k: v for k, v in asdict(self).items() if k not in _NOT_DECIDING}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
