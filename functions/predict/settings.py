"""The settings of predict, from arguments before environment."""

from argparse import ArgumentParser
from typing import NoReturn

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict


class Settings(BaseSettings):
    """Answer whether a review is positive, from one serving bundle."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True, cli_prog_name="python -m functions.predict", frozen=True
    )

    model_uri: str = Field(
        default="",
        pattern=r"^(gs://[^/]+/.*[^/]/?)?$",
        description="Folder of the serving bundle, gs://BUCKET/PATH; empty: start with no model.",
    )
    model_version: str = Field(
        default="", description="Version of the model in the registry, as answers name it."
    )
    host: str = Field(default="0.0.0.0", description="Address to listen on.")  # noqa: S104  # a container's
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(default=1, ge=1, description="Server processes.")
    storage_timeout_seconds: float = Field(
        default=30,
        gt=0,
        description="Longest time to keep trying to read the bundle at start, in seconds.",
    )
    k_revision: str = Field(
        default="", description="Name of the Cloud Run revision; set by Cloud Run."
    )


_settings: Settings | None = None


def parse_arguments() -> Settings:
    """Return the settings from the command line and the environment, and keep them.

    Ends the process with status 2 and a message where an argument or a variable is wrong.
    """
    global _settings
    try:
        _settings = CliApp.run(Settings)
    except ValidationError as error:
        _refuse(error)
    return _settings


def get_settings() -> Settings:
    """Return the settings kept by `parse_arguments`, else those of the environment."""
    global _settings
    if _settings is None:
        _settings = Settings()
    return _settings


def _refuse(error: ValidationError) -> NoReturn:
    # argparse ends the process itself for unknown arguments; wrong values get the same form.
    wrong = [
        f"--{str(item['loc'][0]).replace('_', '-')}: {item['msg']}, not {item['input']!r}"
        for item in error.errors()
    ]
    CliSettingsSource[ArgumentParser](Settings).root_parser.error("; ".join(wrong))
