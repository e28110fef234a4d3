"""The settings of predict, from arguments before environment before defaults.

Standard library only: pydantic, which reads the other services' settings, would be
a third of predict's cold start.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

PROGRAM = "python -m functions.predict"

# Cloud Run gives up on a container that does not listen after this many seconds.
_STARTUP_LIMIT_SECONDS = 240
_RESERVE_SECONDS = 20


class Settings(NamedTuple):
    """The settings, read and checked."""

    model_uri: str
    model_version: str
    host: str
    port: int
    workers: int
    storage_timeout_seconds: float
    k_revision: str


class _Field(NamedTuple):
    default: Any
    description: str
    read: Callable[[str], Any] = str
    """Raises ValueError, which says what the value must be."""


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number, {low} to {high}")
        return int(value)

    return read


def _seconds(high: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= high:
            raise ValueError(f"must be a number of seconds, more than 0, at most {high}")
        return seconds

    return read


def _bundle_uri(value: str) -> str:
    if not re.fullmatch("(gs://[^/]+/.*[^/]/?)?", value):
        raise ValueError("must be gs://BUCKET/PATH, or empty")
    return value


def _revision(value: str) -> str:
    # It becomes a header of every answer.
    if not re.fullmatch("[a-z0-9-]{0,63}", value):
        raise ValueError("must be at most 63 of a-z, 0-9 and -")
    return value


_FIELDS = {
    "model_uri": _Field(
        "",
        "folder of the serving bundle, gs://BUCKET/PATH; empty: start with no model",
        _bundle_uri,
    ),
    "model_version": _Field(
        "", "version of the model in the registry, as answers name it; a model needs it"
    ),
    "host": _Field("0.0.0.0", "address to listen on"),  # noqa: S104  # a container's
    "port": _Field(8080, "port to listen on", _whole(0, 65535)),
    "workers": _Field(
        1, "server processes: one for each CPU; they share the model's memory", _whole(1, 1024)
    ),
    "storage_timeout_seconds": _Field(
        120,
        "longest time to keep trying to read the bundle at start; Cloud Run ends a start "
        f"after {_STARTUP_LIMIT_SECONDS}",
        _seconds(_STARTUP_LIMIT_SECONDS - _RESERVE_SECONDS),
    ),
    "k_revision": _Field("", "name of the Cloud Run revision; set by Cloud Run", _revision),
}


def parse(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Return the settings.

    Ends the process with status 2 and a line on standard error for each wrong value,
    unknown argument, or missing one.

    Args:
        arguments: the command line without the program's name; None: environment only.
        environment: variable -> value; a variable has the name of its setting in capitals.
    """
    given = {} if arguments is None else _read_arguments(arguments)
    values = {}
    complaints = []
    for name, field in _FIELDS.items():
        variable = name.upper()
        text = given.get(name, environment.get(variable))
        if text is None:
            values[name] = field.default
            continue
        try:
            values[name] = field.read(text)
        except ValueError as error:
            names = variable if arguments is None else f"{_option(name)} or {variable}"
            complaints.append(f"{names}: {error}, not {text!r}")
    # The proxy refuses answers that don't say which version gave them.
    if not complaints and values["model_uri"] and not values["model_version"]:
        complaints.append("--model-uri or MODEL_URI needs --model-version or MODEL_VERSION too")
    if complaints:
        # In argparse's form, which refuses unknown arguments itself.
        for complaint in complaints:
            sys.stderr.write(f"{PROGRAM}: error: {complaint}\n")
        sys.exit(2)
    return Settings(**values)


def _read_arguments(arguments: Sequence[str]) -> dict[str, str]:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Answer whether a review is positive, from one serving bundle.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, field in _FIELDS.items():
        default = "" if field.default == "" else f"; default: {field.default}"
        parser.add_argument(
            _option(name),
            metavar=name.rpartition("_")[2].upper(),
            help=f"{field.description} (or {name.upper()}{default})",
        )
    return vars(parser.parse_args(arguments))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
