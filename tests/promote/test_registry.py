"""The registry's view of a model."""

import subprocess

from local.settings import ROOT

# On first use, each in a thread of its own, in a process that has not imported MLflow.
TWO_FIRST_TICKS = """
from concurrent.futures import ThreadPoolExecutor
from functions.promote.deadline import Deadline
from functions.promote.registry import Registry, RegistryUnavailable

registry = Registry(tracking_uri="http://127.0.0.1:1", model="m", sources=("alias:a",))

def tick(_):
    try:
        registry.choose(Deadline(60))
    except RegistryUnavailable:
        return "unavailable"

with ThreadPoolExecutor() as threads:
    assert set(threads.map(tick, range(2))) == {"unavailable"}
"""


def test_two_first_ticks_at_once_leave_mlflow_usable() -> None:
    """A status that was asked for during the first tick left promote with 500s for good."""
    result = subprocess.run(
        [str(ROOT / ".venvs/promote/bin/python"), "-c", TWO_FIRST_TICKS],
        cwd=ROOT,
        env={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
