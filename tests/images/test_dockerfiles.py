"""What can be told of the images without building them."""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.images.__main__ import DOCKERFILES
from local.images.base import default_base
from tests.images.dockerfile import Instruction, copies, read_stages

ROOT = Path(__file__).parents[2]
MODULES = {
    "predict": "functions.predict",
    "proxy": "functions.proxy",
    "promote": "functions.promote",
    "mlflow": "mlflow_server",
    "ui": "ui",
    "trainer": "trainer",
}
OURS = {"functions", "trainer", "mlflow_server", "ui", "local", "tests", "benchmarks"}
LOCKED = re.compile(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^ ;]+)", re.MULTILINE)

images = pytest.mark.parametrize("name", DOCKERFILES)


def stages(name: str) -> list[list[Instruction]]:
    return read_stages(DOCKERFILES[name])


def values(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.value for instruction in stage if instruction.name == name]


def copied(name: str, target: Path) -> None:
    """Copy to `target` what the image's working folder holds of the repository."""
    build, _ = stages(name)
    for source, destination in copies(build):
        if destination.startswith("/"):
            continue
        place = target / destination
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)


def imports(path: Path, root: Path) -> Iterator[str]:
    """Yield the modules of this project that a file imports, those in functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(root)}: relative import"
            yield str(node.module)
            # A name imported from a package may be a module of it.
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if (ROOT / str(node.module).replace(".", "/") / f"{alias.name}.py").exists()
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@images
def test_the_base_is_named_by_an_argument_with_a_full_version(name: str) -> None:
    assert all(values(stage, "FROM")[0].startswith("${BASE}") for stage in stages(name))
    assert re.fullmatch(r".*/python:3\.11-slim-\w+", default_base(DOCKERFILES[name]))


@images
def test_nothing_is_added_and_every_copied_source_exists(name: str) -> None:
    for stage in stages(name):
        assert not values(stage, "ADD")
        for source, _ in copies(stage):
            assert (ROOT / source).exists()


@images
def test_every_copied_source_is_let_through(name: str) -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    for source, _ in copies(stages(name)[0]):
        assert f"!{source.split('/')[0]}" in rules


@images
def test_it_runs_as_a_numbered_user_without_rights_and_starts_its_module(name: str) -> None:
    _, final = stages(name)
    [user] = values(final, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    [entrypoint] = [item.strings for item in final if item.name == "ENTRYPOINT"]
    assert entrypoint == ["python", "-m", MODULES[name]]
    assert (ROOT / MODULES[name].replace(".", "/") / "__main__.py").exists()
    # After USER nothing may run, and nothing is copied that this user could own.
    names = [item.name for item in final]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])
    assert "--chown" not in DOCKERFILES[name].read_text()


@images
def test_only_wheels_with_known_hashes_are_installed(name: str) -> None:
    build, final = stages(name)
    assert not [run for run in values(final, "RUN") if "pip install" in run or "apt" in run]
    installs = [run for run in values(build, "RUN") if " install " in run]
    assert installs
    for run in installs:
        assert {"--require-hashes", "--no-deps", "--no-cache-dir"} <= set(run.split())
        assert "--only-binary :all:" in run
        # Nothing is named on the command line but locks.
        assert "==" not in run
    locks = {source for source, to in copies(build) if source.endswith(".lock") and to == "/tmp/"}
    used = {f"{lock}" for run in installs for lock in re.findall(r"-r /tmp/(\S+)", run)}
    assert {Path(lock).name for lock in locks} == used
    for lock in locks:
        blocks = re.split(r"\n(?=\S)", (ROOT / lock).read_text())
        for block in filter(LOCKED.match, blocks):
            assert "--hash=sha256:" in block


@images
def test_every_import_of_this_project_is_in_the_image(name: str, tmp_path: Path) -> None:
    copied(name, tmp_path)
    files = list(tmp_path.rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path, tmp_path):
            if module.split(".")[0] in OURS:
                place = tmp_path / module.replace(".", "/")
                assert place.with_suffix(".py").exists() or (place / "__init__.py").exists(), (
                    f"{path.relative_to(tmp_path)} imports {module}"
                )


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("predict", "predict"),
        ("proxy", "proxy"),
        ("promote", "promote"),
        ("mlflow", "mlflow-server"),
        ("ui", "ui"),
    ],
)
def test_its_command_line_works_with_nothing_else_of_this_project(
    name: str, environment: str, tmp_path: Path
) -> None:
    copied(name, tmp_path)
    done = subprocess.run(
        [ROOT / ".venvs" / environment / "bin/python", "-m", MODULES[name], "--help"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m {MODULES[name]}" in done.stdout


def locked(path: str) -> dict[str, str]:
    return dict(LOCKED.findall((ROOT / path).read_text()))


def test_all_locks_have_one_torch_and_else_the_same_versions() -> None:
    [torch] = re.findall(r"^TORCH := torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert locked("trainer/torch-cpu.lock") == {"torch": f"{torch}+cpu"}
    gpu = locked("trainer/requirements-gpu.lock")
    assert gpu["torch"] == torch
    assert any(name.startswith("nvidia-cudnn") for name in gpu)
    assert locked("trainer/requirements.lock").items() <= gpu.items()
