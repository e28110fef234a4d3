"""Settings of the proxy: arguments first, then environment, then defaults."""

from pydantic import AliasChoices, Field, HttpUrl
from pydantic_settings import BaseSettings, SettingsConfigDict


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
        description="Counter documents per day and model version; each takes about one "
        "sustained write a second, and each costs one read of GET /statistics.",
    )
