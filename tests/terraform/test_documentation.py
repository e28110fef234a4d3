"""terraform/README.md says what the code does."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.terraform.conftest import PROJECT, REGION, ROOT, VARIABLES, State, Terraform

README = ROOT / "terraform" / "README.md"


def section(name: str) -> str:
    """Return what stands between the marks of this name."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README.read_text(), re.DOTALL)
    assert found, f"README.md has no marks for {name}"
    return found[1]


def variables() -> str:
    """Return the table of every variable, as the code declares it."""
    declared = {}
    for file in sorted((ROOT / "terraform").glob("*.tf")):
        blocks = re.split(r'^variable "(\w+)" \{\n', file.read_text(), flags=re.MULTILINE)[1:]
        for name, body in zip(blocks[::2], blocks[1::2], strict=True):
            block = body.split("\n}", 1)[0]
            description = re.search(r'^  description = "(.*)"$', block, re.MULTILINE)
            assert description, f"{name} has no description"
            default = re.search(r"^  default\s+= (.*)$", block, re.MULTILINE)
            shown = f"`{default[1]}`" if default else "needed"
            text = description[1].replace('\\"', '"').replace("|", "\\|")
            parts = ", ".join(attributes(block))
            declared[name] = f"| `{name}` | {shown} | {text} | {parts} |\n"
    rows = "".join(declared[name] for name in sorted(declared))
    head = "| variable | default | what it is | attributes and their defaults |\n"
    return f"{head}| --- | --- | --- | --- |\n{rows}"


def attributes(block: str) -> Iterator[str]:
    """Yield the attributes of an object, with what each is when it is not given."""
    above: list[str] = []
    for line in block.splitlines():
        inner = re.fullmatch(r"\s+(\w+)\s+= (?:optional\()?object\(\{", line)
        plain = re.fullmatch(r"\s{4,}(\w+)\s+= (optional\(.+\)|string|number|bool)", line)
        if inner and inner[1] != "type":
            above.append(inner[1])
        elif above and re.match(r"\s+\}\)", line):
            above.pop()
        elif plain:
            name = ".".join([*above, plain[1]])
            optional = re.fullmatch(r"optional\([^,]+?(?:, (.+))?\)", plain[2])
            given = (optional[1] or "null") if optional else "needed"
            yield f"`{name}` ({given})"


def presets(values: dict[str, Any]) -> str:
    """Return the table of the presets, as the code has them."""
    columns = [values["small"], values["production"]]

    def row(name: str, *cells: str) -> str:
        return f"| {name} | {' | '.join(cells)} |\n"

    def database(item: dict[str, Any]) -> str:
        return f"{item['tier']}, {item['availability']}, {item['disk_gb']} GB"

    def service(item: dict[str, Any]) -> str:
        return f"{item['cpu']} CPU, {item['memory']}, {item['min']} to {item['max']}"

    def days(number: int) -> str:
        return f"{number} days" if number else "none"

    rollouts = [item["rollout"] for item in columns]
    rows = [
        row("database", *(database(item["database"]) for item in columns)),
        row("database backups", *(str(item["database"]["retained_backups"]) for item in columns)),
        row("steps", *(", ".join(map(str, item["rollout_steps"])) for item in rollouts)),
        row(
            "bake time, at most",
            *(f"{item['bake_seconds']} s, {item['max_bake_seconds']} s" for item in rollouts),
        ),
        row("requests to judge a step by", *(str(item["min_requests"]) for item in rollouts)),
        *(
            row(name, *(service(item["services"][name]) for item in columns))
            for name in sorted(columns[0]["services"])
        ),
        row("Firestore's daily backups", *(days(item["daily_backup_days"]) for item in columns)),
        row("Firestore's weekly backups", *(days(item["weekly_backup_days"]) for item in columns)),
        row("older versions of objects", *(days(item["noncurrent_days"]) for item in columns)),
        row("checkpoints", *(days(item["staging_days"]) for item in columns)),
        row("versions of each image", *(str(item["retained_image_versions"]) for item in columns)),
    ]
    return f"| | `small` | `production` |\n| --- | --- | --- |\n{''.join(rows)}"


def test_the_table_of_variables_is_made_from_the_code() -> None:
    assert section("variables") == variables(), f"the table must be\n\n{variables()}"


def test_the_table_of_presets_is_made_from_the_code(applied: tuple[Terraform, State]) -> None:
    terraform, _ = applied
    result = terraform.run("console", "-no-color", input="jsonencode(local.presets)\n")
    expected = presets(json.loads(json.loads(result.stdout)))
    assert section("presets") == expected, f"the table must be\n\n{expected}"


def test_the_commands_name_what_there_is() -> None:
    text = README.read_text()
    for part, folder in re.findall(r"\b([a-z]+):([a-z_/]+)(?= |;)", text.split("for part in")[1]):
        assert (ROOT / folder / "Dockerfile").exists(), part
    for link in re.findall(r"\]\(([^)h][^)]*)\)", text):
        assert (README.parent / link).exists(), link
    for name in re.findall(r"^\| `([a-z_/.]+)`", text, re.MULTILINE):
        if "." in name or "/" in name:
            assert (README.parent / name).exists(), name


@pytest.mark.slow
def test_the_first_variables_are_enough(empty: Terraform) -> None:
    found = re.search(r"terraform\.tfvars <<END\n(.*?)END\n", README.read_text(), re.DOTALL)
    assert found
    text = found[1].replace("$PROJECT", PROJECT).replace("$REGION", REGION)
    (empty.folder / "tests.auto.tfvars.json").unlink()
    (empty.folder / "terraform.tfvars").write_text(text)
    empty.plan("-target=google_artifact_registry_repository.images")
    empty.set(images=VARIABLES["images"])
    empty.apply()
    state = empty.state()
    assert "user:you@example.com" in {
        grant["member"] for grant in state.of("google_project_iam_member").values()
    }
    # Every address in the commands that come next is one of this deployment's.
    for address in re.findall(r"https://[^/ ,]+", state.outputs["next_commands"]):
        assert address in state.outputs["urls"].values()
