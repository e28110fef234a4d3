"""cloudbuild.yaml by Google's own types, and its scripts by shellcheck."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud.devtools import cloudbuild_v1
from google.protobuf.json_format import ParseDict, ParseError

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text())
SCRIPTS = sorted((ROOT / "cloudbuild").glob("*.sh"))

# https://cloud.google.com/build/docs/configuring-builds/substitute-variable-values
BUILT_IN = {"PROJECT_ID", "PROJECT_NUMBER", "LOCATION", "BUILD_ID", "COMMIT_SHA", "BRANCH_NAME"}


def parse(config: dict[str, Any]) -> cloudbuild_v1.Build:
    """Return the build, where it has no field that Cloud Build does not know."""
    build = cloudbuild_v1.Build()
    ParseDict(config, cloudbuild_v1.Build.pb(build))
    return build


BUILD = parse(CONFIG)
STEPS = {step.id: step for step in BUILD.steps}


def ancestors(name: str) -> set[str]:
    """Return every step that has ended when this one begins."""
    before: set[str] = set()
    for other in STEPS[name].wait_for:
        if other != "-":
            before |= {other} | ancestors(other)
    return before


@pytest.mark.parametrize(
    "change",
    [
        {"step": []},
        {"options": {"machine": "E2_HIGHCPU_8"}},
        {"options": {"machineType": "HUGE"}},
        {"steps": [{"name": "a", "waitfor": []}]},
    ],
)
def test_unknown_fields_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ParseError):
        parse({**CONFIG, **change})


def test_every_step_waits_for_earlier_ones_that_exist() -> None:
    """No cycle then: Cloud Build refuses both only when a build is started."""
    seen: set[str] = set()
    assert len(STEPS) == len(BUILD.steps)
    for step in BUILD.steps:
        # Without it a step waits for all before it, which hides what it needs.
        assert step.wait_for, step.id
        assert set(step.wait_for) <= seen | {"-"}, step.id
        seen.add(step.id)


def test_nothing_is_applied_before_it_is_tested_and_scanned() -> None:
    images = {name for name in STEPS if name.startswith("image-")}
    assert images <= ancestors("scan")
    assert {"test", "scan"} | images <= ancestors("apply")
    assert "apply" in ancestors("smoke")
    assert "smoke" in ancestors("train")


def test_every_dockerfile_is_built() -> None:
    built = {step.args[2] for step in BUILD.steps if step.id.startswith("image-")}
    found = {str(path.relative_to(ROOT)) for path in ROOT.glob("[a-z]*/**/Dockerfile")}
    assert built == found - {"cloudbuild/Dockerfile"}
    names = {step.args[1] for step in BUILD.steps if step.id.startswith("image-")}
    assert names == {"mlflow", "predict", "promote", "proxy", "trainer", "ui"}


@pytest.mark.parametrize("step", [step for step in BUILD.steps if step.id.startswith("image-")])
def test_every_image_takes_its_arguments(step: cloudbuild_v1.BuildStep) -> None:
    """Docker only warns of an argument that a Dockerfile does not have."""
    text = (ROOT / step.args[2]).read_text()
    declared = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    trainer = {"ACCELERATOR", "GIT_DIRTY"} if step.args[1] == "trainer" else set()
    assert {"BASE", "GIT_COMMIT"} | trainer <= declared


def test_the_readme_names_every_step_and_its_workflow_is_one() -> None:
    text = (ROOT / "cloudbuild" / "README.md").read_text()
    named = set(re.findall(r"^\| `([a-z-]+)\*?`", text, re.MULTILINE))
    assert {re.sub(r"image-.+", "image-", name) for name in STEPS} == named
    workflow = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert workflow["permissions"] == {"contents": "read", "id-token": "write"}
    # Two pushes in a row are deployed one after the other.
    assert workflow["concurrency"] == {"group": "build-${{ github.ref }}"}
    # YAML takes the key `on` for true.
    assert set(workflow[True]) == {"pull_request", "push"}


def test_where_terraform_stands_alone_nothing_is_applied(tmp_path: Path) -> None:
    """As in the step `test`: its image has Google's own provider, its build no project to try."""
    alone = tmp_path / "terraform"
    alone.write_text("#!/bin/sh\nexit 1\n")
    alone.chmod(0o755)
    tests = [f"tests/cloudbuild/test_{name}.py" for name in ("accounts", "apply")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--basetemp={tmp_path / 'tests'}", *tests],
        cwd=ROOT,
        env={**os.environ, "TERRAFORM": str(alone)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^\d+ skipped in ", result.stdout, re.MULTILINE), result.stdout


def test_every_script_is_a_step_or_part_of_one() -> None:
    run = {word for step in BUILD.steps for word in step.args if word.endswith(".sh")}
    assert run == {f"cloudbuild/{path.name}" for path in SCRIPTS} - {"cloudbuild/state.sh"}


def test_the_images_are_built_in_what_was_built_first() -> None:
    first, *others = BUILD.steps
    assert "--tag greenroom-tools" in (ROOT / first.args[0]).read_text()
    assert {step.name for step in others} == {"greenroom-tools"}


def test_scripts_read_substitutions_that_exist_and_all_of_them() -> None:
    """Cloud Build does not look: an unknown one would be empty, an unused one be ignored."""
    assert BUILD.options.automap_substitutions
    text = "\n".join(path.read_text() for path in SCRIPTS)
    used = set(re.findall(r"\$\{?(_[A-Z][A-Z_]*)", text))
    assert used == set(BUILD.substitutions)
    own = {"BUILD_DIR", "TERRAFORM", "GREENROOM_MODEL", "GREENROOM_PUBLIC"}
    assert set(re.findall(r"\$\{?([A-Z][A-Z_]*)", text)) <= BUILT_IN | own
    config = (ROOT / "cloudbuild.yaml").read_text()
    assert set(re.findall(r"\$\{([A-Z_]+)\}", config)) <= BUILT_IN


def test_every_substitution_is_documented() -> None:
    block = (ROOT / "cloudbuild.yaml").read_text().partition("substitutions:\n")[2]
    lines = block.partition("\n\n")[0].splitlines()
    for number, line in enumerate(lines):
        if re.match(r"  _[A-Z]", line):
            before = lines[number - 1]
            # Two may share a comment.
            assert before.startswith(("  # ", "  _SUBMIT_OPTIONS")), line


def test_a_pull_request_changes_nothing_by_default() -> None:
    assert BUILD.substitutions["_DEPLOY"] == "false"
    for name in ("apply", "smoke", "train"):
        script = (ROOT / STEPS[name].args[0]).read_text()
        assert "if [[ $_DEPLOY != true ]]; then" in script
        before = script.partition("if [[ $_DEPLOY")[0].splitlines()
        assert [line for line in before if line and not line.startswith("#")] == [
            "set -euo pipefail"
        ]
