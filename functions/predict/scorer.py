"""Score text with a bag-linear model: one number per n-gram, their mean, a sigmoid.

The trained model is ``sigmoid(w . mean(E[t]) + b)``. It is linear in its
n-grams, ``w . mean(E[t]) + b == mean(w . E[t]) + b``, so that ``w . E[t]`` is all
that serving needs of an n-gram, and each n-gram's share of the logit is exact.

Every loop over a text's n-grams runs inside a built-in function here: written out,
each costs more than all the rest of an answer.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from functions.predict.tokenizer import ngrams, tokenize, tokenize_with_offsets


class Assessment(NamedTuple):
    """A score with what it rests on."""

    score: float
    """Probability of the positive label."""
    tokens: int
    """Single tokens in the text."""
    unknown: int
    """Those of them that the model does not know."""

    @property
    def unknown_share(self) -> float:
        """Share, 0 to 1, of the tokens that the model does not know; 0 of none."""
        return self.unknown / self.tokens if self.tokens else 0.0


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """What one n-gram adds to the logit."""

    token: str
    """The n-gram, its tokens joined by one space."""
    start: int
    """First code point of the original text that it covers."""
    end: int
    """One past the last code point that it covers."""
    contribution: float
    """Its share of the logit: positive speaks for the positive label."""


class Explanation(NamedTuple):
    """A score with the parts that it is made of."""

    assessment: Assessment
    bias: float
    """The logit of an empty text."""
    contributions: list[Contribution]
    """One for each n-gram; with `bias` they add up to the logit."""

    @property
    def score(self) -> float:
        """Probability of the positive label."""
        return self.assessment.score


class Scorer:
    """A bag-linear model, ready to score.

    Args:
        scores: n-gram -> its number, ``w . E[t]``.
        bias: logit of an empty text.
        unknown: the number of an n-gram that `scores` does not have.
        order: longest n-gram, at least 1.
    """

    def __init__(
        self, scores: Mapping[str, float], *, bias: float, unknown: float, order: int
    ) -> None:
        self._scores = scores
        self._bias = bias
        self._unknown = unknown
        self._order = order

    def score(self, text: str) -> float:
        """Return the probability, 0 to 1, that `text` is positive."""
        return self.assess(text).score

    def assess(self, text: str) -> Assessment:
        """Return the score of `text`, and how much of it the model knows."""
        tokens = tokenize(text)
        if not tokens:
            return Assessment(sigmoid(self._bias), 0, 0)
        values = [*map(self._scores.get, ngrams(tokens, self._order))]
        # What is zero is left out as well, and adds nothing.
        known = math.fsum(filter(None, values))
        mean = (known + values.count(None) * self._unknown) / len(values)
        return Assessment(
            sigmoid(mean + self._bias), len(tokens), values[: len(tokens)].count(None)
        )

    def explain(self, text: str) -> Explanation:
        """Return the score of `text` and what each of its n-grams adds to the logit."""
        tokens, starts, ends = tokenize_with_offsets(text)
        terms = ngrams(tokens, self._order)
        values = [*map(self._scores.get, terms)]
        count = len(values)
        share_of_unknown = self._unknown / count if count else 0.0
        shares = [share_of_unknown if value is None else value / count for value in values]
        # The n-grams of one length start at each token in turn, but the last ones.
        first, last = list(starts), list(ends)
        for length in range(2, self._order + 1):
            last += ends[length - 1 :]
            first += starts[: max(0, len(starts) - length + 1)]
        contributions = [*map(Contribution, terms, first, last, shares)]
        logit = math.fsum(shares) + self._bias
        assessment = Assessment(sigmoid(logit), len(tokens), values[: len(tokens)].count(None))
        return Explanation(assessment, self._bias, contributions)


def sigmoid(logit: float) -> float:
    """Return ``1 / (1 + exp(-logit))`` without overflow for any finite `logit`."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)
