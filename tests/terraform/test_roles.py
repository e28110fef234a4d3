"""Who may do what: every grant is listed here, and what each part calls is covered by one."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.terraform.conftest import OPERATOR, PROJECT, READER, ROOT, SUBMITTER, State

DATABASE = "Firestore's (default)"
PROJECT_WIDE = "project"

# Account or person -> (where, role). Everything that is granted, and nothing else.
GRANTS: dict[str, set[tuple[str, str]]] = {
    "mlflow": {
        ("bucket artifacts", "roles/storage.objectViewer"),
        ("secret greenroom-database-password", "roles/secretmanager.secretAccessor"),
    },
    "mlflow-api": {
        ("bucket artifacts", "roles/storage.objectViewer"),
        ("secret greenroom-database-password", "roles/secretmanager.secretAccessor"),
    },
    "migrate": {("secret greenroom-database-password", "roles/secretmanager.secretAccessor")},
    "predict": {("bucket serving", "roles/storage.legacyObjectReader")},
    "promote": {
        (PROJECT_WIDE, "greenroom.metrics_reader"),
        (DATABASE, "greenroom.ledger_writer"),
        ("bucket artifacts", "roles/storage.objectViewer"),
        ("bucket serving", "roles/storage.objectViewer"),
        ("bucket serving", "roles/storage.objectCreator"),
        ("repository greenroom", "roles/artifactregistry.reader"),
        ("account predict", "roles/iam.serviceAccountUser"),
        ("service predict", "greenroom.promoter"),
        ("service predict", "roles/run.invoker"),
        ("service proxy", "roles/run.invoker"),
        ("service mlflow-api", "roles/run.invoker"),
    },
    "proxy": {(DATABASE, "roles/datastore.user"), ("service predict", "roles/run.invoker")},
    "scheduler": {("service promote", "roles/run.invoker")},
    "trainer": {
        ("bucket artifacts", "roles/storage.objectUser"),
        ("bucket data", "roles/storage.objectViewer"),
        ("bucket staging", "roles/storage.objectUser"),
        ("service mlflow-api", "roles/run.invoker"),
    },
    "ui": {("service proxy", "roles/run.invoker")},
    "uptime checks": {("service proxy", "roles/run.invoker")},
    "IAP": {("service mlflow", "roles/run.invoker"), ("service ui", "roles/run.invoker")},
    OPERATOR: {
        (PROJECT_WIDE, "greenroom.schedule_operator"),
        (PROJECT_WIDE, "greenroom.inspector"),
        (DATABASE, "roles/datastore.viewer"),
        ("service promote", "roles/run.invoker"),
        ("service mlflow-api", "roles/run.invoker"),
    },
    READER: {
        ("service mlflow", "roles/iap.httpsResourceAccessor"),
        ("service ui", "roles/iap.httpsResourceAccessor"),
    },
    SUBMITTER: {
        (PROJECT_WIDE, "roles/aiplatform.user"),
        (PROJECT_WIDE, "roles/logging.viewer"),
        (PROJECT_WIDE, "roles/serviceusage.serviceUsageConsumer"),
        ("account trainer", "roles/iam.serviceAccountUser"),
    },
}

# Of Google's own roles, the permissions that are needed here:
# https://cloud.google.com/iam/docs/roles-permissions
GOOGLES = {
    "roles/aiplatform.user": {
        "aiplatform.customJobs.cancel",
        "aiplatform.customJobs.create",
        "aiplatform.customJobs.get",
    },
    "roles/artifactregistry.reader": {"artifactregistry.repositories.downloadArtifacts"},
    "roles/datastore.user": {
        "datastore.databases.get",
        "datastore.entities.create",
        "datastore.entities.delete",
        "datastore.entities.get",
        "datastore.entities.list",
        "datastore.entities.update",
    },
    "roles/datastore.viewer": {"datastore.entities.get", "datastore.entities.list"},
    "roles/iam.serviceAccountUser": {"iam.serviceAccounts.actAs"},
    "roles/iap.httpsResourceAccessor": {"iap.webServiceVersions.accessViaIAP"},
    "roles/logging.viewer": {"logging.logEntries.list"},
    "roles/run.invoker": {"run.routes.invoke"},
    "roles/secretmanager.secretAccessor": {"secretmanager.versions.access"},
    "roles/serviceusage.serviceUsageConsumer": {"serviceusage.services.use"},
    "roles/storage.legacyObjectReader": {"storage.objects.get"},
    "roles/storage.objectCreator": {"storage.objects.create"},
    "roles/storage.objectUser": {
        "storage.objects.create",
        "storage.objects.delete",
        "storage.objects.get",
        "storage.objects.list",
        "storage.objects.update",
    },
    "roles/storage.objectViewer": {"storage.objects.get", "storage.objects.list"},
}


@dataclass(frozen=True)
class Need:
    """A method that a part calls, and the permission that it takes."""

    who: str
    method: str
    permission: str
    where: str
    place: str
    """File or folder with the call."""
    code: str
    """What stands there."""


_CLOUD_RUN = "functions/promote/cloud_run.py"
_BUNDLES = "functions/promote/bundles.py"
_LEDGER = "functions/promote/ledger.py"
_PROXY = "functions/proxy"
_SCHEDULE = "functions/promote/operators/schedule.py"
_DOCTOR = "functions/promote/operators/doctor.py"
_VERTEX = "trainer/vertex.py"
_PASSWORD = "secret greenroom-database-password"
_ENVIRONMENT = "terraform/environment.tf"

NEEDS = [
    Need("predict", "objects.get", "storage.objects.get", "bucket serving",
         "functions/predict/storage.py", "download_as_bytes("),
    Need("proxy", "predict: POST /predict", "run.routes.invoke", "service predict",
         _PROXY, "predict_audience"),
    Need("proxy", "documents.commit, create", "datastore.entities.create", DATABASE,
         _PROXY, "commit"),
    Need("proxy", "documents.commit, update", "datastore.entities.update", DATABASE,
         _PROXY, "commit"),
    Need("proxy", "documents.commit, delete", "datastore.entities.delete", DATABASE,
         _PROXY, "delete"),
    Need("proxy", "documents.batchGet", "datastore.entities.get", DATABASE, _PROXY, ".get("),
    Need("proxy", "documents.runQuery", "datastore.entities.list", DATABASE, _PROXY, "order_by("),
    Need("promote", "services.get", "run.services.get", "service predict",
         _CLOUD_RUN, "get_service("),
    Need("promote", "services.patch", "run.services.update", "service predict",
         _CLOUD_RUN, "update_service("),
    Need("promote", "services.patch, as predict's account", "iam.serviceAccounts.actAs",
         "account predict", _CLOUD_RUN, "update_service("),
    Need("promote", "services.patch, the image", "artifactregistry.repositories.downloadArtifacts",
         "repository greenroom", _CLOUD_RUN, "update_service("),
    Need("promote", "revisions.list", "run.revisions.list", "service predict",
         _CLOUD_RUN, "list_revisions("),
    Need("promote", "revisions.list, each", "run.revisions.get", "service predict",
         _CLOUD_RUN, "list_revisions("),
    Need("promote", "revisions.delete", "run.revisions.delete", "service predict",
         _CLOUD_RUN, "delete_revision("),
    Need("promote", "timeSeries.list", "monitoring.timeSeries.list", PROJECT_WIDE,
         "functions/promote/signals.py", "list_time_series("),
    Need("promote", "predict: golden texts", "run.routes.invoke", "service predict",
         "functions/promote/gates.py", '"/predict'),
    Need("promote", "proxy: GET /statistics", "run.routes.invoke", "service proxy",
         "functions/promote/feedback.py", "/statistics"),
    Need("promote", "mlflow-api: the registry", "run.routes.invoke", "service mlflow-api",
         "functions/promote/main.py", "mlflow_tracking_uri"),
    Need("promote", "objects.get", "storage.objects.get", "bucket artifacts",
         _BUNDLES, "download_as_bytes("),
    # Without it Cloud Storage answers 403 for what is not there, and not 404.
    Need("promote", "objects.get, missing", "storage.objects.list", "bucket artifacts",
         _BUNDLES, "except NotFound"),
    Need("promote", "objects.get", "storage.objects.get", "bucket serving", _BUNDLES, "exists("),
    Need("promote", "objects.get, missing", "storage.objects.list", "bucket serving",
         _BUNDLES, "exists("),
    Need("promote", "objects.insert", "storage.objects.create", "bucket serving",
         _BUNDLES, "if_generation_match=0"),
    Need("promote", "documents.commit, create", "datastore.entities.create", DATABASE,
         _LEDGER, ".create("),
    Need("promote", "documents.commit, update", "datastore.entities.update", DATABASE,
         _LEDGER, ".set("),
    Need("scheduler", "promote: POST /", "run.routes.invoke", "service promote",
         "terraform/scheduler.tf", "oidc_token"),
    Need("ui", "proxy", "run.routes.invoke", "service proxy", "terraform/environment.tf",
         "PROXY_AUDIENCE"),
    Need("mlflow", "versions.access", "secretmanager.versions.access", _PASSWORD,
         _ENVIRONMENT, "DATABASE_PASSWORD"),
    Need("mlflow-api", "versions.access", "secretmanager.versions.access", _PASSWORD,
         _ENVIRONMENT, "DATABASE_PASSWORD"),
    Need("migrate", "versions.access", "secretmanager.versions.access", _PASSWORD,
         _ENVIRONMENT, "DATABASE_PASSWORD"),
    Need("mlflow", "objects.list, get: the UI shows artifacts", "storage.objects.list",
         "bucket artifacts", _ENVIRONMENT, "ARTIFACT_ROOT"),
    Need("mlflow-api", "objects.list, get", "storage.objects.list", "bucket artifacts",
         _ENVIRONMENT, "ARTIFACT_ROOT"),
    Need("trainer", "mlflow-api: runs and registry", "run.routes.invoke", "service mlflow-api",
         "trainer/auth.py", "Authorization"),
    Need("trainer", "objects.insert, of artifacts, again after a failure", "storage.objects.delete",
         "bucket artifacts", "trainer/flavor.py", "save_model"),
    Need("trainer", "objects.get, of reviews", "storage.objects.get", "bucket data",
         "trainer/sources.py", "gs://"),
    Need("trainer", "objects.insert, of checkpoints", "storage.objects.create", "bucket staging",
         "trainer/checkpoints.py", "upload_from"),
    Need("trainer", "objects.delete, of older ones", "storage.objects.delete", "bucket staging",
         "trainer/checkpoints.py", "upload_from"),
    Need("IAP", "mlflow, for people", "run.routes.invoke", "service mlflow",
         "terraform/callers.json", '"people": ["mlflow", "ui"]'),
    Need("IAP", "ui, for people", "run.routes.invoke", "service ui",
         "terraform/callers.json", '"people": ["mlflow", "ui"]'),
    Need("uptime checks", "proxy: GET /health", "run.routes.invoke", "service proxy",
         "terraform/monitoring/uptime.tf", "service_agent_authentication"),
    Need(READER, "mlflow", "iap.webServiceVersions.accessViaIAP", "service mlflow",
         "terraform/callers.json", '"people": ["mlflow", "ui"]'),
    Need(READER, "ui", "iap.webServiceVersions.accessViaIAP", "service ui",
         "terraform/callers.json", '"people": ["mlflow", "ui"]'),
    Need(OPERATOR, "jobs.get", "cloudscheduler.jobs.get", PROJECT_WIDE, _SCHEDULE, "get_job("),
    Need(OPERATOR, "jobs.run", "cloudscheduler.jobs.run", PROJECT_WIDE, _SCHEDULE, "run_job("),
    Need(OPERATOR, "jobs.pause", "cloudscheduler.jobs.pause", PROJECT_WIDE,
         _SCHEDULE, "pause_job("),
    Need(OPERATOR, "jobs.resume", "cloudscheduler.jobs.enable", PROJECT_WIDE,
         _SCHEDULE, "resume_job("),
    Need(OPERATOR, "documents.runQuery", "datastore.entities.list", DATABASE,
         "functions/promote/operators/history.py", "order_by("),
    Need(OPERATOR, "promote: GET /status", "run.routes.invoke", "service promote",
         "functions/promote/operators/status.py", "/status"),
    Need(OPERATOR, "mlflow-api: rollback", "run.routes.invoke", "service mlflow-api",
         "functions/promote/operators/releases.py", "set_registered_model_alias("),
    Need(OPERATOR, "services.get", "run.services.get", PROJECT_WIDE, _DOCTOR, "get_service("),
    Need(OPERATOR, "buckets.get", "storage.buckets.get", PROJECT_WIDE, _DOCTOR, "get_bucket("),
    Need(OPERATOR, "instances.get", "cloudsql.instances.get", PROJECT_WIDE, _DOCTOR, "/instances/"),
    # Google counts what a person's own credentials call against the project that they name.
    Need(OPERATOR, "all of these, with a person's credentials", "serviceusage.services.use",
         PROJECT_WIDE, _DOCTOR, "google.auth.default("),
    Need(SUBMITTER, "all of these, with a person's credentials", "serviceusage.services.use",
         PROJECT_WIDE, "terraform/README.md", "gcloud auth application-default login"),
    Need(SUBMITTER, "customJobs.create", "aiplatform.customJobs.create", PROJECT_WIDE,
         _VERTEX, "create_custom_job("),
    Need(SUBMITTER, "customJobs.create, as trainer's account", "iam.serviceAccounts.actAs",
         "account trainer", _VERTEX, "create_custom_job("),
    Need(SUBMITTER, "customJobs.get", "aiplatform.customJobs.get", PROJECT_WIDE,
         _VERTEX, "get_custom_job("),
    Need(SUBMITTER, "customJobs.cancel", "aiplatform.customJobs.cancel", PROJECT_WIDE,
         _VERTEX, "cancel_custom_job("),
    Need(SUBMITTER, "entries.list", "logging.logEntries.list", PROJECT_WIDE,
         _VERTEX, "list_log_entries("),
]  # fmt: skip


def grants(state: State) -> dict[str, set[tuple[str, str]]]:
    """Return who has which role where, of all that the state grants."""
    names = {
        item["member"]: item["account_id"].removeprefix("greenroom-")
        for item in state.of("google_service_account").values()
    }
    iap = state.of("google_project_service_identity")["google_project_service_identity.iap"]
    names[iap["member"]] = "IAP"
    number = state.outputs["urls"]["predict"].partition("-")[2].partition(".")[0]
    agent = f"service-{number}@gcp-sa-monitoring-notification.iam.gserviceaccount.com"
    names[f"serviceAccount:{agent}"] = "uptime checks"
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for item in state.resources:
        kind, values = item["type"], item["values"]
        if kind.endswith(("_iam_binding", "_iam_policy")):
            raise AssertionError(f"{item['address']} would take away what others granted")
        if kind.endswith("_iam_member"):
            role = values["role"].removeprefix(f"projects/{PROJECT}/roles/")
            found[names.get(values["member"], values["member"])].add((where(kind, values), role))
    return found


def where(kind: str, values: dict[str, Any]) -> str:
    """Return where a role is granted."""
    if kind == "google_project_iam_member":
        if not values["condition"]:
            return PROJECT_WIDE
        [condition] = values["condition"]
        name = f'resource.name == "projects/{PROJECT}/databases/(default)"'
        assert condition["expression"] == name
        return DATABASE
    if kind == "google_storage_bucket_iam_member":
        return f"bucket {values['bucket'].removeprefix(f'{PROJECT}-')}"
    if kind == "google_artifact_registry_repository_iam_member":
        return f"repository {values['repository']}"
    if kind == "google_service_account_iam_member":
        account = values["service_account_id"].rpartition("/")[2]
        return f"account {account.partition('@')[0].removeprefix('greenroom-')}"
    if kind == "google_secret_manager_secret_iam_member":
        return f"secret {values['secret_id']}"
    if kind == "google_cloud_run_v2_service_iam_member":
        return f"service {values['name']}"
    if kind == "google_iap_web_cloud_run_service_iam_member":
        return f"service {values['cloud_run_service_name']}"
    raise AssertionError(f"{kind}: say here where it is granted")


def test_every_account_has_exactly_its_roles(state: State) -> None:
    assert grants(state) == GRANTS


def permissions(state: State, role: str) -> set[str]:
    """Return what a role allows, of Google's own what is needed here."""
    custom = state.of("google_project_iam_custom_role").values()
    own = {item["role_id"]: set(item["permissions"]) for item in custom}
    return own[role] if role in own else GOOGLES[role]


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: f"{need.who}: {need.method}")
def test_a_role_covers_what_is_called(state: State, need: Need) -> None:
    place = ROOT / need.place
    files = [place] if place.is_file() else place.rglob("*.py")
    calls = any(need.code in file.read_text() for file in files)
    assert calls, f"{need.place} calls it no longer: {need.code}"
    held = {
        permission
        for where, role in GRANTS[need.who]
        if where == need.where
        for permission in permissions(state, role)
    }
    assert need.permission in held


def test_no_role_and_no_permission_of_ours_is_without_use(state: State) -> None:
    needed = {(need.who, need.where, need.permission) for need in NEEDS}
    for who, granted in GRANTS.items():
        for where, role in granted:
            allowed = permissions(state, role)
            used = {item for item in allowed if (who, where, item) in needed}
            assert used, f"{who} needs no {role} on {where}"
            if not role.startswith("roles/"):
                # What reads and writes of Firestore take besides.
                assert allowed - used <= {
                    "datastore.databases.get",
                    "datastore.entities.get",
                    "datastore.entities.list",
                }, f"{role} allows more than {who} calls"


def test_the_table_of_callers_is_what_lets_services_in(state: State) -> None:
    callers = json.loads((ROOT / "terraform/callers.json").read_text())
    let_in: dict[str, set[str]] = defaultdict(set)
    for who, granted in grants(state).items():
        for where, role in granted:
            if role == "roles/run.invoker":
                let_in[where.removeprefix("service ")].add(who)
    others = {"IAP", "uptime checks", OPERATOR}
    assert {name: let_in[name] - others for name in callers["invokers"]} == {
        name: set(invokers) for name, invokers in callers["invokers"].items()
    }
    assert {name for name in let_in if "IAP" in let_in[name]} == set(callers["people"])
    behind = {name for name, item in state.services().items() if item.get("iap_enabled")}
    assert behind == set(callers["people"])


def test_nobody_unnamed_may_call(state: State) -> None:
    assert not {"allUsers", "allAuthenticatedUsers"} & grants(state).keys()
    for name, service in state.services().items():
        assert not service["invoker_iam_disabled"], name


def test_each_service_runs_as_an_account_of_its_own(state: State) -> None:
    accounts: Iterator[tuple[str, str]] = (
        (name, service["template"][0]["service_account"])
        for name, service in state.services().items()
    )
    for name, account in accounts:
        assert account == f"greenroom-{name}@{PROJECT}.iam.gserviceaccount.com"
