"""The ledger in Firestore, read: who, what, when, why, from which version, how long."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter
from pydantic import BaseModel, ConfigDict

from functions.promote.ledger import COLLECTION, STATUS
from functions.promote.operators.access import explained

TIMEOUT_SECONDS = 15.0

PROMOTED = "promoted"
"""The event after which a version serves all requests; see `functions.promote.plan.Entry`."""

_PAGE = 50


class Line(BaseModel):
    """An entry of the ledger, of this version of promote or a later one."""

    model_config = ConfigDict(extra="allow", frozen=True)

    at: datetime
    event: str
    version: str
    run_id: str = ""
    revision: str | None = None
    from_version: str | None = None
    from_revision: str | None = None
    because: str = ""
    gate: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Span:
    """A time in production."""

    line: Line
    """How it began."""
    end: datetime | None
    """None: it is still served."""

    def duration(self, now: datetime) -> timedelta:
        """Return how long it was, or has been until `now`."""
        return (self.end or now) - self.line.at


class History:
    """The ledger.

    Args:
        project: of the database.
        database: its name.
    """

    def __init__(self, *, project: str, database: str) -> None:
        self._project = project
        self._database = database

    def newest(self, limit: int) -> list[Line]:
        """Return the newest entries, the newest first.

        Raises:
            functions.promote.operators.access.OperatorError: Firestore can't be asked.
        """
        lines = []
        with self._explained():
            for line in self._read(self._collection.order_by("at", direction=_DESCENDING)):
                lines.append(line)
                if len(lines) == limit:
                    break
        return lines

    def promotions(self, before: datetime) -> Iterator[Line]:
        """Yield what was promoted until `before`, the newest first, as far as it is asked for.

        Raises:
            functions.promote.operators.access.OperatorError: Firestore can't be asked.
        """
        with self._explained():
            query = self._collection.where(filter=FieldFilter("at", "<=", before))
            for line in self._read(query.order_by("at", direction=_DESCENDING)):
                if line.event == PROMOTED:
                    yield line

    def in_production(self, at: datetime) -> Span | None:
        """Return what was in production at a time; None: nothing had been promoted by then.

        Raises:
            functions.promote.operators.access.OperatorError: Firestore can't be asked.
        """
        line = next(self.promotions(at), None)
        if line is None:
            return None
        with self._explained():
            later = self._collection.where(filter=FieldFilter("at", ">", at)).order_by("at")
            following = (item for item in self._read(later) if item.event == PROMOTED)
            return Span(line, next((item.at for item in following), None))

    def status(self) -> dict[str, Any] | None:
        """Return the status that promote published last.

        Raises:
            functions.promote.operators.access.OperatorError: Firestore can't be asked.
        """
        with self._explained():
            found: dict[str, Any] | None = (
                self._collection.document(STATUS).get(timeout=TIMEOUT_SECONDS, retry=None).to_dict()
            )
            return found

    def _explained(self) -> AbstractContextManager[None]:
        return explained(
            "Firestore",
            role="roles/datastore.viewer",
            missing=f"there is no Firestore database {self._database} in {self._project}: "
            "check --project and --database, or apply Terraform",
        )

    def _read(self, query: firestore.Query) -> Iterator[Line]:
        """Yield a query's entries, page by page: what is not asked for is not read."""
        page = query.limit(_PAGE)
        while True:
            documents = page.get(timeout=TIMEOUT_SECONDS, retry=None)
            for document in documents:
                if document.id != STATUS:
                    yield Line.model_validate(document.to_dict())
            if len(documents) < _PAGE:
                return
            page = query.start_after(documents[-1]).limit(_PAGE)

    @cached_property
    def _collection(self) -> firestore.CollectionReference:
        client = firestore.Client(project=self._project, database=self._database)
        return client.collection(COLLECTION)


def ends(lines: Sequence[Line], following: datetime | None = None) -> list[datetime | None]:
    """Return for each entry when what it promoted was followed by another; None: it serves.

    Args:
        lines: the newest first.
        following: when the first promotion after them was.
    """
    found: list[datetime | None] = []
    for line in lines:
        found.append(following)
        if line.event == PROMOTED:
            following = line.at
    return found


_DESCENDING = firestore.Query.DESCENDING
