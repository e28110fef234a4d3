"""The scorer's arithmetic, on any text and any numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.predict.scorer import Contribution, Scorer, sigmoid
from functions.predict.tokenizer import ngrams, tokenize, tokenize_with_offsets

NUMBERS = st.floats(-20, 20, width=32)
WORDS = st.sampled_from(["good", "bad", "not", "food", "cafe", "!"])
SCORES = st.dictionaries(WORDS | st.tuples(WORDS, WORDS).map(" ".join), NUMBERS)
TEXTS = st.lists(WORDS | st.text(max_size=5)).map(" ".join)


@given(TEXTS, SCORES, NUMBERS, NUMBERS, st.integers(1, 3))
def test_score_is_the_sigmoid_of_the_mean(
    text: str, scores: dict[str, float], bias: float, unknown: float, order: int
) -> None:
    terms = ngrams(tokenize(text), order)
    mean = sum(scores.get(term, unknown) for term in terms) / len(terms) if terms else 0.0
    scorer = Scorer(scores, bias=bias, unknown=unknown, order=order)
    assert scorer.score(text) == pytest.approx(sigmoid(mean + bias), abs=1e-12)


@given(TEXTS, SCORES, NUMBERS, NUMBERS, st.integers(1, 3))
def test_what_is_unknown_is_counted(
    text: str, scores: dict[str, float], bias: float, unknown: float, order: int
) -> None:
    """Guards against taking a known n-gram of 0, or of the unknown's number, for unknown."""
    tokens = tokenize(text)
    expected = [token for token in tokens if token not in scores]
    scorer = Scorer(scores, bias=bias, unknown=unknown, order=order)
    assessment = scorer.assess(text)
    assert (assessment.tokens, assessment.unknown) == (len(tokens), len(expected))
    assert scorer.explain(text).assessment == pytest.approx(assessment, abs=1e-12)
    assert scorer.assess(text).unknown_share == (len(expected) / len(tokens) if tokens else 0.0)


@given(TEXTS, SCORES, st.integers(1, 4))
def test_an_ngrams_span_runs_from_its_first_token_to_its_last(
    text: str, scores: dict[str, float], order: int
) -> None:
    located = tokenize_with_offsets(text)
    scorer = Scorer(scores, bias=0.0, unknown=0.0, order=order)
    spans = [(item.start, item.end) for item in scorer.explain(text).contributions]
    assert spans == [
        (located.starts[first], located.ends[first + length - 1])
        for length in range(1, order + 1)
        for first in range(len(located.tokens) - length + 1)
    ]


@given(TEXTS, SCORES, NUMBERS, NUMBERS, st.integers(1, 3))
def test_an_explanation_adds_up_to_the_logit(
    text: str, scores: dict[str, float], bias: float, unknown: float, order: int
) -> None:
    scorer = Scorer(scores, bias=bias, unknown=unknown, order=order)
    explanation = scorer.explain(text)
    logit = sum(item.contribution for item in explanation.contributions) + explanation.bias
    assert explanation.score == pytest.approx(sigmoid(logit), abs=1e-9)
    assert explanation.score == pytest.approx(scorer.score(text), abs=1e-12)
    assert [item.token for item in explanation.contributions] == ngrams(tokenize(text), order)


def test_a_bigrams_span_covers_both_words() -> None:
    explanation = Scorer({"not good": -3.0}, bias=0.0, unknown=0.0, order=2).explain("Not  good")
    assert Contribution("not good", 0, 9, -1.0) in explanation.contributions


def test_the_empty_text_scores_the_bias() -> None:
    assert Scorer({}, bias=0.7, unknown=5.0, order=2).score(" ") == sigmoid(0.7)


@given(st.floats(-1e308, 1e308))
def test_sigmoid_never_overflows(logit: float) -> None:
    assert 0 <= sigmoid(logit) <= 1
    assert math.isclose(sigmoid(logit) + sigmoid(-logit), 1)
