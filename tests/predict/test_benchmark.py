"""The benchmark runs, and says what it must."""

import json
import subprocess
import sys

import pytest

from tests.predict.conftest import ROOT

KEYS = {
    "rps_vs_torch_server",
    "rps_vs_mlflow_serve",
    "rps_vs_empty_function",
    "p99_vs_torch_server",
    "inference_p50_ms",
    "cold_start_s",
    "cold_start_vs_torch_server",
    "rss_vs_torch_server",
    "installed_mb",
    "load_5m_s",
}


@pytest.mark.slow
def test_a_quick_run_ends_with_every_figure() -> None:
    """It never fails for a figure that is not met: the machine may be busy."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.predict", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *table, last = done.stdout.splitlines()
    figures = json.loads(last)
    assert figures.keys() >= KEYS
    assert all(value > 0 for value in figures.values())
    verdicts = [line.split()[-1] for line in table if line.endswith(" met") or "NOT MET" in line]
    assert len(verdicts) >= 10
