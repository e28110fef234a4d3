"""How good the model is: over time, by version, and at what speed."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import streamlit as st

from functions.client import ClientError, DayStatistics, Measures, Statistics
from ui import charts
from ui.client import get_client, show_failure
from ui.measures import interval, percent, show_correctness, waits
from ui.plain import plain

ALL_TIME = "All time"
CHOSEN = "Choose days"
PERIODS = {"7 days": 7, "30 days": 30, "90 days": 90, ALL_TIME: None, CHOSEN: None}
# What the service tells day by day when no days are asked for.
DAYS_OF_ALL_TIME = 30
# The service takes no longer range.
MAX_DAYS = 366


def show_page() -> None:
    """Show the statistics of the days that are chosen."""
    st.title("Statistics")
    st.write("How often did people agree with the model, and how long did they wait?")
    period, since, until = choose_days()
    if period == CHOSEN and since is None:
        st.info("Choose the first and the last day.")
        return
    if since is not None and until is not None and (until - since).days >= MAX_DAYS:
        st.warning(
            f"These are {(until - since).days + 1:,} days. Please choose at most {MAX_DAYS}, "
            f"or *{ALL_TIME}*."
        )
        return
    try:
        statistics = get_client().statistics(since=since, until=until)
    except ClientError as error:
        show_failure(error)
        return
    try:
        show_statistics(statistics, period)
    except OverflowError:
        # Days and counts that nothing can be calculated from.
        show_failure(ClientError("The statistics make no sense.", kind="nonsense"))


def show_statistics(statistics: Statistics, period: str) -> None:
    """Show the figures of a period, and their plots where there are any.

    Raises:
        OverflowError: a day is at the calendar's end, or a count is beyond all floats.
    """
    show_totals(statistics)
    if not statistics.predictions:
        st.info(
            "There are no predictions yet."
            if period == ALL_TIME
            else "There are no predictions on these days."
        )
        return
    if period == ALL_TIME:
        st.caption(f"Plots by day show the last {DAYS_OF_ALL_TIME} days.")
    show_correctness_plots(statistics)
    show_confusion(statistics)
    show_requests(statistics.by_day)
    show_latency(statistics)
    show_table(statistics)


def choose_days() -> tuple[str, date | None, date | None]:
    """Show the choice; return the period's name and its first and last day, if it has any."""
    today = datetime.now(UTC).date()
    period = st.radio(
        "Period",
        list(PERIODS),
        index=1,
        horizontal=True,
        key="period",
        persist_state="session",
    )
    days = PERIODS[period]
    if days is not None:
        return period, today - timedelta(days=days - 1), today
    if period == CHOSEN:
        chosen = st.date_input(
            "First and last day (UTC)",
            (today - timedelta(days=6), today),
            max_value=today,
            format="YYYY-MM-DD",
            key="days",
            persist_state="session",
        )
        # Between the two clicks there is only one.
        if isinstance(chosen, tuple) and len(chosen) == 2:
            return period, *chosen
    return period, None, None


def show_totals(statistics: Statistics) -> None:
    """Show the figures of the whole period."""
    show_correctness(statistics)
    median, most = waits(statistics)
    with st.container(horizontal=True):
        st.metric("Called positive", percent(statistics.positive_rate))
        st.metric(
            "Median wait",
            median,
            help="From the request's arrival until its answer was ready to be stored.",
        )
        st.metric("95% waited less than", most)


def show_correctness_plots(statistics: Statistics) -> None:
    """Show the share of right answers by day and by version."""
    st.header("Right answers", anchor=False)
    if not statistics.answered:
        st.info("Nobody has said yet what they think, so there is nothing to compare with.")
        return
    answered = [day for day in statistics.by_day if day.answered]
    if answered:
        by_version = st.toggle("A line for each version", key="by_version")
        plot(
            charts.correctness_by_day(answered, by_version=by_version),
            "Line plot of the share of right answers by day, with its 95% interval. "
            + _course(answered),
        )
    versions = [item for item in statistics.by_model_version if item.answered]
    plot(
        charts.correctness_by_version(versions),
        "Share of right answers of each model version with its 95% interval: "
        + "; ".join(
            f"version {item.model_version} {percent(item.correctness_rate)}, {interval(item)}"
            for item in versions
        ),
    )


def _course(days: Sequence[DayStatistics]) -> str:
    first, last = days[0], days[-1]
    return (
        f"{percent(first.correctness_rate)} on {first.day}, "
        f"{percent(last.correctness_rate)} on {last.day}."
    )


def show_confusion(statistics: Measures) -> None:
    """Show what users said beside what the model said."""
    if not statistics.answered:
        return
    st.header("Where they disagree", anchor=False)
    table = statistics.confusion
    plot(
        charts.confusion_matrix(table),
        "Table of answers: "
        f"both positive {table.true_positive:,}, both negative {table.true_negative:,}, "
        f"only the model positive {table.false_positive:,}, "
        f"only the user positive {table.false_negative:,}.",
    )


def show_requests(days: Sequence[DayStatistics]) -> None:
    """Show the requests by day."""
    if not days:
        return
    st.header("Requests", anchor=False)
    busiest = max(days, key=lambda day: day.predictions)
    plot(
        charts.requests_by_day(days),
        "Bar plot of the requests by day, split by whether the model called them positive. "
        f"Most on {busiest.day}: {busiest.predictions:,}.",
    )


def show_latency(statistics: Statistics) -> None:
    """Show the waiting times by day."""
    days = [day for day in statistics.by_day if day.latency]
    if not days:
        return
    st.header("Waiting time", anchor=False)
    median, most = waits(statistics)
    plot(
        charts.latency_by_day(days),
        "Line plot of the median waiting time and of the 95th percentile by day. In all: "
        f"{median} and {most}.",
    )


def show_table(statistics: Statistics) -> None:
    """Show the figures behind the plots."""
    with st.expander("The figures as tables"):
        st.table(
            [
                {"Version": plain(item.model_version), **_row(item)}
                for item in statistics.by_model_version
            ],
            hide_index=True,
        )
        st.dataframe(
            [{"Day": item.day, **_row(item)} for item in reversed(statistics.by_day)],
            hide_index=True,
            alt="The same figures by day, the newest first",
        )
        if statistics.by_revision:
            st.table(
                [
                    {
                        "Revision": plain(item.revision),
                        "Version": plain(item.model_version or "–"),
                        "Requests": f"{item.predictions:,}",
                        "Failed": f"{item.failed:,}",
                    }
                    for item in statistics.by_revision
                ],
                hide_index=True,
            )


def _row(measures: Measures) -> dict[str, str]:
    return {
        "Requests": f"{measures.predictions:,}",
        "Answered": f"{measures.answered:,}",
        "Right": percent(measures.correctness_rate),
        "95% interval": interval(measures) if measures.answered else "–",
        "Called positive": percent(measures.positive_rate),
        "Median wait": waits(measures)[0],
    }


def plot(chart: charts.Plot, description: str) -> None:
    """Show a plot; its description is read out in its place."""
    st.altair_chart(chart, width="stretch", theme=None, alt=description)


show_page()
