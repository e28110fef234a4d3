"""The page as Chromium shows it: pictures of every view, contrast, labels, telephones."""

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import (
    Browser,
    Locator,
    Page,
    Request,
    ViewportSize,
    expect,
    sync_playwright,
)

from local.settings import ROOT, free_port
from tests.ui import stub_proxy
from tests.ui.stub_proxy import StubProxy, rolling_out
from tests.ui.test_words import contrast

pytestmark = pytest.mark.timeout(180)

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
PICTURES = ROOT / "test-artifacts" / "ui"
PATIENCE_MILLISECONDS = 30_000
DESKTOP = ViewportSize(width=1280, height=900)
TELEPHONE = ViewportSize(width=390, height=844)
Look = tuple[str, ViewportSize, Literal["light", "dark"]]
LOOKS: list[Look] = [("desktop", DESKTOP, "light"), ("telephone", TELEPHONE, "dark")]
OTHER_LOOKS: list[Look] = [("desktop", DESKTOP, "dark"), ("telephone", TELEPHONE, "light")]
looks = pytest.mark.parametrize(
    "looks",
    [
        pytest.param(LOOKS, id="light-desktop-dark-telephone"),
        pytest.param(OTHER_LOOKS, id="dark-desktop-light-telephone", marks=pytest.mark.slow),
    ],
)
REVIEW = (
    "Lovely cafe, very good! <script>document.title = 'stolen'</script> "
    "But the soup was cold and **bad**, never again."
)


@dataclass
class Window:
    """A visitor's window, and what went wrong in it."""

    page: Page
    proxy: StubProxy
    url: str
    problems: list[str] = field(default_factory=list)

    def watch(self) -> None:
        def requested(request: Request) -> None:
            url = urlsplit(request.url)
            if url.scheme in ("http", "https", "ws") and url.hostname != "127.0.0.1":
                self.problems.append(f"asks elsewhere: {request.url}")

        def told(kind: str, text: str) -> None:
            if kind == "error":
                self.problems.append(text)

        self.page.on("request", requested)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: told(message.type, message.text))

    def open(self, view: str = "Try it") -> None:
        self.page.goto(self.url)
        self.settle()
        if view != "Try it":
            self.go_to(view)

    def go_to(self, view: str) -> None:
        self.page.get_by_role("link", name=view, exact=True).click()
        heading = "Greenroom" if view == "Try it" else view
        expect(self.page.get_by_role("heading", name=heading, level=1)).to_be_visible()
        self.settle()

    def settle(self) -> None:
        expect(self.page.get_by_test_id("stApp")).to_have_attribute(
            "data-test-script-state", "notRunning"
        )
        expect(self.page.locator("[data-stale=true]")).to_have_count(0)
        expect(self.page.get_by_test_id("stSkeleton")).to_have_count(0)

    def ask(self, text: str) -> None:
        self.page.get_by_role("textbox", name="What are you going to post?").fill(text)
        self.page.get_by_role("button", name="Let me tell you!").click()
        expect(self.page.get_by_text("The model thinks", exact=True)).to_be_visible()
        self.settle()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing: install Debian's chromium, or set CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        expect.set_options(timeout=PATIENCE_MILLISECONDS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[StubProxy, str]]:
    """The stub of the proxy, and the address of the page, from its own environment."""
    port = free_port()
    with stub_proxy.running() as stub:
        process = subprocess.Popen(
            [
                str(ROOT / ".venvs/ui/bin/python"),
                *("-m", "ui", "--host=127.0.0.1", f"--port={port}", f"--proxy-url={stub.url}"),
                "--mlflow-url=http://127.0.0.1:5000",
            ],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 60
            while True:
                assert time.monotonic() < deadline
                try:
                    httpx.get(f"{url}/_stcore/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield stub, url
        finally:
            process.terminate()
            process.wait(15)


@pytest.fixture
def window(browser: Browser, served: tuple[StubProxy, str]) -> Iterator[Window]:
    stub, url = served
    stub.reset()
    stub.fill(100_000)
    stub.rollouts = rolling_out()
    context = browser.new_context(viewport=DESKTOP, color_scheme="light")
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    window = Window(context.new_page(), stub, url)
    window.watch()
    yield window
    context.close()
    assert window.problems == []


def show_whole(page: Page) -> None:
    """Make the window as high as what is in it; the page scrolls in a box of its own."""
    size = page.viewport_size
    assert size is not None
    before, height = 0, size["height"]
    # What is being unfolded grows, and the plots are drawn anew, in frames to come.
    while height != before:
        before = height
        page.evaluate("() => new Promise(done => setTimeout(done, 300))")
        needed = page.get_by_test_id("stMain").evaluate("main => main.scrollHeight")
        height = max(height, min(needed, 8000))
        page.set_viewport_size({"width": size["width"], "height": height})


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


def colours(element: Locator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the colours of an element's text and of its own background."""
    style = "node => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor]"
    text, behind = element.evaluate(style)
    first, second = (tuple(map(float, re.findall(r"[\d.]+", each)[:3])) for each in (text, behind))
    return first, second


def show(window: Window, name: str, looks: list[Look]) -> None:
    """Keep a picture of each look, and look for barriers."""
    page = window.page
    PICTURES.mkdir(parents=True, exist_ok=True)
    for place, size, scheme in looks:
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        background = "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 21)"
        expect(page.get_by_test_id("stApp")).to_have_css("background-color", background)
        show_whole(page)
        page.screenshot(path=PICTURES / f"{name}-{place}-{scheme}.png")
        assert violations(page) == [], f"{name}, {place}, {scheme}"
        # Nothing to scroll to the right.
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
        # axe does not judge texts on a button that fades from one colour to another.
        for button in page.locator("button[kind^=primary]:visible").all():
            assert contrast(*colours(button)) >= 4.5


@looks
def test_try_it(window: Window, looks: list[Look]) -> None:
    window.open()
    window.ask(REVIEW)
    page = window.page
    # The script is text, and nothing more.
    review = page.locator(".review")
    expect(review).to_contain_text("<script>document.title = 'stolen'</script>")
    expect(page).to_have_title("Try it · Greenroom")
    expect(review.locator(".for").first).to_have_attribute("title", re.compile(r"\+\d\.\d\d"))
    expect(review.locator(".against").first).to_have_css("text-decoration-style", "dashed")
    page.get_by_text("The numbers").click()
    show(window, "try-it", looks)


def test_a_spinner_shows_that_the_model_wakes_up(window: Window) -> None:
    window.open()
    window.proxy.delay = 3
    window.page.get_by_role("textbox", name="What are you going to post?").fill(REVIEW)
    window.page.get_by_role("button", name="Let me tell you!").click()
    spinner = window.page.get_by_text("it has to wake up first")
    expect(spinner).to_be_visible()
    window.page.screenshot(path=PICTURES / "try-it-waking-up.png")
    window.proxy.delay = 0
    expect(window.page.get_by_text("The model thinks", exact=True)).to_be_visible()
    expect(spinner).to_have_count(0)


def test_who_signed_in_is_the_same_visitor_at_every_visit(window: Window) -> None:
    """Identity-Aware Proxy tells the page who it is; the page tells nobody."""
    user_id = "accounts.google.com:117"
    window.page.context.set_extra_http_headers({"X-Goog-Authenticated-User-Id": user_id})
    for text in ("very good cafe", "very bad cafe"):
        window.open()
        window.ask(text)

    [first, second] = (headers["x-greenroom-caller"] for _, headers in window.proxy.posts)
    assert first == second == hashlib.sha256(f"visitor:{user_id}".encode()).hexdigest()


@pytest.mark.slow
def test_text_and_verdict_are_still_there_after_a_look_elsewhere(window: Window) -> None:
    window.open()
    window.ask("very good cafe")
    window.go_to("Rollouts")
    window.go_to("Try it")

    question = window.page.get_by_role("textbox", name="What are you going to post?")
    expect(question).to_have_value("very good cafe")
    expect(window.page.get_by_text("You agree")).to_be_visible()


@looks
def test_statistics(window: Window, looks: list[Look]) -> None:
    window.open("Statistics")
    expect(window.page.get_by_test_id("stVegaLiteChart").locator("canvas, svg")).to_have_count(5)
    show(window, "statistics", looks)


@pytest.mark.slow
def test_statistics_by_version_and_as_tables(window: Window) -> None:
    window.open("Statistics")
    window.page.get_by_text("A line for each version").click()
    window.settle()
    window.page.get_by_text("The figures as tables").click()
    expect(window.page.get_by_role("table").first).to_be_visible()
    show_whole(window.page)
    window.page.screenshot(path=PICTURES / "statistics-by-version.png")


@pytest.mark.slow
@pytest.mark.parametrize("predictions", [0, 1])
def test_statistics_of_almost_nothing(window: Window, predictions: int) -> None:
    window.proxy.reset()
    if predictions:
        window.proxy.predict(
            {"text": "very good cafe", "is_positive_user_answered": True}, explain=False
        )
    window.open("Statistics")
    show_whole(window.page)
    window.page.screenshot(path=PICTURES / f"statistics-of-{predictions}.png")
    assert violations(window.page) == []


@looks
def test_predictions(window: Window, looks: list[Look]) -> None:
    del window.proxy.items[24:]
    window.open("Predictions")
    show(window, "predictions", looks)


def test_export_and_deletion(window: Window) -> None:
    window.open("Predictions")
    page = window.page
    page.get_by_role("button", name="JSON lines").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save predictions.jsonl").click()
    lines = download.value.path().read_text().splitlines()
    expected = window.proxy.found({"disagreements": "true"})
    assert [json.loads(line) for line in lines] == expected
    assert download.value.suggested_filename == "predictions.jsonl"

    [first, *_] = expected
    card = page.locator(f".st-key-item-{first['id']}")
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete this prediction").click()
    expect(card).to_have_count(0)
    assert first not in window.proxy.items


@looks
def test_rollouts(window: Window, looks: list[Look]) -> None:
    window.open("Rollouts")
    show(window, "rollouts", looks)
