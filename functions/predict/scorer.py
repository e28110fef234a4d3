"""Score text with a bag-linear model: one number per n-gram, their mean, a sigmoid.

The trained model is ``sigmoid(w . mean(E[t]) + b)``. It is linear in its
n-grams, ``w . mean(E[t]) + b == mean(w . E[t]) + b``, so that ``w . E[t]`` is all
that serving needs of an n-gram, and each n-gram's share of the logit is exact.

Two scorers give the same: `CompiledScorer`, which serves, and `Scorer`, which runs wherever
Python does, such as in a logged model. Every loop over a text's n-grams runs inside a
built-in function there: written out, each costs more than all the rest of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from functions.predict.tokenizer import ngrams, origins, tokenize, tokenize_with_offsets

if TYPE_CHECKING:
    from functions.predict import bag_linear


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


class EncodedExplanation(NamedTuple):
    """An explanation, ready to be sent."""

    assessment: Assessment
    bias: float
    """The logit of an empty text."""
    contributions: bytes
    """A JSON list of each `Contribution`."""


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

    def explain_encoded(self, text: str) -> EncodedExplanation:
        """Return the same as `explain`, its contributions as JSON.

        Raises:
            UnicodeEncodeError: `text` has a lone surrogate.
        """
        assessment, bias, contributions = self.explain(text)
        return EncodedExplanation(assessment, bias, msgspec.json.encode(contributions))


class CompiledScorer(Scorer):
    """A bag-linear model, ready to score fast.

    Args:
        model: the compiled model.
        bias: its logit of an empty text.
    """

    def __init__(self, model: bag_linear.BagLinear, *, bias: float) -> None:
        self._model = model
        self._bias = bias

    def assess(self, text: str) -> Assessment:
        """Return the score of `text`, and how much of it the model knows."""
        # No n-gram of the model has a surrogate, but a text may.
        lowered = text.lower().encode("utf-8", "surrogatepass")
        logit, tokens, unknown = self._model.assess(lowered)
        return Assessment(sigmoid(logit), tokens, unknown)

    def explain(self, text: str) -> Explanation:
        """Return the score of `text` and what each of its n-grams adds to the logit.

        Raises:
            UnicodeEncodeError: `text` has a lone surrogate.
        """
        assessment, bias, contributions = self.explain_encoded(text)
        return Explanation(
            assessment, bias, msgspec.json.decode(contributions, type=list[Contribution])
        )

    def explain_encoded(self, text: str) -> EncodedExplanation:
        """Return the same as `explain`, its contributions as JSON.

        Raises:
            UnicodeEncodeError: `text` has a lone surrogate.
        """
        lowered = text.lower()
        origin = None if len(lowered) == len(text) else origins(text)
        logit, tokens, unknown, contributions = self._model.explain(lowered.encode(), origin)
        return EncodedExplanation(
            Assessment(sigmoid(logit), tokens, unknown), self._bias, contributions
        )


def sigmoid(logit: float) -> float:
    """Return ``1 / (1 + exp(-logit))`` without overflow for any finite `logit`."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)
