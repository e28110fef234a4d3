"""The scripts of plan and apply around Terraform itself."""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloudbuild.test_scripts import DIGEST, Build
from tests.terraform.conftest import PARTS, PROJECT, REGION, command, needs_stand_in, prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """A checkout whose Terraform keeps its state beside the configuration."""
    needs_stand_in()
    folder = tmp_path_factory.mktemp("apply")
    build = Build(folder)
    prepare(build.workspace / "terraform")
    (build.fake / "bin" / "terraform").unlink()
    # The bucket of the state is in the cloud; the configuration is initialised already.
    program, *words = command()
    terraform = shlex.join([str(Path(program).resolve()), *words])
    wrapper = folder / "terraform.sh"
    wrapper.write_text(f'#!/bin/sh\n[ "$2" = init ] && exit 0\nexec {terraform} "$@"\n')
    wrapper.chmod(0o755)
    build.environment |= {
        "TERRAFORM": str(wrapper),
        "PROJECT_ID": PROJECT,
        "_REGION": REGION,
        "HOME": str(Path.home()),
        "GOOGLE_OAUTH_ACCESS_TOKEN": "none",
    }
    (build.fake / "bucket" / "terraform.tfvars").write_text('operators = ["user:ada@example.com"]')
    for part in PARTS:
        build.image(part)
    yield build
    shutil.rmtree(build.workspace / "terraform")


def test_an_empty_project_is_deployed_and_then_nothing_changes(build: Build) -> None:
    (build.fake / "job").write_text("")
    build.run("apply.sh")
    assert "jobs pause" not in "\n".join(build.calls())
    environment = (build.workspace / ".build" / "environment").read_text()
    assert "export GREENROOM_MODEL='yelp-model'" in environment
    for name in ("TRAINER_SERVICE_ACCOUNT", "TRAINER_STAGING_BUCKET", "MLFLOW_TRACKING_URI"):
        assert f"export {name}='" in environment
    urls = json.loads((build.workspace / ".build" / "urls.json").read_text())
    assert urls["proxy"].startswith("https://proxy-")

    # A pull request right after it: the same images, nothing to do.
    said = build.run("plan.sh", _DEPLOY="false")
    assert "No changes" in said

    (build.fake / "job").write_text("ENABLED\n")
    build.image("predict", f"r/predict@{DIGEST[:-1]}b")
    said = build.run("apply.sh")
    assert "google_cloud_run_v2_service.predict" in said
    assert "1 changed" in said
    assert build.job() == "ENABLED"
    images = json.loads((build.fake / "bucket" / "images.tfvars.json").read_text())["images"]
    assert images["predict"].endswith("b")


def test_a_plan_that_fails_leaves_promote_running(build: Build) -> None:
    (build.fake / "job").write_text("ENABLED\n")
    build.image("predict", "r/predict:latest")
    said = build.run("apply.sh", fails=True)
    assert "images are named by digest" in " ".join(said.split())
    assert build.job() == "ENABLED"
