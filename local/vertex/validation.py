"""What Vertex AI refuses in a custom job: pure functions on messages."""

import re
from collections.abc import Mapping

from google.cloud import aiplatform_v1 as vertex
from google.protobuf.message import Message

from local.cloud_run.validation import invalid

LONGEST_SECONDS = 7 * 86400

_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SERVICE_ACCOUNT = re.compile(r"[a-z0-9.-]+@[a-z0-9.-]+\.gserviceaccount\.com")
_NETWORK = re.compile(r"projects/[0-9]+/global/networks/[a-z]([-a-z0-9]*[a-z0-9])?")
_FOLDER = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?")

_MAX_DISPLAY_NAME = 128
_MAX_LABELS = 64
_MAX_VARIABLES = 100

_POWERS = (2, 4, 8, 16, 32, 64, 96)
_SIZES: Mapping[str, tuple[int, ...]] = {
    "e2-standard": (4, 8, 16, 32),
    "e2-highmem": (2, 4, 8, 16),
    "e2-highcpu": (16, 32),
    "n1-standard": (4, 8, 16, 32, 64, 96),
    "n1-highmem": _POWERS,
    "n1-highcpu": (16, 32, 64, 96),
    "n2-standard": (4, 8, 16, 32, 48, 64, 80),
    "n2-highmem": (2, 4, 8, 16, 32, 48, 64, 80),
    "n2-highcpu": (16, 32, 48, 64, 80),
    "c2-standard": (4, 8, 16, 30, 60),
}
# Machines that take an accelerator, and how many of each.
_ATTACHED: Mapping[str, tuple[int, ...]] = {
    "NVIDIA_TESLA_T4": (1, 2, 4),
    "NVIDIA_TESLA_P4": (1, 2, 4),
    "NVIDIA_TESLA_P100": (1, 2, 4),
    "NVIDIA_TESLA_V100": (1, 2, 4, 8),
}
# Machines that come with accelerators, which must be named all the same.
_BUILT_IN: Mapping[str, tuple[str, int]] = {
    **{
        f"g2-standard-{cores}": ("NVIDIA_L4", count)
        for cores, count in {4: 1, 8: 1, 12: 1, 16: 1, 32: 1, 24: 2, 48: 4, 96: 8}.items()
    },
    **{f"a2-highgpu-{count}g": ("NVIDIA_TESLA_A100", count) for count in (1, 2, 4, 8)},
    "a2-megagpu-16g": ("NVIDIA_TESLA_A100", 16),
    **{f"a2-ultragpu-{count}g": ("NVIDIA_A100_80GB", count) for count in (1, 2, 4, 8)},
    "a3-highgpu-8g": ("NVIDIA_H100_80GB", 8),
}

_KNOWN_FIELDS: Mapping[str, frozenset[str]] = {
    "CustomJob": frozenset({"display_name", "job_spec", "labels"}),
    "CustomJobSpec": frozenset(
        {
            *("worker_pool_specs", "scheduling", "service_account", "network"),
            "base_output_directory",
        }
    ),
    "WorkerPoolSpec": frozenset({"container_spec", "machine_spec", "replica_count", "disk_spec"}),
    "MachineSpec": frozenset({"machine_type", "accelerator_type", "accelerator_count"}),
}


def check_job(job: vertex.CustomJob) -> None:
    """Refuse a job that Vertex AI refuses, and what this stand-in does not know.

    Raises:
        Refused: INVALID_ARGUMENT, naming the field.
    """
    _check_fields(vertex.CustomJob.pb(job), "custom_job")
    if not 1 <= len(job.display_name) <= _MAX_DISPLAY_NAME:
        raise invalid(f"display_name is required, with at most {_MAX_DISPLAY_NAME} characters")
    _check_labels(job.labels)
    spec = job.job_spec
    _check_fields(vertex.CustomJobSpec.pb(spec), "job_spec")
    if len(spec.worker_pool_specs) != 1:
        raise invalid("job_spec.worker_pool_specs: the stand-in runs one worker pool")
    _check_pool(spec.worker_pool_specs[0])
    _check_scheduling(spec.scheduling)
    if spec.service_account and not _SERVICE_ACCOUNT.fullmatch(spec.service_account):
        raise invalid(f"job_spec.service_account '{spec.service_account}' is not a service account")
    if spec.network and not _NETWORK.fullmatch(spec.network):
        raise invalid(
            f"job_spec.network '{spec.network}' must be projects/NUMBER/global/networks/NAME"
        )
    folder = spec.base_output_directory.output_uri_prefix
    if folder and not _FOLDER.fullmatch(folder):
        raise invalid(f"job_spec.base_output_directory '{folder}' is not a Cloud Storage folder")


def _check_pool(pool: vertex.WorkerPoolSpec) -> None:
    where = "job_spec.worker_pool_specs[0]"
    _check_fields(vertex.WorkerPoolSpec.pb(pool), where)
    if pool.replica_count != 1:
        raise invalid(f"{where}.replica_count must be 1 in the first worker pool")
    _check_machine(pool.machine_spec, f"{where}.machine_spec")
    container = pool.container_spec
    if not container.image_uri:
        raise invalid(f"{where}.container_spec.image_uri is required")
    if any("$(" in word for word in (*container.command, *container.args)):
        raise invalid(f"{where}.container_spec: the stand-in expands $(NAME) in variables only")
    if len(container.env) > _MAX_VARIABLES:
        raise invalid(f"{where}.container_spec.env: at most {_MAX_VARIABLES} variables")
    names: set[str] = set()
    for variable in container.env:
        if not _ENV_NAME.fullmatch(variable.name):
            raise invalid(
                f"{where}.container_spec.env: '{variable.name}' is not a valid C identifier"
            )
        if not variable.value:
            raise invalid(f"{where}.container_spec.env: '{variable.name}' has no value")
        if variable.name in names:
            raise invalid(f"{where}.container_spec.env: '{variable.name}' is given twice")
        names.add(variable.name)


def _check_machine(machine: vertex.MachineSpec, where: str) -> None:
    _check_fields(vertex.MachineSpec.pb(machine), where)
    kind, count = vertex.AcceleratorType(machine.accelerator_type).name, machine.accelerator_count
    if not machine.accelerator_type:
        if count:
            raise invalid(f"{where}.accelerator_count needs an accelerator_type")
        kind = ""
    elif count < 1:
        raise invalid(f"{where}.accelerator_count must be at least 1")
    name = machine.machine_type
    if name in _BUILT_IN:
        if (kind, count) != _BUILT_IN[name]:
            wanted, number = _BUILT_IN[name]
            raise invalid(f"{where}: '{name}' comes with {number} {wanted}, which must be named")
        return
    family, _, size = name.rpartition("-")
    if not size.isdecimal() or int(size) not in _SIZES.get(family, ()):
        raise invalid(f"{where}.machine_type '{name}' is not supported for custom training")
    if kind and not family.startswith("n1-"):
        raise invalid(f"{where}: accelerators can't be attached to '{name}'")
    if kind and count not in _ATTACHED.get(kind, ()):
        raise invalid(f"{where}: '{name}' does not take {count} {kind}")


def _check_scheduling(scheduling: vertex.Scheduling) -> None:
    where = "job_spec.scheduling"
    message = vertex.Scheduling.pb(scheduling)
    if message.HasField("timeout") and not 0 < message.timeout.seconds <= LONGEST_SECONDS:
        raise invalid(f"{where}.timeout must be more than 0 and at most 7 days")
    strategies = vertex.Scheduling.Strategy
    if scheduling.strategy not in (
        strategies.STRATEGY_UNSPECIFIED,
        strategies.STANDARD,
        strategies.SPOT,
    ):
        raise invalid(f"{where}.strategy: the stand-in knows STANDARD and SPOT")
    if message.HasField("max_wait_duration"):
        raise invalid(f"{where}.max_wait_duration is for FLEX_START")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > _MAX_LABELS:
        raise invalid(f"labels: at most {_MAX_LABELS}")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise invalid(
                f"labels: '{key}={value}': lowercase letters, digits, '_' and '-', at most 63, the "
                "key beginning with a letter"
            )


def _check_fields(message: Message, where: str) -> None:
    known = _KNOWN_FIELDS[message.DESCRIPTOR.name]
    for field, _ in message.ListFields():
        if field.name not in known:
            raise invalid(f"{where}.{field.name}: output only, or not known to the stand-in")
