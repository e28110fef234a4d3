"""What the stand-in is told at start: one JSON file."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Port = Annotated[int, Field(ge=1, le=65535)]
ServiceAccount = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9.-]+@[a-z0-9.-]+\.gserviceaccount\.com$")
]


class Image(BaseModel):
    """What a container image stands for on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entrypoint: list[str] = Field(
        min_length=1,
        description="Command line; the container's `command` replaces it, its `args` follow.",
    )
    working_directory: Path = Field(description="Folder in which the process starts.")


class CloudRunConfig(BaseModel):
    """Settings of one stand-in: one project, one region. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: Annotated[str, StringConstraints(pattern=r"^[a-z][-a-z0-9]{4,28}[a-z0-9]$")] = Field(
        description="Project id."
    )
    project_number: Annotated[str, StringConstraints(pattern=r"^[0-9]+$")] = Field(
        description="Project number; accepted in resource names in place of the id."
    )
    region: Annotated[str, StringConstraints(pattern=r"^[a-z]+-[a-z]+[0-9]+$")] = Field(
        description="The only location that exists."
    )
    data_dir: Path = Field(
        description="State, key of the ID tokens, request log and `logs/<revision>.log`."
    )
    api_port: Port = Field(description="Admin API: gRPC, without TLS, on 127.0.0.1.")
    port: Port = Field(description="Front end: HTTP/1 on 127.0.0.1, routed by host name.")
    service_ports: dict[str, Port] = Field(
        default_factory=dict,
        description=(
            "Further front-end listeners, one service each, for the person at this machine: "
            "whoever calls there counts as the project's owner, who may invoke everything."
        ),
    )
    metadata_ports: dict[ServiceAccount, Port] = Field(
        default_factory=dict,
        description=(
            "Metadata servers for callers outside Cloud Run, such as a scheduler: service "
            "account to port. Containers get one each without being named here."
        ),
    )
    check_callers: bool = Field(
        default=False,
        description=(
            "Refuse callers at `port` without a valid ID token of an invoker, as Cloud Run does."
        ),
    )
    images: dict[str, Image] = Field(
        description="Image reference to what it runs; any other reference fails like a pull."
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Given to every container: emulator endpoints and such."
    )
    startup_timeout_seconds: float = Field(
        default=60, gt=0, description="Longest time until a container answers its startup probe."
    )
    drain_seconds: float = Field(
        default=60, ge=0, description="Longest wait for requests of a revision without traffic."
    )
    idle_seconds: float = Field(
        default=900, gt=0, description="An instance without a request for so long is stopped."
    )
    request_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=300, description="Request time-out of templates that set none."
    )
    random_seed: int | None = Field(
        default=None, description="Makes the traffic split and revision names repeatable."
    )
