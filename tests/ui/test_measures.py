"""Figures and foreign texts, in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.measures import milliseconds, percent
from ui.plain import link, plain


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (None, "–"),
        (0.0, "0.0%"),
        (0.0001, "under 0.1%"),
        (0.5, "50.0%"),
        (0.9994, "99.9%"),
        (0.9999, "over 99.9%"),
        (1.0, "100.0%"),
    ],
)
def test_nearly_all_is_not_all(share: float | None, words: str) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.00012, "0.1 ms"), (0.0123, "12.3 ms"), (1.5, "1,500 ms")]
)
def test_milliseconds(seconds: float, words: str) -> None:
    assert milliseconds(seconds) == words


@given(st.text())
def test_foreign_text_is_no_markdown(text: str) -> None:
    shown = plain(text)

    assert "\n" not in shown
    unmarked = shown.replace("\\\\", "")
    for mark in "*_`[]<>$~#:":
        assert unmarked.count(mark) == unmarked.count(f"\\{mark}")


def test_a_link_leads_only_where_it_says() -> None:
    assert link("1](http://x", "http://y/a b)c") == "[1\\]\\(http\\:\\/\\/x](http://y/a%20b%29c)"
