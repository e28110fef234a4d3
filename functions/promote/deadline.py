"""The time that one tick may take in all."""

import time


class OutOfTime(Exception):
    """The tick has used its time; what is not done is done by the next one."""


class Deadline:
    """A point in time that every wait of a tick respects.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def within(self, most: float) -> float:
        """Return the seconds that are left, at most `most`.

        Raises:
            OutOfTime: none are.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise OutOfTime("the tick has taken all of its time; the next one goes on")
        return min(left, most)
