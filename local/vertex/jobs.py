"""Custom jobs as processes: queued, started, preempted, cancelled, ended."""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock, Thread, Timer
from typing import IO, Any

import grpc
from google.cloud import aiplatform_v1 as vertex
from google.rpc import code_pb2, status_pb2

from local.cloud_run import launch
from local.cloud_run.config import Image
from local.cloud_run.validation import Refused, invalid
from local.vertex.logs import SERVICE, WORKER, Log
from local.vertex.validation import LONGEST_SECONDS, check_job

_STATE = vertex.JobState
_FINAL = (_STATE.JOB_STATE_SUCCEEDED, _STATE.JOB_STATE_FAILED, _STATE.JOB_STATE_CANCELLED)
_REFERENCE = re.compile(r"\$(\$)?\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(frozen=True)
class VertexConfig:
    """Settings of one stand-in: one project, one region."""

    project: str
    project_number: str
    region: str
    images: Mapping[str, Image]
    """Image reference to what it runs; any other fails like a pull."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Given to every container: emulator endpoints and such."""
    log_delay_seconds: float = 0.1
    """From writing a line until it is listed; every other one takes twice as long."""
    grace_seconds: float = 10
    """From SIGTERM to SIGKILL when a job is cancelled."""


class Jobs:
    """All jobs of one stand-in.

    Args:
        config: of the stand-in.
        log: takes what they write.
    """

    def __init__(self, config: VertexConfig, log: Log) -> None:
        self._config = config
        self._log = log
        self._jobs: dict[str, _Job] = {}
        self._lock = Lock()

    def create(self, request: vertex.CreateCustomJobRequest) -> vertex.CustomJob:
        """Check a job, and start it.

        Raises:
            Refused: as Vertex AI does.
        """
        self._check_parent(request.parent)
        check_job(request.custom_job)
        job_id = str(secrets.randbelow(9 * 10**18) + 10**18)
        message = vertex.CustomJob.pb(vertex.CustomJob(request.custom_job))
        # Google answers with the project's number.
        message.name = (
            f"projects/{self._config.project_number}/locations/{self._config.region}/customJobs/"
            f"{job_id}"
        )
        message.state = _STATE.JOB_STATE_QUEUED
        message.create_time.GetCurrentTime()
        message.update_time.CopyFrom(message.create_time)
        with self._lock:
            self._jobs[job_id] = job = _Job(message, self._config, self._log)
        created = job.read()
        job.start()
        return created

    def get(self, request: vertex.GetCustomJobRequest) -> vertex.CustomJob:
        """Return a job.

        Raises:
            Refused: NOT_FOUND.
        """
        return self._find(request.name).read()

    def list(self, request: vertex.ListCustomJobsRequest) -> vertex.ListCustomJobsResponse:
        """Return all jobs, newest first, on one page."""
        self._check_parent(request.parent)
        if request.filter or request.page_token:
            raise invalid("the stand-in lists all jobs, on one page")
        with self._lock:
            jobs = [job.read() for job in reversed(self._jobs.values())]
        return vertex.ListCustomJobsResponse(custom_jobs=jobs)

    def cancel(self, request: vertex.CancelCustomJobRequest) -> None:
        """Begin to end a job.

        Raises:
            Refused: NOT_FOUND; FAILED_PRECONDITION when it has ended.
        """
        self._find(request.name).cancel()

    def preempt(self, name: str) -> None:
        """Take the job's machine away, as happens to Spot machines."""
        self._find(name).preempt()

    def close(self) -> None:
        """End all jobs at once."""
        for job in list(self._jobs.values()):
            job.kill()

    def _check_parent(self, parent: str) -> None:
        match = re.fullmatch(r"projects/([^/]+)/locations/([^/]+)", parent)
        if match is None:
            raise invalid(f"parent '{parent}' must be projects/PROJECT/locations/REGION")
        if match[1] not in (self._config.project, self._config.project_number):
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                "Permission 'aiplatform.customJobs.create' denied on resource "
                f"'//aiplatform.googleapis.com/{parent}' (or it may not exist).",
            )
        if match[2] != self._config.region:
            raise invalid(f"parent '{parent}': this endpoint serves {self._config.region} only")

    def _find(self, name: str) -> "_Job":
        parent, _, job_id = name.partition("/customJobs/")
        self._check_parent(parent)
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f'The CustomJob does not exist ("{name}").')
        return job


class _Job:
    """One job, and the thread that runs it."""

    # The message as protobuf's own: what proto-plus makes of states and times has no types.
    def __init__(self, message: Any, config: VertexConfig, log: Log) -> None:
        self._message = message
        self._id = message.name.rpartition("/")[2]
        self._config = config
        self._log = log
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self._preempted = False
        self._thread = Thread(target=self._run, name=f"job {self._id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def read(self) -> vertex.CustomJob:
        with self._lock:
            return vertex.CustomJob(self._message)

    def cancel(self) -> None:
        with self._lock:
            if self._message.state in _FINAL:
                raise Refused(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"CustomJob {self._message.name} is in a terminal state",
                )
            self._cancelled = True
            self._message.state = _STATE.JOB_STATE_CANCELLING
            self._signal(signal.SIGTERM)
            killing = Timer(self._config.grace_seconds, self._signal, [signal.SIGKILL])
            killing.daemon = True
            killing.start()

    def preempt(self) -> None:
        with self._lock:
            if self._process is None:
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "the job does not run")
            self._preempted = True
            self._signal(signal.SIGKILL)

    def kill(self) -> None:
        with self._lock:
            self._cancelled = True
            self._signal(signal.SIGKILL)
        self._thread.join()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _run(self) -> None:
        spec = self._message.job_spec
        image = spec.worker_pool_specs[0].container_spec.image_uri
        self._say("Job is preparing.")
        self._set(_STATE.JOB_STATE_PENDING)
        if image not in self._config.images:
            self._end(
                _STATE.JOB_STATE_FAILED,
                code_pb2.INVALID_ARGUMENT,
                f"Unable to pull the image {image}: it does not exist, or the Vertex AI service "
                "agent may not read it.",
            )
            return
        while True:
            # Not while it is being cancelled: that state stays.
            self._set(_STATE.JOB_STATE_RUNNING)
            status = self._run_once(self._config.images[image])
            if self._cancelled:
                self._end(_STATE.JOB_STATE_CANCELLED)
                return
            if status is None:
                self._end(
                    _STATE.JOB_STATE_CANCELLED,
                    code_pb2.DEADLINE_EXCEEDED,
                    "The job ran longer than scheduling.timeout.",
                )
                return
            if not self._preempted:
                break
            if not spec.scheduling.restart_job_on_worker_restart:
                self._end(
                    _STATE.JOB_STATE_FAILED,
                    code_pb2.ABORTED,
                    "The replica workerpool0-0 was preempted.",
                )
                return
            self._preempted = False
            self._say("The replica workerpool0-0 was preempted. The job is started again.")
            self._set(_STATE.JOB_STATE_PENDING)
        if status:
            self._end(
                _STATE.JOB_STATE_FAILED,
                code_pb2.INVALID_ARGUMENT,
                f"The replica workerpool0-0 exited with a non-zero status of {status}. To find "
                "out more about why your job exited please check the logs.",
            )
        else:
            self._say("Job completed successfully.")
            self._end(_STATE.JOB_STATE_SUCCEEDED)

    def _run_once(self, image: Image) -> int | None:
        """Run the container to its end; return its status, or None when its time was up."""
        spec = self._message.job_spec
        container = spec.worker_pool_specs[0].container_spec
        command = [*(container.command or image.entrypoint), *container.args]
        with self._lock:
            if self._cancelled:
                return 0
            self._process = process = subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command],
                cwd=image.working_directory,
                env=self._environment(container),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        readers = [
            Thread(target=self._copy, args=(stream, is_error), daemon=True)
            for stream, is_error in ((process.stdout, False), (process.stderr, True))
        ]
        for reader in readers:
            reader.start()
        is_over = False
        try:
            status = process.wait(spec.scheduling.timeout.seconds or LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            is_over = True
            self._signal(signal.SIGKILL)
            status = process.wait()
        for reader in readers:
            reader.join()
        with self._lock:
            self._process = None
        if is_over:
            return None
        return 128 - status if status < 0 else status

    def _copy(self, stream: IO[bytes], is_error: bool) -> None:
        with stream:
            for line in stream:
                # A progress bar rewrites its line: what is left of it is what a terminal shows.
                text = line.decode(errors="replace").rstrip("\n").rpartition("\r")[2]
                self._log.write(self._id, text, task=WORKER, is_error=is_error)

    def _environment(self, container: vertex.ContainerSpec) -> dict[str, str]:
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            **self._config.environment,
            "CLOUD_ML_JOB_ID": self._id,
            "CLOUD_ML_PROJECT_ID": self._config.project_number,
            "CLUSTER_SPEC": json.dumps(
                {
                    "cluster": {"workerpool0": [f"cmle-training-{WORKER}-{self._id}-0:2222"]},
                    "environment": "cloud",
                    "task": {"type": "workerpool0", "index": 0},
                }
            ),
        }
        folder = self._message.job_spec.base_output_directory.output_uri_prefix.rstrip("/")
        if folder:
            variables |= {
                "AIP_MODEL_DIR": f"{folder}/model/",
                "AIP_CHECKPOINT_DIR": f"{folder}/checkpoints/",
                "AIP_TENSORBOARD_LOG_DIR": f"{folder}/logs/",
            }
        for variable in container.env:
            variables[variable.name] = expand(variable.value, variables)
        return variables

    def _set(self, state: int) -> None:
        with self._lock:
            if self._message.state == _STATE.JOB_STATE_CANCELLING:
                return
            self._message.state = state
            self._message.update_time.GetCurrentTime()
            if state == _STATE.JOB_STATE_RUNNING and not self._message.HasField("start_time"):
                self._message.start_time.CopyFrom(self._message.update_time)

    def _end(self, state: int, code: int = 0, message: str = "") -> None:
        with self._lock:
            self._message.state = state
            self._message.end_time.GetCurrentTime()
            self._message.update_time.CopyFrom(self._message.end_time)
            if code:
                self._message.error.CopyFrom(status_pb2.Status(code=code, message=message))

    def _say(self, line: str) -> None:
        self._log.write(self._id, line, task=SERVICE)


def expand(value: str, variables: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` as documented: unknown names stay, ``$$(NAME)`` is never expanded."""

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        return variables.get(match[2], match[0])

    return _REFERENCE.sub(replace, value)
