"""The list: filters, pages, deletion."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.stub_proxy import StubProxy, today


@pytest.fixture
def page(proxy: StubProxy, visit: Callable[..., AppTest]) -> AppTest:
    proxy.fill(1_000)
    page = visit("predictions")
    assert not page.exception
    return page


def texts(page: AppTest) -> list[str]:
    return [element.proto.body for element in page.get("html")]


def asked(proxy: StubProxy) -> str:
    return [path for _, path in proxy.requests if path.startswith("/predictions")][-1]


def test_disagreements_come_first(page: AppTest, proxy: StubProxy) -> None:
    assert page.radio(key="shown").value == "Disagreements"
    assert asked(proxy) == "/predictions?limit=20&disagreements=true"
    assert texts(page)
    badges = [item.value for item in page.markdown if "greement]" in item.value]
    assert badges
    assert all("Disagreement" in badge for badge in badges)


def test_a_verdict_is_told_as_where_it_was_given(
    proxy: StubProxy, visit: Callable[..., AppTest]
) -> None:
    """Guards against "Positive, 47% sure"."""
    for proxy.score in (0.47, 0.2):
        proxy.predict({"text": "very good cafe", "is_positive_user_answered": None}, explain=False)
    page = visit("predictions")
    page.radio(key="shown").set_value("Everything").run()

    assert [item.value for item in page.markdown if item.value.startswith("Model:")] == [
        "Model: **Negative**, 20.0% likely positive",
        "Model: **Positive**, 47.0% likely positive",
    ]


def test_everything_page_by_page(page: AppTest, proxy: StubProxy) -> None:
    page.radio(key="shown").set_value("Everything").run()
    assert asked(proxy) == "/predictions?limit=20"
    seen = texts(page)
    assert len(seen) == 20
    assert page.button(key="newer").disabled

    page.button(key="older").click().run()
    assert asked(proxy) == "/predictions?limit=20&cursor=20"
    page.button(key="older").click().run()
    assert asked(proxy) == "/predictions?limit=20&cursor=40"
    assert page.button(key="older").disabled

    page.button(key="newer").click().run()
    page.button(key="newer").click().run()
    assert texts(page) == seen
    assert page.button(key="newer").disabled


@pytest.mark.parametrize(
    ("key", "cursor"), [("older", "&cursor=40"), ("newer", "")], ids=["older", "newer"]
)
def test_a_double_click_turns_one_page(
    page: AppTest, proxy: StubProxy, key: str, cursor: str
) -> None:
    page.radio(key="shown").set_value("Everything").run()
    page.button(key="older").click().run()

    # The second click finds the buttons of the run before, as the first one's is not done.
    proxy.delay = 1
    page.button(key=key).click()
    with pytest.raises(RuntimeError, match="timed out"):
        page.run(timeout=0.5)
    proxy.delay = 0
    page.run()

    assert not page.exception
    assert asked(proxy) == f"/predictions?limit=20{cursor}"
    assert [item.value for item in page.caption if item.value.startswith("Page")] == [
        "Page 3" if cursor else "Page 1"
    ]


def test_a_filter_begins_at_the_first_page(page: AppTest, proxy: StubProxy) -> None:
    page.radio(key="shown").set_value("Everything").run()
    page.button(key="older").click().run()
    assert page.selectbox(key="version").options == ["Any", "10", "9", "8"]

    page.selectbox(key="version").set_value("9").run()
    assert asked(proxy) == "/predictions?limit=20&model_version=9"
    assert len(texts(page)) == 12

    yesterday = today() - timedelta(days=1)
    page.date_input(key="day").set_value(yesterday).run()
    assert asked(proxy) == f"/predictions?limit=20&model_version=9&day={yesterday}"

    page.radio(key="shown").set_value("Disagreements").run()
    assert asked(proxy).endswith(f"&model_version=9&day={yesterday}&disagreements=true")
    assert not page.exception


def test_filters_and_page_stay_while_another_view_is_visited(
    page: AppTest, proxy: StubProxy
) -> None:
    """Guards against the fourth page of one list asked for in another."""
    page.radio(key="shown").set_value("Everything").run()
    page.date_input(key="day").set_value(None).run()
    page.button(key="older").click().run()
    page.button(key="older").click().run()
    before = asked(proxy)
    page.switch_page("views/rollouts.py").run()
    page.switch_page("views/predictions.py").run()

    assert not page.exception
    assert page.radio(key="shown").value == "Everything"
    assert asked(proxy) == before == "/predictions?limit=20&cursor=40"


def test_every_filter_stays_while_another_view_is_visited(page: AppTest, proxy: StubProxy) -> None:
    page.selectbox(key="version").set_value("9").run()
    page.date_input(key="day").set_value(today()).run()
    before = asked(proxy)
    page.switch_page("views/rollouts.py").run()
    page.switch_page("views/predictions.py").run()

    assert not page.exception
    assert page.selectbox(key="version").value == "9"
    assert page.date_input(key="day").value == today()
    assert before == f"/predictions?limit=20&model_version=9&day={today()}&disagreements=true"
    assert asked(proxy) == before


def test_a_version_stays_chosen_while_the_statistics_fail(page: AppTest, proxy: StubProxy) -> None:
    page.selectbox(key="version").set_value("9").run()
    proxy.failing, proxy.failing_below = 503, "/statistics"
    page.run()
    assert page.selectbox(key="version").value == "9"
    assert "model_version=9" in asked(proxy)

    proxy.failing = None
    page.run()
    assert page.selectbox(key="version").value == "9"
    assert page.selectbox(key="version").options == ["Any", "10", "9", "8"]


def test_the_page_before_is_shown_once_all_of_the_last_are_deleted(
    page: AppTest, proxy: StubProxy
) -> None:
    page.radio(key="shown").set_value("Everything").run()
    del proxy.items[21:]
    page.run()
    page.button(key="older").click().run()
    assert len(texts(page)) == 1
    page.button(key=f"delete-{proxy.items[-1]['id']}").click().run()

    assert not page.exception
    assert len(texts(page)) == 20
    assert not page.info
    assert asked(proxy) == "/predictions?limit=20"


def test_markup_in_a_review_is_shown_and_not_obeyed(page: AppTest) -> None:
    page.radio(key="shown").set_value("Everything").run()

    [marked, *_] = [html for html in texts(page) if "bold" in html]
    assert "&lt;script&gt;alert(&#x27;lovely&#x27;)&lt;/script&gt; **not bold**" in marked
    assert "<script" not in marked


def test_a_long_review_is_folded(page: AppTest) -> None:
    page.radio(key="shown").set_value("Everything").run()

    [long, *_] = [html for html in texts(page) if "<details>" in html]
    assert long.count("Lovely evening.") > 40


def test_deletion_of_one(page: AppTest, proxy: StubProxy) -> None:
    before = len(proxy.items)
    [first, *_] = proxy.found({"disagreements": "true"})
    page.button(key=f"delete-{first['id']}").click().run()

    assert not page.exception
    assert len(proxy.items) == before - 1
    assert first not in proxy.items
    assert not [button for button in page.button if button.key == f"delete-{first['id']}"]


def test_what_is_gone_already_need_not_be_deleted(page: AppTest, proxy: StubProxy) -> None:
    first = proxy.items.pop(proxy.items.index(proxy.found({"disagreements": "true"})[0]))
    page.button(key=f"delete-{first['id']}").click().run()

    assert not page.exception
    assert not page.error


def test_a_deletion_that_fails_is_told(page: AppTest, proxy: StubProxy) -> None:
    [first, *_] = proxy.found({"disagreements": "true"})
    proxy.failing = 503
    page.button(key=f"delete-{first['id']}").click().run()
    assert not page.exception
    assert page.error
    assert first in proxy.items


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_export_is_collected_and_then_saved(page: AppTest, proxy: StubProxy, kind: str) -> None:
    day = today() - timedelta(days=1)
    page.date_input(key="day").set_value(day).run()
    proxy.exported = bytes(20 * 2**20)
    page.button(key=f"export-{kind}").click().run()

    assert not page.exception
    assert not page.warning
    assert ("GET", f"/predictions/export?format={kind}&day={day}&disagreements=true") in (
        proxy.requests
    )
    [save] = page.get("download_button")
    assert save.proto.label == f"Save predictions.{kind}"
    assert save.proto.url


def test_an_export_that_is_too_large_says_what_to_do(page: AppTest, proxy: StubProxy) -> None:
    proxy.exported = bytes(20 * 2**20 + 1)
    page.button(key="export-csv").click().run()

    assert not page.exception
    assert not page.get("download_button")
    assert "more than 20 MiB" in page.warning[0].value
    assert "Choose a day or a model version" in page.warning[0].value
    assert texts(page)


def test_an_export_that_fails_is_told_kindly(page: AppTest, proxy: StubProxy) -> None:
    proxy.failing, proxy.failing_below = 503, "/predictions/export"
    page.button(key="export-jsonl").click().run()

    assert not page.exception
    assert not page.get("download_button")
    assert page.error[0].value.startswith("There is no file to save.")
    assert "can't answer right now" in page.error[0].value


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_export_that_breaks_off_gives_no_file(
    page: AppTest, proxy: StubProxy, kind: str
) -> None:
    proxy.breaking_off = True
    page.button(key=f"export-{kind}").click().run()

    assert not page.exception
    assert not page.get("download_button")
    assert page.error[0].value.startswith("There is no file to save.")
    assert "can't be reached" in page.error[0].value
    assert texts(page)


def test_no_predictions(visit: Callable[..., AppTest]) -> None:
    page = visit("predictions")
    assert "No disagreements" in page.info[0].value
    page.radio(key="shown").set_value("Everything").run()
    assert "no predictions yet" in page.info[0].value
    page.date_input(key="day").set_value(today()).run()
    assert "fit these filters" in page.info[0].value
    assert not page.exception


@pytest.mark.parametrize("failing", [403, 503])
def test_a_failure_is_told_kindly(
    proxy: StubProxy, visit: Callable[..., AppTest], failing: int
) -> None:
    proxy.failing = failing
    page = visit("predictions")

    assert not page.exception
    assert page.error[0].value.startswith(("The ", "This "))
