"""The statistics, with no prediction, one, and a hundred thousand."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.stub_proxy import NONSENSE, StubProxy, today


@pytest.fixture
def open_statistics(visit: Callable[..., AppTest]) -> Callable[[], AppTest]:
    return lambda: visit("statistics")


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def plots(page: AppTest) -> list[Any]:
    return [element.proto for element in page.get("vega_lite_chart")]


def test_with_no_prediction(open_statistics: Callable[[], AppTest]) -> None:
    page = open_statistics()

    assert not page.exception
    assert metrics(page)["The model was right"] == "–"
    assert metrics(page)["Requests"] == "0"
    assert "no predictions" in page.info[0].value
    assert not plots(page)


def test_with_one_prediction(proxy: StubProxy, open_statistics: Callable[[], AppTest]) -> None:
    proxy.cells[today(), "10"] = Counter(true_positive=1)
    page = open_statistics()

    assert not page.exception
    assert metrics(page) == {
        "The model was right": "100.0%",
        "Right / answered": "1 / 1",
        "Requests": "1",
        "Called positive": "100.0%",
        "Median wait": "12.0 ms",
        "95% waited less than": "48.0 ms",
    }
    # One of one is not much: Wilson's interval says so.
    assert "20.7% to 100.0%" in page.caption[0].value
    assert len(plots(page)) == 5


def test_with_one_that_nobody_answered(
    proxy: StubProxy, open_statistics: Callable[[], AppTest]
) -> None:
    proxy.cells[today(), "10"] = Counter(no=1)
    page = open_statistics()

    assert not page.exception
    assert metrics(page)["Called positive"] == "0.0%"
    assert "nothing to compare with" in page.info[0].value
    assert len(plots(page)) == 2


def test_a_hundred_thousand_cost_what_a_thousand_cost(
    proxy: StubProxy, open_statistics: Callable[[], AppTest]
) -> None:
    sizes = []
    for predictions in (1_000, 100_000):
        proxy.reset()
        proxy.fill(predictions)
        page = open_statistics()
        assert not page.exception
        assert [path.split("?")[0] for method, path in proxy.requests].count("/statistics") == 1
        assert not [path for _, path in proxy.requests if path.startswith("/predictions")]
        drawn = plots(page)
        assert len(drawn) == 5
        sizes.append(sum(plot.ByteSize() for plot in drawn))
        assert {plot.ByteSize() > 0 for plot in drawn} == {True}
    assert metrics(page)["Requests"] == "99,949"
    assert sizes[1] < 1.2 * sizes[0]


def test_every_plot_is_described(proxy: StubProxy, open_statistics: Callable[[], AppTest]) -> None:
    proxy.fill(100_000)
    page = open_statistics()

    descriptions = [plot.alt for plot in plots(page)]
    assert all(len(text) > 40 for text in descriptions)
    assert "version 10 83." in descriptions[1]
    assert "only the model positive 7,639" in descriptions[2]


def test_the_figures_stand_in_tables_too(
    proxy: StubProxy, open_statistics: Callable[[], AppTest]
) -> None:
    proxy.fill(100_000)
    versions, revisions = open_statistics().table

    assert list(versions.value["Version"]) == ["8", "9", "10"]
    assert versions.value["95% interval"][2] == "83.1% to 84.3%"
    assert list(revisions.value["Failed"]) == ["3"]


def test_a_line_for_each_version(proxy: StubProxy, open_statistics: Callable[[], AppTest]) -> None:
    proxy.fill(100_000)
    page = open_statistics()
    assert '"version:' not in plots(page)[0].spec
    page.toggle(key="by_version").set_value(True).run()

    assert not page.exception
    spec = json.loads(plots(page)[0].spec)
    line = spec["layer"][-1]["encoding"]
    # Colour is not the only sign.
    assert line["color"]["field"] == line["strokeDash"]["field"] == "version"
    assert line["color"]["sort"] == ["8", "9", "10"]


@pytest.mark.parametrize(("period", "days"), [("7 days", 7), ("90 days", 90), ("All time", None)])
def test_the_range_of_days_is_asked_for(
    proxy: StubProxy, open_statistics: Callable[[], AppTest], period: str, days: int | None
) -> None:
    proxy.fill(1_000)
    page = open_statistics()
    page.radio(key="period").set_value(period).run()

    last = today()
    query = "" if days is None else f"?since={last - timedelta(days=days - 1)}&until={last}"
    assert not page.exception
    assert proxy.requests[-1] == ("GET", f"/statistics{query}")


def test_days_of_ones_own(proxy: StubProxy, open_statistics: Callable[[], AppTest]) -> None:
    proxy.fill(9_000)
    page = open_statistics()
    page.radio(key="period").set_value("Choose days").run()
    first, last = today() - timedelta(days=3), today() - timedelta(days=2)
    page.date_input(key="days").set_value((first, last)).run()

    assert not page.exception
    assert proxy.requests[-1] == ("GET", f"/statistics?since={first}&until={last}")
    assert metrics(page)["Requests"] == "599"

    page.date_input(key="days").set_value((first,)).run()
    assert "first and the last day" in page.info[0].value


def test_a_failure_is_told_kindly(proxy: StubProxy, open_statistics: Callable[[], AppTest]) -> None:
    proxy.failing = 503
    page = open_statistics()

    assert not page.exception
    # The model has no part in them.
    assert "The service can't answer right now" in page.error[0].value


def test_too_many_days_are_not_asked_for(
    proxy: StubProxy, open_statistics: Callable[[], AppTest]
) -> None:
    page = open_statistics()
    page.radio(key="period").set_value("Choose days").run()
    first, last = today() - timedelta(days=366), today()
    before = len(proxy.requests)
    page.date_input(key="days").set_value((first, last)).run()

    assert "367 days" in page.warning[0].value
    assert "at most 366" in page.warning[0].value
    assert not page.error
    assert len(proxy.requests) == before
    page.date_input(key="days").set_value((first + timedelta(days=1), last)).run()
    assert not page.warning
    assert metrics(page)["Requests"]


def test_the_days_stay_chosen_while_another_view_is_visited(
    proxy: StubProxy, open_statistics: Callable[[], AppTest]
) -> None:
    page = open_statistics()
    page.radio(key="period").set_value("Choose days").run()
    first, last = today() - timedelta(days=3), today() - timedelta(days=2)
    page.date_input(key="days").set_value((first, last)).run()
    page.switch_page("views/rollouts.py").run()
    page.switch_page("views/statistics.py").run()

    assert not page.exception
    assert page.radio(key="period").value == "Choose days"
    assert page.date_input(key="days").value == (first, last)
    assert proxy.requests[-1] == ("GET", f"/statistics?since={first}&until={last}")


def test_the_services_own_reason_is_told(
    proxy: StubProxy, open_statistics: Callable[[], AppTest]
) -> None:
    proxy.failing = 422
    page = open_statistics()

    assert not page.exception
    assert page.error[0].value == (
        "The service does not take this. Please change it. Its reason: It does not work\\."
    )


def test_the_day_after_the_last_has_no_label(
    proxy: StubProxy, open_statistics: Callable[[], AppTest]
) -> None:
    """Guards against an axis that names tomorrow, at the end of today's bar."""
    proxy.fill(1_000)
    last = max(day for day, _ in proxy.cells)
    spec = json.loads(plots(open_statistics())[3].spec)

    tomorrow = datetime.combine(last, time(), UTC) + timedelta(days=1)
    axis = spec["encoding"]["x"]["axis"]
    assert axis["labelExpr"].startswith(f"datum.value < {tomorrow.timestamp() * 1000:.0f} ?")


@pytest.mark.parametrize("body", NONSENSE)
def test_nonsense_is_told_kindly(
    proxy: StubProxy, open_statistics: Callable[[], AppTest], body: bytes
) -> None:
    proxy.nonsense = body
    page = open_statistics()

    assert not page.exception
    assert "makes no sense" in page.error[0].value
    assert not page.metric


@pytest.mark.parametrize(
    "wrong",
    [
        {"correctness_rate": 1.5},
        {"answered": -1},
        {"correctness_interval": [0.5]},
        {"latency": {"p50": "soon"}},
        {"by_day": [{"day": "yesterday"}]},
        {"by_model_version": None},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_one_wrong_measure_is_told_kindly(
    proxy: StubProxy, open_statistics: Callable[[], AppTest], wrong: dict[str, Any]
) -> None:
    proxy.fill(1_000)
    document = proxy.statistics({})
    document["statistics"] |= wrong
    proxy.nonsense = json.dumps(document).encode()
    page = open_statistics()

    assert not page.exception
    assert "makes no sense" in page.error[0].value


@pytest.mark.parametrize(
    "far",
    [{"day": "0001-01-01"}, {"day": "9999-12-31"}, {"predictions": 10**400}],
    ids=["the-first-day", "the-last-day", "a-huge-count"],
)
def test_days_and_counts_beyond_reason_are_told_kindly(
    proxy: StubProxy, open_statistics: Callable[[], AppTest], far: dict[str, Any]
) -> None:
    proxy.fill(1_000, days=1)
    document = proxy.statistics({})
    document["statistics"]["by_day"][0] |= far
    proxy.nonsense = json.dumps(document).encode()
    page = open_statistics()

    assert not page.exception
    assert "makes no sense" in page.error[0].value
