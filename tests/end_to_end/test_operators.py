"""The operators' command line against the whole stack."""

import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime

from click.testing import CliRunner, Result

from functions.promote.command import main
from local.settings import MODEL, ROOT
from tests.end_to_end.conftest import Loop
from tests.end_to_end.versions import register_copy


def greenroom(loop: Loop, *arguments: str, answer: str = "") -> Result:
    environment = {**loop.settings.client_environment, **loop.settings.operator_environment}
    return CliRunner(env=environment).invoke(main, arguments, input=answer)


def test_pause_run_now_history_and_the_way_back(loop: Loop) -> None:
    first = loop.served()
    assert first is not None
    loop.set_stage(first)
    second = register_copy(loop, first)

    assert greenroom(loop, "pause").exit_code == 0
    assert "already" in greenroom(loop, "pause").stdout
    try:
        loop.registry.set_registered_model_alias(MODEL, "production", second)
        loop.wait(lambda: desired(loop) == second, "the version is not seen")
        ticked = scheduler(loop)["last_attempt"]
        status = greenroom(loop, "status")
        assert status.exit_code == 1
        assert f"version {second} (alias:production)" in status.stdout
        assert f"version {first}, revision" in status.stdout
        assert "paused" in status.stdout
        assert loop.served() == first
        assert scheduler(loop)["last_attempt"] == ticked

        run = greenroom(loop, "run-now", "--wait", "--every", "0.5")
        assert run.exit_code == 0, run.output
        assert loop.served() == second
        status = greenroom(loop, "status", "--json")
        assert status.exit_code == 0
        content = json.loads(status.stdout)
        assert content["desired"]["version"] == content["served"]["version"] == second
        assert content["scheduler"]["state"] == "PAUSED"
        assert content["served_since"] is not None
        promoted_at = datetime.now(UTC)

        refused = greenroom(loop, "rollback", answer="n\n")
        assert refused.exit_code == 1
        assert f"from version {second} to version {first}?" in refused.stdout
        assert desired(loop) == second
        back = greenroom(
            loop, *("rollback", "--yes", "--reason", "it was worse", "--wait", "--every", "0.5")
        )
        assert back.exit_code == 0, back.output
        assert f"alias production: version {second} -> version {first}" in back.stdout
        assert loop.registry.get_registered_model(MODEL).aliases["production"] == first
        assert loop.served() == first

        entries = json.loads(greenroom(loop, "history", "--json").stdout)["entries"]
        promoted = [entry for entry in entries if entry["event"] == "promoted"]
        assert [entry["version"] for entry in promoted[:2]] == [first, second]
        assert promoted[0]["rollback_reason"] == "it was worse"
        assert promoted[0]["by"]
        assert promoted[1]["by"] is None
        assert promoted[1]["from_version"] == first
        assert promoted[1]["until"] == promoted[0]["at"]
        shown = greenroom(loop, "history", "--at", promoted_at.isoformat()).stdout
        assert shown.splitlines()[1].split()[1:4] == ["promoted", second, first]
    finally:
        assert greenroom(loop, "resume").exit_code == 0
    loop.registry.delete_registered_model_alias(MODEL, "production")
    loop.wait_until_served(first)


def test_a_stage_is_set_back_by_stage(loop: Loop) -> None:
    first = loop.served()
    assert first is not None
    second = register_copy(loop, first)
    loop.set_stage(second)
    back = greenroom(loop, "rollback", first, "--yes", "--wait", "--every", "0.5")
    assert back.exit_code == 0, back.output
    assert f"version {first}: stage Archived -> Production" in back.stdout
    assert f"version {second}: stage Production -> Archived" in back.stdout
    assert loop.served() == first


def test_the_stack_prints_what_the_command_needs(loop: Loop) -> None:
    local = [sys.executable, "-m", "local", "env", "--data-dir", str(loop.settings.data_dir)]
    script = f'eval "$({shlex.join(local)})" && exec {sys.executable} -m functions.promote.command'
    result = subprocess.run(
        ["sh", "-c", f"{script} status --json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stderr
    assert json.loads(result.stdout)["served"]["version"] == loop.served()


def desired(loop: Loop) -> str | None:
    found: dict[str, str] = loop.status()["desired"]  # type: ignore[assignment]  # JSON
    return found["version"]


def scheduler(loop: Loop) -> dict[str, str]:
    content: dict[str, str] = json.loads(greenroom(loop, "status", "--json").stdout)["scheduler"]
    return content
