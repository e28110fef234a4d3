"""Tokens and n-grams, exactly as torchtext defines them, without torchtext.

The reference is ``torchtext==0.6.0``: ``get_tokenizer("basic_english")`` and
``ngrams_iterator`` of ``torchtext.data.utils``. torchtext applies twelve regular
expressions one after the other; plain string replacements in the same order give
the same tokens, and a property test holds the two against each other.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

NAME = "basic_english"

# One token of text that has its quotes removed and "<br />" blanked out: a mark
# that stands alone, or a run of anything else. ";" and ":" separate and vanish.
_TOKEN = re.compile(r"[.,()!?']|[^\s.,()!?';:]+")


class Span(NamedTuple):
    """A token and the code points of the original text that it was made from."""

    token: str
    start: int
    end: int


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


def tokenize_with_offsets(text: str) -> list[Span]:
    """Return the tokens of `text` with their places in it.

    The tokens equal those of `tokenize`. ``text[start:end]`` covers each token's
    characters, quotes that the tokenizer drops inside a word included.

    Args:
        text: any text.

    Returns:
        The tokens in order, with `start` and `end` in code points of `text`.
    """
    lowered = text.lower()
    # Lower-casing makes two code points of some (U+0130): position in `lowered`
    # to position in `text`. Lower-casing one by one is right for lengths only;
    # the letters come from the whole (a final sigma depends on its neighbours).
    origin = [at for at, character in enumerate(text) for _ in character.lower()]
    kept = [at for at, character in enumerate(lowered) if character != '"']
    unquoted = lowered.replace('"', "").replace("<br />", " " * len("<br />"))
    return [
        Span(
            match.group(),
            origin[kept[match.start()]],
            origin[kept[match.end() - 1]] + 1,
        )
        for match in _TOKEN.finditer(unquoted)
    ]


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
