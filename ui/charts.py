"""Plots of the statistics: a few rows a day or a version, however many predictions they count.

What a colour tells is told a second time by dashes, an order or a label. Made for
``st.altair_chart(theme=None)``, which gives texts the page's full contrast.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import altair as alt

from functions.client import Confusion, DayStatistics, VersionMeasures
from ui.rollout import Reign

Plot = alt.Chart | alt.LayerChart | alt.FacetChart

HEIGHT = 260
ALL_VERSIONS = "all"

COLOURS = ["#1b9e77", "#d2691e", "#3d85c6", "#b0569a", "#8a8a1f", "#808080"]
"""Each has a contrast of at least 3:1 to a white page and to a dark one."""

_LINES = alt.Legend(symbolOpacity=1, symbolType="stroke", symbolSize=300, symbolStrokeWidth=2)

# The fill is light on any page, and what is written on it dark.
_FEWEST, _MOST, _INK = "#f1f6f3", "#8ecfb0", "#10241a"


def correctness_by_day(days: Sequence[DayStatistics], *, by_version: bool) -> Plot:
    """Return the share of right answers a day, with its interval of 95 %.

    Args:
        days: of the range; those without answers are left out.
        by_version: a line for each model version instead of one for all.
    """
    rows = [
        _correctness(measures) | {"day": _iso(day), "version": version}
        for day in days
        for version, measures in (
            [(item.model_version, item) for item in day.by_model_version]
            if by_version
            else [(ALL_VERSIONS, day)]
        )
        if measures.correctness_rate is not None
    ]
    base = alt.Chart(_data(rows)).encode(x=_day(days))
    tooltip = [
        _day_tooltip(),
        alt.Tooltip("rate:Q", title="Right", format=".1%"),
        alt.Tooltip("low:Q", title="At least", format=".1%"),
        alt.Tooltip("high:Q", title="At most", format=".1%"),
        alt.Tooltip("answered:Q", title="Answered", format=","),
    ]
    share = alt.Y("rate:Q", title="Right", axis=alt.Axis(format="%"), scale=_shares(rows))
    band = base.mark_area(opacity=0.25).encode(
        y=alt.Y("low:Q", title="Right", axis=alt.Axis(format="%"), scale=_shares(rows)),
        y2="high:Q",
    )
    # A band of one day has no width.
    rule = base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")
    line = base.mark_line(point=alt.OverlayMarkDef(size=45)).encode(y=share, tooltip=tooltip)
    if by_version:
        versions = _versions(rows)
        colour = alt.Color("version:N", title="Version", sort=versions, legend=_LINES)
        tooltip.insert(1, alt.Tooltip("version:N", title="Version"))
        band, rule = band.encode(color=colour), rule.encode(color=colour)
        line = line.encode(
            color=colour,
            strokeDash=alt.StrokeDash("version:N", title="Version", sort=versions, legend=_LINES),
            tooltip=tooltip,
        )
    return _finish(alt.layer(band, rule, line).properties(height=HEIGHT))


def correctness_by_version(versions: Sequence[VersionMeasures]) -> Plot:
    """Return the share of right answers of each model version, with its interval of 95 %."""
    rows = [
        _correctness(item) | {"version": item.model_version}
        for item in versions
        if item.correctness_rate is not None
    ]
    base = alt.Chart(_data(rows)).encode(
        y=alt.Y("version:N", title="Version", sort=_versions(rows)),
        tooltip=[
            alt.Tooltip("version:N", title="Version"),
            alt.Tooltip("rate:Q", title="Right", format=".1%"),
            alt.Tooltip("low:Q", title="At least", format=".1%"),
            alt.Tooltip("high:Q", title="At most", format=".1%"),
            alt.Tooltip("answered:Q", title="Answered", format=","),
        ],
    )
    scale = _shares(rows)
    axis = alt.Axis(format="%", tickCount=5)
    bar = base.mark_bar(height=8, opacity=0.4).encode(
        x=alt.X("low:Q", title="Right", axis=axis, scale=scale), x2="high:Q"
    )
    point = base.mark_point(filled=True, size=90, opacity=1).encode(x="rate:Q")
    return _finish(alt.layer(bar, point).properties(height=alt.Step(36)))


def requests_by_day(days: Sequence[DayStatistics]) -> Plot:
    """Return the requests a day, split by what the model said."""
    rows = []
    for day in days:
        positive = round(day.predictions * (day.positive_rate or 0))
        for order, (says, count) in enumerate(
            (("Positive", positive), ("Negative", day.predictions - positive))
        ):
            share = count / day.predictions if day.predictions else 0
            rows.append(
                {"day": _iso(day), "says": says, "count": count, "share": share, "order": order}
            )
    plot: Plot = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            x=_day(days, whole=True),
            y=alt.Y("count:Q", title="Requests", axis=alt.Axis(format=",d", tickMinStep=1)),
            color=alt.Color("says:N", title="The model says", sort=["Positive", "Negative"]),
            order="order:Q",
            tooltip=[
                _day_tooltip(),
                alt.Tooltip("says:N", title="The model says"),
                alt.Tooltip("count:Q", title="Requests", format=","),
                alt.Tooltip("share:Q", title="Share", format=".1%"),
            ],
        )
        .properties(height=HEIGHT)
    )
    return _finish(plot)


def latency_by_day(days: Sequence[DayStatistics]) -> Plot:
    """Return the time of a request a day, in milliseconds: the median and the slowest 5 %."""
    rows = [
        {"day": _iso(day), "which": which, "milliseconds": seconds * 1000}
        for day in days
        if day.latency is not None
        for which, seconds in (("Median", day.latency.p50), ("95% are faster", day.latency.p95))
    ]
    which = ["Median", "95% are faster"]
    plot: Plot = (
        alt.Chart(_data(rows))
        .mark_line(point=alt.OverlayMarkDef(size=45))
        .encode(
            x=_day(days),
            y=alt.Y("milliseconds:Q", title="Milliseconds", scale=alt.Scale(zero=True)),
            color=alt.Color("which:N", title=None, sort=which, legend=_LINES),
            strokeDash=alt.StrokeDash("which:N", title=None, sort=which, legend=_LINES),
            tooltip=[
                _day_tooltip(),
                alt.Tooltip("which:N", title="Which"),
                alt.Tooltip("milliseconds:Q", title="Milliseconds", format=",.1f"),
            ],
        )
        .properties(height=HEIGHT)
    )
    return _finish(plot)


def confusion_matrix(confusion: Confusion) -> Plot:
    """Return what users said beside what the model said, as a two-by-two table."""
    cells = (
        ("Positive", "Positive", confusion.true_positive),
        ("Positive", "Negative", confusion.false_negative),
        ("Negative", "Positive", confusion.false_positive),
        ("Negative", "Negative", confusion.true_negative),
    )
    answered = sum(count for *_, count in cells)
    rows = [
        {
            "user": user,
            "model": model,
            "count": count,
            "share": count / answered if answered else 0.0,
            "label": f"{count:,}",
        }
        for user, model, count in cells
    ]
    order = ["Positive", "Negative"]
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("model:N", title="The model said", sort=order, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("user:N", title="The user said", sort=order),
        tooltip=[
            alt.Tooltip("user:N", title="The user said"),
            alt.Tooltip("model:N", title="The model said"),
            alt.Tooltip("count:Q", title="Predictions", format=","),
            alt.Tooltip("share:Q", title="Share", format=".1%"),
        ],
    )
    fill = alt.Color("share:Q", legend=None, scale=alt.Scale(range=[_FEWEST, _MOST]))
    tiles = base.mark_rect(stroke=_INK, strokeOpacity=0.25).encode(color=fill)
    numbers = base.mark_text(
        font="Source Sans, sans-serif", fontSize=20, fontWeight=600, color=_INK
    ).encode(text="label:N")
    return _finish(alt.layer(tiles, numbers).properties(height=HEIGHT))


def on_stage(reigns: Sequence[Reign]) -> Plot:
    """Return which version served everybody, and when."""
    rows = [
        {
            "version": item.version,
            "since": item.since.isoformat(),
            "until": item.until.isoformat(),
        }
        for item in reigns
    ]
    utc = alt.Scale(type="utc")
    plot: Plot = (
        alt.Chart(_data(rows))
        .mark_bar(height=14, cornerRadius=3)
        .encode(
            x=alt.X("since:T", title="UTC", scale=utc, axis=alt.Axis(tickCount=6)),
            x2="until:T",
            y=alt.Y("version:N", title="Version", sort=_versions(rows)[::-1]),
            tooltip=[
                alt.Tooltip("version:N", title="Version"),
                alt.Tooltip("since:N", title="Since"),
                alt.Tooltip("until:N", title="Until"),
            ],
        )
        .properties(height=alt.Step(28))
    )
    return _finish(plot)


def _finish(plot: Plot) -> Plot:
    finished: Plot = (
        plot.configure_axis(
            domain=False,
            ticks=False,
            labelFontSize=12,
            labelPadding=8,
            titleFontSize=13,
            titleFontWeight="normal",
        )
        .configure_axisX(grid=False, titlePadding=10)
        .configure_legend(
            orient="bottom", labelFontSize=12, titleFontSize=12, titleFontWeight="normal"
        )
        .configure_mark(color=COLOURS[0])
        .configure_rule(color=COLOURS[0])
        .configure_range(category=COLOURS)
        .configure_view(stroke=None)
    )
    return finished


def _correctness(measures: DayStatistics | VersionMeasures) -> dict[str, Any]:
    rate = measures.correctness_rate
    low, high = measures.correctness_interval or (rate, rate)
    return {"rate": rate, "low": low, "high": high, "answered": measures.answered}


def _data(rows: list[dict[str, Any]]) -> alt.Data:
    return alt.Data(values=rows)  # type: ignore[no-untyped-call]


def _iso(day: DayStatistics) -> str:
    return day.day.isoformat()


def _day(days: Sequence[DayStatistics], *, whole: bool = False) -> alt.X:
    """Return the axis of days, a week at least.

    Args:
        days: in order, one at least.
        whole: up to the end of the last day, for what is as wide as a day.
    """
    last = days[-1].day
    first = min(days[0].day, last - timedelta(days=6))
    end = last + timedelta(days=1) if whole else last
    step = {"interval": "day", "step": 1 + (end - first).days // 8}
    # Where the last day ends another one begins, which has no part in this.
    beyond = datetime.combine(last + timedelta(days=1), time(), UTC).timestamp() * 1000
    # The days are UTC's, wherever the browser is.
    return alt.X(
        "utcyearmonthdate(day):T",
        title="Day (UTC)",
        axis=alt.Axis(
            format="%b %-d",
            tickCount=step,
            labelFlush=True,
            labelExpr=f"datum.value < {beyond:.0f} ? datum.label : ''",
        ),
        scale=alt.Scale(type="utc", domain=[_begin(first), _begin(end)]),
    )


def _begin(day: date) -> alt.DateTime:
    return alt.DateTime(year=day.year, month=day.month, date=day.day, utc=True)


def _day_tooltip() -> alt.Tooltip:
    return alt.Tooltip("utcyearmonthdate(day):T", title="Day", format="%Y-%m-%d")


def _shares(rows: list[dict[str, Any]]) -> alt.Scale:
    # Down to a round tenth below the lowest, so that a change of a percent is seen.
    lowest = min((row["low"] for row in rows), default=0.0)
    return alt.Scale(domain=[max(0.0, int(lowest * 10) / 10), 1.0], nice=False)


def _versions(rows: list[dict[str, Any]]) -> list[str]:
    names = {row["version"] for row in rows}
    return sorted(names, key=lambda name: (not name.isdecimal(), len(name), name))
