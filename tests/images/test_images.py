"""The images, really built and started."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.images.__main__ import DOCKERFILES, tag
from local.images.buildah import Buildah
from local.images.container import running

ROOT = Path(__file__).parents[2]
CACHE = Path.home() / ".cache" / "greenroom" / "images"

pytestmark = [
    pytest.mark.slow,
    # Two gigabytes of packages the first time.
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers are started as root"),
]


@pytest.fixture(scope="module")
def built() -> str:
    """What building and starting every image printed."""
    done = subprocess.run(
        [sys.executable, "-m", "local.images"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def buildah(built: str) -> Buildah:
    return Buildah(CACHE)


@pytest.fixture(params=DOCKERFILES)
def root(request: pytest.FixtureRequest, buildah: Buildah) -> Iterator[Path]:
    """The files of each image."""
    with buildah.mounted(tag(request.param)) as path:
        yield path


def test_every_image_is_built_started_and_answers(built: str) -> None:
    rows = {line.split()[0]: line for line in built.splitlines()}
    for name in DOCKERFILES:
        assert "exit 0" in rows[name] or "registered version 1" in rows[name]


def test_nothing_of_this_machine_is_in_an_image(root: Path) -> None:
    """Guards against the empty folders that a build's volumes leave behind."""
    assert not (root / "etc/pip.conf").exists()
    assert [path.name for path in (root / "opt").iterdir()] == ["venv"]
    assert not list((root / "tmp").iterdir())
    assert not list(root.glob("**/site-packages/pip")) + list(root.glob("**/dist-packages/pip"))


def test_the_containers_user_owns_nothing(root: Path) -> None:
    for folder in ("app", "opt/venv"):
        for path in (root / folder).rglob("*"):
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (0, 0)
            assert path.is_symlink() or not status.st_mode & 0o022


def test_every_source_is_compiled(root: Path) -> None:
    sources = list((root / "app").rglob("*.py"))
    assert sources
    # The official base image has none of the standard library: nothing could keep it later.
    [library] = root.glob("usr/**/python3.11/os.py")
    for source in [*sources, library, library.parent / "asyncio" / "events.py"]:
        assert (source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc").exists()


def test_nothing_can_be_written_and_nobody_is_root(buildah: Buildah, tmp_path: Path) -> None:
    script = (
        "id -u; touch /x /app/x /opt/venv/x /tmp/x; grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    )
    with running(
        buildah,
        tag("predict"),
        *("sh", "-c", script),
        environment={},
        log=tmp_path / "log",
        entrypoint=[],
    ) as container:
        container.wait(60)
        output = container.output()
    assert output.startswith("65532\n")
    assert output.count("Read-only file system") == 4
    assert "CapEff:\t0000000000000000" in output
    assert "NoNewPrivs:\t1" in output


def test_the_commit_is_a_label_and_in_the_environment(buildah: Buildah) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    for name in DOCKERFILES:
        config = buildah.config(tag(name))
        assert config.labels["org.opencontainers.image.revision"] == head
        assert config.environment["GIT_COMMIT"] == head


def test_mlflow_finds_the_trainers_plugin(buildah: Buildah, tmp_path: Path) -> None:
    program = (
        "from importlib.metadata import entry_points\n"
        "for item in entry_points(group='mlflow.request_auth_provider'):\n"
        "    print(item.name, item.load().__name__)"
    )
    with running(
        buildah,
        tag("trainer"),
        *("python", "-c", program),
        environment={},
        log=tmp_path / "log",
        tmp="64m",
        entrypoint=[],
    ) as container:
        assert container.wait(120) == 0
        assert container.output() == "google-id-token IdTokenAuthProvider\n"
