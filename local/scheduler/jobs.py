"""The jobs: what they are, when they run, and the calls that they make."""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import httpx
from google.cloud import scheduler_v1
from google.protobuf.empty_pb2 import Empty
from google.rpc import code_pb2, status_pb2

from local.cloud_run.store import Store
from local.cloud_run.validation import Refused, invalid
from local.scheduler import cron
from local.scheduler.validation import OUTPUT_ONLY, SETTABLE, check_job_id, complete, zone

ENABLED = scheduler_v1.Job.State(scheduler_v1.Job.State.ENABLED)
PAUSED = scheduler_v1.Job.State(scheduler_v1.Job.State.PAUSED)

EVERY_MINUTE = "* * * * *"

_LONGEST_DEADLINE_SECONDS = 1800
_MAX_PAGE = 500
# https://cloud.google.com/apis/design/errors#handling_errors, read backwards.
_CODES = {
    400: code_pb2.INVALID_ARGUMENT,
    401: code_pb2.UNAUTHENTICATED,
    403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.NOT_FOUND,
    409: code_pb2.ABORTED,
    429: code_pb2.RESOURCE_EXHAUSTED,
    500: code_pb2.INTERNAL,
    501: code_pb2.UNIMPLEMENTED,
    503: code_pb2.UNAVAILABLE,
    504: code_pb2.DEADLINE_EXCEEDED,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SchedulerConfig:
    """Settings of one stand-in: one project, one region."""

    project: str
    region: str
    data_dir: Path
    """Where the jobs are kept."""
    identities: Mapping[str, str]
    """Service account -> ``HOST:PORT`` of its metadata server, which signs its ID tokens."""
    tick_seconds: float | None = None
    """Jobs of every minute run every so many seconds instead; None: every minute."""
    twice_every: int = 0
    """Every so many runs one is sent twice at once, for delivery is at least once; 0: none."""

    @property
    def parent(self) -> str:
        """Return the only location that exists."""
        return f"projects/{self.project}/locations/{self.region}"


class _Clock:
    """What belongs to a job while this process lives."""

    def __init__(self) -> None:
        self.waiting: asyncio.Task[None] | None = None
        self.running: asyncio.Task[None] | None = None
        self.runs = 0
        self.last_words = ""


class Jobs:
    """All jobs of one location.

    Must be made and used in a running event loop.

    Args:
        config: of the stand-in.

    Raises:
        RuntimeError: another stand-in uses the same folder.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._store = Store(config.data_dir)
        kept = (self._store.load() or {"jobs": []})["jobs"]
        self._jobs: dict[str, scheduler_v1.Job] = {
            job.name: job for job in map(scheduler_v1.Job.from_json, kept)
        }
        self._clocks = {name: _Clock() for name in self._jobs}
        self._attempts: set[asyncio.Task[None]] = set()
        # The environment's proxy leads to the local services, as DNS does in the cloud.
        self._http = httpx.AsyncClient(timeout=_LONGEST_DEADLINE_SECONDS)
        self._metadata = httpx.AsyncClient(trust_env=False, timeout=10)
        for name in self._jobs:
            self._wind(name)

    async def close(self) -> None:
        """Stop all clocks; what is being called is not waited for."""
        waiting = [clock.waiting for clock in self._clocks.values() if clock.waiting]
        for task in (*waiting, *self._attempts):
            task.cancel()
        await asyncio.gather(*waiting, *self._attempts, return_exceptions=True)
        await self._http.aclose()
        await self._metadata.aclose()

    def get(self, request: scheduler_v1.GetJobRequest) -> scheduler_v1.Job:
        """Return a job, or refuse with NOT_FOUND."""
        return self._find(request.name)

    def list(self, request: scheduler_v1.ListJobsRequest) -> scheduler_v1.ListJobsResponse:
        """Return a page of the jobs, by name."""
        self._check_parent(request.parent)
        if request.page_size < 0:
            raise invalid("page_size must not be negative")
        names = [name for name in sorted(self._jobs) if name > request.page_token]
        size = min(request.page_size or _MAX_PAGE, _MAX_PAGE)
        return scheduler_v1.ListJobsResponse(
            jobs=[self._jobs[name] for name in names[:size]],
            next_page_token=names[size - 1] if len(names) > size else "",
        )

    def create(self, request: scheduler_v1.CreateJobRequest) -> scheduler_v1.Job:
        """Keep a new job, enabled."""
        self._check_parent(request.parent)
        job = scheduler_v1.Job(request.job)
        job.name = job.name or f"{request.parent}/jobs/{secrets.token_hex(8)}"
        parent, _, job_id = job.name.rpartition("/jobs/")
        if parent != request.parent:
            raise invalid(f"Job name '{job.name}' is not in '{request.parent}'")
        check_job_id(job_id)
        if job.name in self._jobs:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"Job {job.name} already exists.")
        for name in OUTPUT_ONLY:
            scheduler_v1.Job.pb(job).ClearField(name)
        complete(job, self._config.identities)
        job.state = ENABLED
        return self._put(job)

    def update(self, request: scheduler_v1.UpdateJobRequest) -> scheduler_v1.Job:
        """Replace the fields of the mask, or all where there is none."""
        job = scheduler_v1.Job(self._find(request.job.name))
        source, target = scheduler_v1.Job.pb(request.job), scheduler_v1.Job.pb(job)
        for path in request.update_mask.paths or SETTABLE:
            if path in OUTPUT_ONLY:
                continue
            if path not in SETTABLE:
                raise invalid(f"update_mask: '{path}' is not a field of a Job that can be set")
            target.ClearField(path)
            if path in ("description", "schedule", "time_zone"):
                setattr(target, path, getattr(source, path))
            elif source.HasField(path):
                getattr(target, path).CopyFrom(getattr(source, path))
        complete(job, self._config.identities)
        return self._put(job)

    def delete(self, request: scheduler_v1.DeleteJobRequest) -> Empty:
        """Forget a job."""
        self._find(request.name)
        clock = self._clocks.pop(request.name)
        if clock.waiting is not None:
            clock.waiting.cancel()
        del self._jobs[request.name]
        self._save()
        return Empty()

    def pause(self, request: scheduler_v1.PauseJobRequest) -> scheduler_v1.Job:
        """Run it no more by the clock; it must be enabled."""
        return self._change_state(request.name, ENABLED, PAUSED)

    def resume(self, request: scheduler_v1.ResumeJobRequest) -> scheduler_v1.Job:
        """Run it by the clock again; it must be paused."""
        return self._change_state(request.name, PAUSED, ENABLED)

    def run(self, request: scheduler_v1.RunJobRequest) -> scheduler_v1.Job:
        """Call its target now, also when it is being called already, or is paused."""
        job = self._find(request.name)
        self._attempt(job.name, datetime.now(UTC))
        return job

    def _find(self, name: str) -> scheduler_v1.Job:
        parent, separator, job_id = name.rpartition("/jobs/")
        if not separator:
            raise invalid(f"Job name must be formatted: '{self._config.parent}/jobs/<JOB_ID>'")
        self._check_parent(parent)
        check_job_id(job_id)
        if name not in self._jobs:
            raise Refused(grpc.StatusCode.NOT_FOUND, "Job not found.")
        return self._jobs[name]

    def _check_parent(self, parent: str) -> None:
        if parent != self._config.parent:
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"The principal lacks permission on '{parent}', or it may not exist: the stand-in "
                f"has {self._config.parent} only.",
            )

    def _change_state(
        self, name: str, before: scheduler_v1.Job.State, after: scheduler_v1.Job.State
    ) -> scheduler_v1.Job:
        job = self._find(name)
        if job.state != before:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"Job state must be {before.name}, it is {job.state.name}.",
            )
        job.state = after
        return self._put(job)

    def _put(self, job: scheduler_v1.Job) -> scheduler_v1.Job:
        now = datetime.now(UTC)
        scheduler_v1.Job.pb(job).user_update_time.FromDatetime(now)
        if job.state == ENABLED:
            scheduler_v1.Job.pb(job).schedule_time.FromDatetime(self._following(job, now))
        else:
            scheduler_v1.Job.pb(job).ClearField("schedule_time")
        self._jobs[job.name] = job
        self._clocks.setdefault(job.name, _Clock())
        self._wind(job.name)
        self._save()
        return job

    def _save(self) -> None:
        jobs = [scheduler_v1.Job.to_json(job, indent=None) for job in self._jobs.values()]
        self._store.save({"jobs": jobs})

    def _following(self, job: scheduler_v1.Job, after: datetime) -> datetime:
        if self._config.tick_seconds is not None and job.schedule == EVERY_MINUTE:
            return after + timedelta(seconds=self._config.tick_seconds)
        try:
            return cron.following(cron.parse(job.schedule), after, zone(job))
        except cron.InvalidSchedule as error:
            raise invalid(f"schedule: {error}") from None

    def _wind(self, name: str) -> None:
        clock = self._clocks[name]
        if clock.waiting is not None:
            clock.waiting.cancel()
        clock.waiting = asyncio.create_task(self._keep_time(name, clock))

    async def _keep_time(self, name: str, clock: _Clock) -> None:
        """Run the job whenever it is due; never while it still runs by the clock."""
        due = datetime.now(UTC)
        while self._jobs[name].state == ENABLED:
            job = self._jobs[name]
            due = self._following(job, due)
            scheduler_v1.Job.pb(job).schedule_time.FromDatetime(due)
            await asyncio.sleep((due - datetime.now(UTC)).total_seconds())
            if clock.running is not None:
                # Not awaited itself: pausing must not end a call that is under way.
                await asyncio.wait({clock.running})
            clock.running = self._attempt(name, due)
            clock.runs += 1
            if self._config.twice_every and clock.runs % self._config.twice_every == 0:
                self._attempt(name, due)
            await asyncio.wait({clock.running})
            # What was missed meanwhile is run once, and at once.
            following = self._following(job, due)
            while (later := self._following(job, following)) <= datetime.now(UTC):
                due, following = following, later

    def _attempt(self, name: str, due: datetime) -> asyncio.Task[None]:
        task = asyncio.create_task(self._call(name, due))
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)
        return task

    async def _call(self, name: str, due: datetime) -> None:
        job = self._jobs[name]
        pb = scheduler_v1.Job.pb(job)
        pb.last_attempt_time.FromDatetime(datetime.now(UTC))
        deadline = pb.attempt_deadline.ToTimedelta().total_seconds()
        status, words = status_pb2.Status(), ""
        try:
            async with asyncio.timeout(deadline):
                response = await self._send(job, due)
            words = str(response.status_code)
            if not response.is_success:
                status.code = _CODES.get(response.status_code, code_pb2.UNKNOWN)
                words = f"{words} {response.text[:300]}"
        except TimeoutError:
            status.code = code_pb2.DEADLINE_EXCEEDED
            words = f"no answer within {deadline:g} s"
        except httpx.HTTPError as error:
            status.code = code_pb2.UNAVAILABLE
            words = repr(error)
        # It may have been replaced, or deleted, meanwhile.
        if name in self._jobs:
            if words != self._clocks[name].last_words:
                logger.info("%s: %s", name.rpartition("/")[2], words)
                self._clocks[name].last_words = words
            self._jobs[name].status = status
            self._jobs[name].last_attempt_time = job.last_attempt_time
            self._save()

    async def _send(self, job: scheduler_v1.Job, due: datetime) -> httpx.Response:
        target = job.http_target
        headers = {
            **({"Content-Type": "application/octet-stream"} if target.body else {}),
            **target.headers,
            "User-Agent": "Google-Cloud-Scheduler",
            "X-CloudScheduler": "true",
            "X-CloudScheduler-JobName": job.name.rpartition("/")[2],
            "X-CloudScheduler-ScheduleTime": due.isoformat(timespec="seconds"),
        }
        if target.oidc_token.service_account_email:
            headers["Authorization"] = f"Bearer {await self._id_token(target)}"
        method = scheduler_v1.HttpMethod(target.http_method).name
        return await self._http.request(
            method, target.uri, headers=headers, content=target.body or None
        )

    async def _id_token(self, target: scheduler_v1.HttpTarget) -> str:
        token = target.oidc_token
        response = await self._metadata.get(
            f"http://{self._config.identities[token.service_account_email]}/computeMetadata/v1/"
            "instance/service-accounts/default/identity",
            # Without an audience it is the whole target: Cloud Run refuses one with a path.
            params={"audience": token.audience or target.uri, "format": "full"},
            headers={"Metadata-Flavor": "Google"},
        )
        response.raise_for_status()
        return response.text
