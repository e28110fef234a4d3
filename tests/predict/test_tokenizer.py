"""Our tokenizer and n-grams against torchtext's own."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torchtext.data.utils import get_tokenizer, ngrams_iterator

from functions.predict.tokenizer import ngrams, tokenize, tokenize_with_offsets

torchtext_tokenize = get_tokenizer("basic_english")

# Any text, and texts dense in what the tokenizer treats apart.
TEXTS = st.text() | st.text(alphabet="ab .,;:!?'\"()<br />BRİΣς\n\t\x85\u2028\x1f😀")


@given(TEXTS)
@example("<br />")
@example('<br "/>x<BR />')
@example('it\'s "quo"ted; a:b...')
@example("İstanbul ΟΔΟΣ Σ")
def test_tokens_equal_torchtexts(text: str) -> None:
    assert tokenize(text) == torchtext_tokenize(text)


@given(TEXTS, st.integers(1, 4))
def test_ngrams_equal_torchtexts(text: str, order: int) -> None:
    tokens = tokenize(text)
    assert ngrams(tokens, order) == list(ngrams_iterator(tokens, order))


@given(TEXTS)
@example('"quo"ted <br "/>')
@example("İİ İ'x")
def test_offsets_give_the_same_tokens_and_their_places(text: str) -> None:
    tokens, starts, ends = tokenize_with_offsets(text)
    assert tokens == tokenize(text)
    for token, start, end, previous_end in zip(tokens, starts, ends, [0, *ends], strict=False):
        # A letter that lower-cases to two code points (İ) may be shared by two tokens' marks.
        assert previous_end - 1 <= start < end <= len(text)
        covered = text[start:end].lower().replace('"', "")
        assert token.replace("ς", "σ") in covered.replace("ς", "σ")


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("Very cool!", [("very", 0, 4), ("cool", 5, 9), ("!", 9, 10)]),
        ('a "quo"ted', [("a", 0, 1), ("quoted", 3, 10)]),
        ("x<br />y", [("x", 0, 1), ("y", 7, 8)]),
        ("İyi 😀", [("i̇yi", 0, 3), ("😀", 4, 5)]),
    ],
)
def test_offsets_are_code_points_of_the_original(
    text: str, places: list[tuple[str, int, int]]
) -> None:
    assert list(zip(*tokenize_with_offsets(text), strict=True)) == places
