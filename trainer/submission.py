"""``python -m trainer submit``: run a command of the trainer as a custom job of Vertex AI."""

import difflib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import CustomJob

    from trainer.vertex import JobLog, Vertex

MOST_DAYS = 7
INTERRUPTED = 130

_QUIET_LOOKS = 2
_MISSED_LOOKS = 10

_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[^#?*\[\]\r\n]*)?")
_IMAGE = re.compile(r"(?P<name>[^@\s]+)@(?P<digest>sha256:[0-9a-f]{64})")
_ACCOUNT = re.compile(r"[a-z0-9.-]+@[a-z0-9.-]+\.gserviceaccount\.com")
_NETWORK = re.compile(r"projects/[0-9]+/global/networks/[a-z]([-a-z0-9]*[a-z0-9])?")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_DURATION = re.compile(r"([0-9]+)([smhd])")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Vertex AI sets these, or this command does.
_RESERVED_PREFIXES = ("AIP_", "CLOUD_ML_", "CLUSTER_SPEC", "TF_CONFIG")
_RESERVED = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AUDIENCE"),
    *("GIT_COMMIT", "TRAINING_IMAGE_DIGEST", "GOOGLE_CLOUD_PROJECT"),
)

_OUTCOMES = {"FAILED": "failed", "CANCELLED": "was cancelled", "EXPIRED": "expired"}

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class JobSettings:
    """What a job is made from, checked."""

    command: Sequence[str]
    """Arguments of the container, such as ``train --epochs 3``."""
    display_name: str
    image: str
    """By digest: ``REPOSITORY@sha256:...``."""
    service_account: str
    output: str
    """``gs://`` folder; Vertex AI puts AIP_CHECKPOINT_DIR into it."""
    machine_type: str
    accelerator: str
    """Name of Vertex AI's AcceleratorType; empty: none."""
    accelerator_count: int
    spot: bool
    timeout: timedelta
    network: str
    """Full name; empty: none."""
    labels: Mapping[str, str]
    environment: Mapping[str, str]


class _Matching(click.ParamType[str]):
    """Text that matches a pattern from start to end."""

    def __init__(self, name: str, pattern: re.Pattern[str], advice: str) -> None:
        self.name = name
        self._pattern = pattern
        self._advice = advice

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not self._pattern.fullmatch(value):
            self.fail(f"{value!r} {self._advice}", param, ctx)
        return str(value)


class _Duration(click.ParamType[timedelta]):
    """A number of seconds, minutes, hours or days."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = _DURATION.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90m, 12h or 2d", param, ctx)
        seconds = int(match[1]) * _SECONDS[match[2]]
        if not 0 < seconds <= MOST_DAYS * _SECONDS["d"]:
            self.fail(f"{value!r} is not between 1s and {MOST_DAYS}d", param, ctx)
        return timedelta(seconds=seconds)


class _Pair(click.ParamType[tuple[str, str]]):
    """NAME=VALUE."""

    def __init__(self, name: str, key: re.Pattern[str], value: re.Pattern[str] | None) -> None:
        self.name = name
        self._key = key
        self._value = value

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, content = value.partition("=")
        if not equals:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        if not self._key.fullmatch(key):
            self.fail(f"the name {key!r} must match {self._key.pattern}", param, ctx)
        if self._value is not None and not self._value.fullmatch(content):
            self.fail(f"the value {content!r} must match {self._value.pattern}", param, ctx)
        return key, content


@click.command(
    # What follows the command's name belongs to it, "--" or not.
    context_settings={"allow_interspersed_args": False, "show_default": True},
    options_metavar="OPTIONS --",
)
@click.option(
    "--project",
    envvar=["GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT"],
    show_envvar=True,
    required=True,
    help="Google Cloud project.",
)
@click.option(
    "--region",
    envvar=["GOOGLE_CLOUD_REGION", "CLOUDSDK_COMPUTE_REGION"],
    show_envvar=True,
    required=True,
    type=_Matching(
        "region", re.compile(r"[a-z]+-[a-z]+[0-9]+"), "is no region such as europe-west1"
    ),
    metavar="REGION",
    help="Where the job runs.",
)
@click.option(
    "--service-account",
    envvar="TRAINER_SERVICE_ACCOUNT",
    show_envvar=True,
    required=True,
    type=_Matching(
        "email", _ACCOUNT, "is no service account (NAME@PROJECT.iam.gserviceaccount.com)"
    ),
    help="Whom the job runs as: it must be allowed to call MLflow and to use the buckets.",
)
@click.option(
    "--staging-bucket",
    envvar="TRAINER_STAGING_BUCKET",
    show_envvar=True,
    required=True,
    type=_Matching("bucket", _BUCKET, "is not gs://BUCKET or gs://BUCKET/FOLDER"),
    metavar="gs://BUCKET[/FOLDER]",
    help="Takes the checkpoints, in a folder for each job.",
)
@click.option(
    "--image",
    envvar="TRAINER_IMAGE",
    show_envvar=True,
    required=True,
    metavar="REPOSITORY@sha256:DIGEST",
    help="The trainer's image, by digest.",
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    required=True,
    help="MLflow server, as the job reaches it.",
)
@click.option(
    "--tracking-auth",
    default="google-id-token",
    help="MLflow's plugin that authenticates the job; empty: none.",
)
@click.option(
    "--tracking-audience",
    default="",
    show_default=False,
    help="Audience of the ID token, where MLflow's service has another URL.",
)
@click.option("--machine-type", default="n1-standard-8", help="Machine of the job.")
@click.option(
    "--accelerator",
    default="",
    show_default=False,
    metavar="TYPE",
    help="Such as NVIDIA_TESLA_T4; empty: none.",
)
@click.option("--accelerator-count", type=click.IntRange(1), help="How many.  [default: 1]")
@click.option("--spot", is_flag=True, help="On Spot machines; started again when one is taken.")
@click.option(
    "--timeout",
    type=_Duration(),
    default="1d",
    help=f"Longest time that the job may run, such as 90m or 12h; at most {MOST_DAYS}d.",
)
@click.option(
    "--network",
    default="",
    show_default=False,
    type=_Matching(
        "network",
        re.compile(rf"({_NETWORK.pattern})?"),
        "is not projects/NUMBER/global/networks/NAME, with the project's number",
    ),
    metavar="NETWORK",
    help="Peered VPC network (projects/NUMBER/global/networks/NAME), where MLflow is reached "
    "through it.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    type=_Pair("key=value", _LABEL_KEY, _LABEL_VALUE),
    help="Of the job, besides commit and command. May be repeated.",
)
@click.option(
    "--env",
    "environment",
    multiple=True,
    type=_Pair("name=value", _VARIABLE, None),
    help="Variable of the container; anybody who may see the job sees it. May be repeated.",
)
@click.option(
    "--commit",
    type=_Matching("sha", _COMMIT, "is no Git commit, in hex"),
    help="Commit that the image was built from.  [default: the one checked out, as a label only]",
)
@click.option("--display-name", help="Name in the console.  [default: from the command and time]")
@click.option(
    "--output",
    type=_Matching("folder", _BUCKET, "is not gs://BUCKET/FOLDER"),
    metavar="gs://BUCKET/FOLDER",
    help="Folder for the checkpoints; an earlier job's: go on where that one stopped.  "
    "[default: a new one in --staging-bucket]",
)
@click.option("--wait/--no-wait", default=True, help="Show the job's log until it ends.")
@click.option(
    "--cancel-on-interrupt", is_flag=True, help="Ctrl-C ends the job, not only the waiting."
)
@click.option(
    "--poll-seconds",
    type=click.FloatRange(0.1),
    default=5.0,
    help="Between two looks at the job and its log.",
)
@click.option("--dry-run", is_flag=True, help="Print the job as JSON, and send nothing.")
@click.option(
    "--endpoint",
    envvar="VERTEX_ENDPOINT",
    default="",
    show_default=False,
    help="Address of Vertex AI's API; empty: the region's. With http:// the connection is neither "
    "encrypted nor authenticated: for this machine only.",
)
@click.option(
    "--logging-endpoint",
    envvar="LOGGING_ENDPOINT",
    default="",
    show_default=False,
    help="The same of Cloud Logging's API.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True, metavar="COMMAND ...")
@click.pass_context
def submit(
    ctx: click.Context,
    *,
    project: str,
    region: str,
    service_account: str,
    staging_bucket: str,
    image: str,
    tracking_uri: str,
    tracking_auth: str,
    tracking_audience: str,
    machine_type: str,
    accelerator: str,
    accelerator_count: int | None,
    spot: bool,
    timeout: timedelta,
    network: str,
    labels: tuple[tuple[str, str], ...],
    environment: tuple[tuple[str, str], ...],
    commit: str | None,
    display_name: str | None,
    output: str | None,
    wait: bool,
    cancel_on_interrupt: bool,
    poll_seconds: float,
    dry_run: bool,
    endpoint: str,
    logging_endpoint: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND on Vertex AI as it would run here.

    \b
    python -m trainer submit --spot -- train --data gs://BUCKET/reviews.csv.gz --register NAME

    The job's standard output and error come out here; Ctrl-C leaves it running. The status is
    0 when the job has succeeded (with --no-wait: when it was sent).
    """
    digest = _digest(image)
    _check_endpoints(tracking_uri, endpoint, logging_endpoint)
    _check_command(ctx, command, tracking_uri)
    if accelerator_count is not None and not accelerator:
        raise click.UsageError("--accelerator-count needs --accelerator")
    _check_variables(environment)
    built_from = commit or _checked_out()
    name = _job_name(command[0], built_from)
    own_labels = {"command": command[0]} | ({"commit": built_from} if built_from else {})
    if taken := own_labels.keys() & dict(labels).keys():
        raise click.UsageError(f"--label {taken.pop()}: this command sets it")
    job = build_job(
        JobSettings(
            command=command,
            display_name=display_name or f"greenroom-{name}",
            image=image,
            service_account=service_account,
            output=output or f"{staging_bucket.rstrip('/')}/jobs/{name}",
            machine_type=machine_type,
            accelerator=accelerator,
            accelerator_count=accelerator_count or 1,
            spot=spot,
            timeout=timeout,
            network=network,
            labels={**own_labels, **dict(labels)},
            environment={
                "MLFLOW_TRACKING_URI": tracking_uri,
                **({"MLFLOW_TRACKING_AUTH": tracking_auth} if tracking_auth else {}),
                **({"MLFLOW_TRACKING_AUDIENCE": tracking_audience} if tracking_audience else {}),
                "GOOGLE_CLOUD_PROJECT": project,
                "TRAINING_IMAGE_DIGEST": digest,
                # The image says it by itself; what is checked out here says nothing of it.
                **({"GIT_COMMIT": commit} if commit else {}),
                **dict(environment),
            },
        )
    )
    if dry_run:
        click.echo(_to_json(job))
        return
    from trainer.vertex import Vertex, VertexError

    vertex = Vertex(
        project=project, region=region, endpoint=endpoint, logging_endpoint=logging_endpoint
    )
    try:
        created = vertex.create(job)
        click.echo(f"sent {created.name}\n{vertex.console(created.name)}", err=True)
        if wait:
            _wait(
                vertex,
                created,
                poll_seconds=poll_seconds,
                cancel_on_interrupt=cancel_on_interrupt,
                commands=_Commands(project, region, created.name),
            )
        else:
            click.echo(created.name)
    except VertexError as error:
        raise click.ClickException(str(error)) from error


def build_job(settings: JobSettings) -> "CustomJob":
    """Return the job to be sent.

    Raises:
        click.UsageError: Vertex AI has no such accelerator.
    """
    from google.cloud import aiplatform_v1 as vertex
    from google.protobuf.duration_pb2 import Duration

    machine = vertex.MachineSpec(machine_type=settings.machine_type)
    if settings.accelerator:
        kinds = {
            name: kind for name, kind in vertex.AcceleratorType.__members__.items() if kind.value
        }
        if settings.accelerator not in kinds:
            wanted = settings.accelerator.upper()
            near = [name for name in kinds if wanted in name]
            near = near or difflib.get_close_matches(wanted, kinds)
            raise click.UsageError(
                f"--accelerator: Vertex AI has no {settings.accelerator}; there is "
                f"{', '.join(near or kinds)}"
            )
        machine.accelerator_type = kinds[settings.accelerator]
        machine.accelerator_count = settings.accelerator_count
    strategies = vertex.Scheduling.Strategy
    scheduling = vertex.Scheduling(
        timeout=Duration(seconds=int(settings.timeout.total_seconds())),
        strategy=strategies.SPOT if settings.spot else strategies.STANDARD,
        restart_job_on_worker_restart=settings.spot,
    )
    return vertex.CustomJob(
        display_name=settings.display_name,
        labels=dict(settings.labels),
        job_spec=vertex.CustomJobSpec(
            worker_pool_specs=[
                vertex.WorkerPoolSpec(
                    machine_spec=machine,
                    replica_count=1,
                    container_spec=vertex.ContainerSpec(
                        image_uri=settings.image,
                        args=list(settings.command),
                        env=[
                            vertex.EnvVar(name=name, value=value)
                            for name, value in settings.environment.items()
                        ],
                    ),
                )
            ],
            scheduling=scheduling,
            service_account=settings.service_account,
            network=settings.network,
            base_output_directory=vertex.GcsDestination(output_uri_prefix=settings.output),
        ),
    )


@dataclass(frozen=True)
class _Commands:
    """What to type for a job that runs on."""

    project: str
    region: str
    name: str

    def __str__(self) -> str:
        arguments = f"{self.name.rpartition('/')[2]} --region={self.region}"
        arguments += f" --project={self.project}"
        return (
            f"  watch it:  gcloud ai custom-jobs stream-logs {arguments}\n"
            f"  cancel it: gcloud ai custom-jobs cancel {arguments}"
        )


def _wait(
    vertex: "Vertex",
    job: "CustomJob",
    *,
    poll_seconds: float,
    cancel_on_interrupt: bool,
    commands: _Commands,
) -> None:
    from trainer.vertex import VertexError

    try:
        ended = _follow(vertex, job, poll_seconds)
    except KeyboardInterrupt:
        _interrupted(vertex, job, cancel=cancel_on_interrupt, commands=commands)
    except VertexError as error:
        raise VertexError(f"{error}. The job goes on:\n{commands}") from error
    if ended.state.name != "JOB_STATE_SUCCEEDED":
        reason = f": {ended.error.message}" if ended.error.message else ""
        raise VertexError(f"the job {_OUTCOMES.get(_state(ended), _state(ended))}{reason}")


def _follow(vertex: "Vertex", job: "CustomJob", poll_seconds: float) -> "CustomJob":
    """Show the job's states and log until it has ended; return it."""
    from trainer.vertex import FINAL_STATES, LogsUnavailable, VertexError

    log: JobLog | None = vertex.log(job)
    shown = None
    # The log comes after what it tells: some quiet looks after the end. Or unanswered ones.
    quiet = missed = 0
    while quiet < _QUIET_LOOKS and missed < _MISSED_LOOKS:
        job = vertex.get(job.name)
        if job.state != shown:
            shown = job.state
            click.echo(f"{datetime.now(UTC):%H:%M:%S}Z {_state(job)}", err=True)
        has_ended = job.state in FINAL_STATES
        lines = 0
        try:
            for line, is_error in () if log is None else log.read():
                lines += 1
                click.echo(line, err=is_error)
        except LogsUnavailable as error:
            log = None
            click.echo(f"{error}. The job goes on without its log here", err=True)
        except VertexError as error:
            if not missed:
                click.echo(f"{error}. It is asked again", err=True)
            missed = missed + 1 if has_ended else 1
        else:
            missed = 0
            quiet = quiet + 1 if has_ended and not lines else 0
        if has_ended and log is None:
            break
        time.sleep(poll_seconds)
    return job


def _interrupted(
    vertex: "Vertex", job: "CustomJob", *, cancel: bool, commands: _Commands
) -> NoReturn:
    if cancel:
        vertex.cancel(job.name)
        click.echo(f"{job.name} is being cancelled", err=True)
    else:
        click.echo(f"the job goes on:\n{commands}", err=True)
    sys.exit(INTERRUPTED)


def _state(job: "CustomJob") -> str:
    return str(job.state.name).removeprefix("JOB_STATE_")


def _digest(image: str) -> str:
    match = _IMAGE.fullmatch(image)
    if match is None:
        raise click.UsageError(
            f"--image {image}: a tag may point at another image tomorrow; give the digest, "
            "REPOSITORY@sha256:... It is the answer of: gcloud artifacts docker images describe "
            f"{image.partition('@')[0]} --format='value(image_summary.fully_qualified_digest)'"
        )
    return str(match["digest"])


def _check_endpoints(tracking_uri: str, endpoint: str, logging_endpoint: str) -> None:
    for option, address in (("--endpoint", endpoint), ("--logging-endpoint", logging_endpoint)):
        if address.startswith("http://") and not _is_here(address):
            raise click.UsageError(f"{option} {address}: without TLS on this machine only")
    if urlsplit(tracking_uri).scheme not in ("http", "https"):
        raise click.UsageError(
            f"--tracking-uri {tracking_uri}: the job can't reach that; give the MLflow server's "
            "https:// address"
        )
    if _is_here(tracking_uri) and not _is_here(endpoint):
        raise click.UsageError(
            f"--tracking-uri {tracking_uri}: that is this machine, and the job runs on another"
        )


def _is_here(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_command(ctx: click.Context, command: Sequence[str], tracking_uri: str) -> None:
    """Refuse what would fail only once a machine was found for it."""
    group = ctx.find_root().command
    commands = group.commands if isinstance(group, click.Group) else {}
    name, *arguments = command
    known = [each for each in commands if each != ctx.info_name]
    if name not in known:
        raise click.UsageError(f"{name!r} is no command of the trainer: {', '.join(known)}")
    if unsafe := [argument for argument in command if "$(" in argument]:
        raise click.UsageError(f"{unsafe[0]!r}: Vertex AI replaces $(NAME) by a variable's value")
    inner = commands[name]
    try:
        # As the container's MLFLOW_TRACKING_URI will be.
        parsed = inner.make_context(name, arguments, default_map={"tracking_uri": tracking_uri})
    except click.UsageError as error:
        raise click.UsageError(
            f"{name}: {error.format_message()} (The job sees gs:// and its image, no file of this "
            "machine.)"
        ) from error
    with parsed:
        for parameter in inner.params:
            place = str(parameter.name)
            if parsed.get_parameter_source(place) is not ParameterSource.COMMANDLINE:
                continue
            value = parsed.params[place]
            takes_objects = "gs://" in (parameter.metavar or "")
            if isinstance(value, Path) or (takes_objects and not value.startswith("gs://")):
                raise click.UsageError(
                    f"{name} {parameter.opts[0]} {value}: the job sees no file of this machine, "
                    "and keeps none; give gs://BUCKET/OBJECT"
                )


def _check_variables(environment: Sequence[tuple[str, str]]) -> None:
    seen = set()
    for name, value in environment:
        if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
            raise click.UsageError(f"--env {name}: Vertex AI or an option of this command sets it")
        if name in seen:
            raise click.UsageError(f"--env {name}: given twice")
        if "$(" in value:
            raise click.UsageError(
                f"--env {name}: Vertex AI replaces $(NAME) by a variable's value"
            )
        seen.add(name)


def _checked_out() -> str | None:
    from trainer.lineage import collect_code

    return collect_code(Path(__file__).parent, os.environ).commit


def _job_name(command: str, commit: str | None) -> str:
    """Return a name that no other job has: its folder must not hold another's checkpoints."""
    parts = [command, f"{datetime.now(UTC):%Y%m%d-%H%M%S}", secrets.token_hex(2)]
    if commit:
        parts.insert(1, commit[:12])
    return "-".join(parts)


def _to_json(job: "CustomJob") -> str:
    """Return the body of the REST API's ``customJobs.create``."""
    from google.protobuf.json_format import MessageToDict

    return json.dumps(MessageToDict(type(job).pb(job)), indent=2)
