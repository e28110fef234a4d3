"""``python -m trainer submit`` against a stand-in that checks jobs and runs their containers."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import httpx
import pytest
from click.testing import CliRunner, Result
from google.cloud import aiplatform_v1
from google.cloud.aiplatform_v1.services.job_service.transports.grpc import (
    JobServiceGrpcTransport,
)
from google.protobuf.json_format import ParseDict
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from local.cloud_run.config import Image
from local.vertex.jobs import VertexConfig
from local.vertex.server import VertexStandIn
from tests.emulators import StorageEmulator
from tests.trainer.tracking.conftest import TrackingServer
from trainer.__main__ import main
from trainer.reviews import SAMPLE

ROOT = Path(__file__).parents[2]
PROJECT = "greenroom-test"
REGION = "europe-west1"
ACCOUNT = f"trainer@{PROJECT}.iam.gserviceaccount.com"
DIGEST = f"sha256:{'0123abcd' * 8}"
REPOSITORY = f"{REGION}-docker.pkg.dev/{PROJECT}/greenroom/trainer"
IMAGE = f"{REPOSITORY}@{DIGEST}"
REAL_IMAGE = f"{REPOSITORY}@sha256:{'f' * 64}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# A container: says what it was given. The value of --run-name makes it do more: "wait" for
# ever, "fail", or be "slow" the first time only.
CONTAINER = textwrap.dedent(
    """
    import json, os, sys, time
    from pathlib import Path

    print("training begins", flush=True)
    print("a warning", file=sys.stderr, flush=True)
    begun = Path(__file__).with_name(os.environ["CLOUD_ML_JOB_ID"])
    is_first = not begun.exists()
    begun.touch()
    if "wait" in sys.argv or ("slow" in sys.argv and is_first):
        time.sleep(600)
    if "fail" in sys.argv:
        sys.exit(3)
    print(json.dumps({"args": sys.argv[1:], "environment": dict(os.environ)}))
    """
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the containers work: each leaves a file with its job's number."""
    return tmp_path_factory.mktemp("container")


@pytest.fixture(scope="module")
def vertex(folder: Path) -> Iterator[VertexStandIn]:
    script = folder / "container.py"
    script.write_text(CONTAINER)
    stand_in = VertexStandIn(
        VertexConfig(
            project=PROJECT,
            project_number="123456789012",
            region=REGION,
            images={
                IMAGE: Image(entrypoint=[sys.executable, str(script)], working_directory=folder),
                REAL_IMAGE: Image(
                    entrypoint=[sys.executable, "-m", "trainer"], working_directory=ROOT
                ),
            },
        )
    )
    stand_in.start()
    yield stand_in
    stand_in.close()


@pytest.fixture(autouse=True)
def own_settings(vertex: VertexStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As somebody has them in their shell who submits often."""
    for name, value in environment(vertex).items():
        monkeypatch.setenv(name, value)
    for name in ("CLOUDSDK_CORE_PROJECT", "CLOUDSDK_COMPUTE_REGION", "MLFLOW_TRACKING_AUTH"):
        monkeypatch.delenv(name, raising=False)
    yield
    vertex.failures.clear()


def environment(vertex: VertexStandIn) -> dict[str, str]:
    return {
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "GOOGLE_CLOUD_REGION": REGION,
        "TRAINER_SERVICE_ACCOUNT": ACCOUNT,
        "TRAINER_STAGING_BUCKET": "gs://greenroom-staging",
        "TRAINER_IMAGE": IMAGE,
        "MLFLOW_TRACKING_URI": "https://mlflow-api.example.com",
        "VERTEX_ENDPOINT": f"http://{vertex.address}",
        "LOGGING_ENDPOINT": f"http://{vertex.address}",
    }


def run(*arguments: str) -> Result:
    """Run ``python -m trainer submit``, looking at the job often."""
    return CliRunner().invoke(main, ["submit", "--poll-seconds=0.1", *arguments])


def dry_run(*arguments: str) -> aiplatform_v1.CustomJob:
    """Return the job that would be sent, as Google's types read it."""
    done = run("--dry-run", *arguments)
    assert done.exit_code == 0, done.output
    message = aiplatform_v1.CustomJob()
    ParseDict(json.loads(done.stdout), aiplatform_v1.CustomJob.pb(message))
    return message


def client(vertex: VertexStandIn) -> aiplatform_v1.JobServiceClient:
    return aiplatform_v1.JobServiceClient(
        transport=JobServiceGrpcTransport(channel=grpc.insecure_channel(vertex.address))
    )


def jobs(vertex: VertexStandIn) -> list[aiplatform_v1.CustomJob]:
    """Return all jobs, newest first."""
    parent = f"projects/{PROJECT}/locations/{REGION}"
    return list(client(vertex).list_custom_jobs(parent=parent))


class TestJob:
    def test_everything_that_can_be_chosen(self, vertex: VertexStandIn) -> None:
        calls = vertex.calls.total()
        job = dry_run(
            *("--machine-type=n1-standard-16", "--accelerator=NVIDIA_TESLA_T4"),
            *("--accelerator-count=2", "--spot", "--timeout=12h", f"--commit={COMMIT}"),
            *("--network=projects/123456789012/global/networks/vpc", "--label=team=reviews"),
            *("--label=empty=", "--env=OMP_NUM_THREADS=4", "--env=NOTE=a=b c"),
            *("--display-name=Reviews of May", "--tracking-audience=https://mlflow.example.com"),
            *("--", "train", "--data=gs://data/reviews.csv.gz", "--register", "yelp-model"),
        )
        assert vertex.calls.total() == calls
        assert job.display_name == "Reviews of May"
        assert dict(job.labels) == {
            "commit": COMMIT,
            "command": "train",
            "team": "reviews",
            "empty": "",
        }
        spec = job.job_spec
        assert spec.service_account == ACCOUNT
        assert spec.network == "projects/123456789012/global/networks/vpc"
        assert spec.scheduling.strategy == aiplatform_v1.Scheduling.Strategy.SPOT
        assert spec.scheduling.restart_job_on_worker_restart
        assert aiplatform_v1.Scheduling.pb(spec.scheduling).timeout.seconds == 12 * 3600
        folder = spec.base_output_directory.output_uri_prefix
        assert re.fullmatch(
            rf"gs://greenroom-staging/jobs/train-{COMMIT[:12]}-\d{{8}}-\d{{6}}-\w{{4}}", folder
        )
        [pool] = spec.worker_pool_specs
        assert pool.replica_count == 1
        assert pool.machine_spec == aiplatform_v1.MachineSpec(
            machine_type="n1-standard-16",
            accelerator_type=aiplatform_v1.AcceleratorType.NVIDIA_TESLA_T4,
            accelerator_count=2,
        )
        container = pool.container_spec
        assert container.image_uri == IMAGE
        assert not container.command
        assert list(container.args) == [
            *("train", "--data=gs://data/reviews.csv.gz", "--register", "yelp-model")
        ]
        assert {variable.name: variable.value for variable in container.env} == {
            "MLFLOW_TRACKING_URI": "https://mlflow-api.example.com",
            "MLFLOW_TRACKING_AUTH": "google-id-token",
            "MLFLOW_TRACKING_AUDIENCE": "https://mlflow.example.com",
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "TRAINING_IMAGE_DIGEST": DIGEST,
            "GIT_COMMIT": COMMIT,
            "OMP_NUM_THREADS": "4",
            "NOTE": "a=b c",
        }

    def test_the_defaults(self) -> None:
        job = dry_run("train")
        [pool] = job.job_spec.worker_pool_specs
        assert pool.machine_spec == aiplatform_v1.MachineSpec(machine_type="n1-standard-8")
        assert job.job_spec.scheduling.strategy == aiplatform_v1.Scheduling.Strategy.STANDARD
        assert not job.job_spec.scheduling.restart_job_on_worker_restart
        folder = job.job_spec.base_output_directory.output_uri_prefix
        assert job.display_name == f"greenroom-{folder.rpartition('/')[2]}"
        # What is checked out labels the job; what is in the image, the image says.
        assert re.fullmatch("[0-9a-f]{40}", job.labels["commit"])
        assert "GIT_COMMIT" not in {variable.name for variable in pool.container_spec.env}

    def test_each_job_has_a_folder_of_its_own(self) -> None:
        """Or one would take another's checkpoints for its own."""
        folders = {
            dry_run("train").job_spec.base_output_directory.output_uri_prefix for _ in range(3)
        }
        assert len(folders) == 3

    def test_a_job_may_go_on_with_the_checkpoints_of_another(self) -> None:
        job = dry_run("--output=gs://bucket/jobs/earlier", "train")
        assert job.job_spec.base_output_directory.output_uri_prefix == "gs://bucket/jobs/earlier"

    @settings(max_examples=50, deadline=None)
    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
    def test_arguments_arrive_as_they_were_given(self, text: str) -> None:
        assume("$(" not in text)
        job = dry_run(
            f"--commit={COMMIT}", "--", "train", f"--run-name={text}", "--experiment", "a b"
        )
        [pool] = job.job_spec.worker_pool_specs
        assert list(pool.container_spec.args) == [
            *("train", f"--run-name={text}", "--experiment", "a b")
        ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--data={file}"], "train --data {file}: the job sees no file of this machine"),
        (["train", "--checkpoints=here"], "train --checkpoints here: the job sees no file"),
        (["train", "--data=missing.csv"], "train: Invalid value for '--data'"),
        (["train", "--epochs=many"], "train: Invalid value for '--epochs'"),
        (["train", "--unknown"], "train: No such option"),
        (["train", "--run-name=$(HOME)"], "replaces $(NAME)"),
        (["fly"], "'fly' is no command of the trainer: "),
        (["submit", "train"], "'submit' is no command of the trainer: "),
        ([], "Missing argument 'COMMAND"),
        ([f"--image={REPOSITORY}:latest", "train"], f"describe {REPOSITORY}:latest --format="),
        ([f"--image={REPOSITORY}@sha256:12", "train"], "give the digest"),
        (["--region=belgium", "train"], "is no region such as europe-west1"),
        (["--service-account=me@example.com", "train"], "is no service account"),
        (["--staging-bucket=bucket", "train"], "is not gs://BUCKET"),
        (["--output=/tmp/folder", "train"], "is not gs://BUCKET/FOLDER"),
        (["--network=vpc", "train"], "is not projects/NUMBER/global/networks/NAME"),
        (["--accelerator=T4", "train"], "Vertex AI has no T4; there is NVIDIA_TESLA_T4"),
        (["--accelerator-count=2", "train"], "--accelerator-count needs --accelerator"),
        (["--timeout=8d", "train"], "'8d' is not between 1s and 7d"),
        (["--timeout=soon", "train"], "'soon' is not a duration such as 90m"),
        (["--label=Team=a", "train"], "the name 'Team' must match"),
        (["--label=team=A", "train"], "the value 'A' must match"),
        (["--label=team", "train"], "'team' is not key=value"),
        (["--label=commit=0", "train"], "--label commit: this command sets it"),
        (["--env=1=a", "train"], "the name '1' must match"),
        (["--env=GIT_COMMIT=a", "train"], "--env GIT_COMMIT: Vertex AI or an option"),
        (["--env=AIP_MODEL_DIR=a", "train"], "--env AIP_MODEL_DIR: Vertex AI or an option"),
        (["--env=A=1", "--env=A=2", "train"], "--env A: given twice"),
        (["--env=A=$(B)", "train"], "--env A: Vertex AI replaces $(NAME)"),
        (["--commit=main", "train"], "'main' is no Git commit"),
        (["--tracking-uri=sqlite:///m.db", "train"], "the job can't reach that"),
        (
            ["--tracking-uri=http://127.0.0.1:5000", "--endpoint=", "train"],
            "that is this machine, and the job runs on another",
        ),
        (["--endpoint=http://10.0.0.1:80", "train"], "without TLS on this machine only"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_sent(
    vertex: VertexStandIn, tmp_path: Path, arguments: list[str], words: str
) -> None:
    file = tmp_path / "reviews.csv"
    file.touch()
    calls = vertex.calls.total()
    done = run(*(argument.format(file=file) for argument in arguments))
    assert done.exit_code == 2
    assert words.format(file=file) in " ".join(done.stderr.split())
    assert vertex.calls.total() == calls


def test_what_is_missing_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_REGION", "TRAINER_IMAGE"):
        monkeypatch.delenv(name)
        done = run("train")
        assert done.exit_code == 2
        assert f"env var: '{name}" in done.stderr
        monkeypatch.setenv(name, {"GOOGLE_CLOUD_REGION": REGION}.get(name, IMAGE))


def json_line(output: str) -> dict[str, Any]:
    """Return the trainer's last line; in the job's log it may come before others."""
    [line] = [line for line in output.splitlines() if line.startswith("{")]
    answer: dict[str, Any] = json.loads(line)
    return answer


class TestRun:
    def test_the_container_runs_and_its_output_comes_here(self, vertex: VertexStandIn) -> None:
        done = run("--spot", "--", "train", "--run-name=May", "--data", "gs://bucket/a.csv")
        assert done.exit_code == 0, done.output
        # Lines may come late, past others.
        lines = done.stdout.splitlines()
        lines.remove("training begins")
        [answer] = map(json.loads, lines)
        assert answer["args"] == ["train", "--run-name=May", "--data", "gs://bucket/a.csv"]
        [job, *_] = jobs(vertex)
        folder = job.job_spec.base_output_directory.output_uri_prefix
        expected = {
            "MLFLOW_TRACKING_URI": "https://mlflow-api.example.com",
            "MLFLOW_TRACKING_AUTH": "google-id-token",
            "TRAINING_IMAGE_DIGEST": DIGEST,
            "AIP_CHECKPOINT_DIR": f"{folder}/checkpoints/",
            "CLOUD_ML_JOB_ID": job.name.rpartition("/")[2],
        }
        assert expected.items() <= answer["environment"].items()
        said = done.stderr.splitlines()
        assert said[0] == f"sent {job.name}"
        assert said[1].startswith("https://console.cloud.google.com/")
        for line in ("a warning", "Job is preparing.", "Job completed successfully."):
            assert said.count(line) == 1
        states = [line.partition("Z ")[2] for line in said if re.match(r"\d\d:\d\d:\d\dZ ", line)]
        assert states[-1] == "SUCCEEDED"

    def test_the_trainer_itself_runs_as_a_job(
        self, vertex: VertexStandIn, storage_emulator: StorageEmulator
    ) -> None:
        content = SAMPLE.read_bytes()
        place = storage_emulator.upload("submission", "data", {"reviews.csv": content})
        done = run(
            *(f"--image={REAL_IMAGE}", f"--env=STORAGE_EMULATOR_HOST={storage_emulator.url}"),
            *("--", "check", f"--data={place}/reviews.csv"),
        )
        assert done.exit_code == 0, done.output
        assert json_line(done.stdout)["rows"] == len(
            list(csv.DictReader(content.decode().splitlines()))
        )

    @pytest.mark.slow
    def test_a_training_survives_the_loss_of_its_machine(
        self, vertex: VertexStandIn, storage_emulator: StorageEmulator, tmp_path: Path
    ) -> None:
        """Everything together: the second machine goes on with the checkpoint of the first."""
        place = storage_emulator.upload("training", "data", {"a.csv": SAMPLE.read_bytes()})
        server = TrackingServer(tmp_path)
        server.launch()

        def preempt() -> None:
            objects = f"{storage_emulator.url}/storage/v1/b/training/o?prefix=jobs/"
            while "last.ckpt" not in httpx.get(objects).text:
                time.sleep(0.05)
            vertex.preempt(jobs(vertex)[0].name)

        try:
            server.wait()
            Thread(target=preempt, daemon=True).start()
            done = run(
                *("--spot", f"--image={REAL_IMAGE}", "--staging-bucket=gs://training"),
                *(f"--tracking-uri={server.url}", "--tracking-auth="),
                f"--env=STORAGE_EMULATOR_HOST={storage_emulator.url}",
                *("--", "train", f"--data={place}/a.csv", "--register=yelp-model"),
                *("--epochs=40", "--patience=40"),
            )
            assert done.exit_code == 0, done.output
            answer = json_line(done.stdout)
            [run_of_both] = server.client.search_runs(["1"])
            registered = server.client.get_model_version("yelp-model", "1")
        finally:
            server.kill()
        assert "The job is started again." in done.stderr
        assert f"going on with run {answer['run_id']}, which was cut off" in done.output
        assert run_of_both.info.run_id == registered.run_id == answer["run_id"]
        assert run_of_both.info.status == "FINISHED"
        assert run_of_both.data.tags["image_digest"] == REAL_IMAGE.partition("@")[2]

    def test_a_job_that_fails_ends_with_its_reason(self) -> None:
        done = run("train", "--run-name", "fail")
        assert done.exit_code == 1
        *_, last = done.stderr.splitlines()
        assert last.startswith(
            "Error: the job failed: The replica workerpool0-0 exited with a non-zero status of 3."
        )

    def test_an_image_that_does_not_exist(self) -> None:
        missing = f"{REPOSITORY}@sha256:{'0' * 64}"
        done = run(f"--image={missing}", "train")
        assert done.exit_code == 1
        assert f"Error: the job failed: Unable to pull the image {missing}" in done.stderr

    def test_a_job_beyond_its_time(self) -> None:
        done = run("--timeout=1s", "train", "--run-name", "wait")
        assert done.exit_code == 1
        assert "Error: the job was cancelled: The job ran longer than" in done.stderr

    def test_without_waiting_the_name_is_all(self, vertex: VertexStandIn) -> None:
        done = run("--no-wait", "train")
        assert done.exit_code == 0
        [job, *_] = jobs(vertex)
        assert done.stdout == f"{job.name}\n"


class Meanwhile(Thread):
    """Does something to the newest job once its container has begun."""

    def __init__(
        self, vertex: VertexStandIn, folder: Path, action: Callable[[str], object]
    ) -> None:
        super().__init__(daemon=True)
        self._vertex = vertex
        self._folder = folder
        self._action = action
        self._before = len(jobs(vertex))

    def run(self) -> None:
        while len(found := jobs(self._vertex)) == self._before or not self._begun(found[0]):
            time.sleep(0.05)
        self._action(found[0].name)

    def _begun(self, job: aiplatform_v1.CustomJob) -> bool:
        return (self._folder / job.name.rpartition("/")[2]).exists()


class TestInterruption:
    def test_the_job_goes_on(self, vertex: VertexStandIn) -> None:
        """As a process, with a signal, as a terminal does it."""
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "trainer",
                "submit",
                "--poll-seconds=0.2",
                "train",
                "--run-name",
                "wait",
            ],
            cwd=ROOT,
            env={**os.environ, **environment(vertex)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        # The first line is seen while it is waited for the second.
        assert process.stdout.readline() == "training begins\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        [job, *_] = jobs(vertex)
        assert job.state == aiplatform_v1.JobState.JOB_STATE_RUNNING
        arguments = f"{job.name.rpartition('/')[2]} --region={REGION} --project={PROJECT}"
        assert f"gcloud ai custom-jobs cancel {arguments}" in said
        assert f"gcloud ai custom-jobs stream-logs {arguments}" in said
        assert "Traceback" not in said

    def test_the_job_is_cancelled_where_that_is_wished(
        self, vertex: VertexStandIn, folder: Path
    ) -> None:
        Meanwhile(vertex, folder, lambda _: os.kill(os.getpid(), signal.SIGINT)).start()
        done = run("--cancel-on-interrupt", "train", "--run-name", "wait")
        assert done.exit_code == 130
        assert "is being cancelled" in done.stderr
        deadline = time.monotonic() + 60
        while jobs(vertex)[0].state != aiplatform_v1.JobState.JOB_STATE_CANCELLED:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_a_job_that_is_cancelled_elsewhere(self, vertex: VertexStandIn, folder: Path) -> None:
        Meanwhile(vertex, folder, lambda name: client(vertex).cancel_custom_job(name=name)).start()
        done = run("train", "--run-name", "wait")
        assert done.exit_code == 1
        assert done.stderr.splitlines()[-1] == "Error: the job was cancelled"

    def test_a_spot_machine_that_is_taken(self, vertex: VertexStandIn, folder: Path) -> None:
        Meanwhile(vertex, folder, vertex.preempt).start()
        done = run("--spot", "train", "--run-name", "slow")
        assert done.exit_code == 0
        assert "was preempted. The job is started again." in done.stderr
        # Lines may come late, past others.
        assert done.stdout.splitlines().count("training begins") == 2

    def test_another_machine_that_is_lost(self, vertex: VertexStandIn, folder: Path) -> None:
        Meanwhile(vertex, folder, vertex.preempt).start()
        done = run("train", "--run-name", "slow")
        assert done.exit_code == 1
        assert "Error: the job failed: The replica workerpool0-0 was preempted." in done.stderr


class TestRefusals:
    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (grpc.StatusCode.PERMISSION_DENIED, "no. Sending a job takes roles/aiplatform.user"),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "no. Ask for more quota"),
            (grpc.StatusCode.UNAUTHENTICATED, "gcloud auth application-default login"),
            (grpc.StatusCode.UNAVAILABLE, "Vertex AI: no"),
            (grpc.StatusCode.INVALID_ARGUMENT, "Vertex AI: no"),
        ],
    )
    def test_of_the_job(self, vertex: VertexStandIn, code: grpc.StatusCode, words: str) -> None:
        vertex.failures["CreateCustomJob"] = (code, "no.")
        calls = vertex.calls["CreateCustomJob"]
        done = run("train")
        assert done.exit_code == 1
        [line] = done.stderr.splitlines()
        assert line.startswith("Error: Vertex AI")
        assert words in line
        # Once: a second try could start a second job.
        assert vertex.calls["CreateCustomJob"] == calls + 1

    def test_of_what_only_vertex_ai_knows(self) -> None:
        done = run("--machine-type=n1-standard-5", "train")
        assert done.exit_code == 1
        assert "machine_type 'n1-standard-5' is not supported" in done.stderr

    def test_without_credentials(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        done = run("--endpoint=", "train")
        assert done.exit_code == 1
        [line] = done.stderr.splitlines()
        assert line.startswith(
            "Error: Vertex AI needs your credentials: gcloud auth application-default login"
        )

    def test_of_the_log_leave_the_job_alone(self, vertex: VertexStandIn) -> None:
        vertex.failures["ListLogEntries"] = (grpc.StatusCode.PERMISSION_DENIED, "no")
        done = run("train")
        assert done.exit_code == 0
        assert not done.stdout
        assert done.stderr.count("Reading takes roles/logging.viewer") == 1
        assert "Z SUCCEEDED" in done.stderr

    def test_of_the_log_for_a_moment(self, vertex: VertexStandIn) -> None:
        """Also when the job has ended meanwhile: its last lines are those that matter."""
        vertex.failures["ListLogEntries"] = (grpc.StatusCode.INTERNAL, "later")
        calls = vertex.calls["ListLogEntries"]

        def recover() -> None:
            while vertex.calls["ListLogEntries"] < calls + 4:
                time.sleep(0.05)
            vertex.failures.clear()

        Thread(target=recover, daemon=True).start()
        done = run("train")
        assert done.exit_code == 0
        assert done.stderr.count("Cloud Logging: later. It is asked again") == 1
        assert "training begins" in done.stdout.splitlines()
