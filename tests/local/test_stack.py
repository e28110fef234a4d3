"""The stack's command line: what it says when it can't start, and what it leaves behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local.settings import DEFAULT_PORTS, SetupError, load_settings
from local.stack import Stack

ROOT = Path(__file__).parents[2]


def local(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": path if path is not None else os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def running(data_dir: Path) -> list[str]:
    """Return what of a stack runs."""
    return [name for name, pid in Stack(load_settings(data_dir, ports={})).running().items() if pid]


@pytest.mark.parametrize("name", ["mlflow", "predict", "cloud_run_front", "storage"])
def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, name: str) -> None:
    """Of the front end's ports it ended in a traceback, and left processes running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = local(
            "up", f"--data-dir={tmp_path / 'data'}", "--free-ports", f"--port={name}={port}"
        )
    assert result.returncode == 1
    assert f"port {port} ({name})" in result.stderr
    assert f"--port {name}=NUMBER" in result.stderr
    assert "Traceback" not in result.stderr
    assert running(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("present", "words"),
    [((), "install google-cloud-cli"), (("gcloud",), "needs Java: install")],
)
def test_what_is_missing_is_named_with_what_to_install(
    tmp_path: Path, present: tuple[str, ...], words: str
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in present:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    result = local("up", f"--data-dir={tmp_path / 'data'}", "--free-ports", path=str(folder))
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert running(tmp_path / "data") == []


def test_interrupted_at_its_start_it_leaves_nothing_running(tmp_path: Path) -> None:
    """The export of an emulator that was only starting ended the clearing up."""
    process = subprocess.Popen(
        [sys.executable, "-m", "local", "demo", f"--data-dir={tmp_path}", "--free-ports", "--exit"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a script that puts it into the background starts it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    deadline = time.monotonic() + 60
    while not ((tmp_path / "settings.json").exists() and running(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert running(tmp_path) == []


def test_down_and_status_of_nothing(tmp_path: Path) -> None:
    assert local("down", f"--data-dir={tmp_path}").stdout == "nothing to stop\n"
    status = local("status", f"--data-dir={tmp_path}")
    assert status.returncode == 1
    assert "not started yet" in status.stdout


@pytest.mark.parametrize(
    "arguments",
    [("--port=nonsense=1",), ("--port=ui",), ("--port=ui=99999",), ("--port=ui=5000",)],
)
def test_wrong_ports_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = local("up", f"--data-dir={tmp_path}", *arguments)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr


def test_ports_are_kept_until_others_are_given(tmp_path: Path) -> None:
    assert load_settings(tmp_path, ports={}).ports == DEFAULT_PORTS
    assert load_settings(tmp_path, ports={"ui": 8600}).ports["ui"] == 8600
    assert load_settings(tmp_path, ports={}).ports["ui"] == 8600
    chosen = load_settings(tmp_path, ports={}, free_ports=True).ports
    assert load_settings(tmp_path, ports={}).ports == chosen
    with pytest.raises(SetupError, match="port 5000 is given to"):
        load_settings(tmp_path, ports={"ui": 5000, "mlflow": 5000})


def test_help_names_every_port() -> None:
    text = local("up", "--help").stdout
    for name, port in DEFAULT_PORTS.items():
        assert f"{name}={port}" in " ".join(text.split())
