"""Figures in words, the same on every view."""

import streamlit as st

from functions.client import Measures


def describe(is_positive: bool | None) -> str:
    """Return an answer in a word."""
    if is_positive is None:
        return "–"
    return "Positive" if is_positive else "Negative"


def percent(share: float | None) -> str:
    """Return a share, 0 to 1, in percent; nearly all is not all, and nearly nothing not nothing."""
    if share is None:
        return "–"
    if 0.9995 <= share < 1:
        return "over 99.9%"
    if 0 < share < 0.0005:
        return "under 0.1%"
    return f"{share:.1%}"


def likelihood(score: float) -> str:
    """Return a score in words that are true of both verdicts, wherever the model parts them."""
    return f"{percent(score)} likely positive"


def milliseconds(seconds: float) -> str:
    """Return a duration in milliseconds, three digits of it."""
    return f"{seconds * 1000:,.{0 if seconds >= 0.0995 else 1}f} ms"


def waits(measures: Measures) -> tuple[str, str]:
    """Return the median waiting time, and what 95 % of the requests stayed below."""
    latency = measures.latency
    if latency is None:
        return "–", "–"
    return milliseconds(latency.p50), milliseconds(latency.p95)


def interval(measures: Measures) -> str:
    """Return between what shares the true correctness rate lies, with 95 % confidence."""
    if measures.correctness_interval is None:
        return "no answers yet"
    low, high = measures.correctness_interval
    return f"{low:.1%} to {high:.1%}"


def show_correctness(measures: Measures) -> None:
    """Show how often the model was right."""
    with st.container(horizontal=True):
        st.metric(
            "The model was right",
            "–" if measures.correctness_rate is None else f"{measures.correctness_rate:.1%}",
            help="Of the reviews for which somebody said what they think.",
        )
        st.metric("Right / answered", f"{measures.correct:,} / {measures.answered:,}")
        st.metric("Requests", f"{measures.predictions:,}")
    if measures.answered:
        st.caption(f"With 95% confidence, it is right in {interval(measures)} of all cases.")
