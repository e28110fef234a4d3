"""Settings of the UI: arguments first, then environment, then defaults."""

from pydantic import Field, HttpUrl
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The web page, which talks to the proxy only."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_prog_name="python -m ui",
        env_ignore_empty=True,
        frozen=True,
        protected_namespaces=(),
    )

    host: str = Field("0.0.0.0", description="Address to bind.")  # noqa: S104  # Cloud Run's
    port: int = Field(8080, ge=1, le=65535, description="Port to bind; Cloud Run sets PORT.")
    title: str = Field("Greenroom", description="Title of the page.")
    proxy_url: HttpUrl = Field(
        HttpUrl("http://127.0.0.1:8080"), description="Base URL of the proxy."
    )
    proxy_audience: str | None = Field(
        None,
        description="Audience of the Google ID token sent to the proxy (its service URL); "
        "without it, the proxy is called without a token.",
    )
    proxy_timeout_seconds: float = Field(
        20, gt=0, description="Longest wait for an answer of the proxy; a cold start counts."
    )
    mlflow_url: HttpUrl | None = Field(
        None,
        description="Where people open MLflow in a browser; without it, model versions and "
        "runs are named and not linked.",
    )
    model_name: str = Field(
        "yelp-model", min_length=1, description="Name of the model in MLflow's registry."
    )


def load_settings() -> Settings:
    """Return the settings of the environment, which ``python -m ui`` has checked."""
    return Settings()


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the environment variables that make another process read the same settings."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {name.upper(): str(value) for name, value in values.items()}
