"""Whole rollouts, tick by tick: a real registry, bucket and ledger, the stand-in of Cloud Run."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, pairwise

import httpx
import pytest
from google.cloud import firestore, run_v2
from mlflow import MlflowClient

from functions.identity import IdTokenAuth
from functions.promote.bundles import Bundles
from functions.promote.cloud_run import CloudRun
from functions.promote.feedback import Feedback
from functions.promote.gates import Gates
from functions.promote.ledger import Ledger
from functions.promote.policy import Policy
from functions.promote.reconciler import Reconciler
from functions.promote.registry import Registry, RegistryUnavailable
from functions.promote.signals import Monitoring
from local import monitoring as stand_in_monitoring
from local.settings import ROOT, free_port
from tests.bundles import SCORES, make_bundle
from tests.emulators import FirestoreEmulator, StorageEmulator
from tests.local.conftest import CALLER, PARENT, PROJECT, REGION, StandIn

pytestmark = pytest.mark.slow

MODEL, SERVICE = "yelp-model", "predict"
ARTIFACTS, SERVING = "rollout-artifacts", "rollout-serving"
TICKS = 150

POLICY = Policy(
    rollout_steps=(10, 50, 100),
    bake_seconds=2,
    max_bake_seconds=30,
    min_requests=10,
    # One machine runs everything here.
    candidate_latency_ratio=100,
    max_latency_ratio=100,
    latency_floor_seconds=5,
)


# New code that fails for some callers, and never at its tag: no gate can see it.
FAILING = """
import functions.predict.start as start

load = start.load_app

def load_app(*arguments):
    inner = load(*arguments)

    async def app(scope, receive, send):
        if (b"x-unlucky", b"yes") in scope.get("headers", ()):
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await inner(scope, receive, send)

    return app

start.load_app = load_app

from functions.predict.__main__ import main

main()
"""


@dataclass
class Traffic:
    """What callers of the service saw."""

    versions: Counter[str] = field(default_factory=Counter)
    failures: Counter[int] = field(default_factory=Counter)


class Rollouts:
    """The parts of a rollout, and promote's ticks."""

    def __init__(self, cloud_run: StandIn, registry: MlflowClient, monitoring: str) -> None:
        self._monitoring = monitoring
        self._cloud_run = cloud_run
        self.registry = registry
        self.url = f"http://{SERVICE}.localhost:{cloud_run.port}"

    def deploy(self, image: str) -> None:
        """Write another image, as Terraform does."""
        services = self._cloud_run.services
        service = services.get_service(name=f"{PARENT}/services/{SERVICE}")
        service.template.containers[0].image = image
        service.etag = ""
        services.update_service(service=service).result(timeout=90)

    def revisions(self) -> set[str]:
        """Return the names of the service's revisions."""
        found = self._cloud_run.revisions.list_revisions(parent=f"{PARENT}/services/{SERVICE}")
        return {item.name.rpartition("/")[2] for item in found}

    def reconciler(
        self,
        policy: Policy,
        registry: str = "",
        feedback: Feedback | None = None,
        monitoring: str = "",
    ) -> Reconciler:
        return Reconciler(
            registry=Registry(
                tracking_uri=registry or str(self.registry.tracking_uri),
                model=MODEL,
                sources=("alias:production",),
            ),
            bundles=Bundles(model=MODEL, artifacts_bucket=ARTIFACTS, serving_bucket=SERVING),
            cloud_run=CloudRun(
                project=PROJECT,
                region=REGION,
                service=SERVICE,
                endpoint=f"http://127.0.0.1:{self._cloud_run.api_port}",
            ),
            gates=Gates(policy),
            ledger=Ledger(project=PROJECT, database="(default)"),
            monitoring=Monitoring(
                project=PROJECT,
                region=REGION,
                service=SERVICE,
                endpoint=monitoring or self._monitoring,
            ),
            feedback=feedback,
            policy=policy,
        )

    def promote(
        self, version: str, policy: Policy, feedback: Feedback | None = None
    ) -> list[dict[str, object]]:
        """Name the version, and tick until all is quiet; return what each tick said."""
        self.registry.set_registered_model_alias(MODEL, "production", version)
        reconciler, said = self.reconciler(policy, feedback=feedback), []
        for _ in range(TICKS):
            said.append(reconciler.tick())
            if said[-1]["action"]["kind"] == "idle":  # type: ignore[index]  # JSON
                return said
            time.sleep(0.3)
        raise AssertionError(said[-1])

    @contextmanager
    def traffic(self) -> Iterator[Traffic]:
        """Send requests, each on a connection of its own, none retried.

        One in four is such that new code fails.
        """
        seen, stopping = Traffic(), threading.Event()

        def send() -> None:
            for number in count():
                if stopping.is_set():
                    return
                response = httpx.post(
                    f"{self.url}/predict",
                    json={"text": "cool"},
                    headers={"X-Unlucky": "no" if number % 4 else "yes"},
                    proxy=f"http://127.0.0.1:{self._cloud_run.port}",
                    timeout=30,
                )
                if response.is_success:
                    seen.versions[response.json()["model_version"]] += 1
                else:
                    seen.failures[response.status_code] += 1
                time.sleep(0.02)

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            stopping.set()
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def rollouts(
    tmp_path_factory: pytest.TempPathFactory,
    storage_emulator: StorageEmulator,
    firestore_emulator: FirestoreEmulator,
) -> Iterator[Rollouts]:
    folder = tmp_path_factory.mktemp("rollout")
    failing = folder / "failing.py"
    failing.write_text(FAILING)
    python = ROOT / ".venvs" / "predict" / "bin" / "python"
    image = {
        "entrypoint": [str(python), "-m", "functions.predict"],
        "working_directory": str(ROOT),
    }
    cloud_run = StandIn(
        folder,
        images={
            "predict:1": image,
            "predict:failing": {**image, "entrypoint": [str(python), str(failing)]},
        },
        environment={"STORAGE_EMULATOR_HOST": storage_emulator.url, "PYTHONPATH": str(ROOT)},
        check_callers=False,
        startup_timeout_seconds=60,
    )
    port = free_port()
    monitoring = stand_in_monitoring.create_server(
        stand_in_monitoring.Monitoring(
            folder / "data" / "requests.jsonl",
            project=PROJECT,
            region=REGION,
            period_seconds=0.5,
            delay_seconds=(0.5, 1.0),
        ),
        port,
    )
    registry = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    registry.create_registered_model(MODEL)
    storage_emulator.upload(SERVING, "made", {"empty": b""})
    for number, auroc in enumerate((0.9, 0.91, 0.7, 0.92), start=1):
        bias = {**SCORES, "good": 4.0 + number}
        files = make_bundle(bias, run_id=str(number) * 32, auroc=auroc)
        storage_emulator.upload(ARTIFACTS, f"m{number}/serving", files)
        registry.create_model_version(MODEL, source=f"gs://{ARTIFACTS}/m{number}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "STORAGE_EMULATOR_HOST": storage_emulator.url,
            "FIRESTORE_EMULATOR_HOST": firestore_emulator.host,
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "HTTP_PROXY": f"http://127.0.0.1:{cloud_run.port}",
            "NO_PROXY": "127.0.0.1",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
        }.items():
            patch.setenv(name, value)
        # Where tokens come from has tests of its own, and Google's library looks once a process.
        patch.setattr(IdTokenAuth, "token", lambda _: "token")
        firestore_emulator.clear(PROJECT)
        cloud_run.start()
        monitoring.start()
        try:
            container = run_v2.Container(image="predict:1")
            cloud_run.services.create_service(
                parent=PARENT,
                service=run_v2.Service(
                    template=run_v2.RevisionTemplate(containers=[container], service_account=CALLER)
                ),
                service_id=SERVICE,
            ).result(timeout=90)
            yield Rollouts(cloud_run, registry, f"http://127.0.0.1:{port}")
        finally:
            monitoring.stop(None)
            cloud_run.terminate()


def ledger() -> list[dict[str, object]]:
    documents = firestore.Client(project=PROJECT).collection("rollouts").stream()
    entries = [item.to_dict() or {} for item in documents if item.id != "status"]
    return sorted(entries, key=lambda entry: str(entry["at"]))


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
    rollouts.registry.set_registered_model_alias(MODEL, "production", "4")
    # Too few requests to advance: the answers alone decide.
    patient = replace(POLICY, min_requests=10**6, max_bake_seconds=600)
    with proxy_that_counts() as (url, counts, _), rollouts.traffic() as seen:
        counts |= {"2": (1000, 900), "4": (500, 0)}
        reconciler = rollouts.reconciler(patient, feedback=Feedback(url))
        kinds = []
        for _ in range(TICKS):
            kinds.append(reconciler.tick()["action"]["kind"])  # type: ignore[index]  # JSON
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
    rollouts.registry.set_registered_model_alias(MODEL, "production", "4")
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
    assert "create" not in [item["action"]["kind"] for item in said]  # type: ignore[index]  # JSON
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
            if alive.tick()["action"]["kind"] == "step":  # type: ignore[index]  # JSON
                break
            time.sleep(0.2)
        dead = rollouts.reconciler(POLICY, registry=f"http://127.0.0.1:{free_port()}")
        shares, kind = set(), ""
        for _ in range(TICKS):
            try:
                kind = dead.tick()["action"]["kind"]  # type: ignore[index]  # JSON
            except RegistryUnavailable:
                shares.add(alive.tick(act=False)["traffic"][0]["percent"])  # type: ignore[index]
            if kind == "block":
                break
            time.sleep(0.2)
        rollouts.promote("2", POLICY)
    assert kind == "block"
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
