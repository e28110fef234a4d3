"""Settings of the proxy: arguments first, then environment, then defaults."""

from typing import Annotated

from pydantic import AliasChoices, Field, HttpUrl, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """The proxy: asks predict, keeps predictions and statistics in Firestore."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True, cli_prog_name="python -m functions.proxy", frozen=True
    )

    host: str = Field("0.0.0.0", description="Address to bind.")  # noqa: S104  # Cloud Run's
    port: int = Field(8080, ge=1, le=65535, description="Port to bind; Cloud Run sets PORT.")
    workers: int = Field(1, ge=1, description="Server processes.")

    predict_url: HttpUrl = Field(
        HttpUrl("http://127.0.0.1:8081"), description="Base URL of the predict service."
    )
    predict_audience: str | None = Field(
        None,
        description="Audience of the Google ID token sent to predict (its service URL); "
        "without it, predict is called without a token.",
    )
    predict_timeout_seconds: float = Field(
        10, gt=0, description="Longest wait for predict's whole answer, a retry included."
    )

    firestore_project: str | None = Field(
        None,
        validation_alias=AliasChoices("firestore_project", "google_cloud_project"),
        description="Project of the Firestore database; by default the one the service runs in.",
    )
    firestore_database: str = Field("(default)", description="Id of the Firestore database.")
    firestore_timeout_seconds: float = Field(
        5, gt=0, description="Longest wait for one Firestore call, its retries included."
    )
    statistics_shards: int = Field(
        10,
        ge=1,
        le=100,
        description="Counter documents of all time, and of each month; a commit writes one of "
        "each, and GET /statistics reads all. Can be changed at any time.",
    )
    retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Days after which Firestore deletes a prediction (the statistics go on "
        "counting it); 0: never.",
    )

    max_in_flight: int = Field(
        80,
        ge=1,
        description="Requests at once; more are answered 429. As many as Cloud Run sends to one "
        "instance.",
    )
    answers_per_caller: int = Field(
        20,
        ge=0,
        description="Answers of one caller, a day and model version, that a rollout heeds.",
    )
    trusted_fronts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="E-mail addresses, comma-separated, of the service accounts that may name "
        "their own users in X-Greenroom-Caller.",
    )

    @field_validator("trusted_fronts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value
