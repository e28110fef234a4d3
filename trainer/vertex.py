"""Vertex AI: send a custom job, see how it goes, read its log."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property

import grpc
from google.api_core import exceptions
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import GoogleAuthError
from google.cloud.aiplatform_v1 import CustomJob, JobServiceClient, JobState
from google.cloud.aiplatform_v1.services.job_service.transports.grpc import (
    JobServiceGrpcTransport,
)
from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2Client
from google.cloud.logging_v2.services.logging_service_v2.transports import (
    LoggingServiceV2GrpcTransport,
)
from google.cloud.logging_v2.types import ListLogEntriesRequest, LogEntry
from google.protobuf.json_format import MessageToDict

FINAL_STATES = (
    JobState.JOB_STATE_SUCCEEDED,
    JobState.JOB_STATE_FAILED,
    JobState.JOB_STATE_CANCELLED,
    JobState.JOB_STATE_EXPIRED,
    JobState.JOB_STATE_PARTIALLY_SUCCEEDED,
)

TIMEOUT_SECONDS = 60.0
# A job goes on while nobody can ask for it: a laptop may be away for a while.
_PATIENCE_SECONDS = 600.0
# Entries are not stored in the order of their timestamps.
_LATE = timedelta(seconds=60)
_PAGE = 1000
# LogSeverity.ERROR: google.logging.type has no enumeration that Python can import with types.
_ERROR = 500


class VertexError(Exception):
    """Vertex AI or Cloud Logging refuses or can't be reached; the message says what to do."""


class LogsUnavailable(VertexError):
    """The log can't be read by whoever asks."""


class Vertex:
    """The jobs of a project in a region.

    Args:
        project: Google Cloud project.
        region: where its jobs run.
        endpoint: address of the API; empty: Google's; ``http://`` for one without TLS.
        logging_endpoint: the same of Cloud Logging.
    """

    def __init__(
        self, *, project: str, region: str, endpoint: str = "", logging_endpoint: str = ""
    ) -> None:
        self._project = project
        self._region = region
        self._endpoint = endpoint
        self._logging_endpoint = logging_endpoint

    @property
    def parent(self) -> str:
        """Return the name under which the jobs are."""
        return f"projects/{self._project}/locations/{self._region}"

    @cached_property
    def _jobs(self) -> JobServiceClient:
        if self._endpoint.startswith("http://"):
            channel = grpc.insecure_channel(self._endpoint.removeprefix("http://"))
            return JobServiceClient(transport=JobServiceGrpcTransport(channel=channel))
        # Jobs are regional, and so are the addresses by which they are found.
        address = self._endpoint or f"{self._region}-aiplatform.googleapis.com"
        return JobServiceClient(client_options={"api_endpoint": address})

    @cached_property
    def _logs(self) -> LoggingServiceV2Client:
        if self._logging_endpoint.startswith("http://"):
            channel = grpc.insecure_channel(self._logging_endpoint.removeprefix("http://"))
            return LoggingServiceV2Client(transport=LoggingServiceV2GrpcTransport(channel=channel))
        options = {"api_endpoint": self._logging_endpoint} if self._logging_endpoint else None
        return LoggingServiceV2Client(client_options=options)

    def create(self, job: CustomJob) -> CustomJob:
        """Start a job and return it with its name.

        Raises:
            VertexError: it was not started; or there was no answer, and nobody knows.
        """
        try:
            # Not tried again: a job whose answer got lost would run twice.
            return self._jobs.create_custom_job(
                parent=self.parent, custom_job=job, retry=None, timeout=TIMEOUT_SECONDS
            )
        except exceptions.PermissionDenied as error:
            raise VertexError(
                f"Vertex AI: {_message(error)}. Sending a job takes roles/aiplatform.user on the "
                f"project {self._project} and roles/iam.serviceAccountUser on the job's service "
                "account"
            ) from error
        except exceptions.ResourceExhausted as error:
            raise VertexError(
                f"Vertex AI: {_message(error)}. Ask for more quota of custom training in "
                f"{self._region}, or choose another machine, accelerator or region"
            ) from error
        except (exceptions.GoogleAPICallError, exceptions.RetryError, GoogleAuthError) as error:
            raise _explained("Vertex AI", error) from error

    def get(self, name: str) -> CustomJob:
        """Return a job as it is now; an API that does not answer is asked again for ten minutes.

        Raises:
            VertexError: it could not be read.
        """
        try:
            return self._jobs.get_custom_job(
                name=name,
                timeout=TIMEOUT_SECONDS,
                retry=Retry(
                    if_exception_type(
                        exceptions.ServerError,
                        exceptions.TooManyRequests,
                    ),
                    timeout=_PATIENCE_SECONDS,
                ),
            )
        except (exceptions.GoogleAPICallError, exceptions.RetryError, GoogleAuthError) as error:
            raise _explained("Vertex AI", error) from error

    def cancel(self, name: str) -> None:
        """Ask for a job to be ended.

        Raises:
            VertexError: that was refused.
        """
        try:
            self._jobs.cancel_custom_job(name=name, timeout=TIMEOUT_SECONDS)
        except (exceptions.GoogleAPICallError, exceptions.RetryError, GoogleAuthError) as error:
            raise _explained("Vertex AI", error) from error

    def log(self, job: CustomJob) -> "JobLog":
        """Return a reader of what the job writes, from its start."""
        return JobLog(self._logs, self._project, job)

    def console(self, name: str) -> str:
        """Return the address of the job's page."""
        return (
            f"https://console.cloud.google.com/agent-platform/locations/{self._region}/training/"
            f"{short(name)}?project={self._project}"
        )


class JobLog:
    """What a job has written, each line once.

    Args:
        client: of Cloud Logging.
        project: of the job.
        job: as it was created.
    """

    def __init__(self, client: LoggingServiceV2Client, project: str, job: CustomJob) -> None:
        self._client = client
        self._project = project
        self._job_id = short(job.name)
        self._newest = _time(job.create_time)
        self._seen: dict[str, datetime] = {}

    def read(self) -> Iterator[tuple[str, bool]]:
        """Yield the new entries in order of time, each with whether it belongs to standard error.

        That is what the container writes there, and what Vertex AI says of the job.

        Raises:
            LogsUnavailable: whoever asks may not read the log.
            VertexError: there is no answer this time.
        """
        since = self._newest - _LATE
        self._seen = {key: when for key, when in self._seen.items() if when >= since}
        stamp = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        request = ListLogEntriesRequest(
            resource_names=[f"projects/{self._project}"],
            filter=f'resource.type="ml_job" AND resource.labels.job_id="{self._job_id}" '
            f'AND timestamp>="{stamp}"',
            order_by="timestamp asc",
            page_size=_PAGE,
        )
        try:
            # Not tried again here: the job's state is of interest meanwhile.
            for entry in self._client.list_log_entries(
                request, retry=None, timeout=TIMEOUT_SECONDS
            ):
                if entry.insert_id in self._seen:
                    continue
                self._seen[entry.insert_id] = when = _time(entry.timestamp)
                self._newest = max(self._newest, when)
                is_service = entry.resource.labels.get("task_name") == "service"
                # Vertex AI gives what a container writes to standard error this severity.
                yield _text(entry), is_service or entry.severity >= _ERROR
        except exceptions.PermissionDenied as error:
            raise LogsUnavailable(
                f"Cloud Logging: {_message(error)}. Reading takes roles/logging.viewer on the "
                f"project {self._project}"
            ) from error
        except (exceptions.GoogleAPICallError, exceptions.RetryError, GoogleAuthError) as error:
            raise _explained("Cloud Logging", error) from error


def short(name: str) -> str:
    """Return the last part of a resource's name."""
    return name.rpartition("/")[2]


def _time(stamp: object) -> datetime:
    """Return a timestamp of a message as what proto-plus makes of it: the types say Timestamp."""
    if not isinstance(stamp, datetime):
        raise TypeError(f"{stamp!r} is no datetime")
    return stamp


def _text(entry: LogEntry) -> str:
    payload = LogEntry.pb(entry)
    if payload.WhichOneof("payload") != "json_payload":
        return entry.text_payload.rstrip("\n")
    # A line that is JSON becomes fields; the agent puts any other line in "message".
    fields = MessageToDict(payload.json_payload)
    message = fields.get("message")
    return message.rstrip("\n") if isinstance(message, str) else json.dumps(fields)


def _explained(api: str, error: Exception) -> VertexError:
    if isinstance(error, exceptions.Unauthenticated | GoogleAuthError):
        return VertexError(
            f"{api} needs your credentials: gcloud auth application-default login "
            f"({_message(error)})"
        )
    return VertexError(f"{api}: {_message(error)}")


def _message(error: Exception) -> str:
    message = error.message if isinstance(error, exceptions.GoogleAPICallError) else str(error)
    return " ".join(str(message).split()).rstrip(".")
