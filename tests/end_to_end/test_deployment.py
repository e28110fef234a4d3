"""What is asked of a deployment from outside, asked of the local stack."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloudbuild import smoke
from functions.client import Client
from functions.promote.command import main
from local.services import SERVICES
from local.settings import REGION, ROOT
from tests.end_to_end.conftest import Loop
from tests.terraform.conftest import Terraform, prepare
from tests.terraform.log_entries import Entry, entry_of, matches

# What the stack on one machine has no API for, or one that does not tell.
UNTOLD = {
    "bucket greenroom-local-artifacts": "does not tell who has access",
    "bucket greenroom-local-serving": "does not tell who has access",
    "database": "no Cloud SQL instance is named",
}


def greenroom(loop: Loop, *arguments: str) -> Result:
    environment = {**loop.settings.client_environment, **loop.settings.operator_environment}
    return CliRunner(env=environment).invoke(main, arguments)


def checks(result: Result) -> dict[str, dict[str, str]]:
    return {item["check"]: item for item in json.loads(result.stdout)["checks"]}


@pytest.fixture
def served(loop: Loop) -> str:
    """A version that is served, with nothing on its way."""
    version = loop.served()
    assert version is not None
    loop.set_stage(version)
    loop.wait_until_served(version)
    return version


@pytest.mark.usefixtures("served")
def test_a_good_deployment_is_healthy(loop: Loop) -> None:
    result = greenroom(loop, "doctor", "--json")
    found = checks(result)
    assert result.exit_code == 0, result.stdout
    for name in SERVICES:
        assert found[f"service {name}"]["outcome"] == "passed"
        assert found[f"door of {name}"]["outcome"] == "passed"
    for name in ("traffic of predict", "scheduler", "registry", "last rollout"):
        assert found[name]["outcome"] == "passed", found[name]
    untold = {name for name, item in found.items() if item["outcome"] == "not checked"}
    assert untold == UNTOLD.keys()
    for name, words in UNTOLD.items():
        assert words in found[name]["detail"]
    assert greenroom(loop, "doctor").stdout.splitlines()[-1] == "16 passed, 3 not checked"


@pytest.mark.usefixtures("served")
def test_a_paused_scheduler_is_found(loop: Loop) -> None:
    assert greenroom(loop, "pause").exit_code == 0
    try:
        result = greenroom(loop, "doctor", "--json")
    finally:
        assert greenroom(loop, "resume").exit_code == 0
    assert result.exit_code == 1
    failed = [item for item in checks(result).values() if item["outcome"] == "failed"]
    assert [(item["check"], item["remedy"]) for item in failed] == [
        ("scheduler", "greenroom resume")
    ]


def test_the_smoke_test_asks_and_leaves_nothing(loop: Loop, served: str) -> None:
    with Client(loop.url("proxy")) as client:
        before = client.statistics().predictions
        done = subprocess.run(
            [sys.executable, "-m", "cloudbuild.smoke", "--url", loop.url("proxy")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"version {served} is served" in done.stdout
        assert client.statistics().predictions == before


def test_the_smoke_test_fails_where_nothing_answers() -> None:
    result = CliRunner().invoke(smoke.main, ("--url=http://127.0.0.1:1", "--patience=0"))
    assert result.exit_code == 1
    assert result.stderr.startswith("failed: ")


# What the services log


@pytest.fixture(scope="module")
def filters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Filter of each metric that is made from the logs."""
    whole = prepare(tmp_path_factory.mktemp("filters") / "terraform")
    module = Terraform(whole.folder / "monitoring", whole.environment)
    module.set(project="p", project_number="1", region=REGION, database_instance="d")
    planned: list[dict[str, Any]] = module.plan()["planned_values"]["root_module"]["resources"]
    return {
        item["values"]["name"]: item["values"]["filter"]
        for item in planned
        if item["type"] == "google_logging_metric"
    }


def entries(loop: Loop) -> Iterator[Entry]:
    """Yield every line that a service of this stack has written."""
    for path in sorted((loop.settings.data_dir / "cloud_run" / "logs").glob("*.log")):
        revision = path.stem
        service = revision.rsplit("-", 2)[0]
        for line in path.read_text().splitlines():
            yield entry_of(line, service=service, region=REGION, revision=revision)


@pytest.mark.usefixtures("served")
def test_every_metric_finds_lines_of_a_whole_promotion(loop: Loop, filters: dict[str, str]) -> None:
    with Client(loop.url("proxy")) as client:
        made = client.predict("very good cafe", is_positive=True)
        client.delete(made.id)
    found = dict.fromkeys(filters, 0)
    for entry in entries(loop):
        for name, condition in filters.items():
            found[name] += matches(condition, entry)
    assert all(found.values()), found
