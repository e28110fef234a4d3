"""Terraform and promote write the same service: neither takes back what the other wrote."""

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.cloud import run_v2

from functions.promote.cloud_run import MEMORY_ANNOTATION, CloudRun
from functions.promote.plan import Desired, Kind, Model, accept_candidate, plan
from functions.promote.policy import Policy
from tests.local.conftest import PARENT, PROJECT, REGION, StandIn
from tests.terraform.conftest import Terraform

ADDRESS = "google_cloud_run_v2_service.predict"
# What Cloud Run's API calls them and Terraform's state does, where they differ.
TYPES = {"REVISION": "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION"}


@pytest.fixture(scope="module")
def promoted(
    applied: tuple[Terraform, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Terraform, run_v2.Service]]:
    """The state of `applied`, and the service as promote left it after two promotions."""
    terraform, state = applied
    body = state.services()["predict"]
    image = body["template"][0]["containers"][0]["image"]
    stand_in = StandIn(tmp_path_factory.mktemp("cloud-run"), drain_seconds=0.5)
    stand_in.config["images"][image] = stand_in.config["images"]["predict:1"]
    stand_in.start()
    try:
        stand_in.deploy("predict", service_of(body))
        service = CloudRun(
            project=PROJECT,
            region=REGION,
            service="predict",
            endpoint=f"http://127.0.0.1:{stand_in.api_port}",
        )
        for version in ("1", "2"):
            promote(service, version)
            stand_in.settled("predict")
        yield terraform, stand_in.services.get_service(name=f"{PARENT}/services/predict")
    finally:
        stand_in.close()


def service_of(values: dict[str, Any]) -> run_v2.Service:
    """Return the service that Terraform would send."""
    [template] = values["template"]
    [container] = template["containers"]
    [resources] = container["resources"]
    return run_v2.Service(
        template=run_v2.RevisionTemplate(
            service_account=template["service_account"],
            max_instance_request_concurrency=template["max_instance_request_concurrency"],
            containers=[
                run_v2.Container(
                    image=container["image"],
                    env=[
                        run_v2.EnvVar(name=item["name"], value=item["value"])
                        for item in container["env"]
                    ],
                    resources=run_v2.ResourceRequirements(limits=resources["limits"]),
                )
            ],
        )
    )


def promote(service: CloudRun, version: str) -> None:
    """Promote a version as promote's ticks do, its gates left out."""
    model = Model(
        version=version,
        run_id=f"{int(version):032x}",
        bundle_uri=f"gs://greenroom-serving/yelp-model/{int(version):064x}/",
    )
    desired = Desired(model=model, because="alias:production", fingerprint="")
    for _ in range(200):
        read, observed = service.read()
        now = datetime.now(UTC)
        action = plan(desired, observed, now, Policy())
        if action.kind is Kind.CHECK:
            action = accept_candidate(observed, action.revision, now)
        if action.kind is Kind.IDLE:
            return
        if action.kind is Kind.WAIT:
            time.sleep(0.1)
        else:
            service.write(read, action)
    raise AssertionError(action)


def written(terraform: Terraform, service: run_v2.Service) -> dict[str, Any]:
    """Return the state with what promote wrote, as a refresh would put it there."""
    state: dict[str, Any] = json.loads(terraform("state", "pull"))
    [resource] = [
        item
        for item in state["resources"]
        if f"{item['type']}.{item['name']}" == ADDRESS and item["mode"] == "managed"
    ]
    attributes = resource["instances"][0]["attributes"]
    [template] = attributes["template"]
    template["containers"][0]["args"] = list(service.template.containers[0].args)
    template["labels"] = dict(service.template.labels)
    attributes["traffic"] = [
        {
            "type": TYPES["REVISION"],
            "revision": item.revision,
            "percent": item.percent,
            "tag": item.tag,
        }
        for item in service.traffic
    ]
    attributes["client"] = service.client
    attributes["client_version"] = service.client_version
    # Google's provider keeps what others wrote in the second only; one that derives it from the
    # first must find it there too.
    attributes["annotations"] = dict(service.annotations)
    attributes["effective_annotations"] = dict(service.annotations)
    attributes["etag"] = service.etag
    attributes["generation"] = str(service.generation)
    attributes["latest_created_revision"] = service.latest_created_revision
    attributes["latest_ready_revision"] = service.latest_ready_revision
    attributes["observed_generation"] = str(service.observed_generation)
    attributes["traffic_statuses"] = [
        {
            "type": TYPES["REVISION"],
            "revision": item.revision,
            "percent": item.percent,
            "tag": item.tag,
            "uri": item.uri,
        }
        for item in service.traffic_statuses
    ]
    state["serial"] += 1
    return state


@pytest.fixture
def agreed(empty: Terraform, promoted: tuple[Terraform, run_v2.Service]) -> Terraform:
    """A copy of the configuration whose state holds the promotions."""
    before, service = promoted
    path = Path(empty.folder, "promoted.tfstate")
    path.write_text(json.dumps(written(before, service)))
    empty("state", "push", "-force", os.fspath(path))
    return empty


def test_a_promotion_is_recorded(promoted: tuple[Terraform, run_v2.Service]) -> None:
    _, service = promoted
    assert list(service.template.containers[0].args)[-1] == "2"
    assert service.template.labels["greenroom-model-version"] == "2"
    assert MEMORY_ANNOTATION in service.annotations
    assert sorted((item.percent, item.tag) for item in service.traffic) == [
        (0, "previous"),
        (100, ""),
    ]


def test_after_a_promotion_there_is_nothing_to_plan(agreed: Terraform) -> None:
    result = agreed.run("plan", "-input=false", "-no-color", "-detailed-exitcode")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "field"),
    [
        pytest.param(
            "tests.auto.tfvars.json",
            f"/predict@sha256:{1:064x}",
            f"/predict@sha256:{9:064x}",
            "template.0.containers.0.image",
            id="image",
        ),
        pytest.param(
            "presets.tf",
            'predict    = { cpu = 1, memory = "512Mi"',
            'predict    = { cpu = 1, memory = "768Mi"',
            "template.0.containers.0.resources.0.limits.memory",
            id="memory",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "environment.tf",
            'STORAGE_TIMEOUT_SECONDS = "120"',
            'STORAGE_TIMEOUT_SECONDS = "60"',
            "template.0.containers.0.env",
            id="environment",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_change_of_the_template_is_planned_and_nothing_of_promotes(
    agreed: Terraform, file: str, old: str, new: str, field: str
) -> None:
    agreed.edit(file, old, new)
    result = agreed.run("plan", "-input=false", "-no-color", "-detailed-exitcode", "-out=plan")
    assert result.returncode == 2, result.stdout[-3000:] + result.stderr
    changes = [
        item
        for item in json.loads(agreed("show", "-json", "plan"))["resource_changes"]
        if item["change"]["actions"] != ["no-op"]
    ]
    assert [item["address"] for item in changes] == [ADDRESS]
    [change] = changes
    assert change["change"]["actions"] == ["update"]
    before, after = change["change"]["before"], change["change"]["after"]
    assert set(differences(before, after, computed(change))) == {field}


def computed(change: dict[str, Any]) -> set[str]:
    """Return what is known after apply only: Cloud Run's own to say."""
    unknown: dict[str, Any] = change["change"]["after_unknown"]
    return {name for name, value in unknown.items() if value is True or value == [True]}


def differences(before: Any, after: Any, leave_out: set[str], path: str = "") -> Iterator[str]:
    """Yield the ways to what differs; a set of blocks counts as one."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            if not path and key in leave_out:
                continue
            yield from differences(
                before.get(key), after.get(key), leave_out, f"{path}.{key}".lstrip(".")
            )
    elif isinstance(before, list) and isinstance(after, list) and not path.endswith(".env"):
        if len(before) != len(after):
            yield path
            return
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, leave_out, f"{path}.{number}")
    elif before != after:
        yield path
