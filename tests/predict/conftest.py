"""Predict as a real process from its own environment, beside a fake-gcs-server."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from functions.predict.bundle import MANIFEST, digest
from local.settings import free_port
from tests.bundles import make_bundle
from tests.emulators import StorageEmulator

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venvs/predict/bin/python"
BUCKET = "serving"
REVISION = "predict-00007-abc"
RUN_ID = "3acade02674549b19044a59186d97db4"

BUNDLE = make_bundle(bias=0.25, run_id=RUN_ID)


class Service(NamedTuple):
    """A running predict."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path


def folder(files: Mapping[str, bytes]) -> str:
    """Return the folder that promote would copy a bundle to."""
    return f"yelp-model/{digest(files[MANIFEST])}"


@contextmanager
def running_predict(
    log: Path,
    *arguments: str,
    command: tuple[str, ...] = (str(PYTHON), "-m", "functions.predict"),
    **environment: str,
) -> Iterator[Service]:
    """Run predict until the end of the block; it must then end by itself, with status 0."""
    port = free_port()
    service = Service(
        f"http://127.0.0.1:{port}",
        start_predict(
            log, *("--host=127.0.0.1", f"--port={port}"), *arguments, command=command, **environment
        ),
        log,
    )
    try:
        _wait_for(service)
        yield service
        service.process.terminate()
        assert service.process.wait(10) == 0
    finally:
        if service.process.poll() is None:
            os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait(10)


def start_predict(
    log: Path,
    *arguments: str,
    command: tuple[str, ...] = (str(PYTHON), "-m", "functions.predict"),
    **environment: str,
) -> "subprocess.Popen[bytes]":
    """Start predict as its image does, with nothing of this process's environment."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_for(service: Service) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and service.process.poll() is None:
        try:
            httpx.get(f"{service.url}/health")
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"predict did not start:\n{service.log.read_text()}")


@pytest.fixture(scope="session")
def model_uri(storage_emulator: StorageEmulator) -> str:
    return storage_emulator.upload(BUCKET, folder(BUNDLE), BUNDLE)


@pytest.fixture(scope="session")
def service(
    storage_emulator: StorageEmulator, model_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Predict with the bundle `BUNDLE` as version 10."""
    with running_predict(
        tmp_path_factory.mktemp("predict") / "output.log",
        f"--model-uri={model_uri}",
        "--model-version=10",
        STORAGE_EMULATOR_HOST=storage_emulator.url,
        K_REVISION=REVISION,
    ) as running:
        yield running


@pytest.fixture(scope="session")
def empty_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Predict before the first promotion: no model."""
    with running_predict(tmp_path_factory.mktemp("predict") / "output.log") as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=20) as client:
        yield client
