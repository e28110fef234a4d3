"""Where the local stack keeps its data, and its ports."""

import contextlib
import json
import secrets
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROJECT = "greenroom-local"
PROJECT_NUMBER = "123456789012"
REGION = "europe-west1"

MODEL = "yelp-model"
JOB = "promote"
# MLflow exempts localhost from its checks of the host and the origin: under this name they
# hold as in the cloud. Nothing resolves it but a browser that is told to.
MLFLOW_HOST = "mlflow.greenroom.test"
ARTIFACTS_BUCKET = "greenroom-local-artifacts"
SERVING_BUCKET = "greenroom-local-serving"

DEFAULT_PORTS: Mapping[str, int] = {
    "mlflow": 5000,
    "ui": 8501,
    "proxy": 8082,
    "predict": 8081,
    "promote": 8083,
    "cloud_run": 8090,
    "cloud_run_front": 8080,
    "storage": 9023,
    "firestore": 8686,
    "postgres": 5433,
    "scheduler": 8092,
    "scheduler_identity": 8091,
    "monitoring": 8093,
}


_PORTS = range(10_000, 20_000)


class SetupError(Exception):
    """The stack can't run here as it is; the message says what to do."""


@dataclass(frozen=True)
class LocalSettings:
    """The settings of one local stack."""

    data_dir: Path
    """Absolute folder of everything that the stack writes."""
    ports: Mapping[str, int]
    """Port of each component on 127.0.0.1."""
    tick_seconds: float

    def url(self, component: str) -> str:
        """Return ``http://127.0.0.1:PORT`` of a component."""
        return f"http://{self.address(component)}"

    def address(self, component: str) -> str:
        """Return ``127.0.0.1:PORT`` of a component."""
        return f"127.0.0.1:{self.ports[component]}"

    @property
    def endpoints(self) -> dict[str, str]:
        """Return the addresses for users and tools, as ``endpoints.json`` holds them."""
        web = {name: self.url(name) for name in ("mlflow", "predict", "proxy", "promote", "ui")}
        # Firestore and the APIs of Cloud Run and Cloud Scheduler speak gRPC: no scheme.
        return {
            **web,
            "storage": self.url("storage"),
            "firestore": self.address("firestore"),
            "cloud_run": self.address("cloud_run"),
            "scheduler": self.address("scheduler"),
        }

    @property
    def client_environment(self) -> dict[str, str]:
        """Return the variables by which Google's and MLflow's libraries find the stack."""
        return {
            "STORAGE_EMULATOR_HOST": self.url("storage"),
            "FIRESTORE_EMULATOR_HOST": self.address("firestore"),
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
        }

    @property
    def operator_environment(self) -> dict[str, str]:
        """Return the variables by which ``greenroom`` finds the stack."""
        return {
            "GREENROOM_PROJECT": PROJECT,
            "GREENROOM_REGION": REGION,
            "GREENROOM_JOB": JOB,
            "GREENROOM_CLOUD_RUN_ENDPOINT": self.url("cloud_run"),
            "GREENROOM_HTTP_PROXY": self.url("cloud_run_front"),
            "GREENROOM_SCHEDULER_ENDPOINT": self.url("scheduler"),
            "GREENROOM_PROMOTE_URL": self.url("promote"),
            "GREENROOM_TRACKING_URI": self.url("mlflow"),
            "GREENROOM_MODEL": MODEL,
        }


def load_settings(
    data_dir: Path,
    *,
    ports: Mapping[str, int],
    free_ports: bool = False,
    tick_seconds: float | None = None,
) -> LocalSettings:
    """Return the settings of the stack in `data_dir`, and keep them there.

    What an earlier start chose is kept, for the addresses are written into what
    runs; what is given here replaces it.

    Args:
        data_dir: folder of the stack's data; made when missing.
        ports: component -> port.
        free_ports: choose free ports, instead of the defaults and of those kept before.
        tick_seconds: seconds between two calls of promote; None: as before, or 2.

    Raises:
        SetupError: a port is given for something unknown, or twice.
    """
    if unknown := ports.keys() - DEFAULT_PORTS.keys():
        raise SetupError(
            f"no component is named {', '.join(sorted(unknown))}; "
            f"there are {', '.join(DEFAULT_PORTS)}"
        )
    data_dir = data_dir.resolve()
    kept = data_dir / "settings.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    chosen = dict(_free_ports(DEFAULT_PORTS) if free_ports else DEFAULT_PORTS)
    if not free_ports:
        chosen.update(before.get("ports", {}))
    chosen.update(ports)
    for name, port in chosen.items():
        others = [other for other, value in chosen.items() if value == port and other != name]
        if others:
            raise SetupError(f"port {port} is given to {name} and {others[0]}: choose another")
    seconds = tick_seconds or before.get("tick_seconds", 2.0)
    data_dir.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"ports": chosen, "tick_seconds": seconds}, indent=2) + "\n")
    return LocalSettings(data_dir, chosen, seconds)


def _free_ports(names: Mapping[str, int]) -> dict[str, int]:
    chosen: dict[str, int] = {}
    for name in names:
        chosen[name] = free_port(exclude=chosen.values())
    return chosen


def free_port(*, exclude: Collection[int] = ()) -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on.

    Below those that Linux gives to outgoing connections (from 32768 on), and those that
    containers get (from 20000 on): one of these could be taken before anything listens there.

    Args:
        exclude: ports that are promised already.
    """
    while True:
        port = secrets.choice(_PORTS)
        if port in exclude:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
