"""Read MLflow's model registry, and note there what became of a version."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

from functions.identity import GoogleAuthError, IdTokenAuth
from functions.promote.deadline import Deadline
from functions.promote.plan import NOT_VALIDATED, VALIDATION_GATE, GateResult

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

# As main.py sets it for MLflow's client: one try, and one more.
TIMEOUT_SECONDS = 5.0

# Tags that promote writes. They must not look like a change that calls for a new try.
OWN_TAGS = frozenset({"serving_revision", "serving_since", "rollout_blocked"})


_importing = Lock()


class RegistryUnavailable(Exception):
    """MLflow does not answer, or answers with an error."""


@dataclass(frozen=True)
class Choice:
    """The version that the registry names."""

    version: str
    run_id: str
    artifacts_uri: str
    """Folder of the logged model."""
    because: str
    """What named it, and what else could have."""
    fingerprint: str
    validation: GateResult
    """What training's tags say of it."""


class Registry:
    """The registry's view of one model.

    Args:
        tracking_uri: address of the MLflow server.
        model: name of the registered model.
        sources: ``alias:NAME`` or ``stage:NAME``, in order of precedence.
        audience: of the ID token that MLflow is called with; empty: none is sent.
    """

    def __init__(
        self, *, tracking_uri: str, model: str, sources: Sequence[str], audience: str = ""
    ) -> None:
        self._identity = IdTokenAuth(audience) if audience else None
        self._tracking_uri = tracking_uri
        self._model = model
        self._sources = sources

    @cached_property
    def _mlflow(self) -> "MlflowClient":
        from mlflow.tracking import MlflowClient

        return MlflowClient(self._tracking_uri)

    @property
    def _client(self) -> "MlflowClient":
        if self._identity is not None:
            try:
                # MLflow reads it anew at every request.
                os.environ["MLFLOW_TRACKING_TOKEN"] = self._identity.token()
            except GoogleAuthError as error:
                raise RegistryUnavailable(f"no identity to call MLflow with: {error}") from error
        return self._mlflow

    def choose(self, deadline: Deadline) -> Choice | None:
        """Return the version to serve, or None when nothing names one.

        Raises:
            RegistryUnavailable: MLflow can't be asked.
            OutOfTime: the deadline has passed.
        """
        _import_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            for source in self._sources:
                kind, _, name = source.partition(":")
                deadline.within(TIMEOUT_SECONDS)
                found = self._by_alias(name) if kind == "alias" else self._in_stage(name)
                if found:
                    deadline.within(TIMEOUT_SECONDS)
                    return self._choice(found, source)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None  # there is no such model yet, or it was deleted just now
            raise RegistryUnavailable(f"MLflow at {self._tracking_uri}: {error}") from error
        return None

    def note(self, version: str, tags: Mapping[str, str | None]) -> None:
        """Set tags on a version, or delete those that are None.

        A version that was deleted meanwhile is passed over.

        Raises:
            RegistryUnavailable: MLflow can't be asked.
        """
        _import_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            present = self._client.get_model_version(self._model, version).tags
            for key, value in tags.items():
                if value is not None:
                    self._client.set_model_version_tag(self._model, version, key, value)
                elif key in present:
                    self._client.delete_model_version_tag(self._model, version, key)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise RegistryUnavailable(f"MLflow at {self._tracking_uri}: {error}") from error

    def _by_alias(self, alias: str) -> "list[ModelVersion]":
        version = self._client.get_registered_model(self._model).aliases.get(alias)
        if version is None:
            return []
        return [self._client.get_model_version(self._model, str(version))]

    def _in_stage(self, stage: str) -> "list[ModelVersion]":
        versions = self._client.search_model_versions(f"name='{self._model}'")
        return [item for item in versions if (item.current_stage or "").lower() == stage.lower()]

    def _choice(self, found: "list[ModelVersion]", source: str) -> Choice:
        newest = max(found, key=lambda item: (item.last_updated_timestamp or 0, int(item.version)))
        because = source
        if len(found) > 1:
            others = ", ".join(str(item.version) for item in found if item is not newest)
            because += f" (the newest change; also there: {others})"
        tags = {key: value for key, value in newest.tags.items() if key not in OWN_TAGS}
        return Choice(
            version=str(newest.version),
            run_id=newest.run_id or "",
            artifacts_uri=self._client.get_model_version_download_uri(
                self._model, str(newest.version)
            ),
            because=because,
            fingerprint=hashlib.sha256(json.dumps(tags, sort_keys=True).encode()).hexdigest()[:16],
            validation=read_validation(tags),
        )


def _import_mlflow() -> None:
    """Import MLflow at the first tick: two seconds that the start need not wait for.

    Two first ticks at once, each of which imports another of its modules, would leave it
    half imported, and so for as long as the process lives.
    """
    with _importing:
        import mlflow.tracking  # noqa: F401


def read_validation(tags: Mapping[str, str]) -> GateResult:
    """Return what the tags ``validation`` and ``validation_reason`` of a version say.

    ``failed`` fails. A version without the tag, as other trainers register it, is not
    judged here, and the reason says so.
    """
    value = tags.get("validation", "").strip().lower()
    reason = tags.get("validation_reason", "") or "training gave no reason"
    if value == "failed":
        return GateResult(gate=VALIDATION_GATE, outcome="failed", reason=reason)
    if value == "passed":
        return GateResult(gate=VALIDATION_GATE, outcome="passed", reason=reason)
    if value:
        reason = f"the tag says {value[:40]!r}"
        return GateResult(gate=VALIDATION_GATE, outcome="skipped", reason=reason)
    return NOT_VALIDATED
