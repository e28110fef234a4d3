"""Whole rollouts: a real registry, bucket and ledger, the stand-ins of Google's APIs."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from unittest.mock import patch
from urllib.parse import urlsplit

import httpx
from google.cloud import firestore
from mlflow import MlflowClient

from functions.identity import IdTokenAuth
from functions.promote.bundles import Bundles
from functions.promote.cloud_run import CloudRun
from functions.promote.feedback import Feedback
from functions.promote.gates import Gates
from functions.promote.ledger import Ledger
from functions.promote.policy import Policy
from functions.promote.reconciler import Reconciler
from functions.promote.registry import Registry
from functions.promote.signals import Monitoring
from tests.bundles import SCORES, make_bundle
from tests.emulators import StorageEmulator
from tests.local.conftest import PARENT, PROJECT, REGION, StandIn
from tests.promote.interference import Interference

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


@dataclass(frozen=True)
class Places:
    """Where promote finds what it calls."""

    cloud_run: str
    monitoring: str
    mlflow: str
    environment: Mapping[str, str]
    """By which the libraries of Cloud Storage and Firestore, and HTTP clients, find theirs."""


def make_reconciler(
    places: Places, policy: Policy, *, feedback: Feedback | None = None
) -> Reconciler:
    """Return promote as its image makes it, but for who it is."""
    return Reconciler(
        registry=Registry(tracking_uri=places.mlflow, model=MODEL, sources=("alias:production",)),
        bundles=Bundles(model=MODEL, artifacts_bucket=ARTIFACTS, serving_bucket=SERVING),
        cloud_run=CloudRun(
            project=PROJECT, region=REGION, service=SERVICE, endpoint=places.cloud_run
        ),
        gates=Gates(policy),
        ledger=Ledger(project=PROJECT, database="(default)"),
        monitoring=Monitoring(
            project=PROJECT, region=REGION, service=SERVICE, endpoint=places.monitoring
        ),
        feedback=feedback,
        policy=policy,
    )


def tick_once(places: Places, policy: Policy) -> None:
    """Tick in a process of its own, with nothing that an earlier one may have kept."""
    os.environ.update(places.environment)
    # Where tokens come from has tests of its own.
    with patch.object(IdTokenAuth, "token", lambda _: "token"):
        make_reconciler(places, policy).tick()


@dataclass
class Traffic:
    """What callers of the service saw."""

    versions: Counter[str] = field(default_factory=Counter)
    failures: Counter[int] = field(default_factory=Counter)


class Rollouts:
    """The parts of a rollout, and promote's ticks."""

    def __init__(self, places: Places, cloud_run: StandIn, bucket: StorageEmulator) -> None:
        self.places = places
        self.registry = MlflowClient(places.mlflow)
        self._cloud_run = cloud_run
        self._bucket = bucket
        self.url = f"http://{SERVICE}.localhost:{cloud_run.port}"

    def register(self, *, auroc: float = 0.9) -> str:
        """Register a version with a bundle of its own."""
        name = f"m{time.monotonic_ns()}"
        scores = {**SCORES, "good": 4.0 + time.monotonic_ns() % 10**6 / 10**6}
        files = make_bundle(scores, auroc=auroc)
        source = self._bucket.upload(ARTIFACTS, f"{name}/serving", files)
        made = self.registry.create_model_version(MODEL, source=source.removesuffix("/serving"))
        return str(made.version)

    def want(self, version: str) -> None:
        """Name the version in the registry."""
        self.registry.set_registered_model_alias(MODEL, "production", version)

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
        *,
        mlflow: str = "",
        feedback: Feedback | None = None,
        monitoring: str = "",
    ) -> Reconciler:
        places = replace(
            self.places,
            mlflow=mlflow or self.places.mlflow,
            monitoring=monitoring or self.places.monitoring,
        )
        return make_reconciler(places, policy, feedback=feedback)

    def promote(
        self, version: str, policy: Policy, feedback: Feedback | None = None
    ) -> list[dict[str, object]]:
        """Name the version, and tick until all is quiet; return what each tick said."""
        self.want(version)
        reconciler, said = self.reconciler(policy, feedback=feedback), []
        for _ in range(TICKS):
            said.append(reconciler.tick())
            if kind(said[-1]) == "idle":
                return said
            time.sleep(0.3)
        raise AssertionError(said[-1])

    def shares(self) -> dict[str, int]:
        """Return the share in percent of each revision that has traffic."""
        service = self._cloud_run.get(SERVICE)
        found: Counter[str] = Counter()
        for target in service.traffic_statuses:
            found[target.revision.rpartition("/")[2]] += target.percent
        return {revision: percent for revision, percent in found.items() if percent}

    @contextmanager
    def interference(self) -> Iterator[tuple[Interference, Places]]:
        """Put a network that may go wrong between promote and all that it calls."""
        environment = dict(self.places.environment)
        mlflow, storage = (
            urlsplit(url).port or 80
            for url in (self.places.mlflow, environment["STORAGE_EMULATOR_HOST"])
        )
        apis = {
            "google.cloud.run.v2": urlsplit(self.places.cloud_run).netloc,
            "google.monitoring.v3": urlsplit(self.places.monitoring).netloc,
            "google.firestore.v1": environment["FIRESTORE_EMULATOR_HOST"],
        }
        with Interference(apis, {mlflow: "mlflow", storage: "storage"}) as network:
            environment |= {
                "FIRESTORE_EMULATOR_HOST": network.grpc_address,
                "HTTP_PROXY": network.http_url,
                "NO_PROXY": "",
            }
            at = f"http://{network.grpc_address}"
            yield network, Places(at, at, self.places.mlflow, environment)

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


def kind(status: Mapping[str, object]) -> str:
    """Return the kind of a tick's action."""
    return str(status["action"]["kind"])  # type: ignore[index]  # JSON


def ledger() -> list[dict[str, object]]:
    """Return the ledger's entries, the oldest first."""
    documents = firestore.Client(project=PROJECT).collection("rollouts").stream()
    entries = [item.to_dict() or {} for item in documents if item.id != "status"]
    return sorted(entries, key=lambda entry: str(entry["at"]))


def status_document() -> dict[str, object]:
    """Return what promote has published for readers."""
    document = firestore.Client(project=PROJECT).collection("rollouts").document("status").get()
    return document.to_dict() or {}
