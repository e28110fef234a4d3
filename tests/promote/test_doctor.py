"""What `greenroom doctor` makes of what it sees, and of what does not answer."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result
from google.cloud import run_v2
from hypothesis import given
from hypothesis import strategies as st

from functions.promote.command import main
from functions.promote.operators.access import OperatorError
from functions.promote.operators.doctor import (
    SERVICES,
    Finding,
    Outcome,
    _refused,
    judge_bucket,
    judge_database,
    judge_door,
    judge_job,
    judge_rollout,
    judge_service,
    judge_traffic,
)
from functions.promote.operators.history import Line
from functions.promote.operators.schedule import JobState
from tests.emulators import StorageEmulator

NOON = datetime(2026, 11, 17, 12, tzinfo=UTC)
NOWHERE = "http://127.0.0.1:1"
State = run_v2.Condition.State
Allocation = run_v2.TrafficTargetAllocationType

BUCKET = {
    "name": "serving",
    "iamConfiguration": {
        "uniformBucketLevelAccess": {"enabled": True},
        "publicAccessPrevention": "enforced",
    },
    "versioning": {"enabled": True},
}
INSTANCE: dict[str, Any] = {
    "state": "RUNNABLE",
    "settings": {
        "ipConfiguration": {"ipv4Enabled": False, "sslMode": "ENCRYPTED_ONLY"},
        "backupConfiguration": {"enabled": True, "pointInTimeRecoveryEnabled": True},
    },
}


def doctor(*arguments: str, **environment: str) -> Result:
    """Run it where nothing answers, but for what the environment names."""
    defaults = {
        "GREENROOM_PROJECT": "greenroom-doctor",
        "GREENROOM_REGION": "europe-west1",
        "GREENROOM_CLOUD_RUN_ENDPOINT": NOWHERE,
        "GREENROOM_SCHEDULER_ENDPOINT": NOWHERE,
        "GREENROOM_SQL_ENDPOINT": NOWHERE,
        "GREENROOM_PROMOTE_URL": NOWHERE,
        "GREENROOM_TRACKING_URI": NOWHERE,
        "FIRESTORE_EMULATOR_HOST": "127.0.0.1:1",
        "STORAGE_EMULATOR_HOST": NOWHERE,
    }
    return CliRunner(env=defaults | environment).invoke(main, ("doctor", *arguments))


def findings(*arguments: str, **environment: str) -> dict[str, dict[str, str]]:
    result = doctor("--json", *arguments, **environment)
    assert result.exit_code == 1, result.output
    content = json.loads(result.stdout)
    assert content["healthy"] is False
    return {item["check"]: item for item in content["checks"]}


# What is seen


@pytest.mark.parametrize(
    ("state", "reconciling", "outcome"),
    [
        (State.CONDITION_SUCCEEDED, False, Outcome.PASSED),
        (State.CONDITION_SUCCEEDED, True, Outcome.FAILED),
        (State.CONDITION_FAILED, False, Outcome.FAILED),
        (State.STATE_UNSPECIFIED, False, Outcome.FAILED),
    ],
)
def test_a_service_is_ready_when_cloud_run_says_so(
    state: run_v2.Condition.State, reconciling: bool, outcome: Outcome
) -> None:
    condition = run_v2.Condition(state=state, message="The container did not start.")
    service = run_v2.Service(terminal_condition=condition, reconciling=reconciling)
    assert judge_service("predict", service).outcome is outcome


@pytest.mark.parametrize(
    ("status", "fields", "location", "public", "outcome"),
    [
        (403, {}, "", False, Outcome.PASSED),
        (401, {}, "", False, Outcome.PASSED),
        (200, {}, "", False, Outcome.FAILED),
        (200, {}, "", True, Outcome.PASSED),
        # The container's own 404: it was reached.
        (404, {}, "", False, Outcome.FAILED),
        # The front end's, to who comes from outside.
        (404, {"ingress": 2}, "", False, Outcome.PASSED),
        (302, {"iap_enabled": True}, "https://accounts.google.com/o/oauth2", False, Outcome.PASSED),
        (302, {"iap_enabled": True}, "https://accounts.google.com.evil/x", False, Outcome.FAILED),
        (302, {}, "https://accounts.google.com/o/oauth2", False, Outcome.FAILED),
        (503, {}, "", False, Outcome.FAILED),
    ],
)
def test_a_door_is_closed_when_a_stranger_is_refused(
    status: int, fields: dict[str, Any], location: str, public: bool, outcome: Outcome
) -> None:
    found = judge_door("proxy", run_v2.Service(**fields), status, location, public=public)
    assert found.outcome is outcome
    assert bool(found.remedy) is (outcome is Outcome.FAILED)


def target(percent: int, revision: str = "predict-1", *, latest: bool = False) -> Any:
    kind = Allocation.TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST
    if not latest:
        kind = Allocation.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION
    return run_v2.TrafficTarget(type_=kind, revision=revision, percent=percent)


@pytest.mark.parametrize(
    ("targets", "shares", "outcome"),
    [
        ([], [100], Outcome.FAILED),
        ([target(100, latest=True)], [100], Outcome.FAILED),
        ([target(100), target(0, latest=True)], [100], Outcome.FAILED),
        ([target(100)], [100], Outcome.PASSED),
        ([target(90), target(10, "predict-2")], [90, 10], Outcome.PASSED),
        ([target(100)], [50], Outcome.FAILED),
    ],
)
def test_traffic_is_pinned_when_no_target_is_the_latest(
    targets: list[Any], shares: list[int], outcome: Outcome
) -> None:
    service = run_v2.Service(
        name="projects/p/locations/l/services/predict",
        traffic=targets,
        traffic_statuses=[
            run_v2.TrafficTargetStatus(revision=f"predict-{number}", percent=share)
            for number, share in enumerate(shares)
        ],
    )
    assert judge_traffic(service).outcome is outcome


@pytest.mark.parametrize(
    ("state", "minutes", "last", "outcome", "words"),
    [
        ("ENABLED", 1, "OK", Outcome.PASSED, ""),
        # Under way.
        ("ENABLED", 0, "", Outcome.PASSED, ""),
        ("PAUSED", 1, "OK", Outcome.FAILED, "greenroom resume"),
        ("DISABLED", 1, "OK", Outcome.FAILED, "Terraform"),
        ("ENABLED", None, "", Outcome.FAILED, "run-now"),
        ("ENABLED", 6, "OK", Outcome.FAILED, "run-now"),
        ("ENABLED", 1, "UNAVAILABLE", Outcome.FAILED, "greenroom status"),
    ],
)
def test_the_clock_ticks_when_the_last_run_is_recent_and_good(
    state: str, minutes: int | None, last: str, outcome: Outcome, words: str
) -> None:
    attempt = None if minutes is None else NOON - timedelta(minutes=minutes)
    found = judge_job(JobState("* * * * *", state, attempt, last), NOON)
    assert found.outcome is outcome
    assert words in found.remedy


BLOCKED = {"version": "3", "gate": "golden", "reason": "two texts differ\x1b[2J"}


@pytest.mark.parametrize(
    ("status", "event", "outcome", "words"),
    [
        ({"served": {"version": "2"}}, "promoted", Outcome.PASSED, "version 2 promoted"),
        ({"error": "MLflow is down"}, "promoted", Outcome.FAILED, "MLflow is down"),
        (
            {
                "desired": {"version": "3"},
                "served": {"version": "2"},
                "blocked": [BLOCKED],
            },
            "blocked",
            Outcome.FAILED,
            "version 3 was given up by golden: two texts differ [2J",
        ),
        # Of an earlier version: what is wanted now is served.
        (
            {"desired": {"version": "2"}, "served": {"version": "2"}, "blocked": [BLOCKED]},
            "blocked",
            Outcome.PASSED,
            "",
        ),
        ({"desired": None, "served": None}, None, Outcome.NOT_CHECKED, "alias production"),
    ],
)
def test_the_last_rollout(
    status: dict[str, Any], event: str | None, outcome: Outcome, words: str
) -> None:
    newest = event and Line(at=NOON, event=event, version="2")
    found = judge_rollout(status, newest or None, NOON + timedelta(hours=1))
    assert found.outcome is outcome
    assert words in found.detail


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"versioning": {"enabled": False}}, "--versioning"),
        ({"versioning": None}, "--versioning"),
        (
            {"iamConfiguration": {"publicAccessPrevention": "enforced"}},
            "--uniform-bucket-level-access",
        ),
        (
            {
                "iamConfiguration": {
                    "uniformBucketLevelAccess": {"enabled": True},
                    "publicAccessPrevention": "inherited",
                }
            },
            "--public-access-prevention",
        ),
    ],
)
def test_a_bucket_is_closed_and_keeps_versions(change: dict[str, Any], words: str) -> None:
    properties = {key: value for key, value in (BUCKET | change).items() if value is not None}
    found = judge_bucket("serving", properties)
    assert found.outcome is (Outcome.FAILED if words else Outcome.PASSED)
    assert words in found.remedy


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((), None, "runs, private"),
        (("state",), "STOPPED", "STOPPED"),
        (("settings", "ipConfiguration", "ipv4Enabled"), True, "public address"),
        (("settings", "ipConfiguration", "sslMode"), "ALLOW_UNENCRYPTED_AND_ENCRYPTED", "TLS"),
        (("settings", "backupConfiguration", "enabled"), False, "no backups"),
        (("settings", "backupConfiguration", "pointInTimeRecoveryEnabled"), False, "point-in-time"),
    ],
)
def test_a_database_is_private_and_backed_up(path: tuple[str, ...], value: Any, words: str) -> None:
    instance = json.loads(json.dumps(INSTANCE))
    if path:
        *parents, last = path
        place = instance
        for name in parents:
            place = place[name]
        place[last] = value
    found = judge_database("mlflow", instance)
    assert found.outcome is (Outcome.FAILED if path else Outcome.PASSED)
    assert words in found.detail


@given(
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1),
    st.sampled_from([": ", "; "]),
    st.sampled_from(["check --region", "ask the owner for roles/run.viewer", "apply Terraform"]),
)
def test_an_error_is_told_from_its_advice(words: str, between: str, advice: str) -> None:
    found = _refused("service predict", OperatorError(f"{words}{between}{advice}"))
    assert found.remedy == advice
    assert found.detail in words


def test_an_error_without_advice_is_told_whole() -> None:
    found = _refused("registry", OperatorError("Firestore: 500 internal"))
    assert found == Finding(
        "registry", Outcome.FAILED, "Firestore: 500 internal", "try again later"
    )


# What answers, and what does not


@pytest.fixture
def google() -> Iterator[tuple[str, dict[str, tuple[int, Any]]]]:
    """An address that answers as its second part says, by path."""
    known: dict[str, tuple[int, Any]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = known.get(self.path.partition("?")[0], (404, {"error": {}}))
            body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", known
    server.shutdown()
    server.server_close()


def test_where_nothing_answers_each_check_says_so_and_what_to_do() -> None:
    found = findings("--database-instance=mlflow", "--bucket=serving")
    for name in SERVICES:
        assert found[f"service {name}"]["outcome"] == "failed"
        assert found[f"door of {name}"]["outcome"] == "not checked"
    assert found["traffic of predict"]["outcome"] == "not checked"
    for check in ("scheduler", "registry", "last rollout", "bucket serving", "database mlflow"):
        assert found[check]["outcome"] == "failed", check
    for item in found.values():
        assert item["detail"]
        assert bool(item["remedy"]) is (item["outcome"] == "failed")


def test_the_table_names_the_remedy_and_counts() -> None:
    result = doctor()
    assert result.exit_code == 1
    assert "check --tracking-uri" in result.stdout
    # No bucket and no database is named.
    assert result.stdout.splitlines()[-1] == "9 failed, 9 not checked"


@pytest.mark.parametrize(
    ("status", "content", "outcome", "words"),
    [
        (200, {"registered_model": {"name": "yelp-model"}}, "passed", "has yelp-model"),
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}, "passed", "no model yelp-model"),
        (403, "<html>", "failed", "refuses you (403)"),
        (500, {"error_code": "INTERNAL_ERROR"}, "failed", "answers 500"),
        (200, "<html>", "failed", "not as MLflow does"),
        (200, [], "failed", "not as MLflow does"),
    ],
)
def test_the_registry_is_asked_through_to_its_database(
    google: tuple[str, dict[str, tuple[int, Any]]],
    status: int,
    content: Any,
    outcome: str,
    words: str,
) -> None:
    url, known = google
    known["/api/2.0/mlflow/registered-models/get"] = (status, content)
    found = findings(GREENROOM_TRACKING_URI=url)["registry"]
    assert found["outcome"] == outcome
    assert words in found["detail"]


@pytest.mark.parametrize(
    ("status", "content", "outcome", "words"),
    [
        (200, INSTANCE, "passed", "backups"),
        (403, {}, "failed", "refuses you"),
        (404, {}, "failed", "no instance mlflow"),
        (500, "oops", "failed", "answers 500"),
        (200, "oops", "failed", "can't be asked"),
    ],
)
def test_the_database_is_asked_of_cloud_sql(
    google: tuple[str, dict[str, tuple[int, Any]]],
    status: int,
    content: Any,
    outcome: str,
    words: str,
) -> None:
    url, known = google
    known["/v1/projects/greenroom-doctor/instances/mlflow"] = (status, content)
    found = findings("--database-instance=mlflow", GREENROOM_SQL_ENDPOINT=url)["database mlflow"]
    assert found["outcome"] == outcome
    assert words in found["detail"]


def test_calls_of_cloud_sql_count_against_the_deployments_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A person's credentials name the project that was set when they were made.

    Guards against a 403 for an API that is not enabled in that other project.
    """
    credentials = tmp_path / "credentials.json"
    person = {"client_id": "id", "client_secret": "secret", "refresh_token": "token"}
    credentials.write_text(
        json.dumps({**person, "type": "authorized_user", "quota_project_id": "another"})
    )
    sent: list[requests.PreparedRequest] = []

    def send(_: Any, request: requests.PreparedRequest, **_options: Any) -> requests.Response:
        sent.append(request)
        answer = requests.Response()
        answer.status_code = 200
        asked = "sqladmin" in str(request.url)
        content = INSTANCE if asked else {"access_token": "token", "expires_in": 3600}
        answer._content = json.dumps(content).encode()
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    found = findings(
        "--database-instance=mlflow",
        GOOGLE_APPLICATION_CREDENTIALS=str(credentials),
        GREENROOM_SQL_ENDPOINT="",
    )
    assert found["database mlflow"]["outcome"] == "passed", found["database mlflow"]
    [call] = [request for request in sent if "sqladmin" in str(request.url)]
    assert call.headers["x-goog-user-project"] == "greenroom-doctor"


def test_buckets_are_asked_of_cloud_storage(
    google: tuple[str, dict[str, tuple[int, Any]]],
) -> None:
    url, known = google
    known["/storage/v1/b/serving"] = (200, BUCKET)
    known["/storage/v1/b/open"] = (200, BUCKET | {"name": "open", "versioning": {}})
    found = findings(GREENROOM_BUCKETS="serving open gone", STORAGE_EMULATOR_HOST=url)
    assert found["bucket serving"]["outcome"] == "passed"
    assert "--versioning" in found["bucket open"]["remedy"]
    assert "there is no bucket gone" in found["bucket gone"]["detail"]


def test_what_an_emulator_does_not_tell_is_not_passed(storage_emulator: StorageEmulator) -> None:
    storage_emulator.upload("doctor", "folder", {"a": b"1"})
    found = findings("--bucket=doctor", STORAGE_EMULATOR_HOST=storage_emulator.url)
    assert found["bucket doctor"]["outcome"] == "not checked"
