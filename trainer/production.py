"""The parameters of the model in production, in a file that Git holds."""

import difflib
from pathlib import Path
from typing import get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from trainer.parameters import Parameters

PARAMETERS = Path(__file__).with_name("params.yaml")


class ParametersError(ValueError):
    """The file can't be used; the message names the key and says what is wrong."""


def load_parameters(path: Path = PARAMETERS) -> Parameters:
    """Return the parameters that a YAML file names; what it leaves out has its default.

    Raises:
        ParametersError: it can't be read, or has an unknown key or a value of a wrong type.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ParametersError(f"{path}: can't be read: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ParametersError(f"{path}: not a mapping of parameters to values")
    # Strict: 0.5 epochs or "2" n-grams are mistakes; a whole number may stand for a float.
    config = ConfigDict(strict=True, allow_inf_nan=False)
    types = get_type_hints(Parameters)
    checked = {}
    for key, value in values.items():
        if key not in types:
            close = difflib.get_close_matches(str(key), types, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(types)}"
            raise ParametersError(f"{path}: {key}: unknown parameter; {hint}")
        try:
            checked[key] = TypeAdapter(types[key], config=config).validate_python(value)
        except ValidationError as error:
            message = f"{error.errors()[0]['msg']}, not {value!r}"
            if types[key] is float and isinstance(value, str):
                message += " (YAML takes 1e-3 for text: write 0.001)"
            raise ParametersError(f"{path}: {key}: {message}") from error
    return Parameters(**checked)
