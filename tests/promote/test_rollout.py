"""Whole rollouts, tick by tick: a real registry, bucket and ledger, the stand-in of Cloud Run."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest

from functions.promote.feedback import Feedback
from functions.promote.registry import RegistryUnavailable
from local.settings import free_port
from tests.promote.rollouts import MODEL, POLICY, TICKS, Rollouts, kind, ledger

pytestmark = pytest.mark.slow

VERSIONS = (0.9, 0.91, 0.7, 0.92)
"""AUROC of versions 1 to 4."""


@pytest.fixture(scope="module", autouse=True)
def versions(rollouts: Rollouts) -> None:
    for auroc in VERSIONS:
        rollouts.register(auroc=auroc)


def test_a_version_comes_in_steps_and_no_request_fails(rollouts: Rollouts) -> None:
    rollouts.promote("1", POLICY)
    with rollouts.traffic() as seen:
        said = rollouts.promote("2", POLICY)
        time.sleep(1)
    assert not seen.failures
    assert set(seen.versions) == {"1", "2"}
    shares = [item["traffic"][0]["percent"] for item in said]  # type: ignore[index]  # JSON
    # What was served loses no more than the step's share, and its rest at the end.
    assert [share for share, after in pairwise(shares) if share != after] == [
        100,
        90,
        50,
    ]
    steps = [(e["event"], e["version"], e["percent"], e["from_version"]) for e in ledger()]
    assert steps == [
        ("promoted", "1", 100, None),
        ("stepped", "2", 10, "1"),
        ("stepped", "2", 50, "1"),
        ("promoted", "2", 100, "1"),
    ]
    assert "requests, 0 failed, p95" in str(ledger()[-1]["reason"])
    gates = {item["gate"]: item["outcome"] for item in ledger()[-1]["gates"]}  # type: ignore[attr-defined]
    assert gates == {
        "validation": "skipped",
        "metrics": "passed",
        "comparison": "passed",
        "behaviour": "skipped",
        "identity": "passed",
        "golden": "passed",
        "latency": "passed",
    }


def test_a_worse_model_gets_no_traffic(rollouts: Rollouts) -> None:
    rollouts.promote("2", POLICY)
    with rollouts.traffic() as seen:
        said = rollouts.promote("3", POLICY)
    assert not seen.failures
    assert set(seen.versions) == {"2"}
    assert "blocked by metrics: AUROC 0.7000 is below 0.8" in str(said[-1]["action"])
    assert "metrics" in rollouts.registry.get_model_version(MODEL, "3").tags["rollout_blocked"]


@contextmanager
def proxy_that_counts() -> Iterator[
    tuple[str, dict[str, tuple[int, int]], dict[str, tuple[int, int]]]
]:
    """Serve ``GET /statistics``.

    Yields its address; version -> answers given and answers right; revision -> predictions
    and failures.
    """
    answers: dict[str, tuple[int, int]] = {}
    outcomes: dict[str, tuple[int, int]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            versions = [
                {
                    # What one caller alone can't do to a model.
                    **{"model_version": version, "answered": 10**6, "correct": 0},
                    "capped": {"answered": given, "correct": right},
                }
                for version, (given, right) in answers.items()
            ]
            revisions = [
                {"revision": revision, "model_version": "", "predictions": good, "failed": bad}
                for revision, (good, bad) in outcomes.items()
            ]
            statistics = {"by_model_version": versions, "by_revision": revisions}
            content = json.dumps({"statistics": statistics}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", answers, outcomes
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_model_that_users_agree_with_less_goes_back(rollouts: Rollouts) -> None:
    """What they said of it before the rollout began does not count."""
    rollouts.promote("2", POLICY)
    rollouts.want("4")
    # Too few requests to advance: the answers alone decide.
    patient = replace(POLICY, min_requests=10**6, max_bake_seconds=600)
    with proxy_that_counts() as (url, counts, _), rollouts.traffic() as seen:
        counts |= {"2": (1000, 900), "4": (500, 0)}
        reconciler = rollouts.reconciler(patient, feedback=Feedback(url))
        kinds = []
        for _ in range(TICKS):
            kinds.append(kind(reconciler.tick()))
            if kinds[-1] == "step":
                counts |= {"2": (1100, 990), "4": (600, 90)}
            if kinds.count("wait") > 8 and "step" in kinds:
                break
            time.sleep(0.2)
        assert "block" not in kinds
        counts |= {"2": (1200, 1080), "4": (700, 120)}
        said = rollouts.promote("4", patient, Feedback(url))
    assert not seen.failures
    assert set(seen.versions) == {"2", "4"}
    assert "blocked by answers: at 10 %: users agree with 120 of 200 answers" in str(
        said[-1]["action"]
    )
    tags = rollouts.registry.get_model_version(MODEL, "4").tags
    assert tags["rollout_blocked"].startswith("answers: at 10 %: users agree with 120 of 200")
    last = ledger()[-1]
    assert (last["event"], last["gate"], last["version"]) == ("blocked", "answers", "4")


def test_what_the_proxy_saw_fail_sends_a_candidate_back_without_monitoring(
    rollouts: Rollouts,
) -> None:
    """What it had seen before, and of other revisions, does not count."""
    rollouts.promote("2", POLICY)
    rollouts.registry.set_model_version_tag(MODEL, "4", "tried", "again")
    rollouts.want("4")
    patient = replace(POLICY, min_requests=20, max_error_ratio=0.1, max_bake_seconds=600)
    with proxy_that_counts() as (url, _, outcomes), rollouts.traffic() as seen:
        reconciler = rollouts.reconciler(
            patient, feedback=Feedback(url), monitoring=f"http://127.0.0.1:{free_port()}"
        )
        outcomes |= dict.fromkeys(rollouts.revisions(), (1000, 500))
        action: dict[str, str] = {}
        failed = 1
        for _ in range(TICKS):
            status = reconciler.tick()
            action = status["action"]  # type: ignore[assignment]  # JSON
            if action["kind"] == "block":
                break
            if step := (status["candidate"] or {}).get("step"):  # type: ignore[attr-defined]
                # Two may fail of the first 20 requests.
                failed += 1
                before = step["before"]["outcomes"]["candidate"]
                answered = before["requests"] - before["failed"]
                outcomes[step["revision"]] = (answered + 17, before["failed"] + failed)
            time.sleep(0.2)
        rollouts.promote("2", POLICY)
    assert not seen.failures
    assert set(seen.versions) == {"2", "4"}
    assert failed == 3
    assert action["detail"].startswith(
        "version 4 by errors: at 10 %: of the proxy's own, 3 of 20 requests failed"
    )
    assert ledger()[-1]["event"] == "blocked"


def test_old_revisions_go_and_what_is_needed_stays(rollouts: Rollouts) -> None:
    rollouts.promote("1", POLICY)
    rollouts.promote("2", POLICY)
    before = rollouts.revisions()
    assert len(before) > 3
    with rollouts.traffic() as seen:
        rollouts.promote("2", replace(POLICY, keep_revisions=3))
    assert not seen.failures
    left = rollouts.revisions()
    assert len(left) == 3
    # Version 1 is the previous one: the way back needs no new start.
    said = rollouts.promote("1", replace(POLICY, keep_revisions=3))
    assert "create" not in map(kind, said)
    assert rollouts.revisions() == left


def test_without_requests_golden_texts_decide(rollouts: Rollouts) -> None:
    rollouts.promote("2", POLICY)
    rollouts.registry.set_model_version_tag(MODEL, "3", "validation", "failed")
    hasty = replace(POLICY, max_bake_seconds=2, auroc_floor=0.5, auroc_margin=0.5)
    said = rollouts.promote("3", hasty)
    assert "blocked by validation" in str(said[-1]["action"])
    rollouts.registry.set_model_version_tag(MODEL, "3", "validation", "passed")
    rollouts.promote("3", hasty)
    last = ledger()[-1]
    assert (last["event"], last["version"]) == ("promoted", "3")
    assert "at least 10 needed" in str(last["reason"])
    assert "golden passed" in str(last["reason"])


def test_code_that_fails_in_traffic_goes_back_also_without_the_registry(
    rollouts: Rollouts,
) -> None:
    rollouts.promote("2", POLICY)
    rollouts.deploy("predict:failing")
    alive = rollouts.reconciler(POLICY)
    with rollouts.traffic() as seen:
        for _ in range(TICKS):
            if kind(alive.tick()) == "step":
                break
            time.sleep(0.2)
        dead = rollouts.reconciler(POLICY, mlflow=f"http://127.0.0.1:{free_port()}")
        shares, last_kind = set(), ""
        for _ in range(TICKS):
            try:
                last_kind = kind(dead.tick())
            except RegistryUnavailable:
                shares.add(alive.tick(act=False)["traffic"][0]["percent"])  # type: ignore[index]
            if last_kind == "block":
                break
            time.sleep(0.2)
        rollouts.promote("2", POLICY)
    assert last_kind == "block"
    # It never advanced, and only its own share of requests could fail.
    assert shares <= {90}
    assert set(seen.failures) == {500}
    assert sum(seen.failures.values()) < 0.1 * sum(seen.versions.values())
    last = [entry for entry in ledger() if entry["event"] == "blocked"][-1]
    assert (last["gate"], last["version"]) == ("errors", "2")
    assert str(last["reason"]).startswith("at 10 %: ")
    with rollouts.traffic() as seen:
        time.sleep(1)
    assert not seen.failures
