"""Score text with a bag-linear model: one number per n-gram, their mean, a sigmoid.

The trained model is ``sigmoid(w . mean(E[t]) + b)``. It is linear in its
n-grams, ``w . mean(E[t]) + b == mean(w . E[t]) + b``, so that ``w . E[t]`` is all
that serving needs of an n-gram, and each n-gram's share of the logit is exact.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from functions.predict.tokenizer import ngrams, tokenize, tokenize_with_offsets


class Contribution(NamedTuple):
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

    score: float
    """Probability of the positive label."""
    bias: float
    """The logit of an empty text."""
    contributions: list[Contribution]
    """One for each n-gram; with `bias` they add up to the logit."""


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
        terms = ngrams(tokenize(text), self._order)
        if not terms:
            return sigmoid(self._bias)
        get, unknown = self._scores.get, self._unknown
        return sigmoid(math.fsum([get(term, unknown) for term in terms]) / len(terms) + self._bias)

    def explain(self, text: str) -> Explanation:
        """Return the score of `text` and what each of its n-grams adds to the logit."""
        spans = tokenize_with_offsets(text)
        terms = ngrams([span.token for span in spans], self._order)
        # The n-grams of one length start at each token in turn.
        starts = [
            (first, first + length - 1)
            for length in range(1, self._order + 1)
            for first in range(len(spans) - length + 1)
        ]
        contributions = [
            Contribution(
                term,
                spans[first].start,
                spans[last].end,
                self._scores.get(term, self._unknown) / len(terms),
            )
            for term, (first, last) in zip(terms, starts, strict=True)
        ]
        logit = math.fsum([item.contribution for item in contributions]) + self._bias
        return Explanation(sigmoid(logit), self._bias, contributions)

    def unknown_share(self, text: str) -> float:
        """Return the share, 0 to 1, of single tokens of `text` that the model does not know."""
        tokens = tokenize(text)
        return sum(token not in self._scores for token in tokens) / len(tokens) if tokens else 0.0


def sigmoid(logit: float) -> float:
    """Return ``1 / (1 + exp(-logit))`` without overflow for any finite `logit`."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)
