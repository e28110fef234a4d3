"""The build's scripts: shellcheck, and what they do beside programs that write down their calls."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "cloudbuild").glob("*.sh"))
DIGEST = f"sha256:{'0' * 63}a"

# Each writes its command line to calls.log. The scheduler's job and the state's bucket are
# files; a command whose words are in the file `fails` ends with 1.
PROGRAM = """#!/usr/bin/env bash
name=$(basename "$0")
cd "$FAKE"
echo "$name $*" >>calls.log
if [[ -f fails ]] && grep -qF -- "$(cat fails)" <<<"$name $*"; then exit 1; fi
case "$name $*" in
  "gcloud scheduler jobs describe"*)
    [[ -s job ]] || { echo "ERROR: (gcloud) NOT_FOUND: Job not found." >&2; exit 1; }
    cat job ;;
  "gcloud scheduler jobs pause"*) echo PAUSED >job ;;
  "gcloud scheduler jobs resume"*) echo ENABLED >job ;;
  "gcloud storage objects describe"*) [[ -f "bucket/${4##*/}" ]] ;;
  "gcloud storage cp gs://"*) cp "bucket/${3##*/}" "$4" ;;
  "gcloud storage cp"*) cp "$3" "bucket/${4##*/}" ;;
  "gcloud artifacts docker images scan"*) echo scans/1 ;;
  "gcloud artifacts docker images list-vulnerabilities"*) cat vulnerabilities ;;
  "terraform "*" plan "* | "terraform "*" apply "*)
    if [[ -f slow ]] && grep -qF -- "$(cat slow)" <<<"$name $*"; then
      trap 'echo "$name is told to end" >>calls.log; exit 1' TERM
      echo "$name runs" >>calls.log
      for ((n = 0; n < 300; n++)); do sleep 0.1; done
    fi ;;
  "terraform "*"output -raw environment") echo "export GREENROOM_MODEL='yelp-model'" ;;
  "terraform "*"output -json urls") echo '{"proxy": "https://proxy"}' ;;
  "docker buildx imagetools"*) echo "$FAKE_DIGEST" ;;
  "docker buildx build"*)
    while (($#)); do
      if [[ $1 == --metadata-file ]]; then
        echo "{\\"containerimage.digest\\": \\"$FAKE_DIGEST\\"}" >"$2"
      fi
      shift
    done ;;
esac
"""


class Build:
    """A workspace with the repository's scripts, and programs that only write down."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.fake = folder / "workspace", folder / "fake"
        for path in (self.workspace, self.fake / "bin", self.fake / "bucket"):
            path.mkdir(parents=True)
        shutil.copytree(ROOT / "cloudbuild", self.workspace / "cloudbuild")
        program = self.fake / "program"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        python = self.workspace / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(program)
        for name in ("gcloud", "terraform", "docker"):
            (self.fake / "bin" / name).symlink_to(program)
        (self.fake / "job").write_text("ENABLED\n")
        (self.fake / "bucket" / "terraform.tfvars").write_text('preset = "small"\n')
        (self.fake / "calls.log").touch()
        (self.workspace / ".build" / "images").mkdir(parents=True)
        self.environment = {
            "PATH": f"{self.fake / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(self.fake),
            "FAKE_DIGEST": DIGEST,
            "BUILD_DIR": str(self.workspace / ".build"),
            "PROJECT_ID": "p1",
            "BUILD_ID": "b1",
            "COMMIT_SHA": "c0ffee",
            "_DEPLOY": "true",
            "_REGION": "europe-west1",
            "_REPOSITORY": "greenroom",
            "_CACHE_REPOSITORY": "greenroom-build",
            "_STATE_BUCKET": "state",
            "_BASE": "docker.io/library/python:3.11-slim-bookworm",
            "_ACCELERATOR": "cpu",
            "_SEVERITY": "CRITICAL",
            "_SETTLE_SECONDS": "0",
            "_SUBMIT_OPTIONS": "--spot",
            "_TRAIN_OPTIONS": "",
        }

    def start(self, script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", f"cloudbuild/{script}", *arguments],
            cwd=self.workspace,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, *arguments: str, fails: bool = False, **environment: str) -> str:
        """Run a script to its end, and return what it printed."""
        process = self.start(script, *arguments, **environment)
        output, _ = process.communicate(timeout=250)
        assert (process.returncode != 0) is fails, output
        return output

    def calls(self) -> list[str]:
        """Return every command since the last time, in order."""
        log = self.fake / "calls.log"
        lines = log.read_text().splitlines()
        log.write_text("")
        return lines

    def image(self, name: str, reference: str = "") -> None:
        place = self.workspace / ".build" / "images" / name
        place.write_text(f"{reference or f'r/{name}@{DIGEST}'}\n")

    def fail(self, words: str) -> None:
        (self.fake / "fails").write_text(words)

    def job(self) -> str:
        return (self.fake / "job").read_text().strip()


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_shellcheck_finds_nothing() -> None:
    result = subprocess.run(
        ["shellcheck", "--external-sources", *map(str, SCRIPTS)],
        cwd=ROOT,
        env={"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


# Apply


def order(calls: list[str], *words: str) -> list[int]:
    return [next(n for n, call in enumerate(calls) if word in call) for word in words]


def test_promote_is_paused_around_a_fresh_plan(build: Build) -> None:
    build.image("predict")
    build.image("proxy")
    build.run("apply.sh")
    calls = build.calls()
    places = order(calls, "jobs pause", "terraform -chdir=terraform plan ", "apply", "jobs resume")
    assert places == sorted(places)
    assert build.job() == "ENABLED"
    # The very plan that was just made, with this build's images.
    plan = f"{build.workspace}/.build/plan"
    [planned, applied] = (call for call in calls if " plan " in call or " apply " in call)
    assert f" -out={plan} " in planned
    assert applied == f"terraform -chdir=terraform apply -lock-timeout=30m {plan}"
    # Another deployment, of the push before, ends first.
    assert " -lock-timeout=30m " in planned
    images = json.loads((build.fake / "bucket" / "images.tfvars.json").read_text())["images"]
    assert images == {"predict": f"r/predict@{DIGEST}", "proxy": f"r/proxy@{DIGEST}"}


@pytest.mark.parametrize("words", ["apply", "plan", "jobs pause"])
def test_promote_is_resumed_when_something_fails(build: Build, words: str) -> None:
    build.image("predict")
    build.fail(f"terraform -chdir=terraform {words}" if "jobs" not in words else words)
    build.run("apply.sh", fails=True)
    assert "jobs resume" in "\n".join(build.calls())
    assert build.job() == "ENABLED"
    # Nothing says that these images were applied.
    assert not (build.fake / "bucket" / "images.tfvars.json").exists()


@pytest.mark.parametrize("job", ["ENABLED", "PAUSED"])
@pytest.mark.parametrize(
    ("words", "number"),
    [(" apply ", signal.SIGTERM), (" plan ", signal.SIGTERM), (" apply ", signal.SIGINT)],
)
def test_promote_is_resumed_at_once_when_the_build_is_ended(
    build: Build, words: str, number: signal.Signals, job: str
) -> None:
    """Not when Terraform would have ended: that gets the signal too."""
    build.image("predict")
    (build.fake / "job").write_text(f"{job}\n")
    (build.fake / "slow").write_text(words)
    process = build.start("apply.sh")
    await_call(build, process, "terraform runs")
    assert build.job() == "PAUSED"
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 143, output
    assert build.job() == job
    calls = build.calls()
    assert "terraform is told to end" in calls
    assert not (build.fake / "bucket" / "images.tfvars.json").exists()


def test_a_build_may_be_ended_while_a_run_of_promote_ends(build: Build) -> None:
    build.image("predict")
    process = build.start("apply.sh", _SETTLE_SECONDS="300")
    await_call(build, process, "jobs pause")
    while build.job() != "PAUSED":
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert build.job() == "ENABLED"
    assert "terraform -chdir=terraform plan" not in "\n".join(build.calls())


def await_call(build: Build, process: "subprocess.Popen[str]", words: str) -> None:
    while words not in (build.fake / "calls.log").read_text():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.parametrize("state", ["PAUSED", ""])
def test_what_was_paused_before_stays_paused(build: Build, state: str) -> None:
    """Also the first apply of all: there is no job yet."""
    build.image("predict")
    (build.fake / "job").write_text(state)
    build.run("apply.sh")
    assert "jobs resume" not in "\n".join(build.calls())
    assert build.job() == state


def test_nothing_is_applied_while_promote_may_run(build: Build) -> None:
    """An error other than NOT_FOUND: there may be a job."""
    build.image("predict")
    build.fail("jobs describe")
    build.run("apply.sh", fails=True)
    assert not [call for call in build.calls() if "terraform plan" in call or "apply" in call]


def test_a_job_that_can_not_be_resumed_fails_the_build(build: Build) -> None:
    build.image("predict")
    build.fail("jobs resume")
    sleep = build.fake / "bin" / "sleep"
    sleep.symlink_to(build.fake / "program")
    assert "greenroom resume" in build.run("apply.sh", fails=True)


@pytest.mark.parametrize("script", ["apply.sh", "smoke.sh", "train.sh"])
def test_a_pull_request_calls_nothing(build: Build, script: str) -> None:
    build.run(script, _DEPLOY="false")
    assert build.calls() == []


# Plan


def test_a_pull_request_is_planned_without_a_lock_and_with_the_applied_images(build: Build) -> None:
    bucket = build.fake / "bucket"
    (bucket / "images.tfvars.json").write_text("{}")
    build.run("plan.sh", _DEPLOY="false")
    [plan] = [call for call in build.calls() if "terraform plan" in call]
    assert "-lock=false" in plan
    assert "-out" not in plan
    assert "terraform.tfvars" in plan
    assert "applied.tfvars.json" in plan
    assert build.job() == "ENABLED"


def test_before_the_first_deployment_no_images_are_known(build: Build) -> None:
    build.run("plan.sh", _DEPLOY="false")
    [plan] = [call for call in build.calls() if "terraform plan" in call]
    assert plan.count("-var-file") == 1
    assert "-var=project=p1" in plan


@pytest.mark.parametrize("script", ["plan.sh", "apply.sh"])
def test_nothing_is_planned_without_the_deployments_variables(build: Build, script: str) -> None:
    """A plan with every default would undo the deployment."""
    build.image("predict")
    build.fail("terraform.tfvars")
    said = build.run(script, fails=True, _DEPLOY=str(script == "apply.sh").lower())
    assert "gs://state/terraform.tfvars can't be read" in said
    assert not [call for call in build.calls() if "terraform plan" in call or "apply" in call]
    assert build.job() == "ENABLED"


# Images


def test_an_image_is_pushed_with_sbom_and_provenance_and_known_by_its_digest(build: Build) -> None:
    build.run("base.sh")
    build.run("image.sh", "trainer", "trainer/Dockerfile")
    [_, command] = build.calls()
    registry = "europe-west1-docker.pkg.dev/p1"
    for option in (
        f"--build-arg BASE=docker.io/library/python@{DIGEST}",
        *("--build-arg GIT_COMMIT=c0ffee", "--build-arg GIT_DIRTY=false"),
        *("--build-arg ACCELERATOR=cpu", "--push", "--sbom=true", "--provenance=mode=max"),
        f"--cache-from type=registry,ref={registry}/greenroom-build/trainer:cache",
        f"--cache-to type=registry,ref={registry}/greenroom-build/trainer:cache,mode=max",
        f"--tag {registry}/greenroom/trainer:b1",
    ):
        assert option in command
    kept = (build.workspace / ".build" / "images" / "trainer").read_text()
    assert kept == f"{registry}/greenroom/trainer@{DIGEST}\n"


def test_a_pull_requests_image_stays_here(build: Build) -> None:
    build.run("base.sh")
    build.run("image.sh", "predict", "functions/predict/Dockerfile", _DEPLOY="false")
    [_, command] = build.calls()
    assert "--load" in command
    for option in ("--push", "--cache-to", "ACCELERATOR"):
        assert option not in command


def test_an_image_without_a_digest_ends_the_build(build: Build) -> None:
    build.run("base.sh")
    for script in (["base.sh"], ["image.sh", "predict", "functions/predict/Dockerfile"]):
        output = build.run(script[0], *script[1:], fails=True, FAKE_DIGEST="null")
        assert "no digest" in output


# Scan


def vulnerability(severity: str, *, fix: bool) -> dict[str, object]:
    return {
        "vulnerability": {
            "effectiveSeverity": severity,
            "fixAvailable": fix,
            "shortDescription": "CVE-2026-1",
            "packageIssue": [{"affectedPackage": "openssl"}],
        }
    }


@pytest.mark.parametrize(
    ("severity", "fix", "bar", "fails"),
    [
        ("CRITICAL", True, "CRITICAL", True),
        ("CRITICAL", False, "CRITICAL", False),
        ("HIGH", True, "CRITICAL", False),
        ("CRITICAL", True, "HIGH", True),
        ("HIGH", True, "HIGH", True),
        ("LOW", True, "MEDIUM", False),
    ],
)
def test_what_could_be_mended_ends_the_build(
    build: Build, severity: str, fix: bool, bar: str, fails: bool
) -> None:
    build.image("predict")
    (build.fake / "vulnerabilities").write_text(json.dumps([vulnerability(severity, fix=fix)]))
    output = build.run("scan.sh", fails=fails, _SEVERITY=bar)
    assert ("CVE-2026-1 in openssl" in output) is fails


def test_images_are_scanned_where_they_are(build: Build) -> None:
    build.image("predict")
    build.image("proxy", "r/proxy:b1")
    (build.fake / "vulnerabilities").write_text("[]")
    build.run("scan.sh")
    scans = [call for call in build.calls() if " scan " in call]
    assert [("--remote" in scan) for scan in scans] == [True, False]


def test_a_severity_that_does_not_exist_is_refused(build: Build) -> None:
    assert "_SEVERITY is SEVERE" in build.run("scan.sh", fails=True, _SEVERITY="SEVERE")


# Smoke and train


@pytest.fixture
def deployed(build: Build) -> Build:
    """After an apply."""
    for path, text in {
        "trainer/params.yaml": "epochs: 3\n",
        "trainer/data.lock": "digest: 1\n",
        "functions/predict/scorer.py": "...\n",
        "functions/proxy/api.py": "...\n",
    }.items():
        file = build.workspace / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    environment = build.workspace / ".build" / "environment"
    environment.write_text("export GREENROOM_MODEL='yelp-model'\n")
    build.image("trainer")
    return build


@pytest.mark.parametrize(
    ("line", "public"),
    [
        ("", False),
        ("export GREENROOM_PUBLIC='ui'\n", False),
        ("export GREENROOM_PUBLIC='proxy'\n", True),
        ("export GREENROOM_PUBLIC='proxy ui'\n", True),
    ],
)
def test_a_public_proxy_need_not_refuse_strangers(deployed: Build, line: str, public: bool) -> None:
    (deployed.workspace / ".build" / "urls.json").write_text('{"proxy": "https://proxy"}')
    with (deployed.workspace / ".build" / "environment").open("a") as file:
        file.write(line)
    deployed.run("smoke.sh")
    [call] = deployed.calls()
    assert call == "python -m cloudbuild.smoke --url https://proxy" + " --public" * public


def trainings(build: Build) -> list[str]:
    build.run("train.sh")
    return [call for call in build.calls() if call.startswith("python -m trainer submit")]


def test_a_model_is_trained_when_what_it_is_made_from_changes(deployed: Build) -> None:
    [command] = trainings(deployed)
    assert command == (
        "python -m trainer submit --no-wait --commit c0ffee "
        f"--image r/trainer@{DIGEST} --spot -- train --register yelp-model"
    )
    assert trainings(deployed) == []
    for path in ("trainer/params.yaml", "trainer/data.lock", "functions/predict/scorer.py"):
        with (deployed.workspace / path).open("a") as file:
            file.write("# changed\n")
        assert len(trainings(deployed)) == 1, path
        assert trainings(deployed) == []


def test_nothing_else_trains_a_model(deployed: Build) -> None:
    trainings(deployed)
    (deployed.workspace / "functions/proxy/api.py").write_text("changed\n")
    cache = deployed.workspace / "trainer" / "__pycache__"
    cache.mkdir()
    (cache / "a.pyc").write_text("compiled")
    scorer = "functions/predict/bag_linear.cpython-311-x86_64-linux-gnu.so"
    (deployed.workspace / scorer).write_text("compiled")
    assert trainings(deployed) == []


def test_a_training_that_was_not_submitted_is_made_up_for(deployed: Build) -> None:
    deployed.fail("trainer submit")
    deployed.run("train.sh", fails=True)
    deployed.calls()
    (deployed.fake / "fails").unlink()
    assert len(trainings(deployed)) == 1


@pytest.mark.slow
def test_the_trainer_takes_the_command(deployed: Build) -> None:
    """The real `trainer submit`, which prints the job instead of sending it."""
    python = deployed.workspace / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (deployed.workspace / ".build" / "environment").write_text(
        "".join(
            f"export {name}='{value}'\n"
            for name, value in {
                "GOOGLE_CLOUD_PROJECT": "p1",
                "GOOGLE_CLOUD_REGION": "europe-west1",
                "GREENROOM_MODEL": "yelp-model",
                "MLFLOW_TRACKING_URI": "https://mlflow-api-1.europe-west1.run.app",
                "TRAINER_IMAGE": f"r/trainer@sha256:{'f' * 64}",
                "TRAINER_SERVICE_ACCOUNT": "greenroom-trainer@p1.iam.gserviceaccount.com",
                "TRAINER_STAGING_BUCKET": "gs://p1-staging",
            }.items()
        )
    )
    # The package itself, not the files that stand for it.
    shutil.rmtree(deployed.workspace / "trainer")
    shutil.rmtree(deployed.workspace / "functions")
    for name in ("trainer", "functions"):
        (deployed.workspace / name).symlink_to(ROOT / name)
    said = deployed.run("train.sh", _SUBMIT_OPTIONS="--spot --dry-run", COMMIT_SHA="c0ffee12")
    job = json.loads(said[said.index("{") :])["jobSpec"]
    [pool] = job["workerPoolSpecs"]
    container = pool["containerSpec"]
    # This build's image, not the one that was applied before.
    assert container["imageUri"] == f"r/trainer@{DIGEST}"
    assert container["args"] == ["train", "--register", "yelp-model"]
    variables = {item["name"]: item["value"] for item in container["env"]}
    assert variables["GIT_COMMIT"] == "c0ffee12"
    assert job["serviceAccount"] == "greenroom-trainer@p1.iam.gserviceaccount.com"
    assert job["scheduling"]["strategy"] == "SPOT"
