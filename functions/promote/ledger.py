"""The ledger: what was done, append-only, and one status document for readers.

Collection ``rollouts`` of Firestore: the document ``status`` says what is; every
other document is an `Entry`, named so that delivering it twice changes nothing.
"""

from functools import cached_property

from google.api_core.exceptions import AlreadyExists, GoogleAPICallError, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore

from functions.promote.plan import Entry

COLLECTION = "rollouts"
STATUS = "status"
TIMEOUT_SECONDS = 3.0


class LedgerUnavailable(Exception):
    """Firestore does not answer."""


class Ledger:
    """The collection ``rollouts``.

    Args:
        project: project of the database.
        database: name of the database.
    """

    def __init__(self, *, project: str, database: str) -> None:
        self._project = project
        self._database = database

    @cached_property
    def _collection(self) -> firestore.CollectionReference:
        client = firestore.Client(project=self._project, database=self._database)
        return client.collection(COLLECTION)

    def append(self, entry: Entry) -> None:
        """Write `entry`, unless it is there.

        Raises:
            LedgerUnavailable: Firestore does not answer.
        """
        try:
            self._collection.document(entry.id).create(
                {"schema_version": 1, **entry.model_dump()}, timeout=TIMEOUT_SECONDS, retry=None
            )
        except AlreadyExists:
            return
        except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
            raise LedgerUnavailable(f"Firestore: {error}") from error

    def publish(self, status: dict[str, object], *, merge: bool = False) -> None:
        """Write the status document.

        Args:
            status: its fields, plain JSON data.
            merge: keep the fields that are not given.

        Raises:
            LedgerUnavailable: Firestore does not answer.
        """
        try:
            self._collection.document(STATUS).set(
                {"schema_version": 1, **status},
                merge=merge,
                timeout=TIMEOUT_SECONDS,
                retry=None,
            )
        except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
            raise LedgerUnavailable(f"Firestore: {error}") from error
