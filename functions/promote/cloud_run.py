"""Read and write the Cloud Run service, as plain data of `functions.promote.plan`."""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import cast

import grpc
from google.api_core.exceptions import (
    Aborted,
    FailedPrecondition,
    GoogleAPICallError,
    NotFound,
    RetryError,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud import run_v2
from google.cloud.run_v2.services.revisions.transports import RevisionsGrpcTransport
from google.cloud.run_v2.services.services.transports import ServicesGrpcTransport
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from pydantic import ValidationError

from functions.promote.plan import (
    Action,
    Memory,
    Observed,
    Revision,
    Target,
    Template,
    arguments,
)

MEMORY_ANNOTATION = "greenroom.dev/rollout"
SPEC_LABEL = "greenroom-spec"
VERSION_LABEL = "greenroom-model-version"
RUN_LABEL = "greenroom-run-id"

TIMEOUT_SECONDS = 10.0

_REVISION = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION

# observed_generation does not tell: it is the generation that serves, and stays
# behind for good when the latest revision has failed.
_FINAL_STATES = (
    run_v2.Condition.State.CONDITION_SUCCEEDED,
    run_v2.Condition.State.CONDITION_FAILED,
)

# What promote writes itself; the rest of the template belongs to whoever deploys.
_OWN_FIELDS = ("revision", "labels", "annotations")


class ServiceUnavailable(Exception):
    """Cloud Run's API can't be reached, refuses, or has no such service."""


class Conflict(Exception):
    """Somebody else wrote the service since it was read."""


class CloudRun:
    """The service and its revisions.

    Args:
        project: Google Cloud project.
        region: region of the service.
        service: short name of the service.
        endpoint: address of the API; empty: Google's; ``http://`` for one without TLS.
    """

    def __init__(self, *, project: str, region: str, service: str, endpoint: str = "") -> None:
        self._name = f"projects/{project}/locations/{region}/services/{service}"
        self._endpoint = endpoint

    # Made on first use: the server forks before it, and channels don't survive that.
    @cached_property
    def _channel(self) -> grpc.Channel | None:
        if self._endpoint.startswith("http://"):
            return grpc.insecure_channel(self._endpoint.removeprefix("http://"))
        return None

    @cached_property
    def _services(self) -> run_v2.ServicesClient:
        if self._channel is not None:
            return run_v2.ServicesClient(transport=ServicesGrpcTransport(channel=self._channel))
        return run_v2.ServicesClient(client_options=self._client_options)

    @cached_property
    def _revisions(self) -> run_v2.RevisionsClient:
        if self._channel is not None:
            return run_v2.RevisionsClient(transport=RevisionsGrpcTransport(channel=self._channel))
        return run_v2.RevisionsClient(client_options=self._client_options)

    @property
    def _client_options(self) -> dict[str, str] | None:
        return {"api_endpoint": self._endpoint} if self._endpoint else None

    def read(self) -> tuple[run_v2.Service, Observed]:
        """Return the service as read, for `write`, and as plain data.

        Raises:
            ServiceUnavailable: there is no such service, or no answer.
        """
        try:
            service = self._services.get_service(name=self._name, timeout=TIMEOUT_SECONDS)
            revisions = list(
                self._revisions.list_revisions(parent=self._name, timeout=TIMEOUT_SECONDS)
            )
        except NotFound as error:
            raise ServiceUnavailable(
                f"there is no Cloud Run service {self._name}: apply Terraform first"
            ) from error
        except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
            raise ServiceUnavailable(f"Cloud Run does not answer: {error}") from error
        return service, _observe(service, revisions)

    def write(self, service: run_v2.Service, action: Action) -> None:
        """Do what `action` says in one update, on condition that nothing changed since the read.

        Args:
            service: as `read` returned it.
            action: one with a model (the template is written), a traffic list, or memory.

        Raises:
            Conflict: the service was changed meanwhile; nothing was written.
            ServiceUnavailable: the API refused or gave no answer. Whether the write
                took effect is then seen at the next read.
        """
        change = run_v2.Service(name=self._name, etag=service.etag)
        paths = []
        if action.memory is not None:
            change.annotations = {
                **service.annotations,
                MEMORY_ANNOTATION: action.memory.model_dump_json(),
            }
            paths.append("annotations")
        if action.model is not None:
            template = run_v2.RevisionTemplate(service.template)
            template.revision = ""
            template.containers[0].args = list(arguments(action.model))
            template.labels = {
                **template.labels,
                SPEC_LABEL: action.spec,
                VERSION_LABEL: _label(action.model.version),
                RUN_LABEL: _label(action.model.run_id),
            }
            change.template = template
            paths.append("template")
        if action.traffic is not None:
            change.traffic = [
                run_v2.TrafficTarget(
                    type_=_REVISION, revision=item.revision, percent=item.percent, tag=item.tag
                )
                for item in action.traffic
            ]
            paths.append("traffic")
        try:
            self._services.update_service(
                request=run_v2.UpdateServiceRequest(
                    service=change, update_mask=FieldMask(paths=paths)
                ),
                timeout=TIMEOUT_SECONDS,
            )
        except Aborted as error:
            raise Conflict(str(error)) from error
        except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
            raise ServiceUnavailable(f"Cloud Run refused the update: {error}") from error

    def delete(self, revision: str) -> None:
        """Delete a revision; Cloud Run refuses where one has traffic or a tag.

        Raises:
            Conflict: it is gone, or needed by now.
            ServiceUnavailable: the API refused or gave no answer.
        """
        try:
            self._revisions.delete_revision(
                name=f"{self._name}/revisions/{revision}", timeout=TIMEOUT_SECONDS
            )
        except (Aborted, FailedPrecondition, NotFound) as error:
            raise Conflict(str(error)) from error
        except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
            raise ServiceUnavailable(f"Cloud Run refused to delete a revision: {error}") from error


def _observe(service: run_v2.Service, revisions: Sequence[run_v2.Revision]) -> Observed:
    latest_ready = _short(service.latest_ready_revision)
    statuses = tuple(
        # A LATEST target may come back without a name: it means this one.
        Target(_short(item.revision) or latest_ready, item.percent, item.tag, item.uri)
        for item in service.traffic_statuses
    )
    return Observed(
        settled=not service.reconciling and service.terminal_condition.state in _FINAL_STATES,
        template=_template(service.template),
        traffic=tuple(
            Target(item.revision if item.type_ == _REVISION else "", item.percent, item.tag)
            for item in service.traffic
        ),
        statuses=statuses,
        revisions=tuple(map(_revision, revisions)),
        latest_created=_short(service.latest_created_revision),
        memory=_memory(service.annotations.get(MEMORY_ANNOTATION, "")),
    )


def _memory(annotation: str) -> Memory:
    # One that can't be read is as none: what is served shows what was last good.
    try:
        return Memory.model_validate_json(annotation) if annotation else Memory()
    except ValidationError:
        return Memory()


def _template(template: run_v2.RevisionTemplate) -> Template:
    content = _to_dict(run_v2.RevisionTemplate.pb(template))
    for name in _OWN_FIELDS:
        content.pop(name, None)
    containers = content.get("containers")
    args: tuple[str, ...] = ()
    if isinstance(containers, list) and containers:
        args = tuple(containers[0].pop("args", ()))
    return Template(args=args, fingerprint=_digest(content), core=_core(template))


def _revision(revision: run_v2.Revision) -> Revision:
    ready: bool | None = None
    message = ""
    for condition in revision.conditions:
        if condition.type_ == "Ready":
            if condition.state == run_v2.Condition.State.CONDITION_SUCCEEDED:
                ready = True
            elif condition.state == run_v2.Condition.State.CONDITION_FAILED:
                ready = False
                message = condition.message
    return Revision(
        name=_short(revision.name),
        ready=ready,
        message=message,
        args=tuple(revision.containers[0].args) if revision.containers else (),
        spec=revision.labels.get(SPEC_LABEL, ""),
        core=_core(revision),
        # The library gives a datetime where its types say Timestamp.
        created=cast("datetime", revision.create_time),
    )


def _core(item: run_v2.RevisionTemplate | run_v2.Revision) -> str:
    """Digest what a template and a revision made from it show alike."""
    containers = [
        {
            "image": container.image,
            "command": list(container.command),
            "env": [_to_dict(run_v2.EnvVar.pb(variable)) for variable in container.env],
            "limits": dict(container.resources.limits),
        }
        for container in item.containers
    ]
    return _digest({"containers": containers, "account": item.service_account})


def _to_dict(message: Message) -> dict[str, object]:
    result: dict[str, object] = MessageToDict(message)
    return result


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _label(value: str) -> str:
    """Return `value` as a label may hold it: 63 of lower-case letters, digits, "_" and "-"."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in value.lower())[
        :63
    ]
