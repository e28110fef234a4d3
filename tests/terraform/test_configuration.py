"""The configuration itself: its form, its own tests, what a scanner of misconfigurations says."""

import os
import re
import subprocess

import pytest

from tests.terraform.conftest import ROOT, State, Terraform

CHECKOV = ROOT / ".venvs/checkov/bin/checkov"


def test_every_file_has_terraforms_own_form(empty: Terraform) -> None:
    (empty.folder / "tests.auto.tfvars.json").unlink()
    result = empty.run("fmt", "-check", "-recursive", "-diff", "-no-color")
    assert result.returncode == 0, result.stdout


def test_every_applied_value_is_valid(applied: tuple[Terraform, State]) -> None:
    terraform, _ = applied
    assert "Success" in terraform("validate", "-no-color")


@pytest.mark.slow
def test_terraforms_own_tests_pass(empty: Terraform) -> None:
    (empty.folder / "tests.auto.tfvars.json").unlink()
    result = empty.run("test", "-no-color")
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr
    assert "0 failed" in result.stdout


def test_checkov_finds_nothing() -> None:
    if not CHECKOV.exists():
        pytest.fail("checkov is not installed: make .venvs/checkov/.installed")
    command = [str(CHECKOV), "--directory", "terraform", "--framework", "terraform"]
    result = subprocess.run(
        [*command, "--compact", "--quiet", "--skip-download"],
        cwd=ROOT,
        env={**os.environ, "BC_SKIP_MAPPING": "TRUE"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"Passed checks: (\d+), Failed checks: 0", result.stdout)
    assert passed, result.stdout
    assert int(passed[1]) > 40


def test_every_skipped_check_has_its_reason() -> None:
    for path in (ROOT / "terraform").rglob("*.tf"):
        for line in path.read_text().splitlines():
            if "checkov:skip" in line:
                assert re.fullmatch(r"\s*#checkov:skip=CKV2?_GCP_\d+:\S.{20,}", line), line
