"""The control plane: makes processes and routes follow the accepted state."""

import asyncio
import logging
import os
import random
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from google.cloud import run_v2
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.longrunning import operations_pb2

from local.cloud_run.config import CloudRunConfig
from local.cloud_run.identity import Issuer
from local.cloud_run.instances import (
    MARKER,
    ContainerSpec,
    Instance,
    Revision,
    StartFailure,
    StartupProbe,
    kill_leftovers,
)
from local.cloud_run.metadata import MetadataServers
from local.cloud_run.state import ProjectState, Routes, Scope, ServiceRecord, short
from local.cloud_run.store import Store
from local.cloud_run.validation import is_failed, is_ready

logger = logging.getLogger(__name__)

# A change is never in effect when the call that made it returns.
_ROUTING_SECONDS = 0.05


class NotServing(Exception):
    """No revision can take the request.

    Attributes:
        status: HTTP status of the front end's answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Admitted:
    """A request that a revision has been promised to.

    Attributes:
        service: the service's short name.
        revision: the revision that takes it.
        timeout_seconds: the revision's request time-out.
    """

    service: str
    revision: Revision
    timeout_seconds: float

    async def instance(self) -> Instance:
        """The instance to send to.

        Raises:
            NotServing: 503, it did not start.
        """
        try:
            return await self.revision.instance()
        except StartFailure as failure:
            raise NotServing(503, f"The service is unavailable: {failure}") from failure


class ControlPlane:
    """State, disk, processes and routes of one stand-in."""

    def __init__(self, config: CloudRunConfig) -> None:
        self._config = config
        self._random = random.Random(config.random_seed)  # noqa: S311 (no secret)
        self._store = Store(config.data_dir)
        self.issuer = Issuer(config.data_dir)
        self._metadata = MetadataServers(config, self.issuer)
        self.state = ProjectState(
            Scope(
                config.project,
                config.project_number,
                config.region,
                config.port,
                config.request_timeout_seconds,
            ),
            self._random,
        )
        self._marker = str(config.data_dir.resolve())
        self._routes: dict[str, Routes] = {}
        self._revisions: dict[tuple[str, str], Revision] = {}
        self._reconciling: dict[str, asyncio.Task[None]] = {}
        self._starting: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._settled = asyncio.Condition()
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up where the last process stopped, or was killed."""
        killed = kill_leftovers(self._marker)
        if killed:
            logger.warning("killed processes of an earlier run", extra={"processes": killed})
        stored = self._store.load()
        if stored is not None:
            self.state.load_json(stored)
        await self._metadata.start()
        for service_id, record in self.state.services.items():
            self._apply_routes(service_id)
            if record.service.reconciling:
                self._reconcile_soon(service_id)
        self._spawn(self._stop_idle_instances())

    async def stop(self) -> None:
        """Stop all instances, in parallel."""
        tasks = [*self._reconciling.values(), *self._starting.values(), *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(revision.stop() for revision in self._revisions.values()))
        # Last: a container that stops may still have something to say to another service.
        await self._metadata.close()

    # For the front end

    def has_service(self, service_id: str) -> bool:
        """Whether the service exists."""
        return service_id in self.state.services

    def service(self, service_id: str) -> run_v2.Service:
        """A service that exists."""
        return self.state.services[service_id].service

    def policy(self, service_id: str) -> policy_pb2.Policy:
        """The IAM policy of a service that exists."""
        return self.state.services[service_id].policy

    def admit(self, service_id: str, tag: str | None) -> Admitted:
        """Choose the revision for a request and count it in, in one step.

        The caller must call `Admitted.revision.leave` when the request is over.

        Args:
            service_id: a service that exists.
            tag: the tag by which it was reached, if any.

        Raises:
            NotServing: 404 for an unknown tag, 503 when no ready revision has traffic.
        """
        routes = self._routes.get(service_id, Routes())
        if tag is not None:
            name = dict(routes.tags).get(tag)
            if name is None:
                raise NotServing(404, "The requested URL was not found on this server.")
        else:
            if not routes.weights:
                raise NotServing(503, "The service has no ready revision with traffic.")
            names, weights = zip(*routes.weights, strict=True)
            name = names[0] if len(names) == 1 else self._random.choices(names, weights)[0]
        revision = self._revision(service_id, name)
        message = self.state.services[service_id].revisions[name]
        revision.enter()
        return Admitted(
            service_id, revision, run_v2.Revision.pb(message).timeout.ToTimedelta().total_seconds()
        )

    # For the API

    def create_service(self, request: run_v2.CreateServiceRequest) -> operations_pb2.Operation:
        """See `ProjectState.create_service`."""
        operation = self.state.create_service(request, _now())
        return self._accepted(operation, request.service_id)

    def update_service(self, request: run_v2.UpdateServiceRequest) -> operations_pb2.Operation:
        """See `ProjectState.update_service`."""
        operation = self.state.update_service(request, _now())
        return self._accepted(operation, short(request.service.name))

    def delete_service(self, request: run_v2.DeleteServiceRequest) -> operations_pb2.Operation:
        """See `ProjectState.delete_service`; requests in flight still end."""
        operation = self.state.delete_service(request, _now())
        if not request.validate_only:
            service_id = short(request.name)
            self._routes.pop(service_id, None)
            for key in [key for key in self._revisions if key[0] == service_id]:
                self._forget(key)
            self._save()
            self._spawn(self._tell_settled())
        return operation

    def set_iam_policy(self, request: iam_policy_pb2.SetIamPolicyRequest) -> policy_pb2.Policy:
        """See `ProjectState.set_iam_policy`."""
        policy = self.state.set_iam_policy(request)
        self._save()
        return policy

    def delete_revision(self, request: run_v2.DeleteRevisionRequest) -> operations_pb2.Operation:
        """See `ProjectState.delete_revision`."""
        operation = self.state.delete_revision(request, _now())
        if not request.validate_only:
            self._forget(self.state.scope.revision_id(request.name))
            self._save()
        return operation

    async def wait_operation(
        self, name: str, timeout_seconds: float | None
    ) -> operations_pb2.Operation:
        """The operation when it is done, or as it is after `timeout_seconds`."""

        def done() -> bool:
            return bool(self.state.get_operation(name).done)

        async with self._settled:
            try:
                await asyncio.wait_for(self._settled.wait_for(done), timeout_seconds)
            except TimeoutError:
                logger.debug("operation still runs", extra={"operation": name})
        return self.state.get_operation(name)

    # Reconciling

    def _accepted(
        self, operation: operations_pb2.Operation, service_id: str
    ) -> operations_pb2.Operation:
        if not operation.done:
            # The answer shows the operation as it is now; the kept one goes on.
            shown = operations_pb2.Operation()
            shown.CopyFrom(operation)
            operation = shown
            self._save()
            self._reconcile_soon(service_id)
        return operation

    def _reconcile_soon(self, service_id: str) -> None:
        self._changed.setdefault(service_id, asyncio.Event()).set()
        task = self._reconciling.get(service_id)
        if task is None or task.done():
            self._reconciling[service_id] = asyncio.create_task(self._reconcile(service_id))

    async def _reconcile(self, service_id: str) -> None:
        changed = self._changed[service_id]
        while True:
            changed.clear()
            await asyncio.sleep(_ROUTING_SECONDS)
            record = self.state.services.get(service_id)
            if record is None or not record.service.reconciling:
                return
            latest = record.latest_created()
            if is_ready(latest) or is_failed(latest):
                self.state.settle(service_id, _now())
                self._save()
                self._apply_routes(service_id)
                await self._tell_settled()
                if not record.service.reconciling:
                    return
                continue
            # Traffic does not wait for a revision that is being started.
            self.state.route(service_id)
            self._save()
            self._apply_routes(service_id)
            self._start_revisions(service_id, record)
            await changed.wait()

    async def _tell_settled(self) -> None:
        async with self._settled:
            self._settled.notify_all()

    def _start_revisions(self, service_id: str, record: ServiceRecord) -> None:
        for name, revision in record.revisions.items():
            key = service_id, name
            if revision.reconciling and key not in self._starting:
                task = asyncio.create_task(self._start_revision(service_id, name))
                self._starting[key] = task
                task.add_done_callback(partial(self._start_ended, key))

    def _start_ended(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if self._starting.get(key) is task:
            del self._starting[key]

    async def _start_revision(self, service_id: str, name: str) -> None:
        try:
            await self._revision(service_id, name).instance()
        except StartFailure as failure:
            logger.error("revision failed", extra={"revision": name, "cause": str(failure)})
            self.state.revision_failed(
                service_id, name, str(failure), _now(), image_missing=failure.image_missing
            )
        else:
            self.state.revision_started(service_id, name, _now())
        self._save()
        self._changed[service_id].set()

    def _apply_routes(self, service_id: str) -> None:
        routes = self.state.routes(service_id)
        self._routes[service_id] = routes
        with_traffic = {name for name, _ in routes.weights}
        for name in routes.revisions:
            self._revision(service_id, name).set_routed(True, eager=name in with_traffic)
        for (owner, name), revision in self._revisions.items():
            if owner == service_id and name not in routes.revisions:
                revision.set_routed(False)

    # Processes

    def _revision(self, service_id: str, name: str) -> Revision:
        key = service_id, name
        if key not in self._revisions:
            message = self.state.services[service_id].revisions[name]
            self._revisions[key] = Revision(
                self._container(service_id, name, message),
                identity=partial(self._metadata.environment, message.service_account),
                startup_timeout_seconds=self._config.startup_timeout_seconds,
                drain_seconds=self._config.drain_seconds,
            )
        return self._revisions[key]

    def _container(self, service_id: str, name: str, message: run_v2.Revision) -> ContainerSpec:
        container = message.containers[0]
        image = self._config.images.get(container.image)
        argv = None
        if image is not None:
            argv = (*(list(container.command) or image.entrypoint), *container.args)
        folder = container.working_dir or (image.working_directory if image else "/")
        return ContainerSpec(
            revision=name,
            image=container.image,
            argv=argv,
            working_directory=Path(folder),
            environment={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": os.environ.get("HOME", "/"),
                "LANG": "C.UTF-8",
                **{
                    name: value
                    for name, value in self._config.environment.items()
                    # It would make Google's libraries look for no metadata server.
                    if name != "NO_GCE_CHECK"
                },
                **{variable.name: variable.value for variable in container.env},
                "HOST": "127.0.0.1",
                "K_SERVICE": service_id,
                "K_REVISION": name,
                "K_CONFIGURATION": service_id,
                MARKER: self._marker,
            },
            startup_probe=_startup_probe(container.startup_probe),
            always_on=message.scaling.min_instance_count > 0,
            log_path=self._config.data_dir / "logs" / f"{name}.log",
        )

    def _forget(self, key: tuple[str, str]) -> None:
        starting = self._starting.pop(key, None)
        if starting is not None:
            starting.cancel()
        revision = self._revisions.pop(key, None)
        if revision is not None:
            self._spawn(self._drain_and_stop(revision))

    async def _drain_and_stop(self, revision: Revision) -> None:
        await revision.drained()
        await revision.stop()

    async def _stop_idle_instances(self) -> None:
        interval = min(1.0, self._config.idle_seconds / 4)
        while True:
            await asyncio.sleep(interval)
            for revision in self._revisions.values():
                revision.stop_if_idle(self._config.idle_seconds)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _save(self) -> None:
        self._store.save(self.state.to_json())


def _startup_probe(probe: run_v2.Probe) -> StartupProbe:
    http = run_v2.Probe.pb(probe).WhichOneof("probe_type") == "http_get"
    return StartupProbe(
        path=probe.http_get.path if http else None,
        headers=tuple((h.name, h.value) for h in probe.http_get.http_headers) if http else (),
        initial_delay_seconds=probe.initial_delay_seconds,
        timeout_seconds=probe.timeout_seconds,
        window_seconds=probe.period_seconds * probe.failure_threshold,
    )


def _now() -> datetime:
    return datetime.now(UTC)
