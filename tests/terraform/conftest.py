"""Terraform on a copy of the configuration, with a state of its own."""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = "greenroom-offline"
REGION = "europe-west1"
REPOSITORY = f"{REGION}-docker.pkg.dev/{PROJECT}/greenroom"
PARTS = ("mlflow", "predict", "promote", "proxy", "trainer", "ui")
OPERATOR, READER, SUBMITTER = (
    "user:ada@example.com",
    "group:reviewers@example.com",
    "user:bob@example.com",
)
VARIABLES: Mapping[str, Any] = {
    "project": PROJECT,
    "images": {part: f"{REPOSITORY}/{part}@sha256:{n:064x}" for n, part in enumerate(PARTS)},
    "operators": [OPERATOR],
    "people": [READER],
    "submitters": [SUBMITTER],
}


@dataclass
class Terraform:
    """The command on one copy of ``terraform/``."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(
        self, *arguments: str, input: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Return what the command did, whatever its status.

        Skips the test where the command needs a stand-in of the provider, and there is none.
        """
        if arguments[0] != "fmt":
            needs_stand_in()
        return subprocess.run(
            [*command(), f"-chdir={self.folder}", *arguments],
            cwd=ROOT,
            env={**self.environment, **environment},
            input=input,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    def __call__(self, *arguments: str, **environment: str) -> str:
        """Return what the command printed; it must succeed."""
        result = self.run(*arguments, **environment)
        assert result.returncode == 0, f"{arguments}: {result.stdout[-3000:]}{result.stderr}"
        return result.stdout

    def set(self, **variables: Any) -> None:
        """Give the root module's variables, besides those given before."""
        path = self.folder / "tests.auto.tfvars.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | variables))

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that occurs once in a file of the configuration."""
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} holds {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))

    def plan(self, *arguments: str) -> dict[str, Any]:
        """Return the plan, as ``show -json`` gives it."""
        self("plan", "-input=false", "-no-color", "-out=plan", *arguments)
        plan: dict[str, Any] = json.loads(self("show", "-json", "plan"))
        return plan

    def apply(self) -> None:
        self("apply", "-input=false", "-no-color", "-auto-approve")

    def state(self) -> "State":
        return State(json.loads(self("show", "-json"))["values"])


class State:
    """What is provisioned."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.outputs = {name: item["value"] for name, item in values["outputs"].items()}
        self.resources = list(_resources(values["root_module"]))

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the values of all resources of a type, by their address."""
        return {item["address"]: item["values"] for item in self.resources if item["type"] == kind}

    def services(self) -> dict[str, dict[str, Any]]:
        """Return the Cloud Run services by their name."""
        return {item["name"]: item for item in self.of("google_cloud_run_v2_service").values()}

    def environment(self, service: str) -> dict[str, str]:
        """Return the variables of a service's container; a secret's value is its reference."""
        container = self.services()[service]["template"][0]["containers"][0]
        return {
            item["name"]: item["value"] or json.dumps(item["value_source"])
            for item in container["env"]
        }


def _resources(module: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in module.get("resources", []):
        if item["mode"] == "managed":
            yield item
    for child in module.get("child_modules", []):
        yield from _resources(child)


def command() -> list[str]:
    """Return Terraform's command, as the variable TERRAFORM says.

    Fails the test where there is none, with what to install.
    """
    words = shlex.split(os.environ.get("TERRAFORM", "terraform"))
    program = shutil.which(words[0]) or shutil.which(ROOT / words[0])
    if program is None:
        pytest.fail(
            f"{words[0]} is not installed: install Terraform 1.11 or later "
            "(https://developer.hashicorp.com/terraform/install), or give its command in the "
            "variable TERRAFORM"
        )
    return [str(Path.cwd() / program), *words[1:]]


def needs_stand_in() -> None:
    """Skip the test where the command is Terraform alone, with Google's own provider.

    That one asks Google, and the tests have no credentials.
    """
    if len(command()) == 1:
        pytest.skip("plan and apply need a stand-in of Google's provider: see TERRAFORM")


def prepare(folder: Path) -> Terraform:
    """Copy the configuration into `folder`, with a state beside it and no way to the cloud."""
    shutil.copytree(
        ROOT / "terraform", folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*")
    )
    (folder / "backend_override.tf").write_text('terraform {\n  backend "local" {}\n}\n')
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TF_VAR_", "TF_CLI_", "GOOGLE_", "CLOUDSDK_"))
    }
    # Should this be the real provider, Google knows nobody by this token: nothing is created.
    environment |= {"GOOGLE_OAUTH_ACCESS_TOKEN": "none", "TF_IN_AUTOMATION": "1", "TF_INPUT": "0"}
    return Terraform(folder, environment)


@pytest.fixture(scope="session")
def applied() -> Iterator[tuple[Terraform, State]]:
    """The preset `small`, applied to an empty project; no test changes it."""
    with tempfile.TemporaryDirectory(prefix="greenroom-terraform-") as folder:
        terraform = prepare(Path(folder, "terraform"))
        terraform.set(**VARIABLES)
        terraform.apply()
        yield terraform, terraform.state()


@pytest.fixture(scope="session")
def state(applied: tuple[Terraform, State]) -> State:
    return applied[1]


@pytest.fixture
def empty() -> Iterator[Terraform]:
    """A copy to which nothing was applied yet, with the variables of `applied`."""
    with tempfile.TemporaryDirectory(prefix="greenroom-terraform-") as folder:
        terraform = prepare(Path(folder, "terraform"))
        terraform.set(**VARIABLES)
        yield terraform
