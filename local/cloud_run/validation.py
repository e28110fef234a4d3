"""What Cloud Run refuses, and the defaults it fills in: pure functions on messages."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.api import launch_stage_pb2  # type: ignore[import-untyped]  # ships no types
from google.cloud import run_v2
from google.protobuf import duration_pb2
from google.protobuf.descriptor import FieldDescriptor

# Fields of a service that a caller may set. All others are output, or the name.
SETTABLE = (
    "description",
    "labels",
    "annotations",
    "client",
    "client_version",
    "ingress",
    "launch_stage",
    "binary_authorization",
    "template",
    "traffic",
    "scaling",
    "invoker_iam_disabled",
    "default_uri_disabled",
    "iap_enabled",
    "multi_region_settings",
    "custom_audiences",
    "build_config",
)

RESERVED_NAMESPACES = (
    "run.googleapis.com",
    "cloud.googleapis.com",
    "serving.knative.dev",
    "autoscaling.knative.dev",
)

DEFAULT_CONTAINER_PORT = 8080
DEFAULT_CONCURRENCY = 80

LATEST = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST
REVISION = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION

_SERVICE_ID = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_TAG = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_ANNOTATION_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_ANNOTATION_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")

_SERVICE_ACCOUNT = re.compile(r"[a-z0-9.-]+@[a-z0-9.-]+\.gserviceaccount\.com")

_MAX_LABELS = 64
_MAX_ANNOTATION_BYTES = 256 * 1024
_MAX_DESCRIPTION = 512
_MAX_REVISION_NAME = 63
# Quota page: "service name and tag together". The rest of the host name's label
# holds the separator and the project's hash.
_MAX_SERVICE_AND_TAG = 46


class Refused(Exception):
    """A request that Cloud Run refuses.

    Attributes:
        code: the gRPC status code of the answer.
        message: what is wrong, for the caller.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> Refused:
    """A refusal with INVALID_ARGUMENT."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def check_service_id(service_id: str) -> None:
    """Refuse a name that no service may have."""
    if not _SERVICE_ID.fullmatch(service_id) or len(service_id) >= 50:
        raise invalid(
            f"service_id '{service_id}' must use only lowercase letters, digits and hyphens, "
            "begin with a letter, not end with a hyphen, and have fewer than 50 characters"
        )
    if "---" in service_id:
        raise invalid(
            f"service_id '{service_id}': '---' separates tag and service in a URL, and the "
            "stand-in could not tell them apart"
        )


def apply_mask(target: run_v2.Service, source: run_v2.Service, paths: Iterable[str]) -> None:
    """Take the fields named by `paths` from `source` into `target`.

    Args:
        target: changed in place.
        source: what the caller sent.
        paths: the update mask; empty means every settable field.

    Raises:
        Refused: INVALID_ARGUMENT for a path that names no settable field.
    """
    target_pb = run_v2.Service.pb(target)
    source_pb = run_v2.Service.pb(source)
    for path in list(paths) or SETTABLE:
        parts = path.split(".")
        if parts[0] not in SETTABLE:
            raise invalid(f"update_mask: '{path}' is not a field of a Service that can be set")
        _copy_path(target_pb, source_pb, parts, path)


def _copy_path(target: Any, source: Any, parts: list[str], path: str) -> None:
    field: FieldDescriptor | None = source.DESCRIPTOR.fields_by_name.get(parts[0])
    if field is None:
        raise invalid(f"update_mask: unknown path '{path}'")
    if len(parts) > 1:
        if field.message_type is None or field.is_repeated:
            raise invalid(
                f"update_mask: '{path}' reaches into '{parts[0]}', which can only be set whole"
            )
        # Reading a message field that is not set gives an empty one: the leaf is cleared.
        _copy_path(getattr(target, parts[0]), getattr(source, parts[0]), parts[1:], path)
        return
    target.ClearField(parts[0])
    if field.is_repeated:
        getattr(target, parts[0]).MergeFrom(getattr(source, parts[0]))
    elif field.message_type is not None:
        if source.HasField(parts[0]):
            getattr(target, parts[0]).CopyFrom(getattr(source, parts[0]))
    elif not field.has_presence or source.HasField(parts[0]):
        setattr(target, parts[0], getattr(source, parts[0]))


def fill_defaults(
    service: run_v2.Service, *, project_number: str, request_timeout_seconds: int
) -> None:
    """Fill in what Cloud Run fills in, so that equal wishes give equal templates."""
    if not service.ingress:
        service.ingress = run_v2.IngressTraffic(run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL)
    if not service.launch_stage:
        service.launch_stage = launch_stage_pb2.LaunchStage.GA
    if not service.traffic:
        service.traffic = [run_v2.TrafficTarget(type_=LATEST, percent=100)]
    template = service.template
    if not template.service_account:
        template.service_account = f"{project_number}-compute@developer.gserviceaccount.com"
    if not template.max_instance_request_concurrency:
        template.max_instance_request_concurrency = DEFAULT_CONCURRENCY
    template_pb = run_v2.RevisionTemplate.pb(template)
    if not template_pb.HasField("timeout"):
        template_pb.timeout.CopyFrom(duration_pb2.Duration(seconds=request_timeout_seconds))
    for container in template.containers:
        if not container.ports:
            container.ports = [
                run_v2.ContainerPort(name="http1", container_port=DEFAULT_CONTAINER_PORT)
            ]
        for port in container.ports:
            port.name = port.name or "http1"
        container.resources.limits.setdefault("cpu", "1000m")
        container.resources.limits.setdefault("memory", "512Mi")
        port_number = container.ports[0].container_port
        container_pb = run_v2.Container.pb(container)
        if not container_pb.HasField("startup_probe"):
            container.startup_probe = run_v2.Probe(
                timeout_seconds=240,
                period_seconds=240,
                failure_threshold=1,
                tcp_socket=run_v2.TCPSocketAction(port=port_number),
            )
        probe = container.startup_probe
        probe.timeout_seconds = probe.timeout_seconds or 1
        probe.period_seconds = probe.period_seconds or 10
        probe.failure_threshold = probe.failure_threshold or 3
        kind = run_v2.Probe.pb(probe).WhichOneof("probe_type")
        if kind == "http_get":
            probe.http_get.path = probe.http_get.path or "/"
            probe.http_get.port = probe.http_get.port or port_number
        elif kind == "tcp_socket":
            probe.tcp_socket.port = probe.tcp_socket.port or port_number


def check_service(service: run_v2.Service, service_id: str) -> None:
    """Refuse a service that breaks a rule which needs no knowledge of other revisions."""
    if len(service.description) > _MAX_DESCRIPTION:
        raise invalid(f"description: at most {_MAX_DESCRIPTION} characters")
    _check_labels(service.labels, "labels")
    _check_annotations(service.annotations, "annotations")
    _check_template(service.template, service_id)


def check_traffic(
    service: run_v2.Service, service_id: str, revisions: Mapping[str, run_v2.Revision]
) -> None:
    """Refuse traffic that can't be routed.

    Args:
        service: with the wanted traffic; not empty.
        service_id: its short name.
        revisions: the service's revisions by short name.

    Raises:
        Refused: INVALID_ARGUMENT, naming the target that is wrong.
    """
    tags: set[str] = set()
    for index, target in enumerate(service.traffic):
        where = f"traffic[{index}]"
        if not 0 <= target.percent <= 100:
            raise invalid(f"{where}.percent must be between 0 and 100")
        if target.type_ == LATEST:
            if target.revision:
                raise invalid(f"{where}.revision must be empty for the latest revision")
        elif target.type_ == REVISION:
            _check_target(target.revision, where, revisions)
        else:
            raise invalid(f"{where}.type must be LATEST or REVISION")
        if target.tag:
            if not _TAG.fullmatch(target.tag) or "---" in target.tag:
                raise invalid(
                    f"{where}.tag '{target.tag}' must use only lowercase letters, digits and "
                    "hyphens, begin with a letter and not end with a hyphen"
                )
            if len(target.tag) + len(service_id) > _MAX_SERVICE_AND_TAG:
                raise invalid(
                    f"{where}.tag '{target.tag}': service name and tag together have more than "
                    f"{_MAX_SERVICE_AND_TAG} characters"
                )
            if target.tag in tags:
                raise invalid(f"{where}.tag '{target.tag}' is given twice")
            tags.add(target.tag)
    total = sum(target.percent for target in service.traffic)
    if total != 100:
        raise invalid(f"traffic: percents add up to {total}, not to 100")


def _check_target(name: str, where: str, revisions: Mapping[str, run_v2.Revision]) -> None:
    if not name:
        raise invalid(f"{where}.revision is required")
    if "/" in name:
        raise invalid(
            f"{where}.revision '{name}' must be the short name of a revision, not its full path"
        )
    revision = revisions.get(name)
    if revision is None:
        raise invalid(
            f"{where}: Revision '{name}' does not exist or is deleted. Update all traffic to "
            "route to currently available revisions."
        )
    if not is_ready(revision):
        raise invalid(f"{where}: Revision '{name}' is not ready and cannot serve traffic.")


def is_ready(revision: run_v2.Revision) -> bool:
    """Whether the revision's Ready condition is true."""
    return _ready_state(revision) == run_v2.Condition.State.CONDITION_SUCCEEDED


def is_failed(revision: run_v2.Revision) -> bool:
    """Whether the revision will never become ready."""
    return _ready_state(revision) == run_v2.Condition.State.CONDITION_FAILED


def _ready_state(revision: run_v2.Revision) -> int:
    for condition in revision.conditions:
        if condition.type_ == "Ready":
            return condition.state
    return run_v2.Condition.State.STATE_UNSPECIFIED


def _check_labels(labels: Mapping[str, str], where: str) -> None:
    if len(labels) > _MAX_LABELS:
        raise invalid(f"{where}: at most {_MAX_LABELS} labels")
    for key, value in labels.items():
        _check_namespace(key, where)
        if not _LABEL_KEY.fullmatch(key):
            raise invalid(
                f"{where}: key '{key}' must begin with a lowercase letter and have at most 63 of "
                "[a-z0-9_-]"
            )
        if not _LABEL_VALUE.fullmatch(value):
            raise invalid(f"{where}: value '{value}' of '{key}' must have at most 63 of [a-z0-9_-]")


def _check_annotations(annotations: Mapping[str, str], where: str) -> None:
    for key in annotations:
        _check_namespace(key, where)
        prefix, slash, name = key.rpartition("/")
        if not _ANNOTATION_NAME.fullmatch(name) or (
            slash and not _ANNOTATION_PREFIX.fullmatch(prefix)
        ):
            raise invalid(f"{where}: '{key}' is not a valid annotation key")
    if sum(len(k.encode()) + len(v.encode()) for k, v in annotations.items()) > (
        _MAX_ANNOTATION_BYTES
    ):
        raise invalid(f"{where}: more than {_MAX_ANNOTATION_BYTES} bytes in total")


def _check_namespace(key: str, where: str) -> None:
    namespace, slash, _ = key.partition("/")
    for reserved in RESERVED_NAMESPACES:
        if slash and (namespace == reserved or namespace.endswith("." + reserved)):
            raise invalid(f"{where}: '{key}' is in the reserved namespace '{reserved}'")


def _check_template(template: run_v2.RevisionTemplate, service_id: str) -> None:
    _check_labels(template.labels, "template.labels")
    _check_annotations(template.annotations, "template.annotations")
    if template.revision and (
        not template.revision.startswith(f"{service_id}-")
        or not _SERVICE_ID.fullmatch(template.revision)
        or len(template.revision) > _MAX_REVISION_NAME
    ):
        raise invalid(
            f"template.revision '{template.revision}' must begin with '{service_id}-' and be a "
            f"DNS label of at most {_MAX_REVISION_NAME} characters"
        )
    if not template.containers:
        raise invalid("template.containers: one container is required")
    if len(template.containers) > 1:
        raise invalid("template.containers: the stand-in runs no sidecars; give one container")
    if template.volumes:
        raise invalid("template.volumes: the stand-in mounts no volumes")
    timeout = run_v2.RevisionTemplate.pb(template).timeout
    if not 0 < timeout.seconds + timeout.nanos / 1e9 <= 3600:
        raise invalid("template.timeout must be more than 0 and at most 3600 seconds")
    if not 1 <= template.max_instance_request_concurrency <= 1000:
        raise invalid("template.max_instance_request_concurrency must be between 1 and 1000")
    if not _SERVICE_ACCOUNT.fullmatch(template.service_account):
        raise invalid(
            f"template.service_account '{template.service_account}' is not a service account's "
            "email"
        )
    scaling = template.scaling
    if scaling.min_instance_count < 0 or scaling.max_instance_count < 0:
        raise invalid("template.scaling: instance counts must not be negative")
    if scaling.max_instance_count and scaling.min_instance_count > scaling.max_instance_count:
        raise invalid("template.scaling: min_instance_count is above max_instance_count")
    _check_container(template.containers[0], "template.containers[0]")


def _check_container(container: run_v2.Container, where: str) -> None:
    if not container.image:
        raise invalid(f"{where}.image is required")
    if container.volume_mounts:
        raise invalid(f"{where}.volume_mounts: the stand-in mounts no volumes")
    names: set[str] = set()
    for variable in container.env:
        name = variable.name
        if not _ENV_NAME.fullmatch(name):
            raise invalid(f"{where}.env: '{name}' is not a valid name")
        if name == "PORT" or name.startswith("K_"):
            raise invalid(f"{where}.env: the name '{name}' is reserved; Cloud Run sets it")
        if name in names:
            raise invalid(f"{where}.env: '{name}' is given twice")
        names.add(name)
        if run_v2.EnvVar.pb(variable).HasField("value_source"):
            raise invalid(
                f"{where}.env: '{name}' refers to a secret, and the stand-in has no Secret "
                "Manager; give a plain value"
            )
    if len(container.ports) != 1:
        raise invalid(f"{where}.ports: at most one port")
    port = container.ports[0]
    if not 1 <= port.container_port <= 65535:
        raise invalid(f"{where}.ports[0].container_port must be between 1 and 65535")
    if port.name == "h2c":
        raise invalid(f"{where}.ports[0].name: the stand-in's front end speaks HTTP/1 only")
    if port.name != "http1":
        raise invalid(f"{where}.ports[0].name must be 'http1' or 'h2c'")
    for key in container.resources.limits:
        if key not in {"cpu", "memory", "nvidia.com/gpu"}:
            raise invalid(f"{where}.resources.limits: unknown key '{key}'")
    _check_startup_probe(container.startup_probe, port.container_port, f"{where}.startup_probe")


def _check_startup_probe(probe: run_v2.Probe, container_port: int, where: str) -> None:
    kind = run_v2.Probe.pb(probe).WhichOneof("probe_type")
    if kind is None:
        raise invalid(f"{where}: one of http_get, tcp_socket or grpc is required")
    if kind == "grpc":
        raise invalid(f"{where}.grpc: the stand-in probes over HTTP and TCP only")
    if not 0 <= probe.initial_delay_seconds <= 240:
        raise invalid(f"{where}.initial_delay_seconds must be between 0 and 240")
    if not 1 <= probe.period_seconds <= 240:
        raise invalid(f"{where}.period_seconds must be between 1 and 240")
    if not 1 <= probe.timeout_seconds <= probe.period_seconds:
        raise invalid(f"{where}.timeout_seconds must be between 1 and period_seconds")
    if probe.failure_threshold < 1:
        raise invalid(f"{where}.failure_threshold must be at least 1")
    port = probe.http_get.port if kind == "http_get" else probe.tcp_socket.port
    if port != container_port:
        raise invalid(f"{where}: the stand-in probes the container's port {container_port} only")
    if kind == "http_get" and not probe.http_get.path.startswith("/"):
        raise invalid(f"{where}.http_get.path must begin with '/'")
