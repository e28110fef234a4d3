"""Starts each image and asks it something; what it needs runs on this machine."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx

from functions.predict.bundle import (
    MANIFEST,
    UNKNOWN_TOKEN,
    GoldenText,
    Histogram,
    Lineage,
    Reference,
    build_bundle,
    digest,
)
from functions.predict.scorer import sigmoid
from local.images.buildah import Buildah
from local.images.container import running
from local.processes import Processes, Program
from local.programs import storage
from local.settings import (
    ARTIFACTS_BUCKET,
    MODEL,
    PROJECT,
    REGION,
    ROOT,
    SERVING_BUCKET,
    LocalSettings,
    SetupError,
    load_settings,
)

_START_SECONDS = 120.0
_TRAIN_SECONDS = 900.0


class Check(NamedTuple):
    """What a check found."""

    seconds: float
    """From the container's start to its first answer, or to the end of its work."""
    seen: str
    """What it did, in words."""


class Bench:
    """Where images are started: Cloud Storage's emulator, and a port for the container.

    Args:
        buildah: the store of the images.
        folder: empty folder for logs and data.
    """

    def __init__(self, buildah: Buildah, folder: Path) -> None:
        self.buildah = buildah
        self.folder = folder
        self.settings: LocalSettings = load_settings(folder, ports={}, free_ports=True)
        self._processes = Processes(folder)
        self.start(storage(self.settings))

    def start(self, program: Program) -> None:
        """Start a program beside the containers."""
        self._processes.start(program)
        try:
            self._processes.wait(program)
        except SetupError:
            self._processes.stop(program.name)
            raise

    def stop(self, *names: str) -> None:
        """Stop programs, by default the emulator."""
        for name in names or ("storage",):
            self._processes.stop(name)

    def make_bucket(self, name: str) -> None:
        """Make a bucket, unless it is there."""
        url = f"{self.settings.url('storage')}/storage/v1/b?project={PROJECT}"
        answer = httpx.post(url, json={"name": name})
        if answer.status_code != httpx.codes.CONFLICT:
            answer.raise_for_status()


def check_predict(bench: Bench, image: str) -> Check:
    """Serve a small bundle, with nothing to write to; ask it something; stop it."""
    bundle = _bundle()
    folder = f"{MODEL}/{digest(bundle[MANIFEST])}"
    bench.make_bucket(SERVING_BUCKET)
    for name, content in bundle.items():
        httpx.post(
            f"{bench.settings.url('storage')}/upload/storage/v1/b/{SERVING_BUCKET}/o",
            params={"uploadType": "media", "name": f"{folder}/{name}"},
            content=content,
        ).raise_for_status()
    port = bench.settings.ports["predict"]
    url = bench.settings.url("predict")
    with running(
        bench.buildah,
        image,
        f"--model-uri=gs://{SERVING_BUCKET}/{folder}",
        "--model-version=1",
        environment={
            "PORT": str(port),
            "STORAGE_EMULATOR_HOST": bench.settings.url("storage"),
            "K_REVISION": "predict-00001-abc",
        },
        log=bench.folder / "predict.log",
    ) as container:
        seconds = container.wait_for(f"{url}/ready", seconds=_START_SECONDS)
        httpx.get(f"{url}/health").raise_for_status()
        answer = httpx.post(f"{url}/predict", json={"text": "good"}).raise_for_status().json()
        # The one word's number, and no bias.
        _expect("score", answer["score"], round(sigmoid(4.0), 9), digits=9)
        _expect("model_version", answer["model_version"], "1")
        _expect("exit status after SIGTERM", container.stop(), 0)
    return Check(seconds, "/ready, /health, /predict; exit 0")


def check_proxy(bench: Bench, image: str) -> Check:
    """Ask for its health; it needs predict and Firestore only later."""
    return _check_health(
        bench,
        image,
        "proxy",
        "/health",
        {"FIRESTORE_EMULATOR_HOST": bench.settings.address("firestore")},
    )


def check_promote(bench: Bench, image: str) -> Check:
    """Ask for its health; it needs the cloud only later."""
    environment = {
        "PROJECT": PROJECT,
        "REGION": REGION,
        "MLFLOW_TRACKING_URI": bench.settings.url("mlflow"),
        "ARTIFACTS_BUCKET": ARTIFACTS_BUCKET,
        "SERVING_BUCKET": SERVING_BUCKET,
        "FIRESTORE_EMULATOR_HOST": bench.settings.address("firestore"),
        "STORAGE_EMULATOR_HOST": bench.settings.url("storage"),
    }
    return _check_health(bench, image, "promote", "/health", environment)


def check_mlflow(bench: Bench, image: str) -> Check:
    """Serve an empty SQLite database in its /tmp."""
    environment = {
        "DATABASE_URL": "sqlite:////tmp/mlflow.db",
        "ARTIFACT_ROOT": f"gs://{ARTIFACTS_BUCKET}/mlflow",
    }
    return _check_health(bench, image, "mlflow", "/health", environment, tmp="256m")


def check_ui(bench: Bench, image: str) -> Check:
    """Ask Streamlit for its health."""
    return _check_health(bench, image, "ui", "/_stcore/health", {})


def check_trainer(bench: Bench, image: str) -> Check:
    """Train on the sample, little, and find the model in a registry on this machine."""
    settings = bench.settings
    bench.make_bucket(ARTIFACTS_BUCKET)
    bench.start(
        Program(
            name="registry",
            command=[sys.executable, "-m", "mlflow_server", "serve"],
            environment={
                "DATABASE_URL": f"sqlite:///{bench.folder / 'mlflow.db'}",
                "ARTIFACT_ROOT": f"gs://{ARTIFACTS_BUCKET}/mlflow",
                "HOST": "127.0.0.1",
                "PORT": str(settings.ports["mlflow"]),
            },
            ports={"mlflow": settings.ports["mlflow"]},
            is_ready=lambda: _is_healthy(f"{settings.url('mlflow')}/health"),
            working_directory=ROOT,
        )
    )
    try:
        with running(
            bench.buildah,
            image,
            *("train", f"--register={MODEL}", "--no-progress", "--epochs=1", "--embedding-dim=4"),
            environment=settings.client_environment,
            log=bench.folder / "trainer.log",
            tmp="2g",
        ) as container:
            status = container.wait(_TRAIN_SECONDS)
            if status:
                raise SetupError(f"the trainer ended with {status}:\n{container.output()}")
            seconds = container.age()
        answer = httpx.get(
            f"{settings.url('mlflow')}/api/2.0/mlflow/registered-models/get",
            params={"name": MODEL},
        )
        answer.raise_for_status()
        [version] = answer.json()["registered_model"]["latest_versions"]
        _expect("status of the version", version["status"], "READY")
    finally:
        bench.stop("registry")
    return Check(seconds, f"trained on the sample, registered version {version['version']}")


CHECKS: dict[str, Callable[[Bench, str], Check]] = {
    "predict": check_predict,
    "trainer": check_trainer,
    "proxy": check_proxy,
    "promote": check_promote,
    "mlflow": check_mlflow,
    "ui": check_ui,
}


def _check_health(
    bench: Bench, image: str, name: str, path: str, environment: dict[str, str], *, tmp: str = ""
) -> Check:
    with running(
        bench.buildah,
        image,
        environment={"PORT": str(bench.settings.ports[name]), **environment},
        log=bench.folder / f"{name}.log",
        tmp=tmp,
    ) as container:
        url = f"{bench.settings.url(name)}{path}"
        seconds = container.wait_for(url, seconds=_START_SECONDS)
        _expect("exit status after SIGTERM", container.stop(), 0)
    return Check(seconds, f"{path}; exit 0")


def _expect(what: str, found: object, expected: object, *, digits: int | None = None) -> None:
    if digits is not None and isinstance(found, float):
        found = round(found, digits)
    if found != expected:
        raise SetupError(f"{what} is {found!r}, must be {expected!r}")


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.TransportError:
        return False


def _bundle() -> dict[str, bytes]:
    """Return the smallest bundle that can be served: it knows one word."""
    histogram = Histogram([0.0, 1.0], [1])
    return build_bundle(
        lineage=Lineage(MODEL, "0" * 32, None, None, "0" * 64),
        vocabulary=[UNKNOWN_TOKEN, "good"],
        scores=[0.0, 4.0],
        bias=0.0,
        ngrams=1,
        threshold=0.5,
        metrics={},
        reference=Reference(histogram, histogram, histogram),
        golden=[GoldenText("good", sigmoid(4.0))] * 20,
    )
