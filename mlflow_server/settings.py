"""The settings of the MLflow server, from the environment."""

from typing import Self
from urllib.parse import quote

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What both commands need: the database."""

    model_config = SettingsConfigDict(
        cli_prog_name="python -m mlflow_server",
        frozen=True,
        # The error of two fields that do not fit shows every value, passwords included.
        hide_input_in_errors=True,
    )

    database_url: SecretStr = Field(
        default=SecretStr(""),
        description="SQLAlchemy URL, such as sqlite:///mlflow.db; or give the parts below.",
    )
    database_host: str = Field(
        default="", description="PostgreSQL host, or the folder of its Unix socket."
    )
    database_port: int = Field(default=5432, ge=1, le=65535, description="PostgreSQL port.")
    database_name: str = Field(default="mlflow", description="Name of the database.")
    database_user: str = Field(default="mlflow", description="Database user.")
    database_password: SecretStr = Field(
        default=SecretStr(""), description="Its password, as it is: no URL encoding."
    )

    @model_validator(mode="after")
    def _has_one_database(self) -> Self:
        if bool(self.database_url.get_secret_value()) == bool(self.database_host):
            raise ValueError("give either DATABASE_URL or DATABASE_HOST")
        return self

    @property
    def backend_store_uri(self) -> str:
        """Return the database as the SQLAlchemy URL that MLflow takes, password included."""
        if url := self.database_url.get_secret_value():
            return url
        user = quote(self.database_user, safe="")
        password = quote(self.database_password.get_secret_value(), safe="")
        # A socket's folder goes into the query: it can't be a URL's host.
        socket = self.database_host.startswith("/")
        host = "" if socket else self.database_host
        query = f"?host={quote(self.database_host, safe='/')}" if socket else ""
        return (
            f"postgresql+psycopg2://{user}:{password}@{host}:{self.database_port}"
            f"/{quote(self.database_name, safe='')}{query}"
        )


class ServerSettings(Settings):
    """What serving needs besides the database."""

    artifact_root: str = Field(
        pattern=r"^gs://[^/]+", description="gs://BUCKET/PATH for artifacts; clients write there."
    )
    host: str = Field(default="0.0.0.0", description="Address to listen on.")  # noqa: S104  # a container's
    port: int = Field(default=8080, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(default=1, ge=1, description="Server processes, about 0.4 GB each.")
    allowed_hosts: str = Field(
        default="",
        description="Every host name of the service, comma-separated; empty: loopback and "
        "private addresses.",
    )
    cors_allowed_origins: str = Field(
        default="",
        description="The same as origins (https://NAME), comma-separated, or the UI's changes "
        "answer 403.",
    )
