"""From an empty project to all that there is, once more, and back to nothing."""

import json

import pytest

from tests.terraform.conftest import State, Terraform

# The stand-in of Google's provider refuses what is protected only when it is told to.
PROTECTED = {"TF_OFFLINE_DELETION_PROTECTION": "1"}


def test_a_second_apply_would_change_nothing(applied: tuple[Terraform, State]) -> None:
    terraform, _ = applied
    result = terraform.run("plan", "-input=false", "-no-color", "-detailed-exitcode")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr


@pytest.mark.slow
def test_without_images_the_registry_comes_first(empty: Terraform) -> None:
    empty.set(images=None)
    result = empty.run("plan", "-input=false", "-no-color")
    assert result.returncode == 1
    assert "build them, then give their digests" in " ".join(result.stderr.split())
    plan = empty.plan("-target=google_artifact_registry_repository.images")
    kinds = {
        item["type"] for item in plan["resource_changes"] if "create" in item["change"]["actions"]
    }
    assert kinds == {
        "google_artifact_registry_repository",
        "google_project_service",
        "time_sleep",
    }


def test_an_api_is_enabled_before_anything_uses_it(applied: tuple[Terraform, State]) -> None:
    terraform, _ = applied
    state = json.loads(terraform("state", "pull"))
    for resource in state["resources"]:
        if resource["mode"] != "managed" or not resource["type"].startswith("google_"):
            continue
        if resource["type"] == "google_project_service":
            continue
        for instance in resource["instances"]:
            depends_on = instance.get("dependencies", [])
            assert "time_sleep.apis" in depends_on, f"{resource['type']}.{resource['name']}"


def test_an_agent_of_google_is_there_before_it_is_granted_anything(
    applied: tuple[Terraform, State],
) -> None:
    terraform, _ = applied
    [uptime] = [
        instance
        for resource in json.loads(terraform("state", "pull"))["resources"]
        if (resource["type"], resource["name"])
        == ("google_cloud_run_v2_service_iam_member", "uptime")
        for instance in resource["instances"]
    ]
    assert "google_project_service_identity.monitoring" in uptime["dependencies"]


def test_a_network_is_left_to_its_owner_and_taken_over_again(state: State) -> None:
    """By its own way, Google's provider can't delete the peering for days after the database.

    Guards against a destroy that stops before the network, and against a next installation that
    is refused since Google remembers the last one's addresses.
    """
    [peering] = state.of("google_service_networking_connection").values()
    assert peering["deletion_policy"] == "ABANDON"
    assert peering["update_on_creation_fail"]


@pytest.mark.slow
def test_everything_is_applied_twice_and_destroyed(empty: Terraform) -> None:
    empty.apply()
    again = empty.run("apply", "-input=false", "-no-color", "-auto-approve")
    assert again.returncode == 0, again.stderr
    assert "0 added, 0 changed, 0 destroyed" in again.stdout
    refused = empty.run("destroy", "-no-color", "-auto-approve", **PROTECTED)
    assert refused.returncode == 1
    assert "protection" in refused.stderr
    empty.set(deletion_protection=False)
    empty.apply()
    empty("destroy", "-input=false", "-no-color", "-auto-approve", **PROTECTED)
    assert not empty("state", "list").strip()


@pytest.mark.slow
def test_an_installation_whose_first_starts_failed_goes_on(empty: Terraform) -> None:
    """Google's provider taints what fails when it is made; the job is what every start waits for.

    Guards against an installation that can neither go on nor be taken away.
    """
    job = "google_cloud_run_v2_job.migrate"
    page = 'module.service["ui"].google_cloud_run_v2_service.this'
    empty.apply()
    # As the README says: the first apply unprotected, the second one protects.
    empty.set(deletion_protection=False)
    empty.apply()
    empty("taint", job)
    empty("taint", page)
    empty("apply", "-input=false", "-no-color", "-auto-approve", **PROTECTED)
    empty.set(deletion_protection=True)
    empty.apply()

    # Later: a job is made anew, a service is refused, and the README's way out is one.
    empty("taint", job)
    empty("apply", "-input=false", "-no-color", "-auto-approve", **PROTECTED)
    empty("taint", page)
    refused = empty.run("apply", "-input=false", "-no-color", "-auto-approve", **PROTECTED)
    assert refused.returncode == 1
    assert "protection" in refused.stderr
    # Nor does it help to say so on the command line: what counts is in the state.
    refused = empty.run(
        "apply", "-input=false", "-no-color", "-auto-approve", "-var=deletion_protection=false",
        **PROTECTED,
    )  # fmt: skip
    assert refused.returncode == 1
    empty("untaint", page)
    empty("apply", "-input=false", "-no-color", "-auto-approve", **PROTECTED)
    again = empty.run("plan", "-input=false", "-no-color", "-detailed-exitcode")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr


@pytest.mark.slow
def test_the_preset_production_is_applied_and_changes_nothing_twice(empty: Terraform) -> None:
    empty.set(preset="production")
    empty.apply()
    result = empty.run("plan", "-input=false", "-no-color", "-detailed-exitcode")
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.slow
def test_every_option_at_once_is_applied_and_destroyed(empty: Terraform) -> None:
    empty.set(
        alerts={"emails": ["ops@example.com"], "thresholds": {"error_share": 0.05}},
        api_callers=["serviceAccount:app@other-project.iam.gserviceaccount.com"],
        budget={"amount": 50, "billing_account": "012345-6789AB-CDEF01"},
        build={"repository": "example/greenroom"},
        deletion_protection=False,
        mlflow_domains=["mlflow.example.com"],
        peering_deletion_policy="REMOVE_PEERING",
        preset="production",
        promote={"rollout_steps": [25, 100], "promote_on": ["alias:champion"]},
        proxy={"retention_days": 365},
        public_services=["ui"],
        role_prefix="greenroom_2",
    )
    empty.apply()
    result = empty.run("plan", "-input=false", "-no-color", "-detailed-exitcode")
    assert result.returncode == 0, result.stdout[-3000:]
    state = empty.state()
    assert state.environment("promote")["ROLLOUT_STEPS"] == "25,100"
    assert "mlflow.example.com" in state.environment("mlflow")["ALLOWED_HOSTS"].split(",")
    assert not state.services()["ui"]["iap_enabled"]
    assert "GREENROOM_PUBLIC='ui'" in state.outputs["environment"]
    [peering] = state.of("google_service_networking_connection").values()
    assert peering["deletion_policy"] == "REMOVE_PEERING"
    # Of an earlier installation's roles, Google keeps the ids taken for 37 days.
    roles = [role["role_id"] for role in state.of("google_project_iam_custom_role").values()]
    assert roles
    assert all(role.startswith("greenroom_2.") for role in roles)
    grants = state.of("google_project_iam_member")
    [condition] = grants['google_project_iam_member.builder["deploy grants"]']["condition"]
    assert "/roles/greenroom_2.inspector'" in condition["expression"]
    assert "/roles/greenroom." not in condition["expression"]
    empty("destroy", "-input=false", "-no-color", "-auto-approve", **PROTECTED)
    assert not empty("state", "list").strip()
