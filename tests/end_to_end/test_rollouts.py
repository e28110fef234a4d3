"""Rollouts in steps on the whole stack: each bad version is stopped where it shows."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.cloud import run_v2

from functions.promote.command import main as greenroom
from local import monitoring, services
from local.cloud_run.config import Image
from local.demo import Stream, send_steadily
from local.programs import environment_python
from local.settings import MODEL, PROJECT, REGION, ROOT, free_port
from local.stack import Stack
from tests.end_to_end.conftest import Loop
from tests.end_to_end.versions import (
    Damage,
    change_golden_texts,
    claim_another_format,
    flip_a_bit,
    register_copy,
    remove_manifest,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MOODY = "predict:moody"
CLIENTS = 4
# One in twenty has soup, five in twenty have cake; no golden text has either.
TEXTS = ["the soupx was cold", *["very nice cakex"] * 5, *["good food, friendly staff"] * 14]
POLICY = {
    "ROLLOUT_STEPS": "10,50,100",
    "BAKE_SECONDS": "2",
    "MAX_BAKE_SECONDS": "120",
    "MIN_REQUESTS": "50",
    # All parts share this machine's cores, and are slow by turns.
    "LATENCY_FLOOR_SECONDS": "1",
    "MAX_LATENCY_RATIO": "3",
}
STEPS = [10, 50, 100]


@dataclass(frozen=True)
class Stepped:
    """The stack, with a policy of steps and with predicts that may have moods."""

    loop: Loop
    base: str
    """The version that is served, and has no mood."""

    def set_mood(self, version: str, **mood: object) -> None:
        """Let a version be slow or fail; before anything of it is started."""
        path = moods(self.loop)
        path.write_text(json.dumps({**json.loads(path.read_text()), version: mood}))

    @contextmanager
    def load(self, path: str = "predict/predict") -> Iterator[Stream]:
        """Ask predict, or ``proxy/predictions``, all the while.

        What came back is complete afterwards.
        """
        stream, stopping = Stream(), threading.Event()
        service, _, path = path.partition("/")
        url = f"{self.loop.url(service)}/{path}"

        async def ask() -> None:
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(CLIENTS):
                    tasks.create_task(send_steadily(url, stream, stop, texts=TEXTS))
                await asyncio.to_thread(stopping.wait)
                stop.set()

        thread = threading.Thread(target=lambda: asyncio.run(ask()))
        thread.start()
        try:
            yield stream
        finally:
            stopping.set()
            thread.join()

    def entries(self, version: str) -> list[dict[str, object]]:
        """Return what the ledger says of a version, the oldest first."""
        ledger = self.loop.http.get(f"{self.loop.url('proxy')}/rollouts").json()["ledger"]
        return [entry for entry in reversed(ledger) if entry["version"] == version]

    def status(self) -> str:
        """Return what ``greenroom status`` prints, in one line."""
        settings = self.loop.settings
        environment = {**settings.client_environment, **settings.operator_environment}
        result = CliRunner(env={**environment, "COLUMNS": "1000"}).invoke(greenroom, ["status"])
        return " ".join(result.output.split())

    def rest(self, version: str) -> None:
        """Want a version, and wait until nothing is left to do."""
        self.loop.set_stage(version)
        self.loop.wait(
            lambda: (
                self.loop.status()["action"]["kind"] == "idle"  # type: ignore[index]  # JSON
                and self.loop.served() == version
            ),
            "promote does not come to rest",
        )


def moods(loop: Loop) -> Path:
    return loop.settings.data_dir / "moods.json"


def configure(loop: Loop, environment: Mapping[str, str]) -> dict[str, str]:
    """Set environment variables of promote, as Terraform would; return all as they were."""
    client = services.client(loop.settings)
    service = client.get_service(name=services.service_name("promote"))
    container = service.template.containers[0]
    before = {item.name: item.value for item in container.env}
    after = {**before, **environment}
    container.env = [run_v2.EnvVar(name=k, value=v) for k, v in after.items() if v]
    service.etag = ""
    client.update_service(service=service).result(timeout=60)
    return before


def deploy(loop: Loop, image: str) -> None:
    """Write predict's image: whole body, no mask, no etag, as Terraform's PATCH is."""
    client = services.client(loop.settings)
    service = client.get_service(name=services.service_name("predict"))
    service.template.containers[0].image = services.image(image)
    service.template.revision = service.etag = ""
    client.update_service(service=service).result(timeout=60)


@pytest.fixture(scope="module")
def stepped(loop: Loop) -> Iterator[Stepped]:
    """New code that may have moods, itself rolled out in steps; monitoring is soon, not late."""
    settings = loop.settings
    moods(loop).write_text("{}")
    stack = Stack(
        settings,
        images={
            MOODY: Image(
                entrypoint=[
                    environment_python("predict"),
                    *("-m", "tests.end_to_end.moody_predict", str(moods(loop))),
                ],
                working_directory=ROOT,
            )
        },
    )
    stack.stop("cloud_run")
    stack.up(lambda _title, _address: None)
    port = free_port()
    series = monitoring.Monitoring(
        settings.data_dir / "cloud_run" / "requests.jsonl",
        project=PROJECT,
        region=REGION,
        period_seconds=0.5,
        delay_seconds=(0.5, 1.5),
    )
    server = monitoring.create_server(series, port)
    server.start()
    base = loop.served()
    assert base is not None
    found = Stepped(loop, base)
    found.rest(base)
    policy = {**POLICY, "MONITORING_ENDPOINT": f"http://127.0.0.1:{port}"}
    before = configure(loop, policy)
    try:
        with found.load() as stream:
            deploy(loop, MOODY)
            found.rest(base)
        assert not stream.failures
        assert [item["percent"] for item in found.entries(base)][-3:] == STEPS
        yield found
    finally:
        configure(loop, {**dict.fromkeys(policy, ""), **before})
        deploy(loop, "predict:1")
        found.rest(str(loop.served()))
        server.stop(None)


def test_a_good_version_comes_in_steps_and_no_request_fails(stepped: Stepped) -> None:
    version = register_copy(stepped.loop, stepped.base)
    with stepped.load() as stream:
        stepped.rest(version)
    assert not stream.failures
    assert set(stream.versions) == {stepped.base, version}
    assert [(item["event"], item["percent"]) for item in stepped.entries(version)] == [
        ("stepped", 10),
        ("stepped", 50),
        ("promoted", 100),
    ]
    assert f"served version {version}" in stepped.status()
    stepped.rest(stepped.base)


def worse(stepped: Stepped) -> str:
    return stepped.loop.register(epochs=1, learning_rate=1e-6)


def with_mood(**mood: object) -> Callable[[Stepped], str]:
    def register(stepped: Stepped) -> str:
        version = register_copy(stepped.loop, stepped.base)
        stepped.set_mood(version, **mood)
        return version

    return register


def with_damage(damage: Damage) -> Callable[[Stepped], str]:
    return lambda stepped: register_copy(stepped.loop, stepped.base, damage)


@dataclass(frozen=True)
class Bad:
    """A version, the gate that stops it, and the most of the traffic that it may have had."""

    register: Callable[[Stepped], str]
    gate: str
    reason: str
    most_percent: int = 0


BAD = {
    "worse": Bad(worse, "metrics", r"AUROC 0\.\d+ is below 0\.8"),
    "flipped bit": Bad(with_damage(flip_a_bit), "bundle", r"SHA-256 .* the manifest says"),
    "no manifest": Bad(with_damage(remove_manifest), "bundle", "not found"),
    "other golden texts": Bad(with_damage(change_golden_texts), "golden", "training gave"),
    "never starts": Bad(with_damage(claim_another_format), "start", "exit"),
    "slow": Bad(with_mood(word="", seconds=1.5), "latency", "more than 3 times as long"),
    "slow on one text in four": Bad(
        with_mood(word="cakex", seconds=1.5), "latency", r"at \d+ %: more than 3 times as slow", 10
    ),
    # It takes some requests to be one of the unlucky: perhaps more than the first step has.
    "fails on one text in twenty": Bad(
        with_mood(word="soupx", status=500), "errors", r"at \d+ %: \d+ of \d+ requests failed", 50
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_version_is_stopped_where_it_shows_and_says_why(stepped: Stepped, bad: Bad) -> None:
    loop = stepped.loop
    version = bad.register(stepped)
    with stepped.load() as stream:
        loop.set_stage(version)
        loop.wait(lambda: f"by {bad.gate}" in blocked(loop, version), "it is not blocked")
        loop.wait(
            lambda: loop.status()["action"]["kind"] == "idle",  # type: ignore[index]  # JSON
            "promote does not come to rest",
        )
    assert loop.served() == stepped.base

    *steps, last = stepped.entries(version)
    assert (last["event"], last["gate"], last["from_version"]) == (
        "blocked",
        bad.gate,
        stepped.base,
    )
    assert re.search(bad.reason, str(last["reason"]))
    tag = loop.registry.get_model_version(MODEL, version).tags["rollout_blocked"]
    assert tag == f"{bad.gate}: {last['reason']}"
    status = stepped.status()
    assert f"served version {stepped.base}" in status
    assert f"version {version} by {bad.gate}: " in status

    shares = [int(str(item["percent"])) for item in steps]
    assert shares == [percent for percent in STEPS if percent <= max(shares, default=0)]
    most = max(shares, default=0)
    assert most <= bad.most_percent
    touched = stream.versions[version] + stream.failures.total()
    # Of random choices: a few more than the share.
    assert touched <= 1.3 * stream.sent * most / 100 + 10 * (most > 0)
    assert all("500" in failure for failure in stream.failures)
    if bad.gate != "errors":
        assert not stream.failures
    stepped.rest(stepped.base)


def test_what_the_proxy_sees_fail_is_enough(stepped: Stepped) -> None:
    """Monitoring, which is minutes late in the cloud, tells nothing yet."""
    loop = stepped.loop
    version = with_mood(word="soupx", status=500)(stepped)
    before = configure(loop, {"MONITORING_ENDPOINT": f"http://127.0.0.1:{free_port()}"})
    try:
        with stepped.load("proxy/predictions") as stream:
            loop.set_stage(version)
            loop.wait(lambda: "by errors" in blocked(loop, version), "it is not blocked")
            loop.wait(lambda: loop.served() == stepped.base, "it is still served")
        assert re.search(
            r"at 10 %: of the proxy's own, \d+ of \d+ requests failed", blocked(loop, version)
        )
        assert set(stream.versions) == {stepped.base, version}
        assert stream.failures
        assert all("502" in failure for failure in stream.failures)
        assert [item["event"] for item in stepped.entries(version)] == ["stepped", "blocked"]
    finally:
        configure(loop, before)
        stepped.rest(stepped.base)


def blocked(loop: Loop, version: str) -> str:
    """Return what promote's status says of a blocked version, or nothing."""
    items = loop.status().get("blocked", [])
    assert isinstance(items, list)
    return next((f"by {i['gate']}: {i['reason']}" for i in items if i["version"] == version), "")


def test_what_is_served_outlives_the_registered_model(stepped: Stepped) -> None:
    """Also after scaling to zero and back; and one made anew counts from 1."""
    loop = stepped.loop
    version = stepped.base
    source = loop.registry.get_model_version_download_uri(MODEL, version)
    run_id = loop.registry.get_model_version(MODEL, version).run_id
    newest = max(int(item.version) for item in loop.registry.search_model_versions())
    loop.registry.delete_registered_model(MODEL)
    try:
        loop.wait(lambda: loop.status()["desired"] is None, "it is not seen")
        loop.http.post(f"{loop.url('promote')}/").raise_for_status()
        loop.stop_instances("predict")
        loop.wait(lambda: loop.served() == version, "it is not served any more")
        status = stepped.status()
        assert "registry names no version" in status
        assert f"served version {version}" in status
    finally:
        loop.registry.create_registered_model(MODEL)
        again = loop.registry.create_model_version(MODEL, source=source, run_id=run_id)
        # For the tests after this one, no number comes twice.
        for _ in range(newest):
            loop.registry.create_model_version(MODEL, source=source, run_id=run_id)
    with stepped.load() as stream:
        stepped.rest(str(again.version))
    assert not stream.failures
    assert set(stream.versions) == {version, str(again.version)}
