"""The whole loop, shown: train, register, promote, predict, store, look."""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx

from local import services
from local.settings import MODEL, ROOT, LocalSettings
from local.stack import Report, Stack

SAMPLE = ROOT / "trainer" / "sample_reviews.csv"
# Two hundred reviews in the test split can't tell a hundredth of AUROC.
SAMPLE_SETTINGS = ("--margin=0.05",)

PROMOTION_SECONDS = 180.0
ALIAS = "production"

STREAM_CLIENTS = 4
STREAM_AFTER_SECONDS = 3.0

# Another model, so that a promotion shows: single words only, another seed.
SECOND_SETTINGS = ("--ngrams", "1", "--seed", "1")


class DemoFailed(Exception):
    """A step did not go as it must."""


@dataclass
class Stream:
    """What came back of a steady stream of requests."""

    sent: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)


def run(
    settings: LocalSettings, data: str | None, *, exit_after: bool, again: bool, report: Report
) -> None:
    """Show the loop, then stay until Ctrl-C.

    Args:
        settings: of the stack.
        data: reviews to train on, path or gs://; None: the sample.
        exit_after: stop the stack and return instead of staying.
        again: train and promote anew, though a model of the same data is served.
        report: takes each address.

    Raises:
        DemoFailed: a step did not go as it must.
        local.settings.SetupError: the stack can't be started.
    """
    stack = Stack(settings)
    # As Ctrl-C, also where a shell started this with Ctrl-C ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    file = data or str(SAMPLE)
    if not file.startswith("gs://"):
        # Before anything is started: a file that can't be trained on shows at once.
        digest = _check(file)
    try:
        _step("Starting the stack")
        stack.up(report)
        if file.startswith("gs://"):
            digest = _check(file, settings.client_environment)
        served = _served(settings)
        if served is not None and served["manifest"]["data_digest"] == digest and not again:
            _step(f"Version {served['model_version']} is served, as the last start left it")
            _ask(settings)
        else:
            _show(settings, file)
        if not exit_after:
            _step("Up until Ctrl-C")
            _show_addresses(settings, report)
            with contextlib.suppress(KeyboardInterrupt):
                _stay(stack)
    finally:
        _step("Stopping")
        click.echo(f"  stopped: {', '.join(stack.down(report)) or 'nothing was running'}")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _show_addresses(settings: LocalSettings, report: Report) -> None:
    report("The page", settings.url("ui"))
    report("MLflow", settings.url("mlflow"))
    model = f"{settings.url('mlflow')}/#/models/{MODEL}"
    report("  the model's versions", model)
    report("The API", settings.url("proxy"))
    report("  its documentation", f"{settings.url('proxy')}/docs")
    for name in ("predict", "promote", "storage", "firestore", "cloud_run"):
        report(name, settings.endpoints[name])


def _stay(stack: Stack) -> None:
    """Wait until the stack is stopped from elsewhere."""
    while any(stack.running().values()):
        time.sleep(1)
    click.echo("  stopped from outside")


def _show(settings: LocalSettings, file: str) -> None:
    version = _train(settings, file)
    _promote(settings, version)
    await_version(settings, version)
    _ask(settings)
    _step("Another version, promoted while requests flow")
    second = _train(settings, file, *SECOND_SETTINGS)
    stream = asyncio.run(_promote_under_load(settings, second))
    shares = ", ".join(f"{count} by version {name}" for name, count in stream.versions.items())
    click.echo(f"  {stream.sent} requests, each on a new connection, none retried: {shares}")
    click.echo(f"  failed: {stream.failures.total()}")
    if stream.failures:
        raise DemoFailed(f"requests failed: {dict(stream.failures)}")


def _check(file: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the digest of reviews that can be trained on."""
    result = subprocess.run(
        [sys.executable, "-m", "trainer", "check", "--data", file],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise DemoFailed("this data can't be trained on")
    return str(json.loads(result.stdout.splitlines()[-1])["digest"])


def _train(settings: LocalSettings, data: str, *arguments: str) -> str:
    """Train and register; return the new version."""
    _step(f"Training on {Path(data).name} {' '.join(arguments)}".rstrip())
    command = [sys.executable, "-m", "trainer", "train", "--data", data]
    if data == str(SAMPLE):
        command += SAMPLE_SETTINGS
    process = subprocess.Popen(
        [*command, "--register", MODEL, *arguments],
        cwd=ROOT,
        env={**os.environ, **settings.client_environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    last = ""
    try:
        for line in process.stdout:
            last = line
            if not line.startswith("{"):
                click.echo(f"  {line.rstrip()}")
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.wait() != 0:
        raise DemoFailed("training failed")
    return str(json.loads(last)["model_version"])


def _promote(settings: LocalSettings, version: str) -> None:
    # Imported late: it takes two seconds, which `local up` need not wait.
    from mlflow import MlflowClient

    client = MlflowClient(settings.url("mlflow"))
    if ALIAS in client.get_registered_model(MODEL).aliases:
        # Somebody set it, and it comes before the stage.
        _step(f"Version {version} gets the alias {ALIAS}")
        client.set_registered_model_alias(MODEL, ALIAS, version)
        return
    _step(f"Version {version} gets the stage Production")
    with warnings.catch_warnings():
        # MLflow prefers aliases by now; the stage is what the article's users click.
        warnings.simplefilter("ignore", FutureWarning)
        client.transition_model_version_stage(
            MODEL, version, "Production", archive_existing_versions=True
        )


def _served(settings: LocalSettings) -> Any | None:
    """Return what predict says of its model; None: it has none."""
    with contextlib.suppress(httpx.HTTPError, ValueError):
        response = httpx.get(f"{settings.url('predict')}/model", timeout=60)
        if response.is_success:
            return response.json()
    return None


def await_version(settings: LocalSettings, version: str) -> None:
    """Wait until `version` is served, and print what promote does meanwhile.

    Raises:
        DemoFailed: it is not after `PROMOTION_SECONDS`; the message says why.
    """
    started = time.monotonic()
    last = ""
    if services.is_paused(settings):
        # It may be on purpose; whoever paused it can resume it while this waits.
        click.echo(f"  promote is paused, so nothing will change until: {_resume(settings)}")
    while time.monotonic() - started < PROMOTION_SECONDS:
        served = _served(settings)
        if served is not None and served["model_version"] == version:
            seconds = time.monotonic() - started
            click.echo(f"  version {version} is served, {seconds:.1f} s after it was asked for")
            return
        detail = _promote_detail(settings)
        if detail != last:
            click.echo(f"  promote: {detail}")
            last = detail
        time.sleep(0.3)
    message = f"version {version} is not served after {PROMOTION_SECONDS:.0f} s"
    if services.is_paused(settings):
        raise DemoFailed(f"{message}, for promote is paused. Resume it: {_resume(settings)}")
    raise DemoFailed(f"{message}: {last}")


def _resume(settings: LocalSettings) -> str:
    """Return the command that lets promote go on, as the user can type it here."""
    programs = os.path.relpath(Path(sys.executable).parent)
    env = f"{programs}/python -m local env"
    if settings.data_dir != ROOT / ".local":
        env += f" --data-dir {shlex.quote(str(settings.data_dir))}"
    return f'eval "$({env})"; {programs}/greenroom resume'


def _promote_detail(settings: LocalSettings) -> str:
    try:
        content = httpx.get(f"{settings.url('promote')}/status", timeout=60).json()
    except (httpx.HTTPError, ValueError) as error:
        return repr(error)
    if "action" in content:
        return f"{content['action']['kind']}: {content['action']['detail']}"
    return str(content.get("detail", content))


def _ask(settings: LocalSettings) -> None:
    """Send the article's three requests, and print what comes back."""
    _step("The article's requests")
    proxy = settings.url("proxy")
    body = {"text": "very good cafe", "is_positive_user_answered": True}
    shown = json.dumps(body)
    click.echo(f"  $ curl -s -X POST -H 'Content-Type: application/json' -d '{shown}' \\")
    with httpx.Client(base_url=proxy, timeout=60) as client:
        _print(f"      {proxy}/predictions", client.post("/predictions", json=body))
        _print(f"  $ curl -s {proxy}/predictions", client.get("/predictions"), first=2)
        _print(f"  $ curl -s {proxy}/statistics", client.get("/statistics"))


def _print(command: str, response: httpx.Response, *, first: int | None = None) -> None:
    click.echo(command)
    if not response.is_success:
        raise DemoFailed(f"{response.status_code}: {response.text}")
    content = response.json()
    if first is not None and len(content) > first:
        click.echo(f"  (the first {first} of {len(content)})")
        content = content[:first]
    for line in json.dumps(content, indent=2, ensure_ascii=False).splitlines():
        click.echo(f"  {line}")


async def _promote_under_load(settings: LocalSettings, version: str) -> Stream:
    stream = Stream()
    stopping = asyncio.Event()
    clients = [
        asyncio.create_task(send_steadily(f"{settings.url('predict')}/predict", stream, stopping))
        for _ in range(STREAM_CLIENTS)
    ]
    try:
        await asyncio.sleep(1)
        await asyncio.to_thread(_promote, settings, version)
        await asyncio.to_thread(await_version, settings, version)
        await asyncio.sleep(STREAM_AFTER_SECONDS)
    finally:
        stopping.set()
        await asyncio.gather(*clients)
    return stream


async def send_steadily(
    url: str,
    stream: Stream,
    stopping: asyncio.Event,
    *,
    texts: Sequence[str] = ("very cool restaurant!", "not good at all"),
    pause_seconds: float = 0.02,
) -> None:
    """Ask predict again and again, each time on a new connection, never twice.

    Args:
        url: of ``POST /predict``.
        stream: counts what is sent and what comes back; connection errors and
            answers other than 2xx are failures alike.
        stopping: ends it.
        texts: what to ask, in turn.
        pause_seconds: between two requests.
    """
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(limits=limits, timeout=30) as client:
        while not stopping.is_set():
            text = texts[stream.sent % len(texts)]
            stream.sent += 1
            try:
                response = await client.post(url, json={"text": text})
                response.raise_for_status()
                stream.versions[response.json()["model_version"]] += 1
            except (httpx.HTTPError, ValueError, KeyError) as error:
                stream.failures[f"{type(error).__name__}: {error}"] += 1
            await asyncio.sleep(pause_seconds)


def _step(title: str) -> None:
    click.secho(f"\n{title}", bold=True)
