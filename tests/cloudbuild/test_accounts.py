"""Who starts builds, and what a build may do: terraform/build.tf, planned."""

import json
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.cloudbuild.test_config import CONFIG, ROOT
from tests.terraform.conftest import PROJECT, VARIABLES, Terraform, prepare

REPOSITORY = "acme/greenroom"
TOKEN = f"projects/{PROJECT}/secrets/github/versions/1"
# What reads, whatever it is asked for.
READS = (".get", ".list", ".getIamPolicy", ".getMetadata", ".listPeeringRoutes", ".use")

CHANGES = ("create", "delete", "get", "list", "update")
POLICIES = ("getIamPolicy", "setIamPolicy")

Resources = dict[str, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    terraform = prepare(tmp_path_factory.mktemp("accounts") / "terraform")
    terraform.set(**VARIABLES)
    return terraform


def plan(terraform: Terraform, **build: Any) -> Resources:
    """Return what build.tf makes: type.name -> key -> values."""
    terraform.set(build={"repository": REPOSITORY, **build})
    found: Resources = defaultdict(dict)
    for item in terraform.plan()["planned_values"]["root_module"]["resources"]:
        if item["mode"] == "managed":
            found[f"{item['type']}.{item['name']}"][str(item.get("index", ""))] = item["values"]
    return found


@pytest.fixture(scope="module")
def triggered(terraform: Terraform) -> Resources:
    """With Cloud Build's own connection to GitHub."""
    return plan(terraform, app_installation_id=7, token_secret=TOKEN)


@pytest.mark.slow
def test_a_workflow_on_github_needs_no_connection(
    terraform: Terraform, triggered: Resources
) -> None:
    found = plan(terraform)
    for kind in ("google_cloudbuild_trigger", "google_cloudbuildv2_connection"):
        assert not any(name.startswith(f"{kind}.") for name in found)
        assert any(name.startswith(f"{kind}.") for name in triggered)
    name = "google_iam_workload_identity_pool_provider.github"
    assert found[name] == triggered[name]


def test_google_believes_one_repository_and_deploys_one_branch(triggered: Resources) -> None:
    assert not any(name.startswith("google_service_account_key.") for name in triggered)
    [provider] = triggered["google_iam_workload_identity_pool_provider.github"].values()
    assert provider["attribute_condition"] == f"assertion.repository == '{REPOSITORY}'"
    # All else is a check: a pull request, another branch, pull_request_target.
    assert provider["attribute_mapping"]["attribute.build"] == (
        "assertion.ref == 'refs/heads/main' && "
        "assertion.event_name in ['push', 'workflow_dispatch'] ? 'deploy' : 'check'"
    )


def test_what_a_pull_request_runs_can_only_read(triggered: Resources) -> None:
    granted = {
        key.partition(" ")[2]: values.get("role")
        for key, values in triggered["google_project_iam_member.builder"].items()
        if key.startswith("check ")
    }
    assert granted.keys() == {
        "planner",
        "roles/logging.logWriter",
        "roles/ondemandscanning.admin",
    }
    permissions = triggered["google_project_iam_custom_role.build"]["planner"]["permissions"]
    assert all(name.endswith(READS) for name in permissions)
    # What is stored, and what is secret, are no settings.
    for name in permissions:
        assert "storage.objects" not in name
        assert "entities" not in name
        assert not name.startswith(("secretmanager.versions.access", "logging.logEntries"))
    buckets = {
        key: values["role"]
        for name in ("state", "source")
        for key, values in triggered[f"google_storage_bucket_iam_member.{name}"].items()
        if key.partition(" ")[0] == "check"
    }
    assert buckets == {
        "check": "roles/storage.objectViewer",
        "check reads": "roles/storage.objectViewer",
        # Those that start such a build, not the build.
        "check writes": "roles/storage.objectCreator",
        "check workflow writes": "roles/storage.objectCreator",
    }
    # It acts as nobody.
    assert triggered["google_service_account_iam_member.starter"].keys() == {"0"}


# Of builds of the main branch, on the project: what Terraform makes does not exist yet.
DEPLOYS = {
    "roles/aiplatform.user",
    "roles/artifactregistry.admin",
    "roles/cloudbuild.builds.editor",
    "roles/cloudbuild.connectionAdmin",
    "roles/cloudscheduler.admin",
    "roles/cloudsql.admin",
    "roles/compute.networkAdmin",
    "roles/iam.roleViewer",
    "roles/iam.serviceAccountViewer",
    "roles/iam.workloadIdentityPoolViewer",
    "roles/iap.admin",
    "roles/logging.configWriter",
    "roles/logging.logWriter",
    "roles/monitoring.editor",
    "roles/ondemandscanning.admin",
    "roles/resourcemanager.projectIamAdmin",  # under a condition
    "roles/run.admin",
    "roles/servicenetworking.networksAdmin",
    "roles/serviceusage.serviceUsageAdmin",
}
# Of what it makes, all but what is stored.
BUILDS = {
    *(f"datastore.{kind}.{do}" for kind in ("backupSchedules", "indexes") for do in CHANGES),
    *(f"datastore.databases.{do}" for do in (*CHANGES, "getMetadata")),
    *(f"datastore.operations.{do}" for do in ("get", "list")),
    *(f"secretmanager.secrets.{do}" for do in (*CHANGES, *POLICIES)),
    *(f"secretmanager.versions.{do}" for do in ("add", "destroy", "disable", "enable")),
    *(f"secretmanager.versions.{do}" for do in ("get", "list")),
    *(f"storage.buckets.{do}" for do in (*CHANGES, *POLICIES)),
}


def test_who_builds_may_do_exactly_this(triggered: Resources) -> None:
    on_project: dict[str, set[str]] = defaultdict(set)
    for key, values in triggered["google_project_iam_member.builder"].items():
        account, _, name = key.partition(" ")
        on_project[account].add(values.get("role") or name)
    assert on_project["deploy"] == DEPLOYS | {"builder"}
    assert on_project["start"] == {"starter", "roles/logging.logWriter"}
    assert on_project.keys() == {"check", "deploy", "start"}
    custom = triggered["google_project_iam_custom_role.build"]
    assert custom.keys() == {"builder", "planner", "starter"}
    assert set(custom["builder"]["permissions"]) == BUILDS
    assert set(custom["starter"]["permissions"]) == {
        *(f"cloudbuild.builds.{do}" for do in ("create", "get", "list")),
        *("logging.logEntries.list", "logging.privateLogEntries.list"),
        "serviceusage.services.use",
    }
    # A workflow on GitHub starts builds, which act as their own accounts, and nothing else.
    assert triggered["google_project_iam_member.workflow"].keys() == {"check", "deploy"}
    assert roles(triggered, "google_service_account_iam_member.workflow") == {
        "check": "roles/iam.serviceAccountUser",
        "deploy": "roles/iam.serviceAccountUser",
    }
    accounts = triggered["google_service_account.this"].keys()
    acts_as = roles(triggered, "google_service_account_iam_member.deploy_act_as")
    assert acts_as.keys() == accounts | {"build check", "build deploy", "build start"}
    assert set(acts_as.values()) == {"roles/iam.serviceAccountUser"}
    assert roles(triggered, "google_service_account_iam_member.deploy_token") == {
        "0": "roles/iam.serviceAccountOpenIdTokenCreator"
    }
    assert roles(triggered, "google_storage_bucket_iam_member.state") == {
        "check": "roles/storage.objectViewer",
        "deploy": "roles/storage.objectUser",
    }
    both = ("check", "deploy")
    assert roles(triggered, "google_storage_bucket_iam_member.source") == {
        **{f"{build} reads": "roles/storage.objectViewer" for build in both},
        **{f"{build} writes": "roles/storage.objectCreator" for build in both},
        **{f"{build} workflow writes": "roles/storage.objectCreator" for build in both},
    }
    assert roles(triggered, "google_storage_bucket_iam_member.staging") == {
        name: "roles/storage.legacyBucketReader"
        for build in both
        for name in (build, f"{build} workflow")
    }


def roles(found: Resources, name: str) -> dict[str, str]:
    return {key: values["role"] for key, values in found[name].items()}


def test_a_deployment_can_not_give_itself_more(triggered: Resources) -> None:
    grants = triggered["google_project_iam_member.builder"]
    [admin] = [
        values
        for values in grants.values()
        if values.get("role") == "roles/resourcemanager.projectIamAdmin"
    ]
    [condition] = admin["condition"]
    own = {
        values["role"]
        for key, values in grants.items()
        if key.startswith("deploy ") and values.get("role")
    }
    assert not own & {"roles/owner", "roles/editor", "roles/viewer"}
    # A role that it has, an account that it acts as, who comes in from GitHub: not its to change.
    for role in own:
        assert not role.startswith("roles/iam.") or role.endswith("Viewer"), role
    administered = triggered["google_service_account_iam_member.deploy_admin"].keys()
    assert administered == triggered["google_service_account.this"].keys()
    allowed = set(condition["expression"].partition("hasOnly([")[2].rstrip("])").split(", "))
    assert len(allowed) <= 10
    powerful = own - {"roles/aiplatform.user"}
    assert not {role.strip("'") for role in allowed} & powerful
    # What it may not grant, nobody is granted on the project.
    for values in triggered["google_project_iam_member.this"].values():
        if role := values.get("role"):
            assert f"'{role}'" in allowed


def test_sources_lie_apart_from_what_else_is_staged(triggered: Resources) -> None:
    for values in triggered["google_storage_bucket_iam_member.source"].values():
        [condition] = values["condition"]
        assert "/objects/source/" in condition["expression"]


def test_triggers_start_the_build_that_the_commit_describes(triggered: Resources) -> None:
    triggers = triggered["google_cloudbuild_trigger.build"]
    assert triggers.keys() == {"check", "deploy"}
    for name, values in triggers.items():
        [event] = values["repository_event_config"]
        [place] = event["push" if name == "deploy" else "pull_request"]
        assert place["branch"] == "^main$"
        if name == "check":
            control = "COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY"
            assert place["comment_control"] == control
        [build] = values["build"]
        assert build["options"][0]["logging"] == "CLOUD_LOGGING_ONLY"
        assert float(build["timeout"].rstrip("s")) > float(CONFIG["timeout"].rstrip("s"))


@pytest.mark.slow
def test_the_commands_name_what_is_there(terraform: Terraform, tmp_path: Path) -> None:
    """Of the output `build`, which a workflow runs, and which the triggers run."""
    terraform.set(build={"repository": REPOSITORY, "app_installation_id": 7, "token_secret": TOKEN})
    terraform.apply()
    output = json.loads(terraform("output", "-json", "build"))
    [deployed] = {
        item["values"]["build"][0]["step"][0]["args"][-1]
        for item in json.loads(terraform("show", "-json"))["values"]["root_module"]["resources"]
        if item["address"] == 'google_cloudbuild_trigger.build["deploy"]'
    }
    assert output["service_accounts"].keys() == {"check", "deploy", "start"}
    for name, command in output["commands"].items():
        program, *words = shlex.split(command)
        assert [program, *words[:3]] == ["gcloud", "builds", "submit", "."]
        options = dict(word.lstrip("-").partition("=")[::2] for word in words[3:])
        assert (ROOT / options["config"]).is_file()
        assert (ROOT / options["ignore-file"]).is_file()
        assert options["service-account"].endswith(output["service_accounts"][name])
        given = dict(pair.split("=") for pair in options["substitutions"].split(","))
        assert given.pop("COMMIT_SHA") == "$COMMIT_SHA"
        assert given.keys() <= CONFIG["substitutions"].keys()
        assert given["_DEPLOY"] == str(name == "deploy").lower()
    assert deployed in shlex.split(output["commands"]["deploy"])


@pytest.mark.slow
def test_wrong_values_are_explained(terraform: Terraform, tmp_path: Path) -> None:
    values = tmp_path / "wrong.tfvars.json"
    wrong = {
        "repository": "https://github.com/acme/greenroom.git",
        "app_installation_id": 7,
        "branch": "main!",
        "pool": "gcp-pool",
    }
    values.write_text(json.dumps({"build": wrong}))
    result = terraform.run("plan", "-input=false", "-no-color", f"-var-file={values}")
    assert result.returncode == 1
    said = " ".join(result.stderr.replace("│", " ").split())
    for words in (
        *("OWNER/NAME, with no https://", "belong together", "a branch's name"),
        "4 to 32 lower-case letters",
    ):
        assert words in said
    values.write_text(json.dumps({"build": {"repository": REPOSITORY, "token_secret": "ghp_x"}}))
    result = terraform.run("plan", "-input=false", "-no-color", f"-var-file={values}")
    assert "the token itself stays in Secret Manager" in " ".join(result.stderr.split())
