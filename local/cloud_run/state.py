"""The services, revisions and operations of one project, and how they change.

Pure: no clock, no disk, no process. Times come in as arguments; a revision's
instance is started elsewhere and the outcome reported here.
"""

import base64
import random
import string
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import grpc
from google.cloud import run_v2
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, json_format, timestamp_pb2
from google.rpc import status_pb2

from local.cloud_run import policy as policies
from local.cloud_run import validation
from local.cloud_run.validation import LATEST, Refused, invalid, is_failed, is_ready

State = run_v2.Condition.State
CommonReason = run_v2.Condition.CommonReason
RevisionReason = run_v2.Condition.RevisionReason

# One of the members of a condition's `reasons`: its field and its value.
_Reason = dict[str, int]

T = TypeVar("T")

_DEFAULT_PAGE = 100
_KEPT_OPERATIONS = 100


@dataclass(frozen=True)
class Scope:
    """The one project and location that exist, and where their services are reached.

    Attributes:
        project: project id.
        project_number: accepted in place of the id.
        region: the location.
        port: front end's port, part of every URL.
        request_timeout_seconds: of templates that set none.
    """

    project: str
    project_number: str
    region: str
    port: int
    request_timeout_seconds: int = 300

    @property
    def parent(self) -> str:
        """Resource name of the location."""
        return f"projects/{self.project}/locations/{self.region}"

    def service_name(self, service_id: str) -> str:
        """Resource name of a service."""
        return f"{self.parent}/services/{service_id}"

    def uri(self, service_id: str, tag: str = "") -> str:
        """URL of a service, or of one of its tags."""
        host = f"{tag}---{service_id}" if tag else service_id
        return f"http://{host}.localhost:{self.port}"

    def check_parent(self, parent: str) -> None:
        """Refuse another project or location."""
        if self._split(parent, ()) != []:
            raise invalid(f"'{parent}' must have the form projects/PROJECT/locations/LOCATION")

    def service_id(self, name: str) -> str:
        """Short name of the service `name`; refuses other projects and locations."""
        return self._split(name, ("services",))[0]

    def revision_id(self, name: str) -> tuple[str, str]:
        """Short names of the service and the revision of `name`."""
        service_id, revision_id = self._split(name, ("services", "revisions"))
        return service_id, revision_id

    def check_operation(self, name: str) -> None:
        """Refuse an operation's name of another project or location."""
        self._split(name, ("operations",))

    def _split(self, name: str, kinds: tuple[str, ...]) -> list[str]:
        expected = ("projects", "locations", *kinds)
        parts = name.split("/")
        if len(parts) != 2 * len(expected) or tuple(parts[::2]) != expected or not all(parts):
            form = "/".join(f"{kind}/{kind[:-1].upper()}" for kind in expected)
            raise invalid(f"'{name}' must have the form {form}")
        project, region = parts[1], parts[3]
        if project not in (self.project, self.project_number) or region != self.region:
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"Permission denied on 'projects/{project}/locations/{region}' (or it may not "
                "exist).",
            )
        return parts[5::2]


@dataclass
class ServiceRecord:
    """A service as the API shows it, its revisions by short name, oldest first, its policy."""

    service: run_v2.Service
    revisions: dict[str, run_v2.Revision] = field(default_factory=dict)
    policy: policy_pb2.Policy = field(default_factory=policies.initial_policy)

    def latest_created(self) -> run_v2.Revision:
        """The newest revision."""
        return self.revisions[short(self.service.latest_created_revision)]

    def latest_ready(self) -> run_v2.Revision | None:
        """The newest revision that became ready."""
        return next((r for r in reversed(self.revisions.values()) if is_ready(r)), None)


@dataclass
class OperationRecord:
    """A long-running operation and the service whose reconciliation it waits for."""

    operation: operations_pb2.Operation
    service_id: str


@dataclass(frozen=True)
class Routes:
    """Where a service's requests go, by short revision name.

    Attributes:
        weights: (revision, percent), percent above 0; empty when nothing can serve.
        tags: tag to revision.
    """

    weights: tuple[tuple[str, int], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()

    @property
    def revisions(self) -> set[str]:
        """All revisions that a request can reach."""
        return {name for name, _ in self.weights} | {name for _, name in self.tags}


def short(name: str) -> str:
    """Last part of a resource name."""
    return name.rpartition("/")[2]


class ProjectState:
    """All state of the stand-in. Methods raise `Refused` and then change nothing."""

    def __init__(self, scope: Scope, randomness: random.Random) -> None:
        self.scope = scope
        self.services: dict[str, ServiceRecord] = {}
        self.operations: dict[str, OperationRecord] = {}
        self._random = randomness
        self._principal = f"stand-in@{scope.project}.iam.gserviceaccount.com"

    # Reading

    def record(self, service_id: str) -> ServiceRecord:
        """The service, or NOT_FOUND."""
        record = self.services.get(service_id)
        if record is None:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                f"Resource '{service_id}' of kind 'SERVICE' in region '{self.scope.region}' in "
                f"project '{self.scope.project}' does not exist.",
            )
        return record

    def get_service(self, name: str) -> run_v2.Service:
        """A service by its full name."""
        return self.record(self.scope.service_id(name)).service

    def list_services(self, request: run_v2.ListServicesRequest) -> run_v2.ListServicesResponse:
        """One page of services, by name."""
        self.scope.check_parent(request.parent)
        found = [self.services[key].service for key in sorted(self.services)]
        page, token = _page(found, request.page_size, request.page_token)
        return run_v2.ListServicesResponse(services=page, next_page_token=token)

    def get_revision(self, name: str) -> run_v2.Revision:
        """A revision by its full name."""
        service_id, revision_id = self.scope.revision_id(name)
        record = self.services.get(service_id)
        if record is None or revision_id not in record.revisions:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                f"Resource '{revision_id}' of kind 'REVISION' in region '{self.scope.region}' in "
                f"project '{self.scope.project}' does not exist.",
            )
        return record.revisions[revision_id]

    def list_revisions(self, request: run_v2.ListRevisionsRequest) -> run_v2.ListRevisionsResponse:
        """One page of a service's revisions, or of all services' for "-", newest first."""
        service_id = self.scope.service_id(request.parent)
        records: Iterable[ServiceRecord]
        records = self.services.values() if service_id == "-" else [self.record(service_id)]
        found = [revision for record in records for revision in record.revisions.values()]
        found.sort(key=lambda r: (r.create_time, r.name), reverse=True)
        page, token = _page(found, request.page_size, request.page_token)
        return run_v2.ListRevisionsResponse(revisions=page, next_page_token=token)

    def get_operation(self, name: str) -> operations_pb2.Operation:
        """An operation by its full name."""
        self.scope.check_operation(name)
        found = self.operations.get(short(name))
        if found is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Operation '{name}' does not exist.")
        return found.operation

    def get_iam_policy(self, request: iam_policy_pb2.GetIamPolicyRequest) -> policy_pb2.Policy:
        """A service's policy."""
        record = self.record(self.scope.service_id(request.resource))
        policies.check_read(request)
        return record.policy

    def test_iam_permissions(
        self, request: iam_policy_pb2.TestIamPermissionsRequest
    ) -> iam_policy_pb2.TestIamPermissionsResponse:
        """What the API's caller may do with a service."""
        self.record(self.scope.service_id(request.resource))
        return iam_policy_pb2.TestIamPermissionsResponse(
            permissions=policies.held(request.permissions)
        )

    def routes(self, service_id: str) -> Routes:
        """Where requests go now: `traffic_statuses` with LATEST resolved."""
        record = self.services.get(service_id)
        if record is None:
            return Routes()
        latest = short(record.service.latest_ready_revision)
        weights: dict[str, int] = {}
        tags: list[tuple[str, str]] = []
        for status in record.service.traffic_statuses:
            revision = latest if status.type_ == LATEST else status.revision
            if status.percent:
                weights[revision] = weights.get(revision, 0) + status.percent
            if status.tag:
                tags.append((status.tag, revision))
        return Routes(tuple(weights.items()), tuple(tags))

    # Writing

    def create_service(
        self, request: run_v2.CreateServiceRequest, now: datetime
    ) -> operations_pb2.Operation:
        """Accept a new service; its first revision then waits to be started."""
        self.scope.check_parent(request.parent)
        validation.check_service_id(request.service_id)
        if request.service_id in self.services:
            raise Refused(
                grpc.StatusCode.ALREADY_EXISTS,
                f"Resource '{request.service_id}' already exists.",
            )
        return self._write(
            request.service_id, None, request.service, (), request.validate_only, now
        )

    def update_service(
        self, request: run_v2.UpdateServiceRequest, now: datetime
    ) -> operations_pb2.Operation:
        """Accept a change of a service, which then waits to be reconciled."""
        service_id = self.scope.service_id(request.service.name)
        mask = tuple(request.update_mask.paths)
        record = self.services.get(service_id)
        if record is None and request.allow_missing:
            validation.check_service_id(service_id)
        else:
            record = self.record(service_id)
        return self._write(service_id, record, request.service, mask, request.validate_only, now)

    def delete_service(
        self, request: run_v2.DeleteServiceRequest, now: datetime
    ) -> operations_pb2.Operation:
        """Forget a service and its revisions."""
        service_id = self.scope.service_id(request.name)
        service = self.record(service_id).service
        _check_etag(request.etag, service.etag)
        deleted = _copy_service(service)
        deleted.delete_time = _stamp(now)
        operation = self._operation(run_v2.Service.pb(deleted))
        _finish(operation, run_v2.Service.pb(deleted))
        if not request.validate_only:
            del self.services[service_id]
            for pending in self._pending(service_id):
                pending.error.CopyFrom(
                    status_pb2.Status(
                        code=grpc.StatusCode.ABORTED.value[0], message="The service was deleted."
                    )
                )
                pending.done = True
            self._keep(operation, service_id)
        return operation

    def delete_revision(
        self, request: run_v2.DeleteRevisionRequest, now: datetime
    ) -> operations_pb2.Operation:
        """Forget a revision that nothing points at."""
        service_id, revision_id = self.scope.revision_id(request.name)
        revision = self.get_revision(request.name)
        record = self.services[service_id]
        _check_etag(request.etag, revision.etag)
        wanted = {t.revision for t in record.service.traffic if t.type_ != LATEST}
        if len(record.revisions) == 1:
            raise _failed_precondition(f"Revision '{revision_id}' is the only one of its service.")
        if revision_id == short(record.service.latest_created_revision):
            raise _failed_precondition(
                f"Revision '{revision_id}' is the latest created one of its service."
            )
        if revision_id in wanted | self.routes(service_id).revisions:
            raise _failed_precondition(
                f"Revision '{revision_id}' has traffic or a tag: route it elsewhere first."
            )
        deleted = run_v2.Revision()
        run_v2.Revision.copy_from(deleted, revision)
        deleted.delete_time = _stamp(now)
        operation = self._operation(run_v2.Revision.pb(deleted))
        _finish(operation, run_v2.Revision.pb(deleted))
        if not request.validate_only:
            del record.revisions[revision_id]
            self._keep(operation, service_id)
        return operation

    def set_iam_policy(self, request: iam_policy_pb2.SetIamPolicyRequest) -> policy_pb2.Policy:
        """Replace a service's policy; it takes effect with the next request."""
        record = self.record(self.scope.service_id(request.resource))
        record.policy = policies.replace(request, record.policy)
        return record.policy

    def _write(
        self,
        service_id: str,
        record: ServiceRecord | None,
        sent: run_v2.Service,
        mask: tuple[str, ...],
        validate_only: bool,
        now: datetime,
    ) -> operations_pb2.Operation:
        if record is not None:
            _check_etag(sent.etag, record.service.etag)
        old = record.service if record is not None else run_v2.Service()
        revisions = record.revisions if record is not None else {}
        new = _copy_service(old)
        validation.apply_mask(new, sent, mask)
        validation.fill_defaults(
            new,
            project_number=self.scope.project_number,
            request_timeout_seconds=self.scope.request_timeout_seconds,
        )
        validation.check_service(new, service_id)
        validation.check_traffic(new, service_id, revisions)
        if record is not None and _same(new, old):
            operation = self._operation(run_v2.Service.pb(old))
            if validate_only:
                _finish(operation, run_v2.Service.pb(old))
            elif old.reconciling:
                self._keep(operation, service_id)
            else:
                _finish_settled(operation, old)
            return operation
        if new.template.revision in revisions:
            # Seen with every write to a service whose stored template has a name, also
            # with a mask that leaves the template alone.
            raise Refused(
                grpc.StatusCode.ALREADY_EXISTS,
                f"Revision named '{new.template.revision}' with different configuration already "
                "exists.",
            )
        if record is not None:
            # Two writes within one microsecond would share an etag.
            before: datetime = run_v2.Service.pb(old).update_time.ToDatetime(tzinfo=UTC)
            now = max(now, before + timedelta(microseconds=1))
        new.generation = old.generation + 1
        new.update_time = _stamp(now)
        new.last_modifier = self._principal
        new.reconciling = True
        if record is None:
            new.name = self.scope.service_name(service_id)
            new.uid = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
            new.create_time = _stamp(now)
            new.creator = self._principal
            new.uri = self.scope.uri(service_id)
            new.urls = [new.uri]
        new.etag = _etag(new.name, now)
        revision = None
        if record is None or new.template != old.template:
            revision = self._new_revision(service_id, new, now, revisions)
            new.latest_created_revision = revision.name
        _set_conditions(new, State.CONDITION_RECONCILING, now)
        operation = self._operation(run_v2.Service.pb(new))
        if validate_only:
            _finish(operation, run_v2.Service.pb(new))
            return operation
        record = self.services.setdefault(service_id, ServiceRecord(new))
        record.service = new
        if revision is not None:
            record.revisions[short(revision.name)] = revision
        self._keep(operation, service_id)
        return operation

    def _new_revision(
        self,
        service_id: str,
        service: run_v2.Service,
        now: datetime,
        revisions: dict[str, run_v2.Revision],
    ) -> run_v2.Revision:
        template = service.template
        name = template.revision
        while not name or name in revisions:
            letters = "".join(self._random.choices(string.ascii_lowercase, k=3))
            name = f"{service_id}-{service.generation:05d}-{letters}"
        full_name = f"{service.name}/revisions/{name}"
        revision = run_v2.Revision(
            name=full_name,
            uid=str(uuid.UUID(int=self._random.getrandbits(128), version=4)),
            generation=1,
            create_time=now,
            update_time=now,
            service=service_id,
            creator=self._principal,
            launch_stage=service.launch_stage,
            reconciling=True,
            etag=_etag(full_name, now),
        )
        source = run_v2.RevisionTemplate.pb(template)
        target = run_v2.Revision.pb(revision)
        for descriptor, value in source.ListFields():
            # Same name and same type in both messages, but for the name itself and
            # the health check switch.
            if descriptor.name in target.DESCRIPTOR.fields_by_name:
                if descriptor.is_repeated:
                    getattr(target, descriptor.name).MergeFrom(value)
                elif descriptor.message_type is not None:
                    getattr(target, descriptor.name).CopyFrom(value)
                else:
                    setattr(target, descriptor.name, value)
        revision.conditions = [
            _condition("Ready", State.CONDITION_RECONCILING, now),
            _condition("ContainerHealthy", State.CONDITION_RECONCILING, now),
            _condition("ResourcesAvailable", State.CONDITION_RECONCILING, now),
        ]
        return revision

    # Reconciling

    def revision_started(self, service_id: str, revision_id: str, now: datetime) -> None:
        """Note that the revision's first instance answers."""
        record = self.services.get(service_id)
        if record is None or revision_id not in record.revisions:
            return
        revision = record.revisions[revision_id]
        revision.conditions = [
            _condition(condition.type_, State.CONDITION_SUCCEEDED, now)
            for condition in revision.conditions
        ]
        _end_revision(revision, now)
        latest = record.latest_ready()
        if latest is not None:
            record.service.latest_ready_revision = latest.name

    def revision_failed(
        self,
        service_id: str,
        revision_id: str,
        message: str,
        now: datetime,
        *,
        image_missing: bool = False,
    ) -> None:
        """Note that the revision's first instance did not start, for good."""
        record = self.services.get(service_id)
        if record is None or revision_id not in record.revisions:
            return
        revision = record.revisions[revision_id]
        reason: _Reason
        if image_missing:
            reason = {"reason": CommonReason.CONTAINER_MISSING}
        else:
            reason = {"revision_reason": RevisionReason.HEALTH_CHECK_CONTAINER_ERROR}
        cause = "ResourcesAvailable" if image_missing else "ContainerHealthy"
        revision.conditions = [
            _condition("Ready", State.CONDITION_FAILED, now, message, reason),
            _condition(cause, State.CONDITION_FAILED, now, message, reason),
        ]
        _end_revision(revision, now)

    def route(self, service_id: str) -> None:
        """Make `traffic_statuses` follow the wanted traffic, as far as revisions are ready."""
        service = self.services[service_id].service
        service.traffic_statuses = [
            run_v2.TrafficTargetStatus(
                type_=target.type_,
                # The real service names no revision here for LATEST.
                revision=target.revision,
                percent=target.percent,
                tag=target.tag,
                uri=self.scope.uri(service_id, target.tag) if target.tag else "",
            )
            for target in service.traffic
            if target.type_ != LATEST or service.latest_ready_revision
        ]

    def settle(self, service_id: str, now: datetime) -> None:
        """End the reconciliation of a service whose latest revision started or failed."""
        record = self.services[service_id]
        service = record.service
        self.route(service_id)
        service.reconciling = False
        latest = record.latest_created()
        if is_failed(latest):
            name = short(latest.name)
            cause = latest.conditions[0].message
            message = f"Revision '{name}' is not ready and cannot serve traffic. {cause}"
            _set_conditions(service, State.CONDITION_FAILED, now, message)
            # `observed_generation` stays: documented as that of the last success.
        else:
            service.observed_generation = service.generation
            _set_conditions(service, State.CONDITION_SUCCEEDED, now)
        for operation in self._pending(service_id):
            _finish_settled(operation, service)

    # Operations

    def _operation(self, metadata: Any) -> operations_pb2.Operation:
        operation = operations_pb2.Operation(
            name=f"{self.scope.parent}/operations/{uuid.UUID(int=self._random.getrandbits(128))}"
        )
        operation.metadata.Pack(metadata)
        return operation

    def _pending(self, service_id: str) -> list[operations_pb2.Operation]:
        return [
            record.operation
            for record in self.operations.values()
            if record.service_id == service_id and not record.operation.done
        ]

    def _keep(self, operation: operations_pb2.Operation, service_id: str) -> None:
        self.operations[short(operation.name)] = OperationRecord(operation, service_id)
        while len(self.operations) > _KEPT_OPERATIONS:
            del self.operations[next(iter(self.operations))]

    # Keeping

    def to_json(self) -> dict[str, Any]:
        """All state as plain JSON values."""
        return {
            "format": 1,
            "services": {
                key: {
                    "service": _to_dict(run_v2.Service.pb(record.service)),
                    "revisions": [
                        _to_dict(run_v2.Revision.pb(r)) for r in record.revisions.values()
                    ],
                    "policy": _to_dict(record.policy),
                }
                for key, record in self.services.items()
            },
            # Operations hold packed messages: opaque here, exact when read back.
            "operations": [
                {
                    "service": record.service_id,
                    "operation": base64.b64encode(record.operation.SerializeToString()).decode(),
                }
                for record in self.operations.values()
            ],
        }

    def load_json(self, data: dict[str, Any]) -> None:
        """Take over what `to_json` gave."""
        if data["format"] != 1:
            raise ValueError(f"unknown state format {data['format']!r}")
        for key, stored in data["services"].items():
            service = run_v2.Service()
            json_format.ParseDict(stored["service"], run_v2.Service.pb(service))
            record = ServiceRecord(service)
            for item in stored["revisions"]:
                revision = run_v2.Revision()
                json_format.ParseDict(item, run_v2.Revision.pb(revision))
                record.revisions[short(revision.name)] = revision
            if "policy" in stored:
                record.policy = json_format.ParseDict(stored["policy"], policy_pb2.Policy())
            self.services[key] = record
        for item in data["operations"]:
            operation = operations_pb2.Operation.FromString(base64.b64decode(item["operation"]))
            self._keep(operation, item["service"])


def _to_dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _page(items: list[T], size: int, token: str) -> tuple[list[T], str]:
    if size < 0:
        raise invalid("page_size must not be negative")
    try:
        start = int(token or "0")
    except ValueError:
        raise invalid("page_token is not one that was given out") from None
    end = start + (size or _DEFAULT_PAGE)
    return items[start:end], str(end) if end < len(items) else ""


def _copy_service(service: run_v2.Service) -> run_v2.Service:
    copied = run_v2.Service()
    run_v2.Service.copy_from(copied, service)
    return copied


def _same(new: run_v2.Service, old: run_v2.Service) -> bool:
    return all(
        getattr(run_v2.Service.pb(new), name) == getattr(run_v2.Service.pb(old), name)
        for name in validation.SETTABLE
    )


def _etag(name: str, now: datetime) -> str:
    # As the real one: a time and a name, opaque to callers.
    opaque = _stamp(now).SerializeToString() + name.encode()
    return f'"{base64.urlsafe_b64encode(opaque).decode()}"'


def _check_etag(sent: str, current: str) -> None:
    if sent and sent != current:
        raise Refused(
            grpc.StatusCode.ABORTED,
            f"Conflict for resource: the etag {sent} is not the current one. Read it again and "
            "repeat the change.",
        )


def _failed_precondition(message: str) -> Refused:
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, message)


def _stamp(moment: datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _condition(
    type_: str, state: int, now: datetime, message: str = "", reason: _Reason | None = None
) -> run_v2.Condition:
    severity = run_v2.Condition.Severity
    return run_v2.Condition(
        type_=type_,
        state=state,
        message=message,
        last_transition_time=now,
        severity=severity.ERROR if state == State.CONDITION_FAILED else 0,
        **(reason or {}),
    )


def _set_conditions(service: run_v2.Service, state: int, now: datetime, message: str = "") -> None:
    failed = state == State.CONDITION_FAILED
    reason: _Reason | None = {"reason": CommonReason.REVISION_FAILED} if failed else None
    # Pinned traffic is routed whatever becomes of the latest revision.
    pinned = bool(service.traffic_statuses) and all(t.type_ != LATEST for t in service.traffic)
    service.terminal_condition = _condition("Ready", state, now, message, reason)
    service.conditions = [
        _condition("RoutesReady", State.CONDITION_SUCCEEDED, now)
        if failed and pinned
        else _condition("RoutesReady", state, now, message, reason),
        _condition("ConfigurationsReady", state, now, message, reason),
    ]


def _end_revision(revision: run_v2.Revision, now: datetime) -> None:
    revision.reconciling = False
    revision.observed_generation = revision.generation
    revision.update_time = _stamp(now)
    revision.etag = _etag(revision.name, now)


def _finish(operation: operations_pb2.Operation, response: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(response)
    operation.response.CopyFrom(packed)
    operation.done = True


def _finish_settled(operation: operations_pb2.Operation, service: run_v2.Service) -> None:
    operation.metadata.Pack(run_v2.Service.pb(service))
    if service.terminal_condition.state == State.CONDITION_FAILED:
        operation.error.CopyFrom(
            status_pb2.Status(
                code=grpc.StatusCode.INTERNAL.value[0],
                message=service.terminal_condition.message,
            )
        )
        operation.done = True
    else:
        _finish(operation, run_v2.Service.pb(service))
