"""The stand-in of Vertex AI's custom jobs, through Google's own client."""

import json
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import aiplatform_v1 as vertex
from google.cloud.aiplatform_v1.services.job_service.transports.grpc import (
    JobServiceGrpcTransport,
)
from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2Client
from google.cloud.logging_v2.services.logging_service_v2.transports import (
    LoggingServiceV2GrpcTransport,
)
from google.protobuf.json_format import MessageToDict, ParseDict

from local.cloud_run.config import Image
from local.vertex.jobs import VertexConfig, expand
from local.vertex.server import VertexStandIn

PROJECT = "greenroom-test"
NUMBER = "123456789012"
REGION = "europe-west1"
PARENT = f"projects/{PROJECT}/locations/{REGION}"
IMAGE = "europe-west1-docker.pkg.dev/greenroom-test/greenroom/trainer@sha256:0123"
STATE = vertex.JobState
FINAL = (STATE.JOB_STATE_SUCCEEDED, STATE.JOB_STATE_FAILED, STATE.JOB_STATE_CANCELLED)

CONTAINER = textwrap.dedent(
    """
    import json, os, signal, sys, time

    if "deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(json.dumps({"args": sys.argv[1:], "environment": dict(os.environ)}), flush=True)
    if "wait" in sys.argv:
        time.sleep(600)
    for number in range(120):
        print("line", number)
    print("10 %\\r100 %", file=sys.stderr)
    sys.exit(int(sys.argv[-1]))
    """
)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VertexStandIn]:
    script = tmp_path_factory.mktemp("container") / "container.py"
    script.write_text(CONTAINER)
    running = VertexStandIn(
        VertexConfig(
            project=PROJECT,
            project_number=NUMBER,
            region=REGION,
            images={
                IMAGE: Image(
                    entrypoint=[sys.executable, str(script)], working_directory=script.parent
                )
            },
            environment={"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"},
            log_delay_seconds=0,
            grace_seconds=0.5,
        )
    )
    running.start()
    yield running
    running.close()


@pytest.fixture(scope="module")
def jobs(stand_in: VertexStandIn) -> vertex.JobServiceClient:
    channel = grpc.insecure_channel(stand_in.address)
    return vertex.JobServiceClient(transport=JobServiceGrpcTransport(channel=channel))


@pytest.fixture(scope="module")
def logs(stand_in: VertexStandIn) -> LoggingServiceV2Client:
    channel = grpc.insecure_channel(stand_in.address)
    return LoggingServiceV2Client(transport=LoggingServiceV2GrpcTransport(channel=channel))


def body(**changes: Any) -> vertex.CustomJob:
    """Return a job that is accepted, with other values at ``a__b__0__c``."""
    content: dict[str, Any] = {
        "display_name": "job",
        "labels": {"commit": "0123abc"},
        "job_spec": {
            "worker_pool_specs": [
                {
                    "machine_spec": {"machine_type": "n1-standard-8"},
                    "replica_count": 1,
                    "container_spec": {"image_uri": IMAGE, "args": ["0"], "env": []},
                }
            ],
            "scheduling": {"timeout": "3600s"},
            "service_account": f"trainer@{PROJECT}.iam.gserviceaccount.com",
            "base_output_directory": {"output_uri_prefix": "gs://bucket/jobs/1/"},
        },
    }
    for path, value in changes.items():
        place: Any = content
        *parts, last = path.split("__")
        for part in parts:
            place = place[int(part) if part.isdecimal() else part]
        place[last] = value
    job = vertex.CustomJob()
    ParseDict(content, vertex.CustomJob.pb(job))
    return job


POOL = "job_spec__worker_pool_specs__0"
MACHINE = f"{POOL}__machine_spec"
CONTAINER_SPEC = f"{POOL}__container_spec"


def start(jobs: vertex.JobServiceClient, **changes: Any) -> str:
    return str(jobs.create_custom_job(parent=PARENT, custom_job=body(**changes)).name)


def wait_for(jobs: vertex.JobServiceClient, name: str, *states: int) -> vertex.CustomJob:
    deadline = time.monotonic() + 60
    while (job := jobs.get_custom_job(name=name)).state not in states:
        assert time.monotonic() < deadline, job.state
        time.sleep(0.02)
    return job


def read_log(
    logs: LoggingServiceV2Client, name: str, **changes: Any
) -> list[tuple[str, dict[str, Any]]]:
    """Return the task and the payload of each entry of a job."""
    job_id = name.rpartition("/")[2]
    request = {
        "resource_names": [f"projects/{PROJECT}"],
        "filter": f'resource.type="ml_job" AND resource.labels.job_id="{job_id}"',
        "order_by": "timestamp asc",
        **changes,
    }
    entries = list(logs.list_log_entries(request=request, retry=None))
    assert len({entry.insert_id for entry in entries}) == len(entries)
    assert entries == sorted(entries, key=lambda entry: (entry.timestamp, entry.insert_id))
    return [
        (
            entry.resource.labels["task_name"],
            MessageToDict(type(entry).pb(entry).json_payload),
        )
        for entry in entries
    ]


class TestLife:
    def test_a_job_runs_its_container(
        self, jobs: vertex.JobServiceClient, logs: LoggingServiceV2Client
    ) -> None:
        variables = [
            {"name": "PLACE", "value": "$(AIP_CHECKPOINT_DIR)last"},
            {"name": "PLAIN", "value": "$$(PLACE) $(UNKNOWN)"},
        ]
        created = jobs.create_custom_job(
            parent=PARENT, custom_job=body(**{f"{CONTAINER_SPEC}__env": variables})
        )
        assert created.state == STATE.JOB_STATE_QUEUED
        assert created.name.startswith(f"projects/{NUMBER}/locations/{REGION}/customJobs/")
        job = wait_for(jobs, created.name, *FINAL)
        assert job.state == STATE.JOB_STATE_SUCCEEDED
        times = [job.create_time, job.start_time, job.end_time]
        assert times == sorted(times, key=str)
        assert not job.error.message
        log = read_log(logs, job.name, page_size=50)
        worker = [payload for task, payload in log if task == "workerpool0-0"]
        [answer] = [payload for payload in worker if "args" in payload]
        assert answer["args"] == ["0"]
        job_id = job.name.rpartition("/")[2]
        expected = {
            "AIP_MODEL_DIR": "gs://bucket/jobs/1/model/",
            "AIP_CHECKPOINT_DIR": "gs://bucket/jobs/1/checkpoints/",
            "AIP_TENSORBOARD_LOG_DIR": "gs://bucket/jobs/1/logs/",
            "CLOUD_ML_JOB_ID": job_id,
            "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1",
            "PLACE": "gs://bucket/jobs/1/checkpoints/last",
            "PLAIN": "$(PLACE) $(UNKNOWN)",
        }
        environment = answer["environment"]
        assert expected.items() <= environment.items()
        assert json.loads(environment["CLUSTER_SPEC"])["task"] == {
            "type": "workerpool0",
            "index": 0,
        }
        lines = [payload["message"] for payload in worker if payload.get("levelname") == "INFO"]
        assert lines == [f"line {number}" for number in range(120)]
        assert {"message": "100 %", "levelname": "ERROR"} in worker

    def test_a_container_that_fails(self, jobs: vertex.JobServiceClient) -> None:
        name = start(jobs, **{f"{CONTAINER_SPEC}__args": ["7"]})
        job = wait_for(jobs, name, *FINAL)
        assert job.state == STATE.JOB_STATE_FAILED
        assert "exited with a non-zero status of 7" in job.error.message

    def test_the_command_replaces_the_entry_point(
        self, jobs: vertex.JobServiceClient, logs: LoggingServiceV2Client
    ) -> None:
        changes = {f"{CONTAINER_SPEC}__command": ["echo", "a"], f"{CONTAINER_SPEC}__args": ["b"]}
        name = start(jobs, **changes)
        wait_for(jobs, name, STATE.JOB_STATE_SUCCEEDED)
        assert ("workerpool0-0", {"message": "a b", "levelname": "INFO"}) in read_log(logs, name)

    def test_an_unknown_image_fails_like_a_pull(self, jobs: vertex.JobServiceClient) -> None:
        name = start(jobs, **{f"{CONTAINER_SPEC}__image_uri": f"{IMAGE}4"})
        job = wait_for(jobs, name, *FINAL)
        assert job.state == STATE.JOB_STATE_FAILED
        assert "Unable to pull the image" in job.error.message
        assert "start_time" not in job

    @pytest.mark.parametrize("arguments", [["wait"], ["wait", "deaf"]])
    def test_cancelling(
        self, jobs: vertex.JobServiceClient, logs: LoggingServiceV2Client, arguments: list[str]
    ) -> None:
        name = start(jobs, **{f"{CONTAINER_SPEC}__args": arguments})
        self._wait_for_starts(logs, name, 1)
        jobs.cancel_custom_job(name=name)
        state = jobs.get_custom_job(name=name).state
        assert state in (STATE.JOB_STATE_CANCELLING, STATE.JOB_STATE_CANCELLED)
        job = wait_for(jobs, name, *FINAL)
        assert job.state == STATE.JOB_STATE_CANCELLED
        with pytest.raises(exceptions.FailedPrecondition):
            jobs.cancel_custom_job(name=name)

    @pytest.mark.parametrize("restart", [True, False])
    def test_preemption(
        self,
        stand_in: VertexStandIn,
        jobs: vertex.JobServiceClient,
        logs: LoggingServiceV2Client,
        restart: bool,
    ) -> None:
        scheduling = {"strategy": "SPOT", "restart_job_on_worker_restart": restart}
        changes = {"job_spec__scheduling": scheduling, f"{CONTAINER_SPEC}__args": ["wait"]}
        name = start(jobs, **changes)
        starts = self._wait_for_starts(logs, name, 1)
        stand_in.preempt(name)
        if restart:
            starts = self._wait_for_starts(logs, name, 2)
            assert starts[0] == starts[1]
            jobs.cancel_custom_job(name=name)
            wait_for(jobs, name, STATE.JOB_STATE_CANCELLED)
        else:
            job = wait_for(jobs, name, *FINAL)
            assert job.state == STATE.JOB_STATE_FAILED
            assert "preempted" in job.error.message

    def _wait_for_starts(
        self, logs: LoggingServiceV2Client, name: str, count: int
    ) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 60
        while True:
            starts = [payload for _, payload in read_log(logs, name) if "args" in payload]
            if len(starts) == count:
                return starts
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_a_job_beyond_its_time(self, jobs: vertex.JobServiceClient) -> None:
        changes = {"job_spec__scheduling": {"timeout": "1s"}, f"{CONTAINER_SPEC}__args": ["wait"]}
        job = wait_for(jobs, start(jobs, **changes), *FINAL)
        assert job.state == STATE.JOB_STATE_CANCELLED
        assert "longer than scheduling.timeout" in job.error.message

    def test_jobs_are_listed_newest_first(self, jobs: vertex.JobServiceClient) -> None:
        names = [start(jobs), start(jobs)]
        listed = [job.name for job in jobs.list_custom_jobs(parent=PARENT)]
        assert listed[:2] == names[::-1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"display_name": ""}, "display_name is required"),
            ({"display_name": "a" * 129}, "at most 128"),
            ({"labels": {"Commit": "a"}}, "labels"),
            ({"labels": {"commit": "a/b"}}, "labels"),
            ({"labels": {"commit": "a" * 64}}, "labels"),
            ({"state": "JOB_STATE_RUNNING"}, "custom_job.state"),
            ({"job_spec__worker_pool_specs": []}, "one worker pool"),
            ({"job_spec__tensorboard": "board"}, "job_spec.tensorboard"),
            ({"job_spec__service_account": "me@example.com"}, "service_account"),
            ({"job_spec__network": "projects/name/global/networks/vpc"}, "network"),
            ({"job_spec__base_output_directory": {"output_uri_prefix": "/tmp"}}, "Cloud Storage"),
            ({"job_spec__scheduling": {"timeout": "604801s"}}, "at most 7 days"),
            ({"job_spec__scheduling": {"timeout": "0s"}}, "more than 0"),
            ({"job_spec__scheduling": {"strategy": "FLEX_START"}}, "strategy"),
            ({f"{POOL}__replica_count": 0}, "replica_count must be 1"),
            ({f"{POOL}__replica_count": 2}, "replica_count must be 1"),
            ({f"{CONTAINER_SPEC}__image_uri": ""}, "image_uri is required"),
            ({f"{CONTAINER_SPEC}__args": ["$(HOME)"]}, "in variables only"),
            ({f"{CONTAINER_SPEC}__env": [{"name": "a-b", "value": "1"}]}, "C identifier"),
            ({f"{CONTAINER_SPEC}__env": [{"name": "A"}]}, "has no value"),
            ({f"{CONTAINER_SPEC}__env": [{"name": "A", "value": "1"}] * 2}, "given twice"),
            ({MACHINE: {"machine_type": "n1-standard-5"}}, "not supported"),
            ({MACHINE: {"machine_type": "huge"}}, "not supported"),
            ({MACHINE: {}}, "not supported"),
            (
                {MACHINE: {"machine_type": "n1-standard-8", "accelerator_count": 1}},
                "needs an accelerator_type",
            ),
        ],
    )
    def test_of_jobs(
        self, jobs: vertex.JobServiceClient, changes: dict[str, Any], words: str
    ) -> None:
        before = len(list(jobs.list_custom_jobs(parent=PARENT)))
        with pytest.raises(exceptions.InvalidArgument, match=words):
            start(jobs, **changes)
        assert len(list(jobs.list_custom_jobs(parent=PARENT))) == before

    @pytest.mark.parametrize(
        ("machine", "kind", "count", "words"),
        [
            ("n1-standard-8", "NVIDIA_TESLA_T4", 2, ""),
            ("n1-standard-8", "NVIDIA_TESLA_T4", 0, "at least 1"),
            ("n1-standard-8", "NVIDIA_TESLA_T4", 3, "does not take 3"),
            ("n1-standard-8", "NVIDIA_L4", 1, "does not take 1 NVIDIA_L4"),
            ("e2-standard-4", "NVIDIA_TESLA_T4", 1, "can't be attached"),
            ("g2-standard-24", "NVIDIA_L4", 2, ""),
            ("g2-standard-24", "NVIDIA_L4", 1, "comes with 2 NVIDIA_L4"),
            ("a2-highgpu-1g", "NVIDIA_TESLA_A100", 1, ""),
            ("a2-highgpu-1g", "ACCELERATOR_TYPE_UNSPECIFIED", 0, "comes with 1 NVIDIA_TESLA_A100"),
        ],
    )
    def test_of_accelerators(
        self, jobs: vertex.JobServiceClient, machine: str, kind: str, count: int, words: str
    ) -> None:
        spec = {"machine_type": machine, "accelerator_type": kind, "accelerator_count": count}
        if not words:
            wait_for(jobs, start(jobs, **{MACHINE: spec}), STATE.JOB_STATE_SUCCEEDED)
            return
        with pytest.raises(exceptions.InvalidArgument, match=words):
            start(jobs, **{MACHINE: spec})

    def test_of_other_places(self, jobs: vertex.JobServiceClient) -> None:
        for parent, error in (
            (f"projects/other/locations/{REGION}", exceptions.PermissionDenied),
            (f"projects/{PROJECT}/locations/us-central1", exceptions.InvalidArgument),
            (f"projects/{PROJECT}", exceptions.InvalidArgument),
        ):
            with pytest.raises(error):
                jobs.create_custom_job(parent=parent, custom_job=body())
        with pytest.raises(exceptions.NotFound):
            jobs.get_custom_job(name=f"{PARENT}/customJobs/1")

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"resource_names": []}, exceptions.InvalidArgument),
            ({"resource_names": ["projects/other"]}, exceptions.PermissionDenied),
            ({"filter": "severity=ERROR"}, exceptions.InvalidArgument),
            ({"order_by": "severity"}, exceptions.InvalidArgument),
            ({"page_size": 1001}, exceptions.InvalidArgument),
        ],
    )
    def test_of_log_requests(
        self, logs: LoggingServiceV2Client, changes: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            read_log(logs, f"{PARENT}/customJobs/1", **changes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("$(A)/b", "1/b"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$A ${A} $(", "$A ${A} $("),
    ],
)
def test_references_to_variables(value: str, expected: str) -> None:
    assert expand(value, {"A": "1"}) == expected


def test_the_containers_end_with_the_stand_in(tmp_path: Path) -> None:
    script = tmp_path / "container.py"
    script.write_text("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    image = Image(entrypoint=[sys.executable, str(script)], working_directory=tmp_path)
    stand_in = VertexStandIn(
        VertexConfig(project=PROJECT, project_number=NUMBER, region=REGION, images={IMAGE: image})
    )
    stand_in.start()
    channel = grpc.insecure_channel(stand_in.address)
    start(vertex.JobServiceClient(transport=JobServiceGrpcTransport(channel=channel)))
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while not pid.exists() or not pid.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stand_in.close()
    assert not Path(f"/proc/{pid.read_text()}").exists()
