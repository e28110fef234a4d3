"""The settings of promote, from arguments before environment."""

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from functions.promote.plan import Policy

Source = Annotated[str, StringConstraints(pattern=r"^(alias|stage):[^:]+$")]


class Settings(BaseSettings):
    """Make Cloud Run serve what the model registry says."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True, cli_prog_name="python -m functions.promote", frozen=True
    )

    project: str = Field(min_length=1, description="Google Cloud project.")
    region: str = Field(min_length=1, description="Region of the Cloud Run service.")
    service: str = Field(default="predict", description="Cloud Run service to roll out.")
    cloud_run_endpoint: str = Field(
        default="",
        description="Address of the Cloud Run Admin API; empty: Google's. With http:// the "
        "connection is neither encrypted nor authenticated.",
    )
    mlflow_tracking_uri: str = Field(min_length=1, description="Address of the MLflow server.")
    mlflow_audience: str = Field(
        default="",
        description="Audience of the ID token sent to MLflow (its service URL); empty: no token.",
    )
    model_name: str = Field(default="yelp-model", description="Name in the model registry.")
    promote_on: Annotated[tuple[Source, ...], NoDecode] = Field(
        default=("alias:production", "stage:Production"),
        min_length=1,
        description="What names the version to serve, comma-separated; the first that does wins.",
    )
    artifacts_bucket: str = Field(
        min_length=1, description="Bucket of the registry; models elsewhere are refused."
    )
    serving_bucket: str = Field(min_length=1, description="Bucket that predict reads.")
    firestore_project: str = Field(default="", description="Project of Firestore; empty: PROJECT.")
    firestore_database: str = Field(default="(default)", description="Firestore database.")
    golden_tolerance: float = Field(
        default=1e-6, ge=0, description="Largest difference between a golden score and the answer."
    )
    heed_validation: bool = Field(
        default=True,
        description="Block versions that training tagged validation=failed. False: the tag is "
        "looked past, for test splits too small to compare two versions.",
    )
    auroc_floor: float = Field(
        default=0.8, ge=0, le=1, description="Least AUROC on the test split; 0: any, or none."
    )
    auroc_margin: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="How far below the served version's AUROC the candidate's may lie, with the "
        "upper end of its interval.",
    )
    behaviour_floor: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Least share of the behavioural tests passed, if the bundle has it; 0: any.",
    )
    candidate_latency_ratio: float = Field(
        default=3.0,
        gt=0,
        description="Largest p95 latency at the candidate's tag, relative to the served revision's "
        "for the same calls.",
    )
    candidate_latency_floor_seconds: float = Field(
        default=0.25,
        ge=0,
        description="A p95 latency at the tag of up to so many seconds passes in any case.",
    )
    gate_timeout_seconds: float = Field(
        default=300,
        gt=0,
        description="How long a candidate may fail to answer before it is blocked, in seconds.",
    )
    host: str = Field(default="0.0.0.0", description="Address to listen on.")  # noqa: S104  # a container's
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(default=1, ge=1, description="Server processes.")

    @field_validator("promote_on", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @property
    def policy(self) -> Policy:
        """Return what a candidate must pass."""
        return Policy(**{name: getattr(self, name) for name in Policy.__dataclass_fields__})
