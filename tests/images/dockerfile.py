"""Reads a Dockerfile, as far as its tests need that."""

import json
import shlex
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction, its continued lines joined."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.value)

    @property
    def strings(self) -> list[str]:
        """The value of an instruction in the form of a JSON list."""
        found: list[str] = json.loads(self.value)
        return found


def read_stages(path: Path) -> list[list[Instruction]]:
    """Return the instructions of each stage, FROM first; what stands before it is left out."""
    text = "\n".join(
        line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")
    )
    stages: list[list[Instruction]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            stages.append([])
        if stages:
            stages[-1].append(Instruction(name, value.strip()))
    return stages


def copies(stage: list[Instruction]) -> list[tuple[str, str]]:
    """Return what a stage copies from the context: source and destination."""
    found = []
    for instruction in stage:
        if instruction.name == "COPY" and not instruction.value.startswith("--from"):
            *sources, destination = instruction.words
            found += [(source, destination) for source in sources]
    return found
