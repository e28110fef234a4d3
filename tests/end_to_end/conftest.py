"""One real stack for all tests of this folder: every service, every emulator."""

import contextlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import mlflow
import pytest
from mlflow import MlflowClient

from local.settings import MODEL, LocalSettings, load_settings
from local.stack import Stack

PROMOTION_SECONDS = 120


@dataclass
class Loop:
    """What a test needs of the running stack."""

    settings: LocalSettings
    stack: Stack
    registry: MlflowClient
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def url(self, component: str) -> str:
        return self.settings.url(component)

    def register(self, **parameters: int | float) -> str:
        """Train on the sample, register, and return the version."""
        from trainer import training
        from trainer.assessment import Bars
        from trainer.parameters import Parameters
        from trainer.reviews import SAMPLE

        outcome = training.train(
            SAMPLE,
            Parameters(**{"epochs": 2, **parameters}),  # type: ignore[arg-type]  # ints and floats
            experiment="end-to-end",
            register=MODEL,
            # Two epochs on a sample: not good, but good enough to be rolled out.
            bars=Bars(auroc_floor=0.5, behaviour_floor=0, margin=1),
            progress=False,
        )
        assert outcome.model_version is not None
        return outcome.model_version

    def set_stage(self, version: str, *, archive: bool = True) -> None:
        self.registry.transition_model_version_stage(
            MODEL, version, "Production", archive_existing_versions=archive
        )

    def served(self) -> str | None:
        response = self.http.get(f"{self.url('predict')}/model")
        version: str | None = response.json().get("model_version")
        return version

    def status(self) -> dict[str, object]:
        content: dict[str, object] = self.http.get(f"{self.url('promote')}/status").json()
        return content

    def wait_until_served(self, version: str) -> None:
        self.wait(lambda: self.served() == version, f"version {version} is not served")

    def wait(self, condition: Callable[[], bool], message: str) -> None:
        deadline = time.monotonic() + PROMOTION_SECONDS
        while not _holds(condition):
            assert time.monotonic() < deadline, f"{message}: {self.status()}"
            time.sleep(0.2)

    def instances(self, service: str) -> list[int]:
        """Return the process ids of a service's containers."""
        marks = {
            f"K_SERVICE={service}".encode(),
            f"CLOUD_RUN_STAND_IN={self.settings.data_dir / 'cloud_run'}".encode(),
        }
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marks <= set((process / "environ").read_bytes().split(b"\0")):
                    found.append(int(process.name))
        return found

    def stop_instances(self, service: str) -> None:
        """End a service's containers, and wait until they are gone: the next one starts cold."""
        before = self.instances(service)
        assert before
        for process in before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        # A zombie has closed all that it had open.
        self.wait(lambda: not any(map(_runs, before)), f"{service} still runs")


def _holds(condition: Callable[[], bool]) -> bool:
    # A service that was just killed may answer with an error that is not its own.
    with contextlib.suppress(httpx.HTTPError, ValueError):
        return condition()
    return False


def _runs(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="package")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """The stack with one version in Production and served."""
    folder = tmp_path_factory.mktemp("stack")
    # PostgreSQL runs as another user, who must be able to come here.
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    settings = load_settings(folder / "local", ports={}, free_ports=True, tick_seconds=0.5)
    stack = Stack(settings)
    environment = dict(os.environ)
    os.environ.update(settings.client_environment)
    # It takes seconds, which the stack takes as well.
    threading.Thread(target=importlib.import_module, args=("trainer.training",)).start()
    try:
        stack.up(lambda _title, _address: None)
        loop = Loop(settings, stack, MlflowClient(settings.url("mlflow")))
        version = loop.register()
        loop.set_stage(version)
        loop.wait_until_served(version)
        yield loop
    finally:
        stack.down(lambda _title, _address: None)
        # Training in this process has set MLflow's own, for everything after it.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # None undoes it
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        os.environ.clear()
        os.environ.update(environment)
