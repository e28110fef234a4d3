"""Emulators as pytest fixtures; a conftest imports the ones it needs."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from local.programs import fake_gcs_server
from local.settings import free_port

_START_SECONDS = 60
_STOP_SECONDS = 10


class FirestoreEmulator:
    """A Firestore emulator on one port; its data lives as long as its process.

    Args:
        port: port of 127.0.0.1 to listen on.
        log: file that takes its output.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.host = f"127.0.0.1:{port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return once it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["gcloud", "emulators", "firestore", "start", f"--host-port={self.host}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://{self.host}/", timeout=2)
                return
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"the Firestore emulator did not start:\n{self._log.read_text()}")

    def kill(self) -> None:
        """Kill it with its data: gcloud starts a shell that starts Java, so the whole group."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_STOP_SECONDS)
        self._process = None

    def clear(self, project: str) -> None:
        """Delete every document of `project`'s default database."""
        httpx.delete(
            f"http://{self.host}/emulator/v1/projects/{project}/databases/(default)/documents",
            timeout=10,
        ).raise_for_status()


@pytest.fixture(scope="session")
def firestore_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirestoreEmulator]:
    """A running Firestore emulator, for the whole session."""
    log = tmp_path_factory.mktemp("firestore") / "emulator.log"
    emulator = FirestoreEmulator(free_port(), log)
    emulator.start()
    yield emulator
    emulator.kill()


class StorageEmulator:
    """A fake-gcs-server on one port, with its objects in memory.

    Args:
        port: port of 127.0.0.1 to listen on.
        log: file that takes its output.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return once it answers."""
        # Not by the package's own class: that sets a variable of this whole process, and
        # lets the server wait for ever once its output has filled a pipe that no one reads.
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(fake_gcs_server()),
                    *("-scheme=http", "-backend=memory", "-log-level=warn"),
                    *("-host=127.0.0.1", f"-port={self._port}"),
                    *(f"-external-url={self.url}", f"-public-host=127.0.0.1:{self._port}"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{self.url}/storage/v1/b?project=greenroom", timeout=2)
                return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"fake-gcs-server did not start:\n{self._log.read_text()}")

    def kill(self) -> None:
        """Kill it with its data."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(_STOP_SECONDS)
        self._process = None

    def upload(self, bucket: str, folder: str, files: Mapping[str, bytes]) -> str:
        """Write `files` (name -> content) to a folder of a bucket, made when missing.

        Returns:
            The folder as ``gs://BUCKET/FOLDER``.
        """
        made = httpx.post(f"{self.url}/storage/v1/b?project=greenroom", json={"name": bucket})
        if made.status_code != httpx.codes.CONFLICT:
            made.raise_for_status()
        for name, content in files.items():
            httpx.post(
                f"{self.url}/upload/storage/v1/b/{bucket}/o",
                params={"uploadType": "media", "name": f"{folder}/{name}"},
                content=content,
            ).raise_for_status()
        return f"gs://{bucket}/{folder}"


@pytest.fixture(scope="session")
def storage_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageEmulator]:
    """A running fake-gcs-server, for the whole session."""
    log = tmp_path_factory.mktemp("storage") / "emulator.log"
    emulator = StorageEmulator(free_port(), log)
    emulator.start()
    yield emulator
    emulator.kill()
