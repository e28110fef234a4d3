"""The connection to Firestore: one client, its retries, and its failures as problems."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.api_core import exceptions
from google.api_core.retry import AsyncRetry
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore
from google.cloud.firestore_v1.types import WriteResult

from functions.problem import Problem
from functions.proxy.settings import Settings

RETRY_AFTER_SECONDS = 5

Snapshot = firestore.DocumentSnapshot[firestore.AsyncDocumentReference]

_log = logging.getLogger(__name__)


class Conflict(Exception):
    """A document was not as the commit expected it; nothing was written."""


class Unconfirmed(Exception):
    """Firestore did not say whether it wrote: it may have."""


class Connection:
    """A client of Firestore, made on first use. Use it inside one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._project = settings.firestore_project
        self._database = settings.firestore_database
        self.timeout = settings.firestore_timeout_seconds
        self._client: firestore.AsyncClient | None = None
        self.retry = AsyncRetry(
            predicate=_is_transient, initial=0.05, maximum=1.0, timeout=self.timeout
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[firestore.AsyncClient]:
        """Lend the client.

        Raises:
            Problem: 503, for every failure of Firestore inside.
        """
        client = self._client
        try:
            if client is None:
                client = firestore.AsyncClient(project=self._project, database=self._database)
                self._client = client
            yield client
        except (exceptions.GoogleAPIError, GoogleAuthError, Unconfirmed) as error:
            _log.error("Firestore failed: %s", type(error.__cause__ or error).__name__)
            # gRPC waits up to two minutes before it tries a broken channel again; a
            # new client connects at once. Requests under way keep the old one.
            if self._client is client:
                self._client = None
            if isinstance(error, Unconfirmed):
                raise
            raise Problem(
                503,
                "The database can't be reached. Try again.",
                retry_after=RETRY_AFTER_SECONDS,
            ) from error

    async def read(
        self, query: firestore.AsyncQuery | firestore.AsyncCollectionReference
    ) -> list[Snapshot]:
        """Return what a query of the lent client finds."""

        # get() reads the answer's stream to its end, so a retry starts it anew.
        async def read() -> list[Snapshot]:
            return list(await query.get(retry=None, timeout=self.timeout))

        return await self.retry(read)()

    async def read_all(
        self, client: firestore.AsyncClient, documents: list[firestore.AsyncDocumentReference]
    ) -> list[Snapshot]:
        """Return these documents, which need not exist, as they were at one time."""

        async def read() -> list[Snapshot]:
            found = client.get_all(documents, retry=None, timeout=self.timeout)
            return [snapshot async for snapshot in found]

        return await self.retry(read)()

    async def get(self, document: firestore.AsyncDocumentReference) -> Snapshot:
        """Return a document of the lent client, which need not exist."""
        return await document.get(retry=self.retry, timeout=self.timeout)

    async def commit(self, batch: firestore.AsyncWriteBatch) -> list[WriteResult]:
        """Write a batch of the lent client, all of it or nothing.

        Repeated when Firestore can't be reached, although the first try may have been
        done: each batch must have a precondition that fails the second time.

        Raises:
            Conflict: a precondition failed; of the last try, where there were several.
            Unconfirmed: it may have been written, or not.
        """
        try:
            return await batch.commit(retry=self.retry, timeout=self.timeout)
        except (
            exceptions.AlreadyExists,
            exceptions.FailedPrecondition,
            exceptions.NotFound,
        ) as error:
            raise Conflict from error
        except exceptions.GoogleAPIError as error:
            if _is_refusal(error):
                raise
            raise Unconfirmed from error


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, exceptions.ServiceUnavailable | exceptions.Aborted)


def _is_refusal(error: exceptions.GoogleAPIError) -> bool:
    # Anything else, a lost connection as well as a time-out, may come after the commit.
    return isinstance(error, exceptions.ClientError) and not isinstance(error, exceptions.Cancelled)
