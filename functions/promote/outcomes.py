"""How often a revision answered the proxy: the proxy's own word, minutes before monitoring's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcomes:
    """What became of the proxy's requests to a revision."""

    requests: int
    failed: int

    def since(self, earlier: "Outcomes") -> "Outcomes":
        """Return those after `earlier`; none where predictions were deleted since."""
        failed = max(0, self.failed - earlier.failed)
        # Answers that were deleted must not make the rest look worse.
        answered = (self.requests - self.failed) - (earlier.requests - earlier.failed)
        return Outcomes(max(0, answered) + failed, failed)
