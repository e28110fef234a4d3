"""The registry, changed back: an alias or a stage names an earlier version again."""

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from functions.promote.operators.access import Identity, OperatorError, one_line
from functions.promote.operators.history import PROMOTED, Line

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

TIMEOUT_SECONDS = 15
RECORD_PREFIX = "greenroom.rollback."

# MLflow's field for a reason holds 5,000 characters, with the rest of the record.
_MAX_REASON = 1000
# As MLflow words an answer that is not its own, such as Cloud Run's.
_REFUSAL = re.compile(r"error code 40[13]\b")
# What lies between a change of the registry and the promotion that it leads to.
_LONGEST_SECONDS = 86_400


@dataclass(frozen=True)
class Named:
    """What the registry names for production."""

    version: str | None
    """None: nothing is named."""
    source: str
    """``alias:NAME`` or ``stage:NAME``: what rules, or would."""


@dataclass(frozen=True)
class Record:
    """A rollback, as the registered model's tags keep it."""

    at: datetime
    by: str
    version: str
    from_version: str | None
    reason: str


class Releases:
    """The versions of one registered model.

    Args:
        tracking_uri: address of the MLflow server.
        model: name of the registered model.
        sources: ``alias:NAME`` or ``stage:NAME``, in promote's order.
        identity: whose ID token MLflow is called with.
    """

    def __init__(
        self, *, tracking_uri: str, model: str, sources: Sequence[str], identity: Identity
    ) -> None:
        self._tracking_uri = tracking_uri
        self._model = model
        self._sources = sources
        self._identity = identity

    def named(self) -> Named:
        """Return what the registry names, by the first source that names something.

        Raises:
            OperatorError: MLflow can't be asked, or has no such model.
        """
        with self._explained():
            aliases = self._client.get_registered_model(self._model).aliases
            versions = self._versions()
        for source in self._sources:
            kind, _, name = source.partition(":")
            if kind == "alias":
                if name in aliases:
                    return Named(str(aliases[name]), source)
            elif found := _in_stage(versions, name):
                newest = max(
                    found, key=lambda item: (item.last_updated_timestamp or 0, int(item.version))
                )
                return Named(str(newest.version), source)
        return Named(None, self._sources[0])

    def known(self) -> set[str]:
        """Return the versions that there are.

        Raises:
            OperatorError: MLflow can't be asked.
        """
        with self._explained():
            return {str(item.version) for item in self._versions()}

    def name_version(self, version: str, source: str, *, by: str, reason: str) -> list[str]:
        """Let `source` name `version`, note who did, and return what was changed, in words.

        Raises:
            OperatorError: MLflow can't be asked; nothing was changed, or all but the note.
        """
        before = self.named().version
        kind, _, name = source.partition(":")
        with self._explained():
            if kind == "alias":
                self._client.set_registered_model_alias(self._model, name, version)
                changes = [f"alias {name}: version {before or 'none'} -> version {version}"]
            else:
                changes = self._move_stage(version, name)
            now = datetime.now(UTC)
            record = {
                "by": by,
                "version": version,
                "from_version": before,
                "reason": reason[:_MAX_REASON],
            }
            self._client.set_registered_model_tag(
                self._model, f"{RECORD_PREFIX}{now:%Y%m%dT%H%M%SZ}", json.dumps(record)
            )
        return changes

    def records(self) -> list[Record]:
        """Return the rollbacks by this command, the newest first.

        Raises:
            OperatorError: MLflow can't be asked.
        """
        with self._explained():
            tags = self._client.get_registered_model(self._model).tags
        found = []
        for key, value in tags.items():
            if key.startswith(RECORD_PREFIX):
                at = datetime.strptime(key, f"{RECORD_PREFIX}%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                found.append(Record(at=at, **json.loads(value)))
        return sorted(found, key=lambda item: item.at, reverse=True)

    def _move_stage(self, version: str, stage: str) -> list[str]:
        versions = self._versions()
        others = [item for item in _in_stage(versions, stage) if str(item.version) != version]
        own = next((item.current_stage for item in versions if str(item.version) == version), None)
        with warnings.catch_warnings():
            # MLflow prefers aliases by now; this model is promoted by stage.
            warnings.simplefilter("ignore", FutureWarning)
            self._client.transition_model_version_stage(
                self._model, version, stage, archive_existing_versions=True
            )
        return [
            f"version {version}: stage {own} -> {stage}",
            *(f"version {item.version}: stage {item.current_stage} -> Archived" for item in others),
        ]

    def _versions(self) -> "list[ModelVersion]":
        return list(self._client.search_model_versions(f"name='{self._model}'"))

    @cached_property
    def _client(self) -> "MlflowClient":
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
        token = self._identity.token(self._tracking_uri)
        if token is not None:
            os.environ["MLFLOW_TRACKING_TOKEN"] = token
        # Imported here: it takes two seconds, which most commands need not wait.
        from mlflow.tracking import MlflowClient

        return MlflowClient(self._tracking_uri)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        client = self._client
        from mlflow.exceptions import MlflowException

        where = f"MLflow at {client.tracking_uri}"
        try:
            yield
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise OperatorError(
                    f"{where}: {one_line(error.message)}; check --model and --tracking-uri"
                ) from error
            if _REFUSAL.search(error.message) or error.get_http_status_code() in (401, 403):
                raise OperatorError(
                    f"{where} refuses you: {one_line(error.message)}; ask the project's owner for "
                    "roles/run.invoker on the service mlflow-api"
                ) from error
            raise OperatorError(
                f"{where} can't be asked: {one_line(error.message)}; check --tracking-uri"
            ) from error


def earlier(promotions: Iterable[Line], named: str | None, known: set[str]) -> str | None:
    """Return the version to go back to: the last that was served, other than the named one.

    Args:
        promotions: from the ledger, the newest first.
        named: what the registry names now.
        known: what it could name.
    """
    for line in promotions:
        if line.version != named and line.version in known:
            return line.version
    return None


def caused_by(line: Line, records: Sequence[Record], previous: datetime | None) -> Record | None:
    """Return the rollback that led to an entry of the ledger, if one did.

    Args:
        line: the entry.
        records: all rollbacks.
        previous: when the promotion before it was; a rollback before that led to that one.
    """
    if line.event != PROMOTED:
        return None
    for record in records:
        # A tag's name has whole seconds.
        waited = (line.at - record.at).total_seconds()
        follows = previous is None or record.at >= previous.replace(microsecond=0)
        if record.version == line.version and 0 <= waited < _LONGEST_SECONDS and follows:
            return record
    return None


def _in_stage(versions: "Sequence[ModelVersion]", stage: str) -> "list[ModelVersion]":
    return [item for item in versions if (item.current_stage or "").lower() == stage.lower()]
