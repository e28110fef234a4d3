"""What people click: MLflow's own pages as the control panel, and our page."""

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from mlflow.exceptions import MlflowException
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Response,
    Route,
    expect,
    sync_playwright,
)

from local.settings import MLFLOW_HOST, MODEL, ROOT
from tests.end_to_end.conftest import Loop

# The first test also waits for the stack and for two trainings.
pytestmark = pytest.mark.timeout(900)

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
ARTIFACTS = ROOT / "test-artifacts" / "browser"
OUR_HOSTS = re.compile(r"127\.0\.0\.1|[a-z]+\.greenroom\.test")
PATIENCE_MILLISECONDS = 90_000

QUESTION = "What are you going to post?"
BUTTON = "Let me tell you!"
ALIAS = "production"

# What a page may report with nothing being wrong, and why.
HARMLESS = (
    # MLflow asks who is signed in. Only its own accounts, which are not used, know the answer.
    r"404 .*/ajax-api/2\.0/mlflow/users/current$",
    # The page was left, or asked anew, before the answer was there.
    r"net::ERR_ABORTED",
)


@dataclass
class Window:
    """One visitor's window, and all that went wrong in it."""

    page: Page
    folder: Path
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=lambda: list(HARMLESS))
    """Patterns of problems that a test provokes, or that are harmless."""

    def keep(self, name: str) -> None:
        """Keep a picture of what the visitor sees."""
        number = len(list(self.folder.glob("*.png"))) + 1
        self.page.screenshot(path=self.folder / f"{number}-{name}.png")

    def unexpected(self) -> list[str]:
        return [
            problem
            for problem in self.problems
            if not any(re.search(pattern, problem) for pattern in self.expected)
        ]

    def watch(self) -> None:
        def console(message: ConsoleMessage) -> None:
            # What failed to load is told below, with its status.
            if message.type == "error" and not message.text.startswith("Failed to load resource"):
                self.problems.append(f"console: {message.text}")

        def response(response: Response) -> None:
            if response.status >= 400:
                request = response.request
                self.problems.append(f"{response.status} {request.method} {request.url}")

        def failed(request: Request) -> None:
            self.problems.append(f"{request.failure} {request.method} {request.url}")

        self.page.on("console", console)
        self.page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        self.page.on("response", response)
        self.page.on("requestfailed", failed)


# Not for the session: the synchronous API keeps an event loop running in this thread, in
# which no other test could start its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing: install Debian's chromium, or set CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            headless=True,
            args=[
                "--no-sandbox",  # Chromium's does not work for root
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--host-resolver-rules=MAP *.greenroom.test 127.0.0.1",
            ],
        )
        expect.set_options(timeout=PATIENCE_MILLISECONDS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 1100})
    context.set_default_timeout(PATIENCE_MILLISECONDS)

    # Nobody outside is needed, nor told; that it was tried is a failed request.
    def refuse_others(route: Route) -> None:
        if OUR_HOSTS.fullmatch(urlsplit(route.request.url).hostname or ""):
            route.continue_()
        else:
            route.abort("addressunreachable")

    context.route(re.compile("^https?:"), refuse_others)
    yield context
    context.close()


@pytest.fixture
def window(context: BrowserContext, request: pytest.FixtureRequest) -> Iterator[Window]:
    folder = ARTIFACTS / request.node.name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    window = Window(context.new_page(), folder)
    window.watch()
    yield window
    window.keep("end")
    assert window.unexpected() == []


@pytest.fixture(scope="module")
def versions(loop: Loop) -> tuple[str, str]:
    """The version that is served, and another one that nobody has promoted."""
    first = loop.served()
    assert first is not None
    return first, loop.register(ngrams=1, seed=1)


@pytest.fixture
def at_rest(loop: Loop, versions: tuple[str, str]) -> Iterator[None]:
    """Whatever a test did, the first version is in Production and served afterwards."""
    yield
    first, _ = versions
    loop.set_stage(first)
    loop.registry.delete_registered_model_alias(MODEL, ALIAS)
    loop.wait_until_served(first)
    loop.wait(
        lambda: loop.status()["action"]["kind"] == "idle",  # type: ignore[index]  # JSON
        "promote does not come to rest",
    )


# --- MLflow -------------------------------------------------------------------


def mlflow_url(loop: Loop, host: str = MLFLOW_HOST) -> str:
    return f"http://{host}:{loop.settings.ports['mlflow']}"


def open_version(window: Window, loop: Loop, version: str) -> Locator:
    """Find a version as one does: Models, the model, the version."""
    page = window.page
    # The fragment alone loads nothing anew.
    page.goto("about:blank")
    page.goto(f"{mlflow_url(loop)}/#/models")
    main = page.get_by_role("main")
    link = main.get_by_role("link", name=MODEL, exact=True)
    # It praises aliases once, in a dialog in front of everything.
    praise = page.get_by_role("button", name="Try it now")
    page.add_locator_handler(praise, lambda button: button.click(), times=1)
    link.click()
    main.get_by_role("link", name=f"Version {version}", exact=True).click()
    expect(main.get_by_role("heading", name=f"Version {version}", exact=True)).to_be_visible()
    return main


def show_stages(window: Window) -> None:
    switch = window.page.get_by_role("switch", name="New model registry UI")
    expect(switch).to_be_visible()
    if switch.is_checked():
        switch.click()
        dialog = window.page.get_by_role("dialog")
        dialog.get_by_role("button", name="Disable").click()
        expect(dialog).to_be_hidden()
    expect(switch).not_to_be_checked()


def set_stage(window: Window, loop: Loop, version: str, *, archive: bool) -> None:
    main, page = open_version(window, loop, version), window.page
    show_stages(window)
    main.get_by_role("status").filter(has_text=re.compile("^(None|Archived)$")).click()
    page.get_by_role("menuitem", name="Transition to").filter(has_text="Production").click()
    dialog = page.get_by_role("dialog", name="Stage transition")
    box = dialog.get_by_role("checkbox", name="Transition existing Production model version")
    expect(box).not_to_be_checked()
    if archive:
        box.check()
    window.keep("stage-dialog")
    dialog.get_by_role("button", name="OK").click()
    expect(dialog).to_be_hidden()
    expect(main.get_by_role("status").filter(has_text=re.compile("^Production$"))).to_be_visible()
    window.keep("stage-set")


def set_alias(window: Window, loop: Loop, version: str, *, moved_from: str | None) -> None:
    main, page = open_version(window, loop, version), window.page
    # The first of two: the second adds a tag.
    main.get_by_role("button", name="Add", exact=True).first.click()
    dialog = page.get_by_role("dialog", name=f"Add/Edit alias for model version {version}")
    entry = dialog.get_by_role("combobox")
    entry.fill(ALIAS)
    expect(page.get_by_role("option", name=ALIAS).first).to_be_attached()
    entry.press("Enter")
    expect(dialog.get_by_role("status", name=ALIAS)).to_be_visible()
    if moved_from is not None:
        expect(dialog.get_by_role("alert")).to_contain_text(f"remove it from version {moved_from}")
    window.keep("alias-dialog")
    dialog.get_by_role("button", name="Save aliases").click()
    expect(dialog).to_be_hidden()
    expect(main.get_by_role("status", name=ALIAS)).to_be_visible()
    window.keep("alias-set")


def remove_alias(window: Window, loop: Loop, version: str) -> None:
    main, page = open_version(window, loop, version), window.page
    main.get_by_role("button", name="Edit aliases").click()
    dialog = page.get_by_role("dialog", name=f"Add/Edit alias for model version {version}")
    dialog.get_by_role("status", name=ALIAS).get_by_role("button").click()
    dialog.get_by_role("button", name="Save aliases").click()
    expect(dialog).to_be_hidden()
    expect(main.get_by_role("status", name=ALIAS)).to_have_count(0)


def stages(loop: Loop, versions: tuple[str, str]) -> list[str]:
    return [
        str(loop.registry.get_model_version(MODEL, version).current_stage) for version in versions
    ]


def aliased(loop: Loop) -> str | None:
    try:
        return str(loop.registry.get_model_version_by_alias(MODEL, ALIAS).version)
    except MlflowException:
        return None


def expect_served(window: Window, loop: Loop, version: str) -> None:
    """Wait for it, then see it in predict's answers and on our page."""
    loop.wait_until_served(version)
    answer = loop.http.post(f"{loop.url('predict')}/predict", json={"text": "very good cafe"})
    assert answer.json()["model_version"] == version
    open_page(window, loop)
    ask(window, "Very good cafe, and the kindest staff in town.", "positive")
    expect(verdict(window)).to_contain_text(f"Model version {version} ·")
    window.keep(f"page-version-{version}")


# --- Our page -----------------------------------------------------------------


def open_page(window: Window, loop: Loop) -> None:
    window.page.goto(loop.url("ui"))
    expect(metric(window, "Requests")).to_be_visible()


def ask(window: Window, text: str, choice: str) -> None:
    page = window.page
    page.get_by_role("textbox", name=QUESTION).fill(text)
    opinion = page.get_by_role("radiogroup", name="Is this a positive or a negative review?")
    opinion.get_by_text(choice, exact=True).click()
    press(window)


def go_to(window: Window, view: str) -> None:
    page = window.page
    page.get_by_role("link", name=view, exact=True).click()
    expect(page.get_by_role("heading", name=view, level=1)).to_be_visible()


def press(window: Window) -> None:
    window.page.get_by_role("button", name=BUTTON).click()


def metric(window: Window, label: str) -> Locator:
    labelled = window.page.get_by_test_id("stMetric").filter(
        has=window.page.get_by_text(label, exact=True)
    )
    return labelled.get_by_test_id("stMetricValue")


def verdict(window: Window) -> Locator:
    """The innermost box that holds both opinions."""
    return (
        window.page.get_by_test_id("stVerticalBlock")
        .filter(has=window.page.get_by_text("The model thinks", exact=True))
        .filter(has=window.page.get_by_text("answered in"))
        .last
    )


def counts(loop: Loop) -> tuple[int, int, int]:
    response = loop.http.get(f"{loop.url('proxy')}/statistics")
    statistics = response.raise_for_status().json()["statistics"]
    return statistics["correct"], statistics["answered"], statistics["predictions"]


def expect_statistics(window: Window, right: int, answered: int, requests: int) -> None:
    rate = f"{right / answered:.1%}" if answered else "–"
    expect(metric(window, "Requests")).to_have_text(f"{requests:,}")
    expect(metric(window, "Right / answered")).to_have_text(f"{right:,} / {answered:,}")
    expect(metric(window, "The model was right")).to_have_text(rate)


# --- Tests --------------------------------------------------------------------


@pytest.mark.usefixtures("at_rest")
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "keep"])
def test_a_stage_set_in_mlflow_leads_to_the_version(
    window: Window, loop: Loop, versions: tuple[str, str], archive: bool
) -> None:
    first, second = versions
    expect_served(window, loop, first)
    set_stage(window, loop, second, archive=archive)
    assert stages(loop, versions) == ["Archived" if archive else "Production", "Production"]
    expect_served(window, loop, second)


@pytest.mark.usefixtures("at_rest")
def test_an_alias_set_moved_and_removed_in_mlflow_leads_to_the_version(
    window: Window, loop: Loop, versions: tuple[str, str]
) -> None:
    first, second = versions
    set_alias(window, loop, second, moved_from=None)
    assert aliased(loop) == second
    expect_served(window, loop, second)

    set_alias(window, loop, first, moved_from=second)
    assert aliased(loop) == first
    expect_served(window, loop, first)

    # Without an alias the stage decides again.
    loop.set_stage(second)
    remove_alias(window, loop, first)
    assert aliased(loop) is None
    expect_served(window, loop, second)


@pytest.mark.usefixtures("versions")
def test_mlflow_answers_to_its_own_names_only(window: Window, loop: Loop) -> None:
    window.expected.append(r"^403 GET http://evil\.greenroom\.test")
    response = window.page.goto(mlflow_url(loop, "evil.greenroom.test"))
    assert response is not None
    assert response.status == 403
    assert "Invalid Host header" in response.text()

    response = window.page.goto(mlflow_url(loop))
    assert response is not None
    assert response.status == 200
    expect(window.page.get_by_role("link", name="Experiments").first).to_be_visible()


SET_TAG = "/ajax-api/2.0/mlflow/registered-models/set-tag"


@pytest.mark.usefixtures("versions")
def test_a_strange_page_changes_nothing_in_mlflow(window: Window, loop: Loop) -> None:
    window.expected.append(rf"^403 POST .*{SET_TAG}$")
    # Any host name may ask for its health: a page of a strange origin, yet on this machine,
    # without which Chromium itself would refuse.
    window.page.goto(f"{mlflow_url(loop, 'evil.greenroom.test')}/health")
    with window.page.expect_response(f"**{SET_TAG}") as response:
        # As a form of that page could: a browser asks no permission before it sends this.
        window.page.evaluate(
            "([url, body]) => { fetch(url, {method: 'POST', mode: 'no-cors', body}); }",
            [f"{mlflow_url(loop)}{SET_TAG}", tag("strange")],
        )
    assert response.value.status == 403
    assert loop.registry.get_registered_model(MODEL).tags == {}


@pytest.mark.usefixtures("versions")
def test_it_is_the_origin_that_mlflow_judges(loop: Loop) -> None:
    own, strange = mlflow_url(loop), mlflow_url(loop, "evil.greenroom.test")

    def send(method: str, origin: str, **headers: str) -> httpx.Response:
        return loop.http.request(
            method,
            f"{loop.url('mlflow')}{SET_TAG}",
            headers={"Host": urlsplit(own).netloc, "Origin": origin, **headers},
            content=tag("origin") if method == "POST" else None,
        )

    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    allowed = "access-control-allow-origin"
    assert send("OPTIONS", own, **preflight).headers[allowed] == own
    assert allowed not in send("OPTIONS", strange, **preflight).headers

    refused = send("POST", strange, **{"Content-Type": "application/json"})
    assert refused.status_code == 403
    assert refused.text == "Cross-origin request blocked"
    assert loop.registry.get_registered_model(MODEL).tags == {}

    assert send("POST", own, **{"Content-Type": "application/json"}).status_code == 200
    assert loop.registry.get_registered_model(MODEL).tags == {"origin": "cake"}
    loop.registry.delete_registered_model_tag(MODEL, "origin")


def tag(key: str) -> str:
    return json.dumps({"name": MODEL, "key": key, "value": "cake"})


@pytest.mark.usefixtures("versions")
def test_a_review_is_judged_counted_and_listed(window: Window, loop: Loop) -> None:
    right, answered, requests = counts(loop)
    open_page(window, loop)
    expect_statistics(window, right, answered, requests)
    window.keep("empty")

    text = "Lovely pie, friendly waiters; we will come back!"
    model = loop.http.post(f"{loop.url('predict')}/predict", json={"text": text}).json()
    verdicts = ("positive", "negative")
    word, opposite = verdicts if model["is_positive_review"] else verdicts[::-1]

    ask(window, text, word)
    expect(window.page.get_by_text("You agree")).to_be_visible()
    expect(metric(window, "You think")).to_have_text(word.capitalize())
    expect(metric(window, "The model thinks")).to_have_text(word.capitalize())
    expect(verdict(window)).to_contain_text(f"MLflow run {model['details']['mlflow_run_id']} ·")
    expect_statistics(window, right + 1, answered + 1, requests + 1)
    shown = window.page.get_by_test_id("stProgress").inner_text()
    found = re.search(r"(\d+\.\d)% likely positive", shown)
    assert found is not None, shown
    assert float(found[1]) == pytest.approx(model["score"] * 100, abs=0.11)
    review = window.page.locator(".review")
    expect(review.get_by_title(re.compile(r"[+−]\d\.\d\d")).first).to_be_visible()
    window.keep("agree")

    ask(window, text, opposite)
    expect(window.page.get_by_text("You disagree")).to_be_visible()
    expect(metric(window, "You think")).to_have_text(opposite.capitalize())
    expect(metric(window, "The model thinks")).to_have_text(word.capitalize())
    expect_statistics(window, right + 1, answered + 2, requests + 2)
    assert counts(loop) == (right + 1, answered + 2, requests + 2)
    window.keep("disagree")

    change = window.page.get_by_role("radiogroup", name="Changed your mind?")
    change.get_by_text(word, exact=True).click()
    expect(window.page.get_by_text("You agree")).to_be_visible()
    expect_statistics(window, right + 2, answered + 2, requests + 2)
    change.get_by_text(opposite, exact=True).click()
    expect_statistics(window, right + 1, answered + 2, requests + 2)

    window.page.set_viewport_size({"width": 390, "height": 1500})
    # Nothing to scroll to the right on a telephone.
    window.page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    window.keep("telephone")


@pytest.mark.usefixtures("versions")
def test_a_verdict_leads_to_its_version_and_run_in_mlflow(window: Window, loop: Loop) -> None:
    open_page(window, loop)
    ask(window, "Lovely pie, friendly waiters; we will come back!", "positive")
    links = verdict(window).get_by_role("link")
    expect(links).to_have_count(2)
    version, run = (link.get_attribute("href") for link in links.all())
    run_id = links.last.inner_text()
    assert version is not None
    assert run is not None

    # The fragment alone loads nothing anew.
    window.page.goto("about:blank")
    window.page.goto(version)
    main = window.page.get_by_role("main")
    heading = main.get_by_role("heading", name=f"Version {loop.served()}", exact=True)
    expect(heading).to_be_visible()
    window.page.goto("about:blank")
    window.page.goto(run)
    expect(window.page.get_by_text(run_id).first).to_be_visible()
    window.keep("run")


@pytest.mark.usefixtures("versions")
def test_all_views_show_what_was_asked(window: Window, loop: Loop) -> None:
    text = "Sunny terrace, slow service, and a cake to remember."
    body = {"text": text, "is_positive_user_answered": True}
    created = loop.http.post(f"{loop.url('proxy')}/predictions", json=body).raise_for_status()
    _, answered, requests = counts(loop)
    open_page(window, loop)

    go_to(window, "Statistics")
    expect(metric(window, "Requests")).to_have_text(f"{requests:,}")
    expect(window.page.get_by_test_id("stVegaLiteChart")).to_have_count(5)
    window.keep("statistics")

    go_to(window, "Predictions")
    window.page.get_by_text("Everything", exact=True).click()
    card = window.page.locator(f".st-key-item-{created.json()['id']}")
    expect(card).to_contain_text(text)
    window.keep("predictions")
    window.page.get_by_role("button", name="JSON lines").click()
    with window.page.expect_download() as download:
        window.page.get_by_role("button", name="Save predictions.jsonl").click()
    lines = download.value.path().read_text().splitlines()
    assert len(lines) == requests
    assert json.loads(lines[0])["text"] == text
    card.get_by_role("button", name="Delete").click()
    window.page.get_by_role("button", name="Delete this prediction").click()
    expect(card).to_have_count(0)
    assert counts(loop)[1:] == (answered - 1, requests - 1)

    go_to(window, "Rollouts")
    expect(window.page.get_by_text(f"Version {loop.served()}", exact=True)).to_be_visible()
    told = window.page.locator(".ledger > li").filter(has_text="serves everybody")
    expect(told.first).to_be_visible()
    window.keep("rollouts")


@pytest.mark.usefixtures("versions")
def test_a_text_too_short_is_not_sent(window: Window, loop: Loop) -> None:
    before = counts(loop)
    open_page(window, loop)
    ask(window, "meh", "negative")
    expect(window.page.get_by_role("alert")).to_contain_text("at least 5 characters")
    expect(window.page.get_by_role("textbox", name=QUESTION)).to_have_value("meh")
    expect(window.page.get_by_text("The model thinks")).to_have_count(0)
    expect_statistics(window, *before)
    assert counts(loop) == before


@pytest.mark.usefixtures("versions")
def test_without_an_answer_the_page_is_kind_keeps_the_text_and_trying_again_counts_once(
    window: Window, loop: Loop
) -> None:
    right, answered, requests = counts(loop)
    text = "The soup was cold, the waiter rude, and the bill wrong. Never again."
    open_page(window, loop)
    # Halted and not killed: Cloud Run would start another one before anybody notices.
    halted = loop.instances("proxy")
    assert halted
    signal_all(halted, signal.SIGSTOP)
    try:
        ask(window, text, "negative")
        alert = window.page.get_by_role("alert").filter(has_text="longer than usual")
        expect(alert).to_contain_text("Please try again.")
        expect(window.page.get_by_text("statistics are not available")).to_be_visible()
        expect(window.page.get_by_role("textbox", name=QUESTION)).to_have_value(text)
        window.keep("down")
    finally:
        signal_all(halted, signal.SIGCONT)

    press(window)
    expect(window.page.get_by_text("You agree")).to_be_visible()
    expect(window.page.get_by_role("alert")).to_have_count(0)
    # The first try may have been carried out too, by now.
    expect_statistics(window, right + 1, answered + 1, requests + 1)
    assert counts(loop) == (right + 1, answered + 1, requests + 1)


def signal_all(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        os.kill(process, number)
