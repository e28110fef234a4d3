"""The settings of predict, from arguments before environment."""

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


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
        default="",
        description="Version of the model in the registry, as answers name it; a model needs it.",
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

    @model_validator(mode="after")
    def _names_what_it_serves(self) -> Self:
        # The proxy refuses answers that don't say which version gave them.
        if self.model_uri and not self.model_version:
            raise ValueError("--model-uri or MODEL_URI needs --model-version or MODEL_VERSION too")
        return self
