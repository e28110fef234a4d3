"""Promote back and forth under load, and count what fails: ``make bench-promote``."""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx
from google.cloud import run_v2
from google.protobuf import field_mask_pb2
from mlflow import MlflowClient

from local import services
from local.settings import MODEL, LocalSettings, load_settings
from local.stack import Stack

CLIENTS = 8
PAUSE_SECONDS = 0.03
TICK_SECONDS = 1.0
PROMOTION_SECONDS = 180.0
TEXTS = ("very cool restaurant!", "not good at all", "the soup was cold and the waiter was kind")
ALIAS = "production"

POLICIES: tuple[Mapping[str, str], ...] = (
    {"ROLLOUT_STEPS": "100"},
    # Monitoring is minutes late, here as there: golden texts through the tag are the
    # evidence that these steps wait for.
    {"ROLLOUT_STEPS": "10,50,100", "BAKE_SECONDS": "1", "MAX_BAKE_SECONDS": "3"},
)


class Seen(NamedTuple):
    """An answer of predict."""

    at: float
    """`time.monotonic`, in seconds."""
    version: str


@dataclass
class Load:
    """What was asked and what came back."""

    sent: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seen: list[Seen] = field(default_factory=list)


class Promotion(NamedTuple):
    """How long it took from the change in the registry."""

    first_seconds: float
    """To the first answer by the new version."""
    full_seconds: float
    """To the last answer by the old one."""


async def ask(url: str, load: Load, stopping: asyncio.Event) -> None:
    """Ask again and again, each time on a new connection, and never twice."""
    async with httpx.AsyncClient(
        limits=httpx.Limits(max_keepalive_connections=0), timeout=30
    ) as client:
        while not stopping.is_set():
            load.sent += 1
            try:
                answer = await client.post(url, json={"text": TEXTS[load.sent % len(TEXTS)]})
                answer.raise_for_status()
                load.seen.append(Seen(time.monotonic(), answer.json()["model_version"]))
            except (httpx.HTTPError, ValueError, KeyError) as error:
                load.failures[f"{type(error).__name__}: {error}"] += 1
            await asyncio.sleep(PAUSE_SECONDS)


async def promote_in_turns(
    settings: LocalSettings, versions: Sequence[str]
) -> tuple[Load, list[Promotion], float]:
    """Promote `versions` one after the other, while requests flow.

    The first is served already. Returns the load, the promotions, and the seconds of it all.
    """
    load, stopping = Load(), asyncio.Event()
    url = f"{settings.url('predict')}/predict"
    clients = [asyncio.create_task(ask(url, load, stopping)) for _ in range(CLIENTS)]
    begun = time.monotonic()
    promotions = []
    try:
        await asyncio.sleep(1)
        for version in versions[1:]:
            asked = time.monotonic()
            await asyncio.to_thread(_set_alias, settings, version)
            await asyncio.to_thread(_await_full_traffic, settings, version)
            # What was on its way when the traffic moved has come back by then.
            await asyncio.sleep(1)
            after = [seen for seen in load.seen if seen.at > asked]
            first = next(seen.at for seen in after if seen.version == version)
            last_old = max((seen.at for seen in after if seen.version != version), default=asked)
            promotions.append(Promotion(first - asked, last_old - asked))
            _check(after, versions)
    finally:
        stopping.set()
        await asyncio.gather(*clients)
    return load, promotions, time.monotonic() - begun


def _check(seen: list[Seen], versions: Sequence[str]) -> None:
    strangers = {item.version for item in seen} - set(versions)
    if strangers:
        raise SystemExit(f"answers by versions that were never promoted: {strangers}")


def _set_alias(settings: LocalSettings, version: str) -> None:
    MlflowClient(settings.url("mlflow")).set_registered_model_alias(MODEL, ALIAS, version)


def _await_full_traffic(settings: LocalSettings, version: str) -> None:
    client = services.client(settings)
    name = services.service_name("predict")
    deadline = time.monotonic() + PROMOTION_SECONDS
    while True:
        service = client.get_service(name=name)
        shares = [target for target in service.traffic_statuses if target.percent]
        model = httpx.get(f"{settings.url('predict')}/model", timeout=60).json()
        if len(shares) == 1 and model.get("model_version") == version:
            return
        if time.monotonic() > deadline:
            status = httpx.get(f"{settings.url('promote')}/status", timeout=60).text
            raise SystemExit(f"version {version} is not served: {status}")
        time.sleep(0.1)


def set_policy(settings: LocalSettings, policy: Mapping[str, str]) -> None:
    """Set environment variables of promote, as Terraform would, and wait for its new revision."""
    client = services.client(settings)
    service = client.get_service(name=services.service_name("promote"))
    container = service.template.containers[0]
    kept = [item for item in container.env if item.name not in policy]
    container.env = [*kept, *(run_v2.EnvVar(name=k, value=v) for k, v in policy.items())]
    client.update_service(
        service=service, update_mask=field_mask_pb2.FieldMask(paths=["template"])
    ).result(timeout=60)


def _train(seed: int) -> str:
    from trainer import training
    from trainer.assessment import Bars
    from trainer.connection import quiet
    from trainer.parameters import Parameters
    from trainer.reviews import SAMPLE

    quiet()
    outcome = training.train(
        SAMPLE,
        Parameters(seed=seed),
        experiment="bench-promote",
        register=MODEL,
        bars=Bars(margin=1),
        progress=False,
    )
    return str(outcome.model_version)


def main() -> None:
    """Run all policies; the last line on standard output is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promote", description=__doc__)
    parser.add_argument("--promotions", type=int, default=10, help="Of each policy. [10]")
    count = parser.parse_args().promotions
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        # PostgreSQL runs as another user, who must be able to come here.
        Path(folder).chmod(0o755)
        settings = load_settings(
            Path(folder, "local"), ports={}, free_ports=True, tick_seconds=TICK_SECONDS
        )
        os.environ.update(settings.client_environment)
        stack = Stack(settings)
        try:
            stack.up(lambda _title, _address: None)
            base = _train(0)
            _set_alias(settings, base)
            _await_full_traffic(settings, base)
            figures = _measure(settings, base, count)
        finally:
            stack.down(lambda _title, _address: None)
    print(json.dumps(figures))


def _measure(settings: LocalSettings, base: str, count: int) -> dict[str, float]:
    requests = failed = 0
    forth: list[Promotion] = []
    for number, policy in enumerate(POLICIES):
        # Each way forth is to a version that was never served: back is at once, by design.
        fresh = [_train(1 + number * count + turn) for turn in range(-(-count // 2))]
        order = [base, *itertools.chain.from_iterable((new, base) for new in fresh)][: count + 1]
        if order[-1] != base:
            order.append(base)
        set_policy(settings, policy)
        words = " ".join(f"{name}={value}" for name, value in policy.items())
        print(f"{words}, a tick every {TICK_SECONDS:g} s", flush=True)
        load, promotions, seconds = asyncio.run(promote_in_turns(settings, order))
        by_base = sum(item.version == base for item in load.seen)
        print(
            f"  {len(promotions)} promotions in {seconds:.0f} s: {load.sent:,} requests, "
            f"{load.sent / seconds:.0f} a second, {load.failures.total()} failed; answers: "
            f"{by_base:,} by the base, {len(load.seen) - by_base:,} by {len(fresh)} others"
        )
        for what, times in load.failures.most_common(5):
            print(f"  {times} x {what}")
        for way, some in (("forth", promotions[::2]), ("back", promotions[1::2])):
            firsts, fulls = zip(*some, strict=True)
            print(
                f"  {way:5}: first traffic after {statistics.median(firsts):.2f} s (most "
                f"{max(firsts):.2f}), full after {statistics.median(fulls):.2f} s (most "
                f"{max(fulls):.2f})",
                flush=True,
            )
        requests += load.sent
        failed += load.failures.total()
        # The way back would only make the medians look better.
        forth += promotions[::2]
    return {
        "requests": requests,
        "failed": failed,
        "seconds_to_first_traffic_p50": round(
            statistics.median(item.first_seconds for item in forth), 3
        ),
        "seconds_to_full_traffic_p50": round(
            statistics.median(item.full_seconds for item in forth), 3
        ),
    }


if __name__ == "__main__":
    main()
