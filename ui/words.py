"""A review's words, each with its exact share of the model's verdict.

The model adds up n-grams, some of them of several words. Their contributions are
spread here over the words that they cover, so that what the words add still adds up.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import fsum
from typing import Protocol

STRONGEST_OPACITY = 0.45
"""Of the colour behind the word that weighs most: what is written on it stays readable."""

POSITIVE_COLOUR = (0, 158, 115)
NEGATIVE_COLOUR = (213, 94, 0)
"""Red, green and blue, 0 to 255: two that colour-blind people tell apart (Okabe and Ito)."""


class Contribution(Protocol):
    """What one n-gram adds to the logit of the score."""

    @property
    def token(self) -> str:
        """The n-gram, its tokens joined by one space."""

    @property
    def start(self) -> int:
        """First code point of the review that it covers."""

    @property
    def end(self) -> int:
        """One past the last code point that it covers."""

    @property
    def contribution(self) -> float:
        """Its share of the logit: positive speaks for a positive review."""


@dataclass(frozen=True)
class Word:
    """A stretch of the review and what it adds to the logit."""

    start: int
    """First code point."""
    end: int
    """One past the last code point."""
    weight: float
    """Its own contribution, and its share of each longer n-gram that covers it."""


@dataclass(frozen=True)
class Weights:
    """A review's words in order; with `rest` they add up to all contributions."""

    words: list[Word]
    rest: float
    """What no word of the review accounts for; zero, but for an explanation of another text."""


def weigh(text: str, contributions: Sequence[Contribution]) -> Weights:
    """Spread what each n-gram contributes evenly over the words that it covers.

    Args:
        text: the review.
        contributions: of the n-grams, in any order. Places outside `text` are left aside.
    """
    places = _places(len(text), contributions)
    starts = [start for start, _ in places]
    ends = [end for _, end in places]
    shares: list[list[float]] = [[] for _ in places]
    rest: list[float] = []
    for item in contributions:
        covered = range(bisect_left(starts, item.start), bisect_right(ends, item.end))
        for index in covered:
            shares[index].append(item.contribution / len(covered))
        if not covered:
            rest.append(item.contribution)
    words = [
        Word(start, end, fsum(parts)) for (start, end), parts in zip(places, shares, strict=True)
    ]
    return Weights(words, fsum(rest))


def _places(length: int, contributions: Sequence[Contribution]) -> list[tuple[int, int]]:
    """Return where the single words stand, in order, none overlapping another."""
    single = {
        (item.start, item.end)
        for item in contributions
        if " " not in item.token and 0 <= item.start < item.end <= length
    }
    places: list[tuple[int, int]] = []
    for start, end in sorted(single):
        if not places or start >= places[-1][1]:
            places.append((start, end))
    return places


def strongest(text: str, weights: Weights, count: int) -> list[tuple[str, float]]:
    """Return the `count` words that weigh most, as written, those repeated added up."""
    totals: dict[str, list[float]] = {}
    for word in weights.words:
        totals.setdefault(text[word.start : word.end].casefold(), []).append(word.weight)
    summed = [(word, fsum(parts)) for word, parts in totals.items()]
    return sorted(summed, key=lambda item: (-abs(item[1]), item[0]))[:count]


def to_html(text: str, weights: Weights) -> str:
    """Return the review as HTML, its words coloured by their weights.

    The colours lie thinly over the page's own background, light or dark. What speaks for
    a positive review is underlined, what speaks against it is underlined with dashes; the
    number is read out after the word, and shown when pointing at it.

    Args:
        text: the review; its markup is shown as it was written.
        weights: of its words.
    """
    heaviest = max((abs(word.weight) for word in weights.words), default=0.0)
    return f'<p class="review">{"".join(_parts(text, weights, heaviest))}</p>{STYLE}'


def to_table(strongest: Sequence[tuple[str, float]], weights: Weights, bias: float) -> str:
    """Return the words that weigh most, all others, and the sum, as an HTML table.

    Args:
        strongest: words and their weights, of all in `weights`.
        weights: of the review's words.
        bias: logit of an empty text.
    """
    total = fsum(word.weight for word in weights.words) + weights.rest
    others = total - fsum(weight for _, weight in strongest)
    rows = [
        *strongest,
        ("All other words", others),
        ("Before any word", bias),
        ("Sum", total + bias),
    ]
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{signed(weight)}</td></tr>'
        for name, weight in rows
    )
    head = '<thead><tr><th scope="col">Word</th><th scope="col">Adds</th></tr></thead>'
    return f'<table class="weights">{head}<tbody>{cells}</tbody></table>{STYLE}'


def _parts(text: str, weights: Weights, heaviest: float) -> Iterator[str]:
    after = 0
    for word in weights.words:
        yield escape(text[after : word.start])
        yield _mark(text[word.start : word.end], word.weight, heaviest)
        after = word.end
    yield escape(text[after:])


def signed(weight: float) -> str:
    """Return a weight with its sign and two digits; what rounds to nothing has no sign."""
    text = f"{weight:+.2f}".replace("-", "−")
    return text[1:] if text.endswith("0.00") and len(text) == 5 else text


def _mark(word: str, weight: float, heaviest: float) -> str:
    number = signed(weight)
    if number == "0.00":
        return f'<span title="{number}">{escape(word)}</span>'
    kind = "for" if weight > 0 else "against"
    colour = " ".join(map(str, POSITIVE_COLOUR if weight > 0 else NEGATIVE_COLOUR))
    opacity = STRONGEST_OPACITY * abs(weight) / heaviest
    return (
        f'<span class="{kind}" title="{number}" '
        f'style="background-color: rgb({colour} / {opacity:.3f})">'
        f'{escape(word)}<span class="aloud"> ({number}) </span></span>'
    )


STYLE = """<style>
.review { line-height: 2; margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.review .for, .review .against { border-radius: 0.2em; padding: 0.15em 0; }
.review .for { text-decoration: underline; }
.review .against { text-decoration: underline dashed; }
.review .for, .review .against { text-underline-offset: 0.25em; }
.weights th { text-align: left; font-weight: normal; overflow-wrap: anywhere; }
.weights th, .weights td { padding: 0.15em 1.5em 0.15em 0; }
.weights td { text-align: right; font-variant-numeric: tabular-nums; }
.weights thead th, .weights tr:last-child * { font-weight: 600; }
.review .aloud {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
}
</style>"""
