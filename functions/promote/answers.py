"""Do users agree less with the candidate than with the served version?

Their answers are looked at on every tick, as often as one likes: a test for one look
would in the end find any two equal models different. This one holds at all looks
together. It is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha,
Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences" (Annals of Statistics 52, 2024), one-sided (proposition B.1), for the
difference of two means with the variance of the difference taken from the data.
"""

import math
from dataclasses import dataclass

ALPHA = 0.05
"""Most rollouts of a model no worse than the served one that may be taken back."""
MIN_ANSWERS = 25
"""Of each version: with fewer, the normal approximation says too little."""
# The sequence is narrowest about here; answers of both versions.
_TUNED_FOR_ANSWERS = 500


@dataclass(frozen=True)
class Answers:
    """What users said of a version's predictions."""

    given: int
    right: int
    """Those that agree with the prediction."""

    @property
    def rate(self) -> float:
        """Share that agree, 0 to 1, shrunk towards a half: never quite 0 or 1."""
        return (self.right + 1) / (self.given + 2)

    def since(self, earlier: "Answers") -> "Answers":
        """Return those that came after `earlier`; none where some were deleted since."""
        given = max(0, self.given - earlier.given)
        return Answers(given, min(given, max(0, self.right - earlier.right)))


def bound(candidate: Answers, served: Answers, *, alpha: float = ALPHA) -> float:
    """Return the most that the candidate's rate may lie above the served version's.

    At all looks together, the true difference lies above it with a probability of at
    most about `alpha`. Below 0, the candidate is worse.

    Args:
        candidate: answers to the candidate since the rollout began; at least one.
        served: answers to the served version in the same time; at least one.
        alpha: error rate over the whole rollout, 0 to 1.
    """
    count = candidate.given + served.given
    # Of one answer, as if each were weighted by the chance to get its version.
    variance = count * sum(side.rate * (1 - side.rate) / side.given for side in (candidate, served))
    # The paper's equation for the rho that is best for a given number of answers.
    rho_squared = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / (
        variance * _TUNED_FOR_ANSWERS
    )
    spread = count * variance * rho_squared + 1
    width = math.sqrt(
        2 * spread / (count**2 * rho_squared) * math.log1p(math.sqrt(spread) / (2 * alpha))
    )
    return candidate.rate - served.rate + width


def find_worse(candidate: Answers, served: Answers, *, alpha: float = ALPHA) -> str | None:
    """Return in words that the candidate is worse; None: the answers do not say so."""
    if min(candidate.given, served.given) < MIN_ANSWERS:
        return None
    most = bound(candidate, served, alpha=alpha)
    if most >= 0:
        return None
    return (
        f"users agree with {candidate.right} of {candidate.given} answers of the candidate and "
        f"{served.right} of {served.given} of the served version: at least {-most:.1%} less"
    )
