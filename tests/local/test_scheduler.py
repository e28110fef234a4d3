"""The stand-in of Cloud Scheduler, through Google's own client."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import scheduler_v1
from google.cloud.scheduler_v1.services.cloud_scheduler.transports import (
    CloudSchedulerGrpcTransport,
)
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import code_pb2

from local.settings import free_port
from tests.local.conftest import CALLER, PROJECT, REGION, ROOT, StandIn, wait_for

PARENT = f"projects/{PROJECT}/locations/{REGION}"
STATE = scheduler_v1.Job.State


class Scheduler:
    """The stand-in as a process of its own."""

    def __init__(self, folder: Path, *arguments: str, identity: str = "127.0.0.1:1") -> None:
        self.port = free_port()
        self.folder = folder
        self._arguments = [
            *(sys.executable, "-m", "local.scheduler"),
            f"--project={PROJECT}",
            f"--region={REGION}",
            f"--port={self.port}",
            f"--data-dir={folder}",
            f"--identity={CALLER}={identity}",
            *arguments,
        ]
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._arguments, cwd=ROOT, env={**os.environ, **self.environment}
        )
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        grpc.channel_ready_future(channel).result(timeout=30)
        self.jobs = scheduler_v1.CloudSchedulerClient(
            transport=CloudSchedulerGrpcTransport(channel=channel)
        )

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(20) == 0

    def create(self, job: scheduler_v1.Job) -> scheduler_v1.Job:
        return self.jobs.create_job(parent=PARENT, job=job)


class Target:
    """What a job calls: keeps the requests, answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        self.seconds = 0.0
        self.most_at_once = 0
        self.at_once = 0
        target = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                target.at_once += 1
                target.most_at_once = max(target.most_at_once, target.at_once)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                target.requests.append((self.path, dict(self.headers), body))
                time.sleep(target.seconds)
                target.at_once -= 1
                self.send_response(target.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def target() -> Iterator[Target]:
    running = Target()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    """One that keeps whole minutes, as in the cloud."""
    running = Scheduler(tmp_path_factory.mktemp("slow"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Scheduler]]:
    made: list[Scheduler] = []

    def make(*arguments: str, identity: str = "127.0.0.1:1", **environment: str) -> Scheduler:
        running = Scheduler(tmp_path / str(len(made)), *arguments, identity=identity)
        running.environment = environment
        made.append(running)
        running.start()
        return running

    yield make
    for running in made:
        running.stop()


def job(name: str = "", url: str = "http://127.0.0.1:1/", **fields: Any) -> scheduler_v1.Job:
    return scheduler_v1.Job(
        **{
            "name": name if not name or "/" in name else f"{PARENT}/jobs/{name}",
            "schedule": "* * * * *",
            "http_target": {"uri": url},
            **fields,
        }
    )


def schedule_time(of: scheduler_v1.Job) -> datetime:
    found: datetime = scheduler_v1.Job.pb(of).schedule_time.ToDatetime(UTC)
    return found


def test_a_job_begins_enabled_with_the_documented_defaults(slow: Scheduler) -> None:
    before = datetime.now(UTC)
    created = slow.create(job("defaults"))
    assert created == slow.jobs.get_job(name=created.name)
    assert created.state == STATE.ENABLED
    assert created.http_target.http_method == scheduler_v1.HttpMethod.POST
    assert created.attempt_deadline == timedelta(minutes=3)
    assert created.retry_config.min_backoff_duration == timedelta(seconds=5)
    assert created.time_zone == "Etc/UTC"
    # The next whole minute.
    due = schedule_time(created)
    assert due.second == due.microsecond == 0
    assert before < due <= datetime.now(UTC) + timedelta(minutes=1)
    assert not created.last_attempt_time


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "no spaces"}, "Job ID"),
        ({"name": "projects/other/locations/europe-west1/jobs/a"}, "is not in"),
        ({"schedule": ""}, "schedule is required"),
        ({"schedule": "every 5 minutes"}, "unix-cron"),
        ({"schedule": "*/0 * * * *"}, "step"),
        ({"schedule": "60 * * * *"}, "within 0 to 59"),
        ({"schedule": "* * * * * *"}, "five fields"),
        ({"schedule": "0 0 30 2 *"}, "never comes"),
        ({"time_zone": "Mars/Olympus"}, "tz database"),
        ({"http_target": {"uri": "ftp://a/"}}, "http://"),
        ({"http_target": {"uri": "http://a/", "http_method": "GET", "body": b"x"}}, "body"),
        ({"http_target": {"uri": "http://a/", "oauth_token": {"scope": "x"}}}, "oauth_token"),
        ({"http_target": None, "pubsub_target": {"topic_name": "x"}}, "http_target only"),
        ({"attempt_deadline": timedelta(seconds=14)}, "15 seconds"),
        ({"attempt_deadline": timedelta(seconds=1801)}, "30 minutes"),
        ({"retry_config": {"retry_count": 6}}, "between 0 and 5"),
        ({"retry_config": {"retry_count": 1}}, "does not retry"),
        ({"description": "x" * 501}, "500"),
    ],
)
def test_what_is_documented_as_wrong_is_refused(
    slow: Scheduler, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(exceptions.InvalidArgument, match=words):
        slow.create(job(**fields))


def test_names_permissions_and_places(slow: Scheduler) -> None:
    slow.create(job("once"))
    with pytest.raises(exceptions.AlreadyExists):
        slow.create(job("once"))
    named = slow.create(job())
    assert named.name.startswith(f"{PARENT}/jobs/")
    target = {"uri": "http://a/", "oidc_token": {"service_account_email": "nobody@x"}}
    with pytest.raises(exceptions.PermissionDenied, match="actAs"):
        slow.create(job(http_target=target))
    with pytest.raises(exceptions.NotFound):
        slow.jobs.get_job(name=f"{PARENT}/jobs/none")
    with pytest.raises(exceptions.InvalidArgument, match="must be formatted"):
        slow.jobs.get_job(name="none")
    with pytest.raises(exceptions.PermissionDenied, match="may not exist"):
        list(slow.jobs.list_jobs(parent="projects/p/locations/l"))
    listed = [item.name for item in slow.jobs.list_jobs({"parent": PARENT, "page_size": 1})]
    assert named.name in listed
    assert listed == sorted(set(listed))
    slow.jobs.delete_job(name=named.name)
    with pytest.raises(exceptions.NotFound):
        slow.jobs.delete_job(name=named.name)


def test_a_mask_changes_what_it_names(slow: Scheduler) -> None:
    created = slow.create(job("masked", description="before", schedule="0 3 * * *"))
    change = scheduler_v1.Job(name=created.name, schedule="30 4 * * *", description="ignored")
    updated = slow.jobs.update_job(job=change, update_mask=FieldMask(paths=["schedule", "state"]))
    assert (updated.schedule, updated.description) == ("30 4 * * *", "before")
    assert updated.state == STATE.ENABLED
    assert (schedule_time(updated).hour, schedule_time(updated).minute) == (4, 30)
    with pytest.raises(exceptions.InvalidArgument, match="nonsense"):
        slow.jobs.update_job(job=change, update_mask=FieldMask(paths=["nonsense"]))
    # Without a mask all is replaced: a target is missing then.
    with pytest.raises(exceptions.InvalidArgument, match="target"):
        slow.jobs.update_job(job=change)


def test_it_calls_by_the_clock_until_it_is_paused(
    start: Callable[..., Scheduler], target: Target
) -> None:
    scheduler = start("--tick-seconds=0.1")
    headers = {"X-Mine": "1", "User-Agent": "mine"}
    http_target = {"uri": f"{target.url}/tick", "headers": headers, "body": b"{}"}
    created = scheduler.create(job("ticks", http_target=http_target))
    wait_for(lambda: len(target.requests) >= 3)
    path, sent, body = target.requests[0]
    assert (path, body) == ("/tick", b"{}")
    assert sent["X-Mine"] == "1"
    assert sent["User-Agent"] == "Google-Cloud-Scheduler"
    assert sent["X-CloudScheduler"] == "true"
    assert sent["X-CloudScheduler-JobName"] == "ticks"
    datetime.fromisoformat(sent["X-CloudScheduler-ScheduleTime"])
    assert sent["Content-Type"] == "application/octet-stream"
    assert "Authorization" not in sent

    with pytest.raises(exceptions.FailedPrecondition, match="must be PAUSED"):
        scheduler.jobs.resume_job(name=created.name)
    paused = scheduler.jobs.pause_job(name=created.name)
    assert paused.state == STATE.PAUSED
    assert not paused.schedule_time
    with pytest.raises(exceptions.FailedPrecondition, match="must be ENABLED"):
        scheduler.jobs.pause_job(name=created.name)
    # One may be under way.
    count = len(target.requests)
    time.sleep(0.8)
    assert len(target.requests) <= count + 1

    # Forced, it runs all the same.
    count = len(target.requests)
    scheduler.jobs.run_job(name=created.name)
    wait_for(lambda: len(target.requests) > count)
    assert scheduler.jobs.get_job(name=created.name).state == STATE.PAUSED

    # Also after a restart.
    scheduler.stop()
    scheduler.start()
    assert scheduler.jobs.get_job(name=created.name).state == STATE.PAUSED
    count = len(target.requests)
    time.sleep(0.5)
    assert len(target.requests) <= count + 1
    scheduler.jobs.resume_job(name=created.name)
    wait_for(lambda: len(target.requests) > count + 3)


def test_only_forced_runs_and_repeated_ones_overlap(
    start: Callable[..., Scheduler], target: Target
) -> None:
    target.seconds = 0.4
    scheduler = start("--tick-seconds=0.1")
    created = scheduler.create(job("slow", target.url))
    wait_for(lambda: len(target.requests) >= 4)
    assert target.most_at_once == 1
    for _ in range(2):
        scheduler.jobs.run_job(name=created.name)
    wait_for(lambda: target.most_at_once >= 2)
    scheduler.jobs.delete_job(name=created.name)
    # Its last calls would stand beside those of the next job.
    wait_for(lambda: target.at_once == 0)

    target.most_at_once = 0
    start("--tick-seconds=0.1", "--twice-every=2").create(job("twice", target.url))
    wait_for(lambda: target.most_at_once == 2)


def test_the_status_of_the_last_attempt(start: Callable[..., Scheduler], target: Target) -> None:
    scheduler = start()
    created = scheduler.create(job("status", target.url))

    def becomes(code: int, url: str) -> None:
        change = job(created.name, url)
        scheduler.jobs.update_job(job=change, update_mask=FieldMask(paths=["http_target"]))
        scheduler.jobs.run_job(name=created.name)
        wait_for(
            lambda: scheduler.jobs.get_job(name=created.name).status.code,
            lambda found: found == code,
        )

    target.status = 503
    becomes(code_pb2.UNAVAILABLE, target.url)
    target.status = 403
    becomes(code_pb2.PERMISSION_DENIED, target.url)
    target.status = 204
    becomes(code_pb2.OK, target.url)
    becomes(code_pb2.UNAVAILABLE, "http://127.0.0.1:1/")


def test_cloud_run_knows_who_calls(
    start: Callable[..., Scheduler], stand_in: StandIn, service_name: str
) -> None:
    stand_in.create(service_name)
    stand_in.grant(service_name, f"serviceAccount:{CALLER}")
    url = f"http://{service_name}.localhost:{stand_in.port}"
    scheduler = start(
        identity=f"127.0.0.1:{stand_in.metadata_ports[CALLER]}",
        HTTP_PROXY=f"http://127.0.0.1:{stand_in.port}",
        NO_PROXY="127.0.0.1",
    )

    def outcome(name: str, **token: str) -> int:
        target = {"uri": f"{url}/", "oidc_token": {"service_account_email": CALLER, **token}}
        created = scheduler.create(job(name, http_target=target))
        scheduler.jobs.run_job(name=created.name)
        done: scheduler_v1.Job = wait_for(
            lambda: scheduler.jobs.get_job(name=created.name),
            lambda item: scheduler_v1.Job.pb(item).HasField("status"),
        )
        return int(done.status.code)

    assert outcome("audience", audience=url) == code_pb2.OK
    # The whole target by default, which Cloud Run refuses.
    assert outcome("whole") == code_pb2.UNAUTHENTICATED


def test_two_on_one_folder_are_refused(slow: Scheduler) -> None:
    kept = slow.create(job("kept")).name
    second = subprocess.run(
        [
            *(sys.executable, "-m", "local.scheduler", f"--project={PROJECT}"),
            *(f"--region={REGION}", f"--port={free_port()}", f"--data-dir={slow.folder}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert "in use" in second.stderr
    assert kept in (slow.folder / "state.json").read_text()
