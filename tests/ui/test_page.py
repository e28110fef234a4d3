"""The page, driven as a visitor drives it, against a stub of the proxy."""

import os
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from local.settings import free_port
from tests.ui.conftest import StubProxy

ROOT = Path(__file__).parents[2]
QUESTION = "What are you going to post?"


@pytest.fixture
def page(proxy: StubProxy, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("PROXY_URL", proxy.url)
    monkeypatch.setenv("PROXY_TIMEOUT_SECONDS", "1")
    st.cache_resource.clear()
    return AppTest.from_file(str(ROOT / "ui" / "app.py"), default_timeout=30).run()


def post(page: AppTest, text: str, choice: str = "positive") -> AppTest:
    page.text_area(key="text").set_value(text)
    page.radio(key="is_positive").set_value(choice)
    page.button[0].click()
    return page.run()


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def test_the_articles_form(page: AppTest) -> None:
    assert not page.exception
    assert page.text_area(key="text").label == QUESTION
    assert page.radio(key="is_positive").options == ["positive", "negative"]
    assert page.button[0].label == "Let me tell you!"
    assert metrics(page) == {
        "The model was right": "85.0%",
        "Right / answered": "17 / 20",
        "Requests": "1,234",
    }


def test_the_answer_beside_the_users(page: AppTest, proxy: StubProxy) -> None:
    post(page, "very good cafe")

    assert not page.exception
    assert [body for body, _ in proxy.posts] == [
        {"text": "very good cafe", "is_positive_user_answered": True}
    ]
    assert metrics(page)["You think"] == "Positive"
    assert metrics(page)["The model thinks"] == "Positive"
    details = page.caption[-1].value
    assert "3acade02674549b19044a59186d97db4" in details
    assert "`10`" in details
    assert "0.93 ms" in details


def test_disagreement(page: AppTest, proxy: StubProxy) -> None:
    proxy.score = 0.02
    post(page, "very good cafe", "positive")

    assert metrics(page)["The model thinks"] == "Negative"
    assert "You disagree" in page.main.markdown[0].value
    [progress] = page.get("progress")
    assert progress.proto.text == "98.0% sure"


@pytest.mark.parametrize("text", ["", "four", "        "])
def test_a_short_text_is_not_sent(page: AppTest, proxy: StubProxy, text: str) -> None:
    post(page, text)

    assert "at least 5" in page.warning[0].value
    assert not proxy.posts


def test_no_answers_yet(proxy: StubProxy, page: AppTest) -> None:
    proxy.correctness_rate = None
    proxy.items = []
    page.run()

    assert not page.exception
    assert metrics(page)["The model was right"] == "–"
    assert not page.dataframe


@pytest.mark.parametrize("failing", [500, 503, 422, 403])
def test_a_failure_is_told_kindly_and_the_text_kept(
    page: AppTest, proxy: StubProxy, failing: int
) -> None:
    proxy.failing = failing
    post(page, "very good cafe")

    assert not page.exception
    assert page.error[0].value.startswith(("The ", "This ", "Something "))
    assert page.text_area(key="text").value == "very good cafe"

    proxy.failing = None
    page.button[0].click().run()

    assert not page.error
    assert metrics(page)["The model thinks"] == "Positive"
    first, second = (key for _, key in proxy.posts)
    assert first == second  # so that trying again counts once


def test_a_new_review_is_a_new_request(page: AppTest, proxy: StubProxy) -> None:
    post(page, "very good cafe")
    post(page, "very good cafe")

    first, second = (key for _, key in proxy.posts)
    assert first != second


def test_a_slow_proxy(page: AppTest, proxy: StubProxy) -> None:
    proxy.delay = 2
    post(page, "very good cafe")

    assert "longer than usual" in page.error[0].value


def test_no_proxy_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_URL", f"http://127.0.0.1:{free_port()}")
    st.cache_resource.clear()
    page = AppTest.from_file(str(ROOT / "ui" / "app.py"), default_timeout=30).run()
    post(page, "very good cafe")

    assert not page.exception
    assert "can't be reached" in page.error[0].value
    assert page.text_area(key="text").value == "very good cafe"


@pytest.mark.parametrize("argument", ["--unknown", "--port=0", "--proxy-url=nonsense"])
def test_wrong_settings_end_the_start(argument: str) -> None:
    """Guards against pydantic's traceback where a message was promised."""
    done = subprocess.run(
        [str(ROOT / ".venvs/ui/bin/python"), "-m", "ui", argument],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last.startswith("python -m ui: error: ")
    assert argument.split("=")[0] in last
    assert "Traceback" not in done.stderr


def test_the_real_server_starts(proxy: StubProxy) -> None:
    port = free_port()
    process = subprocess.Popen(
        [
            str(ROOT / ".venvs/ui/bin/python"),
            *("-m", "ui", "--host=127.0.0.1", f"--port={port}", f"--proxy-url={proxy.url}"),
        ],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline
            assert process.poll() is None
            try:
                health = httpx.get(f"http://127.0.0.1:{port}/_stcore/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        assert health.text == "ok"
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    finally:
        process.terminate()
        process.wait(15)
