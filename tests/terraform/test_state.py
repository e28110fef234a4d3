"""What `apply` provisions, seen in the state: settings, secrets, buckets, databases, addresses."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import pytest
from google.auth.environment_vars import GOOGLE_CLOUD_QUOTA_PROJECT
from pydantic_settings import BaseSettings

from functions.predict.settings import _FIELDS as PREDICT_FIELDS
from functions.predict.settings import parse as parse_predict
from functions.promote.command import main
from functions.promote.settings import Settings as PromoteSettings
from functions.proxy.settings import Settings as ProxySettings
from local.services import SERVICES
from mlflow_server.settings import ServerSettings
from mlflow_server.settings import Settings as MigrationSettings
from tests.terraform.conftest import PROJECT, REGION, ROOT, State, Terraform
from trainer.submission import submit
from ui.settings import Settings as UiSettings

# Cloud Run sets the port, and every interface is the right one in a container.
OF_CLOUD_RUN = {"HOST", "PORT"}
# Empty means Google's own: any other address is a stand-in's.
ENDPOINTS = {"CLOUD_RUN_ENDPOINT", "MONITORING_ENDPOINT"}

SETTINGS: Mapping[str, tuple[type[BaseSettings], set[str]]] = {
    "promote": (PromoteSettings, OF_CLOUD_RUN | ENDPOINTS),
    "proxy": (ProxySettings, OF_CLOUD_RUN),
    "ui": (UiSettings, OF_CLOUD_RUN),
    # The database comes in parts, so that the password is a reference.
    "mlflow": (ServerSettings, OF_CLOUD_RUN | {"DATABASE_URL"}),
    "mlflow-api": (ServerSettings, OF_CLOUD_RUN | {"DATABASE_URL"}),
}


@pytest.mark.parametrize("service", SETTINGS)
def test_a_service_is_given_each_of_its_settings_and_nothing_else(
    state: State, service: str
) -> None:
    kind, left_out = SETTINGS[service]
    assert state.environment(service).keys() == declared(kind) - left_out


def declared(kind: type[BaseSettings]) -> set[str]:
    return {name.upper() for name in kind.model_fields}


def test_predict_is_given_each_of_its_settings_and_nothing_else(state: State) -> None:
    # The model comes in arguments, from promote; the revision's name from Cloud Run.
    left_out = OF_CLOUD_RUN | {"K_REVISION", "MODEL_URI", "MODEL_VERSION"}
    assert state.environment("predict").keys() == {n.upper() for n in PREDICT_FIELDS} - left_out


def test_the_migration_is_given_the_database_and_nothing_else(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job] = state.of("google_cloud_run_v2_job").values()
    [container] = job["template"][0]["template"][0]["containers"]
    given = {item["name"]: item["value"] or "by reference" for item in container["env"]}
    assert container["args"] == ["migrate"]
    assert given.keys() == declared(MigrationSettings) - {"DATABASE_URL"}
    monkeypatch.setattr("os.environ", given)
    settings = MigrationSettings()
    # The same database as the services', which it is for.
    for name in ("DATABASE_HOST", "DATABASE_NAME", "DATABASE_PORT", "DATABASE_USER"):
        assert str(getattr(settings, name.lower())) == state.environment("mlflow")[name]


@pytest.mark.parametrize("service", SETTINGS)
def test_a_services_own_settings_take_the_values(
    state: State, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, _ = SETTINGS[service]
    given = state.environment(service)
    monkeypatch.setattr("os.environ", given)
    settings = kind()
    for name in given:
        assert name.lower() in settings.model_fields_set, f"{service} does not read {name}"


# Where things are, and who: nothing that a default could know.
PLACES = {
    "firestore_project",
    "mlflow_audience",
    "mlflow_url",
    "predict_audience",
    "predict_url",
    "proxy_audience",
    "proxy_url",
    "trusted_fronts",
}


@pytest.mark.parametrize("service", ["promote", "proxy", "ui"])
def test_what_nobody_chose_is_as_the_service_has_it_by_itself(
    state: State, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, _ = SETTINGS[service]
    monkeypatch.setattr("os.environ", state.environment(service))
    settings = kind()
    for name, field in kind.model_fields.items():
        if name not in PLACES and not field.is_required():
            assert getattr(settings, name) == field.default, name


def test_predict_takes_the_values(state: State) -> None:
    given = state.environment("predict")
    settings = parse_predict([], given)
    [template] = state.services()["predict"]["template"]
    assert str(settings.workers) == template["containers"][0]["resources"][0]["limits"]["cpu"]


def test_services_ask_each_other_by_their_own_addresses(state: State) -> None:
    urls = state.outputs["urls"]
    proxy, promote = state.environment("proxy"), state.environment("promote")
    assert proxy["PREDICT_URL"] == proxy["PREDICT_AUDIENCE"] == urls["predict"]
    assert promote["MLFLOW_TRACKING_URI"] == promote["MLFLOW_AUDIENCE"] == urls["mlflow-api"]
    assert promote["PROXY_URL"] == state.environment("ui")["PROXY_URL"] == urls["proxy"]
    for name, url in urls.items():
        assert url.startswith(f"https://{name}-")
        assert url.endswith(f".{REGION}.run.app")


@pytest.mark.parametrize("service", ["mlflow", "mlflow-api"])
def test_mlflow_knows_both_names_of_its_service(state: State, service: str) -> None:
    given = state.environment(service)
    by_number = state.outputs["urls"][service].removeprefix("https://")
    # The older name, as predict's tells what its middle is.
    older = state.services()["predict"]["uri"].removeprefix("https://predict")
    hosts = given["ALLOWED_HOSTS"].split(",")
    assert hosts == [by_number, f"{service}{older}"]
    assert given["CORS_ALLOWED_ORIGINS"].split(",") == [f"https://{host}" for host in hosts]
    assert given["ARTIFACT_ROOT"] == f"gs://{PROJECT}-artifacts/mlflow"


def test_no_secret_is_in_the_state(applied: tuple[Terraform, State]) -> None:
    terraform, state = applied
    raw = json.loads(terraform("state", "pull"))
    names = {"password", "password_wo", "root_password", "secret_data", "secret_data_wo"}
    for path, value in leaves(raw["resources"]):
        if path[-1] in names:
            assert not value, path
    assert not [item for item in raw["resources"] if item["type"].startswith("random_")]
    for service in ("mlflow", "mlflow-api"):
        reference = json.loads(state.environment(service)["DATABASE_PASSWORD"])
        [key] = reference[0]["secret_key_ref"]
        # A version by its number: what a revision reads does not change under it.
        assert key == {"secret": "greenroom-database-password", "version": "1"}


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return every value that holds no other, with the way to it."""
    if isinstance(value, dict):
        parts: Collection[tuple[str | int, Any]] = value.items()
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return [(path, value)]
    return [leaf for key, part in parts for leaf in leaves(part, (*path, key))]


def test_buckets_are_closed_and_keep_what_is_overwritten(state: State) -> None:
    buckets = state.of("google_storage_bucket").values()
    assert {bucket["name"] for bucket in buckets} == {
        f"{PROJECT}-{name}" for name in ("artifacts", "data", "serving", "staging")
    }
    for bucket in buckets:
        assert bucket["uniform_bucket_level_access"] is True
        assert bucket["public_access_prevention"] == "enforced"
        assert bucket["versioning"] == [{"enabled": True}]
        assert bucket["soft_delete_policy"][0]["retention_duration_seconds"] >= 7 * 86400
        assert bucket["force_destroy"] is False


def test_the_database_is_private_encrypted_and_backed_up(state: State) -> None:
    [instance] = state.of("google_sql_database_instance").values()
    [settings] = instance["settings"]
    [network], [backups] = settings["ip_configuration"], settings["backup_configuration"]
    assert network["ipv4_enabled"] is False
    assert network["private_network"]
    assert network["ssl_mode"] == "ENCRYPTED_ONLY"
    assert backups["enabled"]
    assert backups["point_in_time_recovery_enabled"]
    assert settings["maintenance_window"][0]["update_track"] == "stable"
    assert instance["deletion_protection"]
    assert settings["deletion_protection_enabled"]


def test_firestore_is_what_the_proxy_asks_for(state: State) -> None:
    wanted = json.loads((ROOT / "terraform/firestore_indexes.json").read_text())
    [database] = state.of("google_firestore_database").values()
    assert database["point_in_time_recovery_enablement"] == "POINT_IN_TIME_RECOVERY_ENABLED"
    assert database["delete_protection_state"] == "DELETE_PROTECTION_ENABLED"
    # Once a week too in the preset `production`.
    [schedule] = state.of("google_firestore_backup_schedule").values()
    assert schedule["daily_recurrence"]
    indexes = [
        (item["collection"], [(part["field_path"], part["order"]) for part in item["fields"]])
        for item in state.of("google_firestore_index").values()
    ]
    # Firestore puts the document's name at the end by itself.
    assert sorted(indexes) == sorted(
        (item["collection"], [(n, o) for n, o in item["fields"] if n != "__name__"])
        for item in wanted["composite"]
    )
    for item in wanted["composite"]:
        names = [name for name, _ in item["fields"]]
        if "__name__" in names:
            (*_, (_, before), last) = item["fields"]
            assert last == ["__name__", before], "Firestore would order it otherwise"
    fields = state.of("google_firestore_field").values()
    exempt = {(item["collection"], item["field"]) for item in fields if item["index_config"]}
    assert exempt == {(item["collection"], item["field"]) for item in wanted["exempt"]}
    assert all(not part["indexes"] for item in fields for part in item["index_config"])
    ttl = {(item["collection"], item["field"]) for item in fields if item["ttl_config"]}
    assert ttl == {(item["collection"], item["field"]) for item in wanted["ttl"]}


def test_the_clock_calls_promote_with_a_token_for_promote(state: State) -> None:
    [job] = state.of("google_cloud_scheduler_job").values()
    [target] = job["http_target"]
    url = state.outputs["urls"]["promote"]
    assert (job["name"], job["schedule"], job["attempt_deadline"]) == (
        "promote",
        "* * * * *",
        "60s",
    )
    assert job["retry_config"][0]["retry_count"] == 0
    assert (target["uri"], target["http_method"]) == (f"{url}/", "POST")
    assert target["oidc_token"][0]["audience"] == url
    # Who pauses it keeps it paused.
    assert "paused" not in (ROOT / "terraform/scheduler.tf").read_text().split("resource", 1)[1]


def test_the_same_services_run_here_and_on_one_machine(state: State) -> None:
    assert state.services().keys() == set(SERVICES)


def test_every_size_is_declared(state: State) -> None:
    for name, service in state.services().items():
        [template] = service["template"]
        [scaling] = template["scaling"]
        assert scaling["max_instance_count"] >= 1, name
        # Cloud Run drops a zero, and each plan would write it anew.
        assert scaling["min_instance_count"] != 0, name
        [resources] = template["containers"][0]["resources"]
        assert resources["limits"].keys() == {"cpu", "memory"}, name
        # Cloud Run gives the names; one that is set makes the next change fail.
        assert not template["revision"], name
        assert not template["annotations"], name


def test_what_promote_owns_is_ignored_and_read_by_nothing() -> None:
    text = (ROOT / "terraform/predict.tf").read_text()
    [ignored] = re.findall(r"ignore_changes = \[(.*?)\n    \]", text, re.DOTALL)
    assert ignored.replace(",", "").split() == [
        "annotations",
        "template[0].containers[0].args",
        "template[0].labels",
        "traffic",
        "client",
        "client_version",
    ]
    changing = re.compile(
        r"google_cloud_run_v2_service\.\w+(\[[^]]*\])?\.(?!uri\b|name\b|id\b|location\b)\w+"
    )
    for file in (ROOT / "terraform").rglob("*.tf"):
        assert not changing.search(file.read_text()), file


@pytest.mark.parametrize("file", ["services.tf", "service/main.tf"])
def test_a_launch_stage_that_google_raises_is_no_difference(file: str) -> None:
    text = (ROOT / "terraform" / file).read_text()
    assert "launch_stage " in text
    assert re.findall(r"ignore_changes = \[(.*?)\]", text, re.DOTALL) == ["launch_stage"]


def test_every_image_is_named_by_its_digest(state: State) -> None:
    containers = [
        container
        for service in state.services().values()
        for container in service["template"][0]["containers"]
    ]
    for job in state.of("google_cloud_run_v2_job").values():
        containers += job["template"][0]["template"][0]["containers"]
    assert len(containers) == 7
    assert all("@sha256:" in container["image"] for container in containers)


def test_apis_stay_enabled(state: State) -> None:
    apis = state.of("google_project_service").values()
    assert apis
    assert not any(api["disable_on_destroy"] for api in apis)


def test_the_outputs_are_what_the_commands_read(state: State) -> None:
    exported = {}
    for line in state.outputs["environment"].splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        exported[name] = value.strip("'")
    commands: list[Any] = [submit, *main.commands.values()]
    read: set[str] = set()
    for option in (option for command in commands for option in command.params):
        names = {option.envvar} if isinstance(option.envvar, str) else set(option.envvar or ())
        read |= names
        # Enough to call each of them with no option at all.
        assert not (option.required and names) or names & exported.keys(), option.name
    # Google's own libraries read the last one.
    assert exported.keys() <= read | {GOOGLE_CLOUD_QUOTA_PROJECT}
    assert exported[GOOGLE_CLOUD_QUOTA_PROJECT] == PROJECT
