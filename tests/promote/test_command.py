"""The operators' command line: what it reads, and what it says when something refuses."""

import json
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.cloud import firestore
from hypothesis import given
from hypothesis import strategies as st

from functions.promote.command import main
from functions.promote.ledger import Ledger
from functions.promote.operators.access import Identity, OperatorError
from functions.promote.operators.history import History, Line, ends
from functions.promote.operators.releases import Record, caused_by, earlier
from functions.promote.operators.status import at_rest, in_sync, moment, printable, rows, span
from functions.promote.plan import Entry
from tests.emulators import FirestoreEmulator
from tests.proxy.relay import FirestoreRelay

PROJECT = "greenroom-operators"
NOON = datetime(2026, 11, 17, 12, tzinfo=UTC)
NOWHERE = "http://127.0.0.1:1"


def greenroom(*arguments: str, **environment: str) -> Result:
    defaults = {
        "GREENROOM_PROJECT": PROJECT,
        "GREENROOM_REGION": "europe-west1",
        "GREENROOM_SCHEDULER_ENDPOINT": NOWHERE,
        "GREENROOM_PROMOTE_URL": NOWHERE,
        "GREENROOM_TRACKING_URI": "",
        "MLFLOW_TRACKING_URI": "",
        # The command sets them, for its own process.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    }
    return CliRunner(env={**defaults, **environment}).invoke(main, arguments)


def line(hours: float, version: str, event: str = "promoted", **fields: Any) -> Line:
    return Line(at=NOON + timedelta(hours=hours), event=event, version=version, **fields)


def entry(hours: float, version: str, event: str = "promoted") -> Entry:
    return Entry(
        at=NOON + timedelta(hours=hours),
        event=event,
        version=version,
        run_id="0" * 32,
        revision=f"predict-{version}",
        from_version=None,
        from_revision=None,
        because="alias:production",
    )


@pytest.fixture
def ledger(
    firestore_emulator: FirestoreEmulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ledger]:
    # Refuses a query whose index Terraform does not install.
    relay = FirestoreRelay(firestore_emulator.host)
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", relay.host)
    firestore_emulator.clear(PROJECT)
    yield Ledger(project=PROJECT, database="(default)")
    relay.close()
    firestore_emulator.clear(PROJECT)


# The ledger


def test_which_model_was_in_production_last_tuesday(ledger: Ledger) -> None:
    ledger.publish({"at": NOON.isoformat()})
    for item in (entry(0, "1"), entry(24, "2"), entry(30, "3", "blocked"), entry(48, "3")):
        ledger.append(item)
    # More than a page of what changes nothing.
    for number in range(60):
        ledger.append(entry(49 + number / 60, "4", "blocked"))
    history = History(project=PROJECT, database="(default)")

    def at(hours: float) -> tuple[str, datetime | None] | None:
        found = history.in_production(NOON + timedelta(hours=hours))
        return (found.line.version, found.end) if found else None

    assert at(-1) is None
    assert at(0) == ("1", NOON + timedelta(hours=24))
    assert at(31) == ("2", NOON + timedelta(hours=48))
    assert at(1000) == ("3", None)
    assert [item.version for item in history.newest(61)] == ["4"] * 60 + ["3"]

    shown = greenroom("history", "--at", "2026-11-18 19:00")
    assert shown.exit_code == 0
    assert "2026-11-18T12:00:00Z  promoted  2" in shown.stdout
    assert "1 d" in shown.stdout
    assert "alias:production" in shown.stdout
    assert shown.stdout.count("promoted") == 1
    machine = json.loads(greenroom("history", "--at", "2026-11-18T20:00+01:00", "--json").stdout)
    assert machine["entries"][0]["version"] == "2"
    assert machine["entries"][0]["until"] == "2026-11-19T12:00:00Z"
    assert machine["entries"][0]["seconds_served"] == 86_400
    before = greenroom("history", "--at", "2026-11-01")
    assert (before.exit_code, before.stdout) == (1, "nothing was in production then\n")


def test_an_entry_of_a_later_promote_is_shown(ledger: Ledger) -> None:
    collection = firestore.Client(project=PROJECT).collection("rollouts")
    collection.document("later").set(
        {"at": NOON, "event": "invented", "version": "9", "new": {"field": 1}}
    )
    shown = json.loads(greenroom("history", "--json").stdout)
    assert shown["entries"][0]["new"] == {"field": 1}
    assert shown["entries"][0]["seconds_served"] is None


@given(st.lists(st.sampled_from(["promoted", "blocked", "stepped"]), max_size=12))
def test_a_version_serves_until_the_next_is_promoted(events: list[str]) -> None:
    lines = [line(-hours, str(hours), event) for hours, event in enumerate(events)]
    for item, end in zip(lines, ends(lines), strict=True):
        later = [other.at for other in lines if other.at > item.at and other.event == "promoted"]
        assert end == min(later, default=None)


# The way back


@pytest.mark.parametrize(
    ("named", "known", "expected"),
    [
        ("3", {"1", "2", "3"}, "2"),
        # The named one never got there: what is served is the way back.
        ("4", {"1", "2", "3", "4"}, "3"),
        ("3", {"1", "3"}, "1"),
        ("3", {"3"}, None),
        (None, {"1", "2", "3"}, "3"),
    ],
)
def test_the_way_back_leads_to_what_was_served(
    named: str | None, known: set[str], expected: str | None
) -> None:
    assert earlier([line(2, "3"), line(1, "2"), line(0, "1")], named, known) == expected


def test_a_rollback_belongs_to_the_promotion_that_followed_it() -> None:
    record = Record(NOON, "alice@example.com", "1", "2", "worse")
    promoted = line(0.1, "1")
    assert caused_by(promoted, [record], NOON - timedelta(hours=1)) == record
    assert caused_by(promoted, [record], None) == record
    assert caused_by(line(0.1, "2"), [record], None) is None
    assert caused_by(line(0.1, "1", "blocked"), [record], None) is None
    # Before it, or when it had led to another promotion already.
    assert caused_by(line(-0.1, "1"), [record], None) is None
    assert caused_by(line(5, "1"), [record], NOON + timedelta(hours=4)) is None


# Status

SERVED: dict[str, object] = {
    "at": NOON.isoformat(),
    "error": None,
    "desired": {"version": "2", "run_id": "abc", "because": "stage:Production"},
    "served": {"version": "2", "revision": "predict-00002"},
    "candidate": None,
    "blocked": [],
    "action": {"kind": "idle", "detail": "version 2 is served by predict-00002"},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"desired": None}, False),
        ({"desired": {"version": "3", "run_id": "", "because": ""}}, False),
        ({"served": {"version": None, "revision": "predict-00001"}}, False),
        # The same version with new code.
        ({"candidate": {"version": "2", "since": "now"}}, False),
        ({"error": "MLflow does not answer"}, False),
    ],
)
def test_in_sync_is_the_named_version_served_and_nothing_on_its_way(
    change: dict[str, Any], expected: bool
) -> None:
    assert in_sync({**SERVED, **change}) is expected


def test_a_promote_that_can_not_look_is_not_at_rest() -> None:
    assert at_rest(SERVED)
    assert not at_rest({**SERVED, "error": "MLflow does not answer"})
    assert not at_rest({**SERVED, "action": {"kind": "wait", "detail": ""}})


def test_a_rollout_is_shown_with_its_step_gates_and_blocks() -> None:
    step = {
        "revision": "predict-00003",
        "percent": 10,
        "since": "2026-11-17T12:00:00Z",
        "gates": [{"gate": "golden", "outcome": "passed", "reason": "40 texts"}],
    }
    blocked = {
        "version": "4",
        "gate": "start",
        "reason": "exit\x1b[2J",
        "scope": "pair",
        "at": "2026-11-17T11:00:00Z",
    }
    candidate = {"version": "3", "since": "2026-11-17T11:59:00Z", "step": step}
    shown = dict(rows({**SERVED, "candidate": candidate, "blocked": [blocked], "new": {"x": 1}}))
    assert shown["registry"] == "version 2 (stage:Production), run abc"
    assert shown["served"] == "version 2, revision predict-00002"
    assert shown["step"] == "10 % of the traffic, since 2026-11-17T12:00:00Z"
    assert shown["gate golden"] == "passed: 40 texts"
    assert shown["blocked"] == (
        "version 4 by start: exit [2J (this model with this code; 2026-11-17T11:00:00Z)"
    )
    assert shown["new"] == '{"x": 1}'


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3660, "1 h 1 min"),
        (90_061, "1 d 1 h"),
        (86_400 + 59, "1 d"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert span(timedelta(seconds=seconds)) == expected


@given(st.text())
def test_nothing_printed_moves_the_cursor(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)


def test_times_are_utc() -> None:
    assert moment(datetime.fromisoformat("2026-11-17T13:00:00.5+01:00")) == "2026-11-17T12:00:00Z"


# What refuses


class Answers:
    """An HTTP server that answers every request alike."""

    def __init__(self) -> None:
        self.status = 200
        self.body = ""
        self.requests: list[tuple[str, str]] = []
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                answers.requests.append((self.path, self.rfile.read(length).decode()))
                self.send_response(answers.status)
                self.send_header("Content-Length", str(len(answers.body)))
                self.end_headers()
                self.wfile.write(answers.body.encode())

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def answers() -> Iterator[Answers]:
    running = Answers()
    yield running
    running.close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, "", "roles/run.invoker on the service promote"),
        (401, "", "--impersonate"),
        (404, "", "answers 404, not as promote does: check --promote-url"),
        (200, "<html>", "not as promote does"),
        (200, "[]", "not as promote does"),
    ],
)
def test_what_promote_answers_is_said_in_one_line(
    answers: Answers, status: int, body: str, words: str
) -> None:
    answers.status, answers.body = status, body
    result = greenroom("status", GREENROOM_PROMOTE_URL=answers.url)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_promote_that_can_not_look_leaves_what_it_published_last(
    answers: Answers, ledger: Ledger
) -> None:
    ledger.publish(SERVED)
    answers.status = 503
    answers.body = json.dumps({"title": "Service Unavailable", "detail": "MLflow is down"})
    result = greenroom("status", "--json", GREENROOM_PROMOTE_URL=answers.url)
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert shown["error"] == "MLflow is down"
    assert shown["served"] == SERVED["served"]
    assert "Cloud Scheduler can't be reached" in shown["notes"][0]


@pytest.fixture
def refusing() -> Iterator[Callable[..., str]]:
    """Google's API, that refuses everything with a code."""
    servers = []

    class Refusal(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
        def __init__(self, code: grpc.StatusCode, words: str) -> None:
            self._code = code
            self._words = words

        def service(self, _details: Any) -> grpc.RpcMethodHandler:
            def refuse(_request: bytes, context: Any) -> bytes:
                context.abort(self._code, self._words)
                return b""

            return grpc.unary_unary_rpc_method_handler(refuse)

    def make(code: grpc.StatusCode, words: str = "no\nway") -> str:
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((Refusal(code, words),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"http://127.0.0.1:{port}"

    yield make
    for server in servers:
        server.stop(None).wait()


@pytest.mark.parametrize("command", ["pause", "resume", "run-now"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "ask the project's owner for roles/cloudscheduler."),
        (grpc.StatusCode.UNAUTHENTICATED, "gcloud auth application-default login"),
        (grpc.StatusCode.NOT_FOUND, "there is no job projects/greenroom-operators/locations"),
        (grpc.StatusCode.UNAVAILABLE, "can't be reached"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "can't be reached"),
        (grpc.StatusCode.FAILED_PRECONDITION, "no way"),
    ],
)
def test_what_cloud_scheduler_refuses_is_said_in_one_line(
    refusing: Callable[..., str], command: str, code: grpc.StatusCode, words: str
) -> None:
    result = greenroom(command, GREENROOM_SCHEDULER_ENDPOINT=refusing(code))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_expired_credentials_are_no_matter_of_the_network(refusing: Callable[..., str]) -> None:
    """gRPC reports them as UNAVAILABLE."""
    words = "Getting metadata from plugin failed with error: Reauthentication is needed."
    url = refusing(grpc.StatusCode.UNAVAILABLE, words)
    result = greenroom("pause", GREENROOM_SCHEDULER_ENDPOINT=url)
    assert "sign in with: gcloud auth application-default login" in result.stderr
    assert "network" not in result.stderr


@pytest.mark.parametrize("status", [401, 403])
def test_what_cloud_run_says_in_place_of_mlflow(answers: Answers, status: int) -> None:
    answers.status = status
    result = greenroom("rollback", GREENROOM_TRACKING_URI=answers.url)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "ask the project's owner for roles/run.invoker on the service mlflow-api" in (
        result.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("history", "--at", "last tuesday"), "is not a time"),
        (("history", "--limit", "0"), "--limit"),
        (("rollback", "--promote-on", "production", "--tracking-uri", NOWHERE), "alias:NAME"),
        (("rollback",), "--tracking-uri or GREENROOM_TRACKING_URI"),
        (("rollback", "--tracking-uri", NOWHERE), "check --tracking-uri"),
    ],
)
def test_wrong_use_is_explained(arguments: tuple[str, ...], words: str) -> None:
    result = greenroom(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_what_is_missing_is_named_with_its_variable() -> None:
    result = CliRunner(env={"GREENROOM_PROJECT": "", "GOOGLE_CLOUD_PROJECT": ""}).invoke(
        main, ["history"]
    )
    assert result.exit_code == 2
    assert "--project" in result.stderr
    assert "GREENROOM_PROJECT" in result.stderr


# Who the operator is


@pytest.fixture
def as_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's application default credentials; the folder on the path is returned."""
    credentials = tmp_path / "user.json"
    user = {"type": "authorized_user", "client_id": "a", "client_secret": "b"}
    credentials.write_text(json.dumps({**user, "refresh_token": "c"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def install_gcloud(folder: Path, script: str) -> None:
    gcloud = folder / "gcloud"
    gcloud.write_text(f"#!/bin/sh\n{script}\n")
    gcloud.chmod(gcloud.stat().st_mode | stat.S_IXUSR)


def test_a_users_token_comes_from_gcloud(as_user: Path) -> None:
    install_gcloud(as_user, 'echo "token for $*"')
    assert Identity().token("https://promote.example") == (
        "token for auth print-identity-token --quiet"
    )
    assert Identity().token("http://127.0.0.1:8083") is None


def test_without_a_token_the_way_to_one_is_told(as_user: Path) -> None:
    install_gcloud(as_user, 'echo "noise"; echo "ERROR: no account" >&2; exit 1')
    with pytest.raises(OperatorError, match=r"ERROR: no account; sign in with: gcloud auth login"):
        Identity().token("https://promote.example")


def test_a_service_accounts_token_names_the_service(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from google.auth import crypt, jwt

    key = (
        rsa.generate_private_key(65537, 2048)
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )
    email = f"operator@{PROJECT}.iam.gserviceaccount.com"
    now = int(datetime.now(UTC).timestamp())
    token = jwt.encode(
        crypt.RSASigner.from_string(key),
        {"email": email, "iat": now, "exp": now + 3600, "aud": "https://promote.example"},
    ).decode()
    answers.body = json.dumps({"id_token": token})
    account = {"type": "service_account", "client_email": email, "private_key": key}
    file = tmp_path / "account.json"
    file.write_text(json.dumps({**account, "token_uri": f"{answers.url}/token"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    identity = Identity()
    assert identity.token("https://promote.example") == token
    assert identity.name("https://promote.example") == email
    # Once for both.
    [(path, body)] = answers.requests
    assert path == "/token"
    claims = jwt.decode(body.partition("assertion=")[2].partition("&")[0], verify=False)
    assert claims["target_audience"] == "https://promote.example"
