"""The first view, driven as a visitor drives it, against a stub of the proxy."""

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from local.settings import free_port
from tests.ui.stub_proxy import NONSENSE, RUN_ID, StubProxy

QUESTION = "What are you going to post?"
LATER = "I'll say later"


@pytest.fixture
def page(visit: Callable[..., AppTest]) -> AppTest:
    return visit()


def post(page: AppTest, text: str, choice: str = "positive") -> AppTest:
    page.text_area(key="text").set_value(text)
    page.radio(key="is_positive").set_value(choice)
    return page.button(key="tell").click().run()


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def said(page: AppTest) -> str:
    """Everything that stands in Markdown and HTML."""
    html = [element.proto.body for element in page.get("html")]
    return "\n".join([item.value for item in page.markdown] + html)


def test_the_articles_form(proxy: StubProxy, visit: Callable[..., AppTest]) -> None:
    proxy.fill(100_000)
    page = visit()

    assert not page.exception
    assert page.text_area(key="text").label == QUESTION
    assert page.radio(key="is_positive").options == ["positive", "negative", LATER]
    assert page.radio(key="is_positive").value == "positive"
    assert [b.label for b in page.button if b.key == "tell"] == ["Let me tell you!"]
    assert metrics(page) == {
        "The model was right": "78.2%",
        "Right / answered": "39,089 / 49,999",
        "Requests": "99,949",
    }


def test_the_answer_beside_the_users(page: AppTest, proxy: StubProxy) -> None:
    post(page, "very good cafe")

    assert not page.exception
    assert [body for body, _ in proxy.posts] == [
        {"text": "very good cafe", "is_positive_user_answered": True}
    ]
    assert metrics(page)["You think"] == "Positive"
    assert metrics(page)["The model thinks"] == "Positive"
    assert "You agree" in said(page)
    [progress] = page.get("progress")
    assert progress.proto.text == "89.1% likely positive"
    assert RUN_ID in said(page)
    assert "0.93 ms" in said(page)
    assert "commit 0ea995f0c8d1" in said(page)


def test_disagreement(page: AppTest, proxy: StubProxy) -> None:
    proxy.score = 0.02
    post(page, "very good cafe", "positive")

    assert metrics(page)["The model thinks"] == "Negative"
    assert "You disagree" in said(page)
    [progress] = page.get("progress")
    assert progress.proto.text == "2.0% likely positive"


def test_a_verdict_between_the_threshold_and_a_half_is_told_truly(
    page: AppTest, proxy: StubProxy
) -> None:
    """Guards against "Positive, 47% sure", and a sum that ought to be above zero and isn't."""
    proxy.score = 0.47
    post(page, "very good cafe")

    assert metrics(page)["The model thinks"] == "Positive"
    [progress] = page.get("progress")
    assert (progress.proto.text, progress.proto.value) == ("47.0% likely positive", 47)
    [told] = [item.value for item in page.caption if "log-odds" in item.value]
    assert "log-odds of a positive review: 47.0% likely positive" in told
    assert "near 50%" in told
    assert "above zero" not in told
    assert '<tr><th scope="row">Sum</th><td>−0.12</td></tr>' in said(page)


def test_version_and_run_are_links_where_mlflow_is_known(
    page: AppTest, visit: Callable[..., AppTest]
) -> None:
    post(page, "very good cafe")
    assert "](" not in said(page)

    linked = visit(MLFLOW_URL="https://mlflow.example", MODEL_NAME="a model/b")
    post(linked, "very good cafe")
    assert "[10](https://mlflow.example/#/models/a%20model%2Fb/versions/10)" in said(linked)
    assert f"(https://mlflow.example/#/runs/{RUN_ID})" in said(linked)


def test_every_word_shows_what_it_adds(page: AppTest) -> None:
    post(page, "very good cafe")

    html = said(page)
    # Of five n-grams; "very good" (3.0) counts half for each of its words.
    for word, weight in (("very", "+0.30"), ("good", "+1.50"), ("cafe", "+0.10")):
        assert f'title="{weight}"' in html
        assert f">{word}<span" in html
        assert f'<tr><th scope="row">{word}</th><td>{weight}</td></tr>' in html
    assert '<tr><th scope="row">Sum</th><td>+2.10</td></tr>' in html


def test_markup_in_a_review_is_shown_and_not_obeyed(page: AppTest) -> None:
    """Guards against script injection by what a visitor, or a model's answer, says."""
    text = "<script>alert(1)</script> **very** good [cafe](javascript:alert(2)) <b>x</b>"
    post(page, text)

    assert not page.exception
    html = said(page)
    assert "<script" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;" in html
    assert "](javascript" not in "".join(item.value for item in page.markdown)


def test_an_example_is_one_click_away(page: AppTest, proxy: StubProxy) -> None:
    page.button(key="example-Never again").click().run()

    assert "Never again." in str(page.text_area(key="text").value)
    assert not proxy.posts
    page.button(key="tell").click().run()
    assert metrics(page)["The model thinks"] == "Negative"


def test_the_answer_can_come_later_and_change(page: AppTest, proxy: StubProxy) -> None:
    post(page, "very good cafe", LATER)
    assert proxy.posts[0][0]["is_positive_user_answered"] is None
    assert metrics(page)["You think"] == "–"
    assert metrics(page)["Right / answered"] == "0 / 0"

    answer = f"answer-{proxy.items[0]['id']}"
    for choice, shown, counted in (
        ("positive", "Positive", "1 / 1"),
        ("negative", "Negative", "0 / 1"),
        (LATER, "–", "0 / 0"),
    ):
        page.radio(key=answer).set_value(choice).run()
        assert metrics(page)["You think"] == shown
        assert metrics(page)["Right / answered"] == counted
    assert len(proxy.items) == 1


def test_an_answer_that_can_not_be_changed_stays_as_it_was(page: AppTest, proxy: StubProxy) -> None:
    post(page, "very good cafe", "positive")
    answer = f"answer-{proxy.items[0]['id']}"
    proxy.failing = 503
    page.radio(key=answer).set_value("negative").run()

    assert "can't answer right now" in page.error[0].value
    assert page.radio(key=answer).value == "positive"
    assert metrics(page)["You think"] == "Positive"
    proxy.failing = None
    page.radio(key=answer).set_value("negative").run()
    assert not page.error
    assert metrics(page)["You think"] == "Negative"


def test_a_review_can_be_forgotten(page: AppTest, proxy: StubProxy) -> None:
    post(page, "very good cafe")
    page.button(key="forget").click().run()

    assert not page.exception
    assert proxy.items == []
    assert "The model thinks" not in metrics(page)
    assert metrics(page)["Requests"] == "0"


def test_a_double_click_forgets_once(page: AppTest, proxy: StubProxy) -> None:
    post(page, "very good cafe")

    # The second click comes while the first one's run waits for the statistics.
    proxy.delay = 1
    page.button(key="forget").click()
    with pytest.raises(RuntimeError, match="timed out"):
        page.run(timeout=1.5)
    proxy.delay = 0
    page.run()

    assert not page.exception
    assert not page.error
    assert proxy.items == []
    assert "The model thinks" not in metrics(page)


def test_what_another_window_deleted_is_forgotten_too(page: AppTest, proxy: StubProxy) -> None:
    post(page, "very good cafe")
    proxy.items.clear()
    page.button(key="forget").click().run()

    assert not page.error
    assert "The model thinks" not in metrics(page)


@pytest.mark.parametrize("text", ["", "four", "        "])
def test_a_short_text_is_not_sent(page: AppTest, proxy: StubProxy, text: str) -> None:
    post(page, text)

    assert "at least 5" in page.warning[0].value
    assert not proxy.posts


def test_no_answers_yet(page: AppTest) -> None:
    assert not page.exception
    assert metrics(page)["The model was right"] == "–"
    assert metrics(page)["Requests"] == "0"


@pytest.mark.parametrize("failing", [500, 503, 429, 422, 403])
def test_a_failure_is_told_kindly_and_the_text_kept(
    page: AppTest, proxy: StubProxy, failing: int
) -> None:
    proxy.failing = failing
    post(page, "very good cafe")

    assert not page.exception
    assert page.error[0].value.startswith(("The ", "This ", "Something "))
    assert ("in 7 seconds" in page.error[0].value) == (failing in (429, 503))
    assert page.text_area(key="text").value == "very good cafe"

    proxy.failing = None
    page.button(key="tell").click().run()

    assert not page.error
    assert metrics(page)["The model thinks"] == "Positive"
    first, second = (headers["idempotency-key"] for _, headers in proxy.posts)
    assert first == second  # so that trying again counts once


def test_nonsense_is_told_kindly(page: AppTest, proxy: StubProxy) -> None:
    proxy.nonsense = b'{"score": "very"}'
    post(page, "very good cafe")

    assert not page.exception
    assert "makes no sense" in page.error[0].value


@pytest.mark.parametrize("body", NONSENSE)
def test_statistics_that_make_no_sense_leave_the_form(
    proxy: StubProxy, visit: Callable[..., AppTest], body: bytes
) -> None:
    proxy.nonsense = body
    page = visit()

    assert not page.exception
    assert "not available right now" in page.info[0].value
    assert page.text_area(key="text").label == QUESTION


def test_a_new_review_is_a_new_request(page: AppTest, proxy: StubProxy) -> None:
    post(page, "very good cafe")
    post(page, "very good cafe")

    first, second = (headers["idempotency-key"] for _, headers in proxy.posts)
    assert first != second


def test_a_visitor_is_told_apart_and_not_known(
    proxy: StubProxy, visit: Callable[..., AppTest]
) -> None:
    one, other = visit(), visit()
    post(one, "very good cafe")
    post(one, "very good cafe, again")
    post(other, "very good cafe")

    first, second, third = (headers["x-greenroom-caller"] for _, headers in proxy.posts)
    assert first == second != third
    assert len(first) == 64


def test_a_slow_proxy(proxy: StubProxy, visit: Callable[..., AppTest]) -> None:
    page = visit(PROXY_TIMEOUT_SECONDS="0.3")
    proxy.delay = 1
    post(page, "very good cafe")

    assert "longer than usual" in page.error[0].value


def test_no_proxy_at_all(visit: Callable[..., AppTest]) -> None:
    page = visit(PROXY_URL=f"http://127.0.0.1:{free_port()}")
    post(page, "very good cafe")

    assert not page.exception
    assert "can't be reached" in page.error[0].value
    assert page.text_area(key="text").value == "very good cafe"
