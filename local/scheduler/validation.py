"""What Cloud Scheduler refuses in a job, and the defaults it fills in."""

import re
from collections.abc import Collection
from datetime import timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import grpc
from google.cloud import scheduler_v1
from google.protobuf.duration_pb2 import Duration

from local.cloud_run.validation import Refused, invalid
from local.scheduler.cron import InvalidSchedule, parse

SETTABLE = (
    "description",
    "http_target",
    "schedule",
    "time_zone",
    "retry_config",
    "attempt_deadline",
)
OUTPUT_ONLY = ("user_update_time", "state", "status", "schedule_time", "last_attempt_time")

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,500}")
_DEFAULT_DEADLINE_SECONDS = 180
_MAX_DESCRIPTION = 500
_MAX_URI = 2083
_MAX_HEADER_BYTES = 80 * 1024
_MAX_RETRIES = 5
_WITH_BODY = (
    scheduler_v1.HttpMethod.POST,
    scheduler_v1.HttpMethod.PUT,
    scheduler_v1.HttpMethod.PATCH,
)
# Set by Cloud Scheduler itself, whatever the job says.
_REPLACED_HEADERS = re.compile(
    r"host|content-length|user-agent|x-(google|appengine)-.*|"
    r"x-cloudscheduler.*",
    re.IGNORECASE,
)


def check_job_id(job_id: str) -> None:
    """Refuse a name that no job may have."""
    if not _JOB_ID.fullmatch(job_id):
        raise invalid(
            f"Job ID '{job_id}' must have 1 to 500 letters, numbers, hyphens and underscores"
        )


def complete(job: scheduler_v1.Job, accounts: Collection[str]) -> None:
    """Check what a caller may set, and fill in the defaults, in place.

    Args:
        job: as it is to be kept.
        accounts: service accounts that the caller may act as.

    Raises:
        Refused: INVALID_ARGUMENT naming the field, or PERMISSION_DENIED for an account.
    """
    if len(job.description) > _MAX_DESCRIPTION:
        raise invalid(f"description: at most {_MAX_DESCRIPTION} characters")
    if not job.schedule:
        raise invalid("schedule is required")
    try:
        parse(job.schedule)
    except InvalidSchedule as error:
        raise invalid(f"schedule: {error} (the stand-in knows the unix-cron format only)") from None
    job.time_zone = job.time_zone or "Etc/UTC"
    zone(job)
    pb = scheduler_v1.Job.pb(job)
    if pb.WhichOneof("target") != "http_target":
        raise invalid("target: one is required, and the stand-in knows http_target only")
    _complete_target(job.http_target, accounts)
    if not pb.HasField("attempt_deadline"):
        pb.attempt_deadline.CopyFrom(Duration(seconds=_DEFAULT_DEADLINE_SECONDS))
    if not 15 <= pb.attempt_deadline.ToTimedelta().total_seconds() <= 1800:
        raise invalid("attempt_deadline must be between 15 seconds and 30 minutes")
    _complete_retry(job.retry_config)


def zone(job: scheduler_v1.Job) -> ZoneInfo:
    """Return the job's time zone.

    Raises:
        Refused: INVALID_ARGUMENT, there is none of that name.
    """
    # Google spells it "utc" too; the database's names are case-sensitive.
    name = "Etc/UTC" if job.time_zone.lower() == "utc" else job.time_zone
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise invalid(f"time_zone '{job.time_zone}' is not in the tz database") from None


def _complete_target(target: scheduler_v1.HttpTarget, accounts: Collection[str]) -> None:
    where = "http_target"
    if not target.uri.startswith(("http://", "https://")):
        raise invalid(f"{where}.uri must begin with http:// or https://")
    if len(target.uri) > _MAX_URI:
        raise invalid(f"{where}.uri: at most {_MAX_URI} characters")
    if not target.http_method:
        target.http_method = scheduler_v1.HttpMethod(scheduler_v1.HttpMethod.POST)
    if target.body and target.http_method not in _WITH_BODY:
        raise invalid(f"{where}.body is allowed with POST, PUT and PATCH only")
    for name in [name for name in target.headers if _REPLACED_HEADERS.fullmatch(name)]:
        del target.headers[name]
    if sum(len(k) + len(v) for k, v in target.headers.items()) >= _MAX_HEADER_BYTES:
        raise invalid(f"{where}.headers: less than 80 KB")
    kind = scheduler_v1.HttpTarget.pb(target).WhichOneof("authorization_header")
    if kind == "oauth_token":
        raise invalid(f"{where}.oauth_token is for googleapis.com, which the stand-in is not")
    if kind == "oidc_token":
        account = target.oidc_token.service_account_email
        if account not in accounts:
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                "The principal (user or service account) lacks IAM permission "
                f'"iam.serviceAccounts.actAs" for the resource "{account}" '
                "(or the resource may not exist).",
            )


def _complete_retry(retry: scheduler_v1.RetryConfig) -> None:
    if not 0 <= retry.retry_count <= _MAX_RETRIES:
        raise invalid(f"retry_config.retry_count must be between 0 and {_MAX_RETRIES}")
    if retry.retry_count:
        raise invalid("retry_config.retry_count: the stand-in does not retry")
    retry.min_backoff_duration = retry.min_backoff_duration or timedelta(seconds=5)
    retry.max_backoff_duration = retry.max_backoff_duration or timedelta(hours=1)
    retry.max_doublings = retry.max_doublings or 5
