"""The settings of promote, from arguments before environment."""

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from functions.promote.policy import Policy

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
    monitoring_endpoint: str = Field(
        default="",
        description="Address of the Cloud Monitoring API; empty: Google's. With http:// the "
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
    latency_floor_seconds: float = Field(
        default=0.25,
        ge=0,
        description="A p95 latency of up to so many seconds passes in any case, at the tag and "
        "in traffic.",
    )
    gate_timeout_seconds: float = Field(
        default=300,
        gt=0,
        description="How long a candidate may fail to answer before it is blocked, in seconds.",
    )
    rollout_steps: Annotated[tuple[int, ...], NoDecode] = Field(
        default=(100,),
        description="Shares of the traffic that a candidate gets one after the other, in percent, "
        "comma-separated, rising, the last one 100.",
    )
    bake_seconds: float = Field(
        default=300, ge=0, description="Least time at a step below 100, in seconds."
    )
    max_bake_seconds: float = Field(
        default=1800,
        ge=0,
        description="After so many seconds at a step with too few requests, or without "
        "monitoring, the golden texts are sent once more and decide.",
    )
    min_requests: int = Field(
        default=50, ge=1, description="Requests that a step needs to be judged by them."
    )
    max_error_ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="How much larger than the served revision's the candidate's share of 5xx "
        "answers may be.",
    )
    max_latency_ratio: float = Field(
        default=2.0,
        gt=0,
        description="Largest p95 latency in traffic, relative to the served revision's.",
    )
    proxy_url: str = Field(
        default="",
        description="Address of the proxy, which counts users' answers and what failed by "
        "revision, and audience of the ID token sent to it; empty: neither has a say in a rollout.",
    )
    answers_error_rate: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Most rollouts that users' answers may stop though the candidate is no worse "
        "than what is served; 0: they have no say.",
    )
    keep_revisions: int = Field(
        default=20,
        ge=3,
        description="Revisions that are left of the service; the oldest beyond are deleted, but "
        "never one with traffic or a tag, or what was last good.",
    )
    host: str = Field(default="0.0.0.0", description="Address to listen on.")  # noqa: S104  # a container's
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(default=1, ge=1, description="Server processes.")

    @field_validator("promote_on", "rollout_steps", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("rollout_steps")
    @classmethod
    def _check_steps(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        rising = all(before < after for before, after in pairwise((0, *steps)))
        if not rising or not steps or steps[-1] != 100:
            raise ValueError("the steps must rise from more than 0 to 100, such as 10,50,100")
        return steps

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.max_bake_seconds < self.bake_seconds:
            raise ValueError("max_bake_seconds must be at least bake_seconds")
        return self

    @property
    def policy(self) -> Policy:
        """Return what a candidate must pass."""
        return Policy(**{name: getattr(self, name) for name in Policy.__dataclass_fields__})
