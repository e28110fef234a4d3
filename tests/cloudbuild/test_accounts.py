"""Who starts builds, and what a build may do: terraform/build.tf, planned."""

import json
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.cloudbuild.test_config import CONFIG, ROOT
from tests.terraform.conftest import PROJECT, VARIABLES, State, Terraform, prepare
from tests.terraform.test_roles import PROJECT_WIDE, where

REPOSITORY = "acme/greenroom"
TOKEN = f"projects/{PROJECT}/secrets/github/versions/1"
# What reads, whatever it is asked for.
READS = (".get", ".list", ".getIamPolicy", ".getMetadata", ".listPeeringRoutes", ".use")
# What runs as an account of its own, besides builds.
SERVICES = (
    *("migrate", "mlflow", "mlflow-api", "predict", "promote", "proxy", "scheduler", "trainer"),
    "ui",
)

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


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> State:
    """Applied, with every way of starting a build and with a budget."""
    terraform = prepare(tmp_path_factory.mktemp("deployed") / "terraform")
    terraform.set(
        **VARIABLES,
        budget={"amount": 50, "billing_account": "012345-6789AB-CDEF01"},
        build={"repository": REPOSITORY, "app_installation_id": 7, "token_secret": TOKEN},
    )
    terraform.apply()
    return terraform.state()


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


# Who builds, who starts builds, and workflows on GitHub -> (where, role). All that they are
# granted, and nothing else.
GRANTS: dict[str, set[tuple[str, str]]] = {
    "deploy": {
        # What Terraform makes has no narrower place to be granted: it does not exist yet.
        (PROJECT_WIDE, "roles/aiplatform.user"),
        (PROJECT_WIDE, "roles/artifactregistry.admin"),
        (PROJECT_WIDE, "roles/billing.projectCostsManager"),
        (PROJECT_WIDE, "roles/cloudbuild.builds.editor"),
        (PROJECT_WIDE, "roles/cloudbuild.connectionAdmin"),
        (PROJECT_WIDE, "roles/cloudscheduler.admin"),
        (PROJECT_WIDE, "roles/cloudsql.admin"),
        (PROJECT_WIDE, "roles/compute.networkAdmin"),
        (PROJECT_WIDE, "roles/iam.roleViewer"),
        (PROJECT_WIDE, "roles/iam.serviceAccountViewer"),
        (PROJECT_WIDE, "roles/iam.workloadIdentityPoolViewer"),
        (PROJECT_WIDE, "roles/iap.admin"),
        (PROJECT_WIDE, "roles/logging.configWriter"),
        (PROJECT_WIDE, "roles/logging.logWriter"),
        (PROJECT_WIDE, "roles/monitoring.editor"),
        (PROJECT_WIDE, "roles/ondemandscanning.admin"),
        (PROJECT_WIDE, "roles/run.admin"),
        (PROJECT_WIDE, "roles/servicenetworking.networksAdmin"),
        (PROJECT_WIDE, "roles/serviceusage.serviceUsageAdmin"),
        (PROJECT_WIDE, "greenroom.builder"),
        (f"{PROJECT_WIDE}, some roles", "roles/resourcemanager.projectIamAdmin"),
        ("account deploy", "roles/iam.serviceAccountOpenIdTokenCreator"),
        *((f"account {name}", "roles/iam.serviceAccountUser") for name in ("check", "start")),
        *((f"account {name}", "roles/iam.serviceAccountUser") for name in ("deploy", *SERVICES)),
        *((f"account {name}", "roles/iam.serviceAccountAdmin") for name in SERVICES),
        ("bucket staging", "roles/storage.legacyBucketReader"),
        ("bucket staging, sources", "roles/storage.objectCreator"),
        ("bucket staging, sources", "roles/storage.objectViewer"),
        ("bucket terraform", "roles/storage.objectUser"),
        ("service proxy", "roles/run.invoker"),
    },
    # A build of a pull request reads, whatever that says; it acts as nobody.
    "check": {
        (PROJECT_WIDE, "greenroom.planner"),
        (PROJECT_WIDE, "roles/logging.logWriter"),
        (PROJECT_WIDE, "roles/ondemandscanning.admin"),
        ("bucket staging, sources", "roles/storage.objectViewer"),
        ("bucket terraform", "roles/storage.objectViewer"),
        ("repository greenroom-build", "roles/artifactregistry.reader"),
    },
    "start": {
        (PROJECT_WIDE, "greenroom.starter"),
        (PROJECT_WIDE, "roles/logging.logWriter"),
        ("account check", "roles/iam.serviceAccountUser"),
        ("bucket staging", "roles/storage.legacyBucketReader"),
        ("bucket staging, sources", "roles/storage.objectCreator"),
    },
    # Cloud Build itself, for its connection to GitHub.
    "Cloud Build": {("secret github", "roles/secretmanager.secretAccessor")},
    **{
        f"workflow {build}": {
            (PROJECT_WIDE, "greenroom.starter"),
            (f"account {build}", "roles/iam.serviceAccountUser"),
            ("bucket staging", "roles/storage.legacyBucketReader"),
            ("bucket staging, sources", "roles/storage.objectCreator"),
        }
        for build in ("check", "deploy")
    },
}

CHANGES = ("create", "delete", "get", "list", "update")
POLICIES = ("getIamPolicy", "setIamPolicy")
PERMISSIONS: dict[str, set[str]] = {
    # Of what is made, all but what is stored in it.
    "builder": {
        *(f"datastore.{kind}.{do}" for kind in ("backupSchedules", "indexes") for do in CHANGES),
        *(f"datastore.databases.{do}" for do in (*CHANGES, "getMetadata")),
        *(f"datastore.operations.{do}" for do in ("get", "list")),
        *(f"secretmanager.secrets.{do}" for do in (*CHANGES, *POLICIES)),
        *(f"secretmanager.versions.{do}" for do in ("add", "destroy", "disable", "enable")),
        *(f"secretmanager.versions.{do}" for do in ("get", "list")),
        *(f"storage.buckets.{do}" for do in (*CHANGES, *POLICIES)),
    },
    "planner": {
        *(f"artifactregistry.repositories.{do}" for do in ("get", "getIamPolicy")),
        "billing.resourcebudgets.read",
        *(f"cloudbuild.builds.{do}" for do in ("get", "list")),
        *(f"cloudbuild.connections.{do}" for do in ("get", "getIamPolicy")),
        "cloudbuild.repositories.get",
        "cloudscheduler.jobs.get",
        *(f"cloudsql.{kind}.get" for kind in ("databases", "instances", "users")),
        "cloudsql.users.list",
        *(f"compute.{kind}.get" for kind in ("firewalls", "globalAddresses", "networks")),
        *(f"compute.{kind}.get" for kind in ("projects", "subnetworks")),
        "compute.networks.listPeeringRoutes",
        "compute.subnetworks.getIamPolicy",
        *(f"datastore.{kind}.get" for kind in ("backupSchedules", "indexes")),
        *(f"datastore.{kind}.list" for kind in ("backupSchedules", "indexes")),
        "datastore.databases.getMetadata",
        *(f"iam.{kind}.get" for kind in ("roles", "serviceAccounts")),
        *(f"iam.{kind}.get" for kind in ("workloadIdentityPoolProviders", "workloadIdentityPools")),
        "iam.serviceAccounts.getIamPolicy",
        "iap.webServices.getIamPolicy",
        "logging.logMetrics.get",
        *(f"monitoring.{kind}.get" for kind in ("alertPolicies", "dashboards", "services", "slos")),
        *(f"monitoring.{kind}.get" for kind in ("notificationChannels", "uptimeCheckConfigs")),
        *(f"resourcemanager.projects.{do}" for do in ("get", "getIamPolicy")),
        "run.jobs.get",
        *(f"run.services.{do}" for do in ("get", "getIamPolicy")),
        *(f"secretmanager.secrets.{do}" for do in ("get", "getIamPolicy")),
        "secretmanager.versions.get",
        "servicenetworking.services.get",
        *(f"serviceusage.services.{do}" for do in ("get", "list", "use")),
        *(f"storage.buckets.{do}" for do in ("get", "getIamPolicy")),
    },
    "starter": {
        *(f"cloudbuild.builds.{do}" for do in ("create", "get", "list")),
        *("logging.logEntries.list", "logging.privateLogEntries.list"),
        "serviceusage.services.use",
    },
}


def test_who_builds_may_do_exactly_this(deployed: State) -> None:
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    names = {
        item["member"]: item["account_id"].removeprefix("greenroom-")
        for item in deployed.of("google_service_account").values()
    }
    services = {names.pop(member) for member in list(names) if names[member] in SERVICES}
    assert services == set(SERVICES)
    for item in deployed.resources:
        kind, values = item["type"], item["values"]
        if kind.endswith("_iam_member"):
            member = values["member"]
            if "/attribute.build/" in member:
                who = f"workflow {member.rpartition('/')[2]}"
            elif member.endswith("@gcp-sa-cloudbuild.iam.gserviceaccount.com"):
                who = "Cloud Build"
            elif member in names:
                who = names[member]
            else:
                continue
            role = values["role"].removeprefix(f"projects/{PROJECT}/roles/")
            found[who].add((granted_on(kind, values), role))
    assert found == GRANTS


def granted_on(kind: str, values: dict[str, Any]) -> str:
    """Return where a role is granted, with what its condition leaves of that."""
    if not values.get("condition"):
        return where(kind, values)
    [condition] = values["condition"]
    if kind == "google_project_iam_member":
        assert "modifiedGrantsByRole" in condition["expression"]
        return f"{PROJECT_WIDE}, some roles"
    bucket = where(kind, values)
    begins = f'"projects/_/buckets/{values["bucket"]}/objects/source/"'
    assert condition["expression"] == f"resource.name.startsWith({begins})"
    return f"{bucket}, sources"


def test_what_builds_own_roles_allow_is_exactly_this(deployed: State) -> None:
    own = {
        item["role_id"].removeprefix("greenroom."): item["permissions"]
        for address, item in deployed.of("google_project_iam_custom_role").items()
        if address.startswith("google_project_iam_custom_role.build[")
    }
    assert {name: set(permissions) for name, permissions in own.items()} == PERMISSIONS


def test_without_a_budget_builds_have_no_right_to_one(triggered: Resources) -> None:
    granted = triggered["google_project_iam_member.builder"].values()
    assert not any("billing" in (values.get("role") or "") for values in granted)
    planner = triggered["google_project_iam_custom_role.build"]["planner"]
    assert not any(name.startswith("billing.") for name in planner["permissions"])


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
