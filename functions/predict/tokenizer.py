"""Tokens and n-grams, exactly as torchtext defines them, without torchtext.

The reference is ``torchtext==0.6.0``: ``get_tokenizer("basic_english")`` and
``ngrams_iterator`` of ``torchtext.data.utils``. torchtext applies twelve regular
expressions one after the other; plain string replacements in the same order give
the same tokens, and a property test holds the two against each other.
"""

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

NAME = "basic_english"

# One token of text that has its quotes removed and "<br />" blanked out: a mark
# that stands alone, or a run of anything else. ";" and ":" separate and vanish.
# In a group: a split by it keeps the tokens.
_TOKEN = re.compile(r"([.,()!?']|[^\s.,()!?';:]+)")


class Located(NamedTuple):
    """The tokens of a text, and the code points of it that each was made from."""

    tokens: list[str]
    starts: list[int]
    """The first code point of each token."""
    ends: list[int]
    """One past the last code point of each token."""


def tokenize(text: str) -> list[str]:
    """Return the tokens of `text`: lower case, punctuation apart, no quotes.

    Args:
        text: any text, the empty one included.

    Returns:
        The tokens in order; none for empty or blank text.
    """
    return (
        text.lower()
        .replace("'", " ' ")
        .replace('"', "")
        .replace(".", " . ")
        .replace("<br />", " ")
        .replace(",", " , ")
        .replace("(", " ( ")
        .replace(")", " ) ")
        .replace("!", " ! ")
        .replace("?", " ? ")
        .replace(";", " ")
        .replace(":", " ")
        .split()
    )


def tokenize_with_offsets(text: str) -> Located:
    """Return the tokens of `text` with their places in it.

    The tokens equal those of `tokenize`. ``text[start:end]`` covers each token's
    characters, quotes that the tokenizer drops inside a word included.

    Args:
        text: any text.

    Returns:
        The tokens in order, with `starts` and `ends` in code points of `text`.
    """
    lowered = text.lower()
    unquoted = lowered.replace('"', "")
    # What separates, a token, what separates, ... and what separates, which may be empty.
    parts = _TOKEN.split(unquoted.replace("<br />", " " * len("<br />")))
    bounds = [*accumulate(map(len, parts))]
    starts, ends = bounds[:-1:2], bounds[1::2]
    if len(unquoted) != len(lowered):
        kept = [at for at, character in enumerate(lowered) if character != '"']
        starts, ends = _moved(starts, ends, kept)
    if len(lowered) != len(text):
        starts, ends = _moved(starts, ends, origins(text))
    return Located(parts[1::2], starts, ends)


def origins(text: str) -> list[int]:
    """Return the code point of `text` that each one of ``text.lower()`` comes from.

    Lower-casing makes two code points of some (U+0130).
    """
    # One by one is right for lengths only; the letters come from the whole (a final sigma
    # depends on its neighbours).
    return [at for at, character in enumerate(text) for _ in character.lower()]


def _moved(
    starts: list[int], ends: list[int], origin: Sequence[int]
) -> tuple[list[int], list[int]]:
    return [origin[start] for start in starts], [origin[end - 1] + 1 for end in ends]


def ngrams(tokens: Sequence[str], order: int) -> list[str]:
    """Return the n-grams of `tokens`, those of one token first, then two, up to `order`.

    Args:
        tokens: tokens in order.
        order: longest n-gram, at least 1.

    Returns:
        ``len(tokens)`` single tokens, then ``len(tokens) - 1`` pairs, and so on,
        the tokens of an n-gram joined by one space.
    """
    result = list(tokens)
    for length in range(2, order + 1):
        shifted = [tokens[start:] for start in range(length)]
        result.extend(map(" ".join, zip(*shifted, strict=False)))
    return result
