"""Reading a bundle from a Cloud Storage that fails, is slow, or stops answering."""

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from functions.predict import storage
from functions.predict.bundle import FILES, GOLDEN, MANIFEST, SCORES, VOCABULARY, BundleError
from local.settings import free_port
from tests.emulators import StorageEmulator
from tests.predict.conftest import BUCKET, BUNDLE, running_predict, start_predict

Fault = Callable[[int], str]
"""How often this file was asked for, from 1 -> "", "503", or "cut"."""


@contextmanager
def faulty(emulator: StorageEmulator, fault: Fault) -> Iterator[str]:
    """Forward to the emulator, but for faults; yields the address."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            kind = fault(asked[self.path])
            if kind == "503":
                self.send_error(503)
                return
            headers = {name: value for name, value in self.headers.items() if name == "Range"}
            answer = httpx.get(emulator.url + self.path, headers=headers)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            for name in ("Content-Type", "Content-Range"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            if kind == "cut":
                self.wfile.write(answer.content[: len(answer.content) // 2])
                self.close_connection = True
            else:
                self.wfile.write(answer.content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "output.log"


@pytest.fixture
def silent_storage() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def critical(log: Path) -> str:
    """Return the one critical message of the log."""
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    [message] = [entry["message"] for entry in entries if entry["severity"] == "CRITICAL"]
    return str(message)


@pytest.mark.parametrize("kind", ["503", "cut"])
def test_what_fails_is_tried_again(
    storage_emulator: StorageEmulator, model_uri: str, log: Path, kind: str
) -> None:
    """Guards against the library's raw downloads, which repeat a part after a cut."""
    with (
        faulty(storage_emulator, lambda times: kind if times <= 2 else "") as address,
        running_predict(
            log, f"--model-uri={model_uri}", "--model-version=10", STORAGE_EMULATOR_HOST=address
        ) as service,
    ):
        assert httpx.get(f"{service.url}/ready").status_code == 200


def test_what_keeps_failing_ends_the_start_in_time(
    storage_emulator: StorageEmulator, model_uri: str, log: Path
) -> None:
    """All files together have the time given; it was the time of each once."""
    start = time.monotonic()
    with faulty(storage_emulator, lambda _: "503") as address:
        process = start_predict(
            log,
            f"--model-uri={model_uri}",
            "--model-version=10",
            "--storage-timeout-seconds=2",
            STORAGE_EMULATOR_HOST=address,
        )
        assert process.wait(30) == 1
    assert time.monotonic() - start < 20
    message = critical(log)
    assert f"{model_uri}: {MANIFEST}: can't be read: " in message
    assert "503" in message


def test_a_storage_that_never_answers_ends_the_start_in_time(
    silent_storage: str, log: Path
) -> None:
    start = time.monotonic()
    process = start_predict(
        log,
        f"--model-uri=gs://{BUCKET}/x",
        "--model-version=10",
        "--storage-timeout-seconds=2",
        STORAGE_EMULATOR_HOST=silent_storage,
    )
    assert process.wait(30) == 1
    assert time.monotonic() - start < 20
    assert f"gs://{BUCKET}/x: " in critical(log)


def test_the_signal_to_end_is_obeyed_while_the_bundle_is_read(
    silent_storage: str, log: Path
) -> None:
    process = start_predict(
        log,
        f"--model-uri=gs://{BUCKET}/x",
        "--model-version=10",
        STORAGE_EMULATOR_HOST=silent_storage,
    )
    [child] = wait_for_child(process.pid)
    process.terminate()
    assert process.wait(10) == 0
    child.wait(10)


def test_a_reader_that_dies_ends_the_start(silent_storage: str, log: Path) -> None:
    """Such as one that the system killed for its memory."""
    process = start_predict(
        log,
        f"--model-uri=gs://{BUCKET}/x",
        "--model-version=10",
        STORAGE_EMULATOR_HOST=silent_storage,
    )
    [child] = wait_for_child(process.pid)
    os.kill(child.pid, signal.SIGKILL)
    assert process.wait(10) == 1
    assert f"gs://{BUCKET}/x: can't be read" in critical(log)


def wait_for_child(pid: int) -> list[psutil.Process]:
    """Return the children of a process that has just been started, once there are some."""
    deadline = time.monotonic() + 10
    while not (children := psutil.Process(pid).children()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return children


class TestPieces:
    """Large files come in several requests at once."""

    @pytest.fixture(autouse=True)
    def small_pieces(
        self, monkeypatch: pytest.MonkeyPatch, storage_emulator: StorageEmulator
    ) -> None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_emulator.url)
        monkeypatch.setattr(storage, "_PIECE_BYTES", 7)

    @pytest.fixture
    def target(self) -> Iterator[int]:
        descriptor = os.memfd_create("target")
        yield descriptor
        os.close(descriptor)

    def read(self, uri: str, target: int) -> dict[str, bytes]:
        places = storage.download_bundle(uri, target, timeout=20)
        return {name: os.pread(target, size, offset) for name, (offset, size) in places.items()}

    def test_they_are_put_together(
        self, storage_emulator: StorageEmulator, model_uri: str, target: int
    ) -> None:
        assert self.read(model_uri, target) == {name: BUNDLE[name] for name in (MANIFEST, *FILES)}

    @pytest.mark.parametrize("missing", [1, 7, 20])
    def test_a_shorter_file_shows(
        self, storage_emulator: StorageEmulator, target: int, missing: int
    ) -> None:
        files = {**BUNDLE, VOCABULARY: BUNDLE[VOCABULARY][:-missing]}
        uri = storage_emulator.upload("shorter", f"{missing}/bundle", files)
        assert len(self.read(uri, target)[VOCABULARY]) == len(BUNDLE[VOCABULARY]) - missing

    def test_no_more_than_a_byte_of_a_longer_file_is_read(
        self, storage_emulator: StorageEmulator, target: int
    ) -> None:
        files = {**BUNDLE, GOLDEN: BUNDLE[GOLDEN] + b"more"}
        uri = storage_emulator.upload("longer", "pieces/bundle", files)
        assert self.read(uri, target)[GOLDEN] == BUNDLE[GOLDEN] + b"m"

    def test_a_missing_file_is_named(self, storage_emulator: StorageEmulator, target: int) -> None:
        files = {name: content for name, content in BUNDLE.items() if name != SCORES}
        uri = storage_emulator.upload("incomplete", "pieces/bundle", files)
        with pytest.raises(BundleError, match=f"{SCORES}: can't be read"):
            self.read(uri, target)


def test_nothing_listens(log: Path) -> None:
    process = start_predict(
        log,
        f"--model-uri=gs://{BUCKET}/x",
        "--model-version=10",
        "--storage-timeout-seconds=1",
        STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{free_port()}",
    )
    assert process.wait(30) == 1
    assert MANIFEST in critical(log)
