"""A rollout in steps while anything that promote calls fails, or promote itself is killed."""

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess

import grpc
import pytest

from functions.promote.bundles import StorageUnavailable
from functions.promote.cloud_run import ServiceUnavailable
from functions.promote.deadline import OutOfTime
from functions.promote.registry import RegistryUnavailable
from tests.promote.interference import Nothing, Refused
from tests.promote.rollouts import (
    MODEL,
    POLICY,
    TICKS,
    Places,
    Rollouts,
    Traffic,
    kind,
    ledger,
    make_reconciler,
    status_document,
    tick_once,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUICK = replace(POLICY, bake_seconds=1, min_requests=5)
# What promote answers with 503, for the next tick to try again.
UNAVAILABLE = (RegistryUnavailable, ServiceUnavailable, StorageUnavailable, OutOfTime)
SAME_CALL = 4


@dataclass
class Candidate:
    """A version on its way, and what callers and the service show of it."""

    rollouts: Rollouts
    before: str
    version: str
    seen: Traffic
    served: str
    """The revision that serves when it begins."""
    lost: list[int] = field(default_factory=lambda: [0])
    """What others than that revision have of the traffic, in percent, each change."""

    def look(self) -> None:
        lost = 100 - self.rollouts.shares().get(self.served, 0)
        if lost != self.lost[-1]:
            self.lost.append(lost)

    def check_it_got_there_step_by_step(self) -> None:
        assert self.lost == [0, 10, 50, 100]
        entries = [item for item in ledger() if item["version"] == self.version]
        assert [(item["event"], item["percent"]) for item in entries] == [
            ("stepped", 10),
            ("stepped", 50),
            ("promoted", 100),
        ]
        (revision,) = self.rollouts.shares()
        tags = self.rollouts.registry.get_model_version(MODEL, self.version).tags
        assert tags["serving_revision"] == revision == entries[-1]["revision"]
        old = self.rollouts.registry.get_model_version(MODEL, self.before).tags
        assert "serving_revision" not in old


@contextmanager
def candidate(rollouts: Rollouts) -> Iterator[Candidate]:
    """Ask for a new version beside a served one, under load, in which no request fails."""
    before = rollouts.register()
    rollouts.promote(before, replace(QUICK, rollout_steps=(100,)))
    (served,) = rollouts.shares()
    version = rollouts.register()
    with rollouts.traffic() as seen:
        rollouts.want(version)
        yield Candidate(rollouts, before, version, seen, served)
    assert not seen.failures
    assert set(seen.versions) == {before, version}


class OnceAtEachCall(Nothing):
    """Strikes at each call of a rollout, the first time that it gets there.

    The same call is another one after each change of the service, and if a tick makes it
    again: up to four of them, for the texts that are sent to the candidate are all alike.

    Args:
        is_meant: says of a call whether to strike at it.
        strike: raises `Refused`.
        when: ``before`` the call is passed on, or ``after``.
    """

    def __init__(
        self, is_meant: Callable[[str], bool], strike: Callable[[], None], when: str = "before"
    ) -> None:
        self.struck: Counter[str] = Counter()
        self._is_meant = is_meant
        self._strike = strike
        self._when = when
        self._seen: set[tuple[int, str, int]] = set()
        self._writes = 0
        self._of_tick: Counter[str] = Counter()

    def begin_tick(self) -> None:
        self._of_tick.clear()

    def before(self, call: str) -> None:
        self._of_tick[call] += 1
        self._maybe(call, "before")

    def after(self, call: str) -> None:
        self._maybe(call, "after")
        self._writes += call == "UpdateService"

    def _maybe(self, call: str, when: str) -> None:
        point = (self._writes, call, min(self._of_tick[call], SAME_CALL))
        if when == self._when and self._is_meant(call) and point not in self._seen:
            self._seen.add(point)
            self.struck[call] += 1
            # It took effect, whatever becomes of the answer.
            self._writes += call == "UpdateService" and when == "after"
            self._strike()


def test_killed_between_any_two_calls(rollouts: Rollouts) -> None:
    # Forked from a process that has imported everything: one for each tick.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.promote.rollouts", "mlflow.tracking"])
    running: list[BaseProcess] = []

    def kill() -> None:
        process = running[-1].pid
        assert process is not None
        os.kill(process, signal.SIGKILL)
        raise Refused

    rule = OnceAtEachCall(lambda _: True, kill)
    with rollouts.interference() as (network, places), candidate(rollouts) as rollout:
        network.rule = rule
        look = rollouts.reconciler(QUICK)
        for _ in range(1000):
            rule.begin_tick()
            running.append(processes.Process(target=tick_once, args=(places, QUICK)))
            running[-1].start()
            running[-1].join(120)
            rollout.look()
            if running[-1].exitcode == 0 and kind(look.tick(act=False)) == "idle":
                break
    killed = [process.exitcode for process in running].count(-signal.SIGKILL)
    assert {process.exitcode for process in running} == {0, -signal.SIGKILL}
    # Cloud Storage's client makes a call or two in a thread of its own: those die together.
    assert rule.struck.total() * 0.9 < killed <= rule.struck.total()
    # Seven writes: the template, the tag, two steps, all of it, the ledger is complete, ...
    assert rule.struck["UpdateService"] >= 6
    assert {"GetService", "ListRevisions", "ListTimeSeries", "Commit"} <= rule.struck.keys()
    assert {"POST mlflow set-tag", "POST predict predict:batch"} <= rule.struck.keys()
    assert killed > 70
    rollout.check_it_got_there_step_by_step()


@pytest.mark.parametrize(
    ("code", "when"),
    [
        (grpc.StatusCode.ABORTED, "before"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "before"),
        (grpc.StatusCode.UNAVAILABLE, "before"),
        # It was done all the same.
        (grpc.StatusCode.UNAVAILABLE, "after"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_cloud_run_refuses_each_call_once(
    rollouts: Rollouts, code: grpc.StatusCode, when: str
) -> None:
    def refuse() -> None:
        raise Refused(code)

    apis = {"GetService", "ListRevisions", "UpdateService"}
    rule = OnceAtEachCall(apis.__contains__, refuse, when)
    with rollouts.interference() as (network, places), candidate(rollouts) as rollout:
        network.rule = rule
        errors = tick_until_idle(rollout, places, rule.begin_tick)
    assert rule.struck.keys() == apis
    assert rule.struck["UpdateService"] >= 6
    assert all("Cloud Run" in error for error in errors)
    rollout.check_it_got_there_step_by_step()


def test_two_ticks_at_once(rollouts: Rollouts) -> None:
    """Both have read the same before either writes."""

    class Together(Nothing):
        def __init__(self) -> None:
            self._both = threading.Barrier(2)

        def before(self, call: str) -> None:
            if call == "UpdateService":
                try:
                    self._both.wait(2)
                except threading.BrokenBarrierError:
                    self._both.reset()

    said: list[dict[str, object]] = []
    with rollouts.interference() as (network, places), candidate(rollouts) as rollout:
        network.rule = Together()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in places.environment.items():
                patch.setenv(name, value)
            reconcilers = [make_reconciler(places, QUICK) for _ in range(2)]
            for _ in range(TICKS):
                both = [
                    threading.Thread(target=lambda it=item: said.append(it.tick()))
                    for item in reconcilers
                ]
                for thread in both:
                    thread.start()
                for thread in both:
                    thread.join()
                rollout.look()
                if {kind(status) for status in said[-2:]} == {"idle"}:
                    break
    refused = [item for item in said if "somebody else changed" in str(item["action"])]
    assert len(refused) >= 6
    rollout.check_it_got_there_step_by_step()


def no_answer(_call: str) -> None:
    raise Refused


def status_500(_call: str) -> None:
    raise Refused(500)


def too_late(_call: str) -> None:
    # MLflow's client waits for two seconds here, Firestore's for three.
    time.sleep(3.5)


class Breaks(Nothing):
    """The rule that breaks some calls, until `mended`."""

    def __init__(self, is_meant: Callable[[str], bool], breaks: Callable[[str], None]) -> None:
        self.mended = False
        self.broken = 0
        self._is_meant = is_meant
        self._breaks = breaks

    def before(self, call: str) -> None:
        if not self.mended and self._is_meant(call):
            self.broken += 1
            self._breaks(call)


@pytest.mark.parametrize("breaks", [no_answer, status_500, too_late])
def test_nothing_advances_without_mlflow(rollouts: Rollouts, breaks: Callable[[str], None]) -> None:
    rule = Breaks(lambda call: " mlflow " in call, breaks)
    with rollouts.interference() as (network, places), candidate(rollouts) as rollout:
        tick_until_idle(rollout, places, until=lambda: rollout.lost == [0, 10])
        network.rule = rule
        # Longer than the step would have to bake.
        errors = tick_until_idle(rollout, places, until=lambda: rule.broken >= 10)
        assert len(errors) >= 2
        assert all("MLflow at" in error for error in errors)
        assert "MLflow at" in str(status_document()["error"])
        assert rollout.lost == [0, 10]
        rule.mended = True
        tick_until_idle(rollout, places)
    assert status_document()["error"] is None
    rollout.check_it_got_there_step_by_step()


@pytest.mark.parametrize(
    ("call", "breaks"),
    [("Commit", no_answer), ("Commit", too_late), ("POST mlflow set-tag", status_500)],
)
def test_a_rollout_goes_on_though_it_can_not_be_written_down(
    rollouts: Rollouts, call: str, breaks: Callable[[str], None]
) -> None:
    rule = Breaks(call.__eq__, breaks)
    with rollouts.interference() as (network, places), candidate(rollouts) as rollout:
        network.rule = rule
        assert not tick_until_idle(rollout, places, until=lambda: rollout.lost[-1] == 100)
        assert rule.broken >= 1
        rule.mended = True
        assert not tick_until_idle(rollout, places)
    rollout.check_it_got_there_step_by_step()


def tick_until_idle(
    rollout: Candidate,
    places: Places,
    begin_tick: Callable[[], None] = lambda: None,
    until: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Tick until there is nothing to do, or `until`; return what was unavailable."""
    errors = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in places.environment.items():
            patch.setenv(name, value)
        reconciler = make_reconciler(places, QUICK)
        for _ in range(TICKS):
            begin_tick()
            idle = False
            try:
                idle = kind(reconciler.tick()) == "idle"
            except UNAVAILABLE as error:
                errors.append(str(error))
            rollout.look()
            if idle or until():
                return errors
            time.sleep(0.2)
    raise AssertionError(errors)
