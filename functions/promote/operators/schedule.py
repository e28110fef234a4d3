"""The Cloud Scheduler job that calls promote."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import grpc
from google.cloud import scheduler_v1
from google.cloud.scheduler_v1.services.cloud_scheduler.transports import (
    CloudSchedulerGrpcTransport,
)
from google.rpc import code_pb2

from functions.promote.operators.access import explained

TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class JobState:
    """What the job says of itself."""

    schedule: str
    state: str
    """``ENABLED``, ``PAUSED``, or another of Cloud Scheduler's."""
    last_attempt: datetime | None
    """None: it has never run."""
    last_outcome: str
    """``OK`` or the name of a gRPC code; empty before the first run."""

    @property
    def paused(self) -> bool:
        """Return whether only forced runs happen."""
        return self.state == "PAUSED"


class Schedule:
    """One job.

    Args:
        project: Google Cloud project.
        region: where the job is.
        job: its short name.
        endpoint: address of the API; empty: Google's; ``http://`` for one without TLS.
    """

    def __init__(self, *, project: str, region: str, job: str, endpoint: str = "") -> None:
        self._name = f"projects/{project}/locations/{region}/jobs/{job}"
        self._endpoint = endpoint

    def read(self) -> JobState:
        """Return what the job says of itself.

        Raises:
            functions.promote.operators.access.OperatorError: it can't be asked.
        """
        with self._explained("roles/cloudscheduler.viewer"):
            return _state(
                self._client.get_job(name=self._name, timeout=TIMEOUT_SECONDS, retry=None)
            )

    def run(self) -> JobState:
        """Run it now, also when it is paused or running.

        Raises:
            functions.promote.operators.access.OperatorError: it can't be run.
        """
        with self._explained("roles/cloudscheduler.jobRunner"):
            return _state(
                self._client.run_job(name=self._name, timeout=TIMEOUT_SECONDS, retry=None)
            )

    def pause(self) -> bool:
        """Let the clock rest; return False if it did already.

        Raises:
            functions.promote.operators.access.OperatorError: it can't be paused.
        """
        if self.read().paused:
            return False
        with self._explained("roles/cloudscheduler.admin"):
            self._client.pause_job(name=self._name, timeout=TIMEOUT_SECONDS, retry=None)
        return True

    def resume(self) -> bool:
        """Let the clock run; return False if it did already.

        Raises:
            functions.promote.operators.access.OperatorError: it can't be resumed.
        """
        if not self.read().paused:
            return False
        with self._explained("roles/cloudscheduler.admin"):
            self._client.resume_job(name=self._name, timeout=TIMEOUT_SECONDS, retry=None)
        return True

    def _explained(self, role: str) -> AbstractContextManager[None]:
        return explained(
            "Cloud Scheduler",
            role=role,
            missing=f"there is no job {self._name}: check --project, --region and --job, "
            "or apply Terraform",
        )

    @cached_property
    def _client(self) -> scheduler_v1.CloudSchedulerClient:
        if self._endpoint.startswith("http://"):
            channel = grpc.insecure_channel(self._endpoint.removeprefix("http://"))
            transport = CloudSchedulerGrpcTransport(channel=channel)
            return scheduler_v1.CloudSchedulerClient(transport=transport)
        options = {"api_endpoint": self._endpoint} if self._endpoint else None
        return scheduler_v1.CloudSchedulerClient(client_options=options)


def _state(job: scheduler_v1.Job) -> JobState:
    pb = scheduler_v1.Job.pb(job)
    attempted = pb.HasField("last_attempt_time")
    return JobState(
        schedule=job.schedule,
        state=scheduler_v1.Job.State(job.state).name,
        last_attempt=pb.last_attempt_time.ToDatetime(UTC) if attempted else None,
        last_outcome=code_pb2.Code.Name(pb.status.code) if pb.HasField("status") else "",
    )
