"""``python -m ui``: its settings, and that it starts."""

import os
import subprocess
import time

import httpx
import pytest

from local.settings import ROOT, free_port
from tests.ui.stub_proxy import StubProxy


@pytest.mark.parametrize(
    "argument", ["--unknown", "--port=0", "--proxy-url=nonsense", "--mlflow-url=nonsense"]
)
def test_wrong_settings_end_the_start(argument: str) -> None:
    """Guards against pydantic's traceback where a message was promised."""
    done = subprocess.run(
        [str(ROOT / ".venvs/ui/bin/python"), "-m", "ui", argument],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last.startswith("python -m ui: error: ")
    assert argument.split("=")[0] in last
    assert "Traceback" not in done.stderr


def test_the_real_server_starts(proxy: StubProxy) -> None:
    port = free_port()
    process = subprocess.Popen(
        [
            str(ROOT / ".venvs/ui/bin/python"),
            *("-m", "ui", "--host=127.0.0.1", f"--port={port}", f"--proxy-url={proxy.url}"),
        ],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline
            assert process.poll() is None
            try:
                health = httpx.get(f"http://127.0.0.1:{port}/_stcore/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        assert health.text == "ok"
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    finally:
        process.terminate()
        process.wait(15)
