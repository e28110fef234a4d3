"""Read a deployable's settings: arguments before environment before defaults."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import SecretBytes, SecretStr, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsError

_Settings = TypeVar("_Settings", bound=BaseSettings)

_kept: dict[type[BaseSettings], BaseSettings] = {}


def parse(kind: type[_Settings], arguments: Sequence[str] | None = None) -> _Settings:
    """Return the settings, and keep them for `current`.

    Ends the process with status 2 and a line on standard error for each wrong value,
    unknown argument, or missing one. The values of secrets are never shown.

    Args:
        kind: the settings, as a class.
        arguments: the command line without the program's name; None: environment only.
    """
    try:
        settings = kind() if arguments is None else CliApp.run(kind, cli_args=list(arguments))
    except ValidationError as error:
        _refuse(kind, _explain(kind, error, with_arguments=arguments is not None))
    except SettingsError as error:
        _refuse(kind, [str(error)])
    _kept[kind] = settings
    return settings


def current(kind: type[_Settings]) -> _Settings:
    """Return the settings that `parse` kept, else those of the environment."""
    kept = _kept.get(kind)
    return kept if isinstance(kept, kind) else parse(kind)


def _explain(
    kind: type[BaseSettings], error: ValidationError, *, with_arguments: bool
) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=False):
        # A validator's own message comes with this in front.
        message = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:
            # Of all values together: their input would be every value.
            yield message
            continue
        name = str(item["loc"][0])
        field = kind.model_fields.get(name)
        is_shown = (
            field is not None
            and not _is_secret(field.annotation)
            and isinstance(item["input"], str | int | float)
        )
        option = f"--{name.replace('_', '-')} or " if with_arguments else ""
        value = f", not {item['input']!r}" if is_shown else ""
        yield f"{option}{name.upper()}: {message}{value}"


def _is_secret(annotation: Any) -> bool:
    return annotation in (SecretStr, SecretBytes) or any(map(_is_secret, get_args(annotation)))


def _refuse(kind: type[BaseSettings], complaints: Iterator[str] | Sequence[str]) -> NoReturn:
    # In argparse's form, which refuses unknown arguments itself.
    program = kind.model_config.get("cli_prog_name") or kind.__name__
    for complaint in complaints:
        sys.stderr.write(f"{program}: error: {complaint}\n")
    sys.exit(2)
