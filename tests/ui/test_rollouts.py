"""What promote says, as the page tells it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from functions.promote.plan import Entry
from tests.ui.stub_proxy import StubProxy, rolling_out
from ui.rollout import Happening, read_entry, read_status, reigns, span

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def said(page: AppTest) -> str:
    html = [element.proto.body for element in page.get("html")]
    kinds = (page.markdown, page.caption, page.error, page.warning, page.info)
    return "\n".join([item.value for kind in kinds for item in kind] + html)


def test_nothing_yet(visit: Callable[..., AppTest]) -> None:
    page = visit("rollouts")

    assert not page.exception
    assert "Nothing was rolled out yet." in said(page)
    assert "The ledger is empty." in said(page)


def test_a_rollout_under_way(proxy: StubProxy, visit: Callable[..., AppTest]) -> None:
    proxy.rollouts = rolling_out()
    page = visit("rollouts", MLFLOW_URL="https://mlflow.example/")

    assert not page.exception
    words = said(page)
    assert "[10](https://mlflow.example/#/models/yelp-model/versions/10)" in words
    assert [item.proto.text for item in page.get("progress")] == [
        "90 % of the requests: predict\\-00010\\-abc",
        "10 % of the requests: predict\\-00011\\-abc",
        "10 % of the requests",
    ]
    assert "<strong>golden</strong> passed: 24 texts" in words
    assert "Version 9 is blocked" in page.error[0].value
    assert "Version 10 serves everybody" in words
    assert "asked for by stage:Production" in words
    assert "Gates: 5 passed, 1 skipped" in words
    assert "paused" not in words
    [timeline] = page.get("vega_lite_chart")
    assert "version 8 from" in timeline.proto.alt


def test_an_old_word_and_a_failed_look_are_told(
    proxy: StubProxy, visit: Callable[..., AppTest]
) -> None:
    proxy.rollouts = rolling_out()
    at = datetime.now(UTC) - timedelta(hours=3, minutes=1)
    proxy.rollouts["status"] |= {"at": at.isoformat(), "error": "MLflow: **no** answer"}
    page = visit("rollouts")

    assert "MLflow\\: \\*\\*no\\*\\* answer" in page.warning[0].value
    assert "3 h 1 min ago" in page.warning[1].value


def test_a_failure_is_told_kindly(proxy: StubProxy, visit: Callable[..., AppTest]) -> None:
    proxy.failing = 500
    page = visit("rollouts")

    assert not page.exception
    assert page.error[0].value.startswith("Something")


def test_an_entry_as_promote_writes_it() -> None:
    entry = Entry(
        at=NOW,
        event="stepped",
        version="11",
        run_id="3acade",
        revision="predict-00011-abc",
        from_version="10",
        from_revision="predict-00010-abc",
        because="alias:production",
        percent=10,
        since=NOW - timedelta(minutes=7),
    )
    told = read_entry(entry.model_dump(mode="json"))

    assert told.at == NOW
    assert told.title == "Version 11 serves 10 % of the requests"
    assert told.facts == (
        "before it: version 10",
        "asked for by alias:production",
        "took 7 min",
        "revision predict-00011-abc",
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
NAMES = ["at", "since", "event", "version", "percent", "gates", "served", "traffic", "candidate"]
documents = st.dictionaries(
    st.sampled_from([*NAMES, "step", "blocked", "action", "desired", "error", "reason", "gate"]),
    json_values | st.datetimes().map(datetime.isoformat),
)


@given(documents, documents)
def test_no_document_is_too_strange(document: dict[str, Any], inner: dict[str, Any]) -> None:
    for each in (document, document | {"candidate": inner, "blocked": [inner], "gates": [inner]}):
        read_status(each)
        told = read_entry(each)
        reigns([told], NOW)


def happening(version: str, hours: float, event: str = "promoted") -> Happening:
    at = NOW - timedelta(hours=hours)
    return read_entry({"version": version, "event": event, "at": at.isoformat()})


def test_who_was_on_stage_and_when() -> None:
    told = [happening("3", 1), happening("2", 5, "blocked"), happening("1", 9)]

    assert [
        (reign.version, (reign.until - reign.since) / timedelta(hours=1))
        for reign in reigns(told, NOW)
    ] == [("1", 8), ("3", 1)]


def test_spans_in_words() -> None:
    for seconds, words in (
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (90_061, "1 d 1 h"),
        (-5, "0 s"),
    ):
        assert span(timedelta(seconds=seconds)) == words
