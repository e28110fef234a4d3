"""terraform/README.md says what the code does."""

import ast
import json
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.terraform.conftest import PROJECT, REGION, ROOT, VARIABLES, State, Terraform

README = ROOT / "terraform" / "README.md"

OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Div: operator.truediv,
    ast.Mult: operator.mul,
    ast.Sub: operator.sub,
}


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


def costs() -> list[dict[str, list[str]]]:
    """Return the tables of costs: row -> its cells, `small` and `production`."""
    text = README.read_text().partition("## What it costs")[2].partition("\n## ")[0]
    tables = re.findall(r"\| \| `small` \| `production` \|\n\| --- .*\n((?:\|.*\n)+)", text)
    return [
        {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}
        for rows in (
            [line.strip("|").split("|") for line in table.splitlines()] for table in tables
        )
    ]


def amount(cell: str) -> float:
    """Return what a cell comes to; the sum before it must come to the same."""
    term, _, result = cell.rpartition(" = ")
    found = re.fullmatch(r"([0-9,]+(?:\.\d+)?)( a build)?", result.strip("* "))
    if not found:
        assert re.search(r"\b(free|none)$", cell), cell
        return 0
    value = float(found[1].replace(",", ""))
    if term:
        digits = len(found[1].partition(".")[2])
        words = re.sub(r"[a-z,]+", "", term.replace("×", "*").replace("−", "-"))
        exact = calculated(ast.parse(words.strip(), mode="eval").body)
        assert abs(exact - value) <= 0.5000001 * 10**-digits, f"{term} = {exact}"
    # Only who builds pays it.
    return 0 if found[2] else value


def calculated(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](calculated(node.left), calculated(node.right))
    assert isinstance(node, ast.Constant)
    return float(node.value)  # type: ignore[arg-type]


def test_the_costs_add_up() -> None:
    tables = costs()
    assert len(tables) == 3
    for table in tables:
        [total] = [row for row in table if row.startswith("**together**")]
        for column in range(2):
            parts = sum(amount(cells[column]) for row, cells in table.items() if row != total)
            assert abs(parts - amount(table[total][column])) <= 0.5, f"{total}: {parts}"


def test_the_costs_hold_every_copy_of_what_firestore_stores() -> None:
    kept = dict(re.findall(r"\| Firestore's (daily|weekly) backups \| (.*) \|", section("presets")))
    daily, weekly = (
        [int(n) for n in re.findall(r"\d+", kept[name])] for name in ("daily", "weekly")
    )
    assert (len(daily), len(weekly)) == (2, 1)
    for table in costs()[1:]:
        small, production = table["its backups"]
        assert small.startswith(f"{daily[0]} × ")
        assert production.startswith(f"({daily[1]} + {weekly[0] // 7}) × ")
        stored = next(row for row in table if row.startswith("Firestore's storage"))
        size = re.fullmatch(r".*: (\d+) GiB", stored)
        assert size
        for cells in (table["its backups"], table["its point-in-time recovery"][:1]):
            for cell in cells:
                assert f"{size[1]} ×" in cell


def test_the_first_commands_come_in_an_order_that_works() -> None:
    text = README.read_text().partition("## From an empty project")[2]
    commands = text.partition("```sh\n")[2].partition("```")[0]
    order = [
        # Credentials made before know another project, or none, to count calls against.
        "gcloud config set project $PROJECT\n",
        "gcloud auth application-default login\n",
        "gcloud services enable ",
        "gcloud auth application-default set-quota-project $PROJECT\n",
        "terraform -chdir=terraform init ",
        # What fails at its first start could not be made anew, were it protected.
        "terraform -chdir=terraform apply -var=deletion_protection=false\n",
        "terraform -chdir=terraform apply  ",
    ]
    places = [commands.find(command) for command in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


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
