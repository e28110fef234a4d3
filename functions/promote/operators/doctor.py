"""Checks a deployment from outside, with the operator's own credentials.

Each check looks through one door: Cloud Run's API, a service's address without a token,
Cloud Scheduler, MLflow, promote, the ledger, Cloud Storage, Cloud SQL. What a place does not
tell is reported as not checked, with the reason, and never as passed.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import google.auth
import grpc
import httpx
import requests
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from google.cloud import run_v2, storage
from google.cloud.run_v2.services.services.transports import ServicesGrpcTransport

from functions.promote.operators.access import SIGN_IN, Identity, OperatorError, explained, one_line
from functions.promote.operators.history import History, Line
from functions.promote.operators.schedule import JobState, Schedule
from functions.promote.operators.status import Status, ask, printable, span

TIMEOUT_SECONDS = 15.0
SERVICES = ("predict", "proxy", "promote", "ui", "mlflow", "mlflow-api")
# The job calls every minute; a run may fail, and the clock be late.
LONGEST_SILENCE = timedelta(minutes=5)

_HEALTH = {"ui": "/_stcore/health"}
_CLOUD_SQL = "https://sqladmin.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_SIGN_IN_HOST = "accounts.google.com"
# Where an `OperatorError` begins to say what to do.
_ADVICE = re.compile(r"[;:] (?=(?:apply|ask|check|give|install|name|sign in|try)\b)")
_READY = run_v2.Condition.State.CONDITION_SUCCEEDED
_PINNED = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION


class Outcome(StrEnum):
    """What a check came to."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    outcome: Outcome
    detail: str
    """What was seen, or why nothing was."""
    remedy: str = ""
    """What to do about it; empty unless it failed."""

    def as_json(self) -> dict[str, str]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Deployment:
    """Where to look."""

    project: str
    region: str
    cloud_run_endpoint: str
    """Address of the API; empty: Google's; ``http://`` for one without TLS."""
    http_proxy: str
    """HTTP proxy that the services' addresses are called through; empty: the environment's."""
    public: Collection[str]
    """Services that are meant to answer strangers."""
    buckets: Collection[str]
    """To be checked besides those that promote names."""
    database_instance: str
    """Cloud SQL instance; empty: none is checked."""
    sql_endpoint: str
    """Address of Cloud SQL's Admin API; empty: Google's; ``http://`` for one without TLS."""


def examine(
    deployment: Deployment,
    *,
    schedule: Schedule,
    history: History,
    promote_url: str,
    tracking_uri: str,
    model: str,
    identity: Identity,
) -> Iterator[Finding]:
    """Yield what each check found, as it is found.

    Args:
        deployment: where to look.
        schedule: the job that calls promote.
        history: the ledger.
        promote_url: address of promote.
        tracking_uri: address of MLflow for programs.
        model: name in the registry.
        identity: whose ID tokens promote and MLflow are called with.
    """
    found: dict[str, run_v2.Service] = {}
    client = _services(deployment.cloud_run_endpoint)
    for name in SERVICES:
        try:
            found[name] = _read_service(client, deployment, name)
        except OperatorError as error:
            yield _refused(f"service {name}", error)
            continue
        yield judge_service(name, found[name])
    yield from _doors(found, deployment)
    promote = _environment(found.get("promote"))
    served = promote.get("SERVICE", "predict")
    if served in found:
        yield judge_traffic(found[served])
    else:
        yield _not_checked(f"traffic of {served}", "Cloud Run did not tell of the service")
    yield _guarded("scheduler", lambda: judge_job(schedule.read(), datetime.now(UTC)))
    yield _guarded("registry", lambda: _registry(tracking_uri, model, identity))
    yield _guarded("last rollout", lambda: _last_rollout(promote_url, identity, history))
    yield from _buckets(deployment, promote)
    yield from _database(deployment)


def judge_service(name: str, service: run_v2.Service) -> Finding:
    """Say whether a service is ready."""
    check = f"service {name}"
    condition = service.terminal_condition
    if service.reconciling:
        return _failed(
            check, "Cloud Run is still working on the last change", "wait a minute, then look again"
        )
    if condition.state == _READY:
        return _passed(check, "ready")
    return _failed(
        check,
        f"not ready: {one_line(condition.message) or condition.state.name}",
        f"gcloud run services logs read {name}; then apply Terraform, or greenroom rollback",
    )


def judge_door(
    name: str, service: run_v2.Service, status: int, location: str, *, public: bool
) -> Finding:
    """Say whether a service refuses strangers.

    Args:
        name: of the service.
        service: as Cloud Run's API tells of it.
        status: HTTP status that a call without a token was answered with.
        location: header of that answer; empty: none.
        public: whether strangers are meant to be let in.
    """
    check = f"door of {name}"
    restricted = service.ingress not in (
        run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL,
        run_v2.IngressTraffic.INGRESS_TRAFFIC_UNSPECIFIED,
    )
    signs_in = service.iap_enabled and urlsplit(location).hostname == _SIGN_IN_HOST
    if status in (401, 403) or (status == 404 and restricted) or signs_in:
        how = "sends strangers to the sign-in" if signs_in else f"refuses strangers ({status})"
        return _passed(check, how)
    if public:
        return _passed(check, f"answers strangers ({status}), as it is meant to")
    if status < 500:
        return _failed(
            check,
            f"answers a stranger with {status}",
            f"gcloud run services remove-iam-policy-binding {name} --member=allUsers "
            "--role=roles/run.invoker, or name it with --public",
        )
    return _failed(
        check, f"a stranger's call ends with {status}", f"gcloud run services logs read {name}"
    )


def judge_traffic(service: run_v2.Service) -> Finding:
    """Say whether the traffic goes to revisions by name, so that a new one gets none."""
    name = service.name.rpartition("/")[2]
    check = f"traffic of {name}"
    if not service.traffic or any(target.type_ != _PINNED for target in service.traffic):
        return _failed(
            check,
            "goes to whatever revision is the latest",
            "greenroom run-now: promote's first act is to pin it",
        )
    shares = [
        f"{target.percent} % {target.revision}"
        for target in service.traffic_statuses
        if target.percent
    ]
    total = sum(target.percent for target in service.traffic_statuses)
    if total != 100:
        return _failed(
            check, f"{total} % of it goes somewhere", "wait a minute, then greenroom run-now"
        )
    return _passed(check, ", ".join(shares))


def judge_job(state: JobState, now: datetime) -> Finding:
    """Say whether the clock calls promote, and promote answers."""
    if state.paused:
        return _failed("scheduler", "the job is paused", "greenroom resume")
    if state.state != "ENABLED":
        return _failed("scheduler", f"the job is {state.state}", "apply Terraform")
    if state.last_attempt is None:
        return _failed("scheduler", "the job has never run", "wait a minute, or greenroom run-now")
    silence = now - state.last_attempt
    ago = f"{span(silence)} ago"
    if silence > LONGEST_SILENCE:
        return _failed("scheduler", f"the last run was {ago}", "greenroom run-now")
    if state.last_outcome not in ("", "OK"):
        return _failed(
            "scheduler", f"the last run, {ago}, ended with {state.last_outcome}", "greenroom status"
        )
    return _passed("scheduler", f"{state.schedule}, the last run {ago}")


def judge_rollout(status: Status, newest: Line | None, now: datetime) -> Finding:
    """Say what became of the last rollout."""
    check = "last rollout"
    if status.get("error"):
        return _failed(check, f"promote can't look: {status['error']}", "greenroom status")
    desired, served = status.get("desired") or {}, status.get("served") or {}
    version = desired.get("version")
    blocked = [item for item in status.get("blocked") or () if item["version"] == version]
    if blocked and served.get("version") != version:
        return _failed(
            check,
            f"version {version} was given up by {blocked[-1]['gate']}: {blocked[-1]['reason']}",
            "greenroom rollback, or name a better version in the registry",
        )
    if newest is None:
        return _not_checked(
            check, "nothing was ever rolled out: give a version the alias production"
        )
    return _passed(check, f"version {newest.version} {newest.event}, {span(now - newest.at)} ago")


def judge_bucket(name: str, properties: Mapping[str, Any]) -> Finding:
    """Say whether a bucket is closed, and keeps what is overwritten.

    Args:
        name: of the bucket.
        properties: the bucket as Cloud Storage's JSON API tells of it.
    """
    check = f"bucket {name}"
    access = properties.get("iamConfiguration")
    if access is None:
        # Google's own answers always have it.
        return _not_checked(check, "what answers for Cloud Storage does not tell who has access")
    wrong, options = [], []
    if not access.get("uniformBucketLevelAccess", {}).get("enabled"):
        wrong.append("access by object")
        options.append("--uniform-bucket-level-access")
    if access.get("publicAccessPrevention") != "enforced":
        wrong.append("public access is not prevented")
        options.append("--public-access-prevention")
    if not properties.get("versioning", {}).get("enabled"):
        wrong.append("no versioning")
        options.append("--versioning")
    if wrong:
        return _failed(
            check,
            ", ".join(wrong),
            f"apply Terraform, or gcloud storage buckets update gs://{name} {' '.join(options)}",
        )
    return _passed(check, "uniform access, public access prevented, versions kept")


def judge_database(name: str, instance: Mapping[str, Any]) -> Finding:
    """Say whether the database runs, is private, and is backed up.

    Args:
        name: of the instance.
        instance: as Cloud SQL's Admin API tells of it.
    """
    check = f"database {name}"
    settings = instance.get("settings", {})
    network = settings.get("ipConfiguration", {})
    backups = settings.get("backupConfiguration", {})
    wrong = []
    if instance.get("state") != "RUNNABLE":
        wrong.append(f"it is {instance.get('state', 'of unknown state')}")
    if network.get("ipv4Enabled", True):
        wrong.append("it has a public address")
    if network.get("sslMode") not in ("ENCRYPTED_ONLY", "TRUSTED_CLIENT_CERTIFICATE_REQUIRED"):
        wrong.append("connections without TLS are let in")
    if not backups.get("enabled"):
        wrong.append("no backups")
    elif not backups.get("pointInTimeRecoveryEnabled"):
        wrong.append("no point-in-time recovery")
    if wrong:
        return _failed(check, ", ".join(wrong), "apply Terraform")
    return _passed(check, "runs, private, TLS only, backups with point-in-time recovery")


def _services(endpoint: str) -> run_v2.ServicesClient:
    if endpoint.startswith("http://"):
        channel = grpc.insecure_channel(endpoint.removeprefix("http://"))
        return run_v2.ServicesClient(transport=ServicesGrpcTransport(channel=channel))
    return run_v2.ServicesClient(client_options={"api_endpoint": endpoint} if endpoint else None)


def _read_service(
    client: run_v2.ServicesClient, deployment: Deployment, name: str
) -> run_v2.Service:
    full = f"projects/{deployment.project}/locations/{deployment.region}/services/{name}"
    with explained(
        "Cloud Run",
        role="roles/run.viewer",
        missing=f"there is no service {full}; check --project and --region, or apply Terraform",
    ):
        return client.get_service(name=full, timeout=TIMEOUT_SECONDS, retry=None)


def _doors(found: Mapping[str, run_v2.Service], deployment: Deployment) -> Iterator[Finding]:
    with httpx.Client(proxy=deployment.http_proxy or None, timeout=TIMEOUT_SECONDS) as client:
        for name in SERVICES:
            check, service = f"door of {name}", found.get(name)
            if service is None:
                yield _not_checked(check, "Cloud Run did not tell of the service")
                continue
            try:
                answer = client.get(f"{service.uri}{_HEALTH.get(name, '/health')}")
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                yield _failed(
                    check,
                    f"{service.uri} can't be reached: {one_line(error)}",
                    "check the network, or --http-proxy",
                )
                continue
            location = answer.headers.get("location", "")
            public = name in deployment.public
            yield judge_door(name, service, answer.status_code, location, public=public)


def _registry(tracking_uri: str, model: str, identity: Identity) -> Finding:
    """Ask for the model: that goes through MLflow to its database."""
    if not tracking_uri:
        raise OperatorError("no address is given; give --tracking-uri or GREENROOM_TRACKING_URI")
    token = identity.token(tracking_uri)
    url = f"{tracking_uri.rstrip('/')}/api/2.0/mlflow/registered-models/get"
    try:
        answer = httpx.get(
            url,
            params={"name": model},
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT_SECONDS,
        )
        content = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OperatorError(
            f"MLflow at {tracking_uri} can't be reached: {one_line(error)}; check --tracking-uri"
        ) from error
    except ValueError:
        content = None
    if answer.status_code in (401, 403):
        raise OperatorError(
            f"MLflow at {tracking_uri} refuses you ({answer.status_code}); ask the project's owner "
            "for roles/run.invoker on the service mlflow-api"
        )
    code = content.get("error_code") if isinstance(content, dict) else None
    if code == "RESOURCE_DOES_NOT_EXIST":
        return _passed("registry", f"answers; no model {model} is registered yet")
    if not answer.is_success or not isinstance(content, dict) or "registered_model" not in content:
        raise OperatorError(
            f"{tracking_uri} answers {answer.status_code}, not as MLflow does; check "
            "--tracking-uri, then: gcloud run services logs read mlflow-api"
        )
    return _passed("registry", f"answers, and has {model}")


def _last_rollout(promote_url: str, identity: Identity, history: History) -> Finding:
    status = ask(promote_url, identity)
    newest = next(iter(history.newest(1)), None)
    return judge_rollout(status, newest, datetime.now(UTC))


def _buckets(deployment: Deployment, promote: Mapping[str, str]) -> Iterator[Finding]:
    own = [promote[key] for key in ("ARTIFACTS_BUCKET", "SERVING_BUCKET") if promote.get(key)]
    names = list(dict.fromkeys([*own, *deployment.buckets]))
    if not names:
        yield _not_checked("buckets", "promote names none; name them with --bucket")
        return
    try:
        client = storage.Client(project=deployment.project)
    except GoogleAuthError as error:
        yield _failed("buckets", one_line(error), SIGN_IN)
        return
    for name in names:
        yield _guarded(f"bucket {name}", partial(_bucket, client, name))


def _bucket(client: storage.Client, name: str) -> Finding:
    with explained(
        "Cloud Storage",
        role=f"roles/storage.bucketViewer on gs://{name}",
        missing=f"there is no bucket {name}; apply Terraform",
    ):
        try:
            bucket = client.get_bucket(name, timeout=TIMEOUT_SECONDS, retry=None)
        except requests.RequestException as error:
            raise OperatorError(
                f"Cloud Storage can't be reached: {one_line(error)}; check the network"
            ) from error
    return judge_bucket(name, bucket._properties)


def _database(deployment: Deployment) -> Iterator[Finding]:
    name = deployment.database_instance
    if not name:
        yield _not_checked("database", "no Cloud SQL instance is named: --database-instance")
        return
    yield _guarded(f"database {name}", lambda: judge_database(name, _instance(deployment)))


def _instance(deployment: Deployment) -> Mapping[str, Any]:
    name, endpoint = deployment.database_instance, deployment.sql_endpoint or _CLOUD_SQL
    try:
        if endpoint.startswith("http://"):
            session = requests.Session()
        else:
            # A person's own credentials may name another project to count calls against, where
            # this API is not even enabled.
            credentials, _ = google.auth.default(
                scopes=[_SCOPE], quota_project_id=deployment.project
            )
            session = AuthorizedSession(credentials)
        with session:
            answer = session.get(
                f"{endpoint}/v1/projects/{deployment.project}/instances/{name}",
                timeout=TIMEOUT_SECONDS,
            )
            content = answer.json() if answer.ok else None
    except GoogleAuthError as error:
        raise OperatorError(f"Cloud SQL does not know you: {one_line(error)}; {SIGN_IN}") from error
    except (requests.RequestException, ValueError) as error:
        raise OperatorError(
            f"Cloud SQL can't be asked: {one_line(error)}; check the network"
        ) from error
    if answer.status_code == 404:
        raise OperatorError(
            f"there is no instance {name} in {deployment.project}; check --database-instance"
        )
    if answer.status_code in (401, 403):
        raise OperatorError(
            f"Cloud SQL refuses you ({answer.status_code}); ask the project's owner for "
            "roles/cloudsql.viewer and roles/serviceusage.serviceUsageConsumer"
        )
    if not isinstance(content, dict):
        raise OperatorError(f"Cloud SQL answers {answer.status_code}; try again later")
    return content


def _environment(service: run_v2.Service | None) -> dict[str, str]:
    containers: Iterable[run_v2.Container] = service.template.containers if service else ()
    return {item.name: item.value for container in containers for item in container.env}


def _guarded(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except OperatorError as error:
        return _refused(check, error)


def _refused(check: str, error: OperatorError) -> Finding:
    """Return what an error says; its last part says what to do."""
    *seen, last = _ADVICE.split(str(error))
    if not seen:
        return _failed(check, last, "try again later")
    detail = str(error)[: -len(last)].rstrip(":; ")
    return _failed(check, detail, last)


def _passed(check: str, detail: str) -> Finding:
    return Finding(check, Outcome.PASSED, printable(detail))


def _failed(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, Outcome.FAILED, printable(detail), printable(remedy))


def _not_checked(check: str, reason: str) -> Finding:
    return Finding(check, Outcome.NOT_CHECKED, printable(reason))
