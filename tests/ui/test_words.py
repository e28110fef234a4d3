"""Words and their colours: nothing of the model's verdict is lost between them."""

import re
import tomllib
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.client import Contribution
from functions.predict.scorer import Scorer
from local.settings import ROOT
from tests.ui.stub_proxy import SCORER
from ui.charts import COLOURS
from ui.words import (
    NEGATIVE_COLOUR,
    POSITIVE_COLOUR,
    STRONGEST_OPACITY,
    signed,
    strongest,
    to_html,
    weigh,
)

THEMES = tomllib.loads((ROOT / "ui" / "theme.toml").read_text())["theme"]

TRIPLES = Scorer(
    {"very": 0.3, "very good": -2.0, "very good cafe": 5.0, "i̇": 1.0, ".": 0.25},
    bias=-0.5,
    unknown=0.125,
    order=3,
)

texts = st.lists(
    st.sampled_from(
        [
            "very",
            "good",
            "cafe",
            "not bad",
            "İ",
            '"quo"ted',
            "<br />",
            ".",
            "don't",
            ";",
            "\n",
            "🎭",
        ]
    )
    | st.text(max_size=6),
    max_size=30,
).map(" ".join)


def contributions(text: str, scorer: Scorer = SCORER) -> list[Contribution]:
    return [
        Contribution(
            token=item.token, start=item.start, end=item.end, contribution=item.contribution
        )
        for item in scorer.explain(text).contributions
    ]


@pytest.mark.parametrize("scorer", [SCORER, TRIPLES], ids=["pairs", "triples"])
@given(text=texts)
def test_what_words_add_adds_up_to_the_score(scorer: Scorer, text: str) -> None:
    items = contributions(text, scorer)
    weights = weigh(text, items)

    total = sum(word.weight for word in weights.words)
    assert total == pytest.approx(sum(item.contribution for item in items), abs=1e-9)
    assert weights.rest == 0
    ends = [0, *(word.end for word in weights.words)]
    starts = [*(word.start for word in weights.words), len(text)]
    assert all(end <= start for end, start in zip(ends, starts, strict=True))


@given(
    text=st.text(max_size=12),
    items=st.lists(
        st.builds(
            Contribution,
            token=st.text(max_size=4),
            start=st.integers(0, 15),
            end=st.integers(0, 15),
            contribution=st.floats(-5, 5),
        ),
        max_size=12,
    ),
)
def test_an_explanation_of_another_text_does_no_harm(text: str, items: list[Contribution]) -> None:
    weights = weigh(text, items)

    total = sum(word.weight for word in weights.words) + weights.rest
    assert total == pytest.approx(sum(item.contribution for item in items), abs=1e-9)
    assert all(0 <= word.start < word.end <= len(text) for word in weights.words)
    to_html(text, weights)


@given(text=texts)
def test_the_review_is_shown_as_it_was_written(text: str) -> None:
    html = to_html(text, weigh(text, contributions(text)))

    review = html.removesuffix(html[html.index("</p><style>") :])
    without_numbers = re.sub(r'<span class="aloud">[^<]*</span>', "", review)
    assert unescape(re.sub(r"<[^>]*>", "", without_numbers)) == text
    assert set(re.findall(r"</?(\w+)", review)) <= {"p", "span"}


def test_a_phrase_counts_for_its_words() -> None:
    text = "Very good cafe"
    weights = weigh(text, contributions(text))

    assert [text[word.start : word.end] for word in weights.words] == ["Very", "good", "cafe"]
    assert [word.weight for word in weights.words] == pytest.approx([0.3, 1.5, 0.1])
    assert [word for word, _ in strongest(text, weights, 2)] == ["good", "very"]


def test_colour_is_not_the_only_sign() -> None:
    text = "lovely, cold"
    html = to_html(text, weigh(text, contributions(text)))

    assert 'class="for" title="+' in html
    assert 'class="against" title="−' in html
    assert ".for { text-decoration: underline; }" in html
    assert ".against { text-decoration: underline dashed; }" in html


def luminance(colour: tuple[float, ...]) -> float:
    """Return the relative luminance as WCAG 2.2 defines it."""
    linear = [
        c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4
        for c in colour
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("colour", [POSITIVE_COLOUR, NEGATIVE_COLOUR])
def test_the_strongest_colour_leaves_the_word_readable(
    theme: str, colour: tuple[int, int, int]
) -> None:
    colours = THEMES[theme]
    page = rgb(colours["backgroundColor"])
    behind = tuple(
        STRONGEST_OPACITY * own + (1 - STRONGEST_OPACITY) * other
        for own, other in zip(colour, page, strict=True)
    )
    assert contrast(rgb(colours["textColor"]), behind) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_plots_stand_out_from_the_page(theme: str) -> None:
    colours = THEMES[theme]
    for colour in COLOURS:
        assert contrast(rgb(colour), rgb(colours["backgroundColor"])) >= 3, colour


@pytest.mark.parametrize(
    ("weight", "text"),
    [(1.234, "+1.23"), (-0.5, "−0.50"), (0.001, "0.00"), (-0.001, "0.00"), (-10.0, "−10.00")],
)
def test_weights_in_words(weight: float, text: str) -> None:
    assert signed(weight) == text
