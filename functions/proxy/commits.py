"""Writes predictions and counts them, in one commit: both or neither.

New predictions share commits: while some commits are under way, those that arrive wait
and go together. A busy process so writes the counters once for many predictions, and the
slower Firestore takes them, the more predictions share each (STATISTICS.md).
"""

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from google.cloud import firestore

from functions.problem import Problem
from functions.proxy.callers import capped_by
from functions.proxy.connection import RETRY_AFTER_SECONDS, Conflict, Connection, Unconfirmed
from functions.proxy.counters import Changes
from functions.proxy.documents import (
    MONTHS,
    PREDICTIONS,
    TOTALS,
    month_increments,
    prediction_fields,
    read_prediction,
    total_increments,
)
from functions.proxy.prediction import Prediction
from functions.proxy.sharding import Sharding
from functions.proxy.slots import Slots, slots_name

_log = logging.getLogger(__name__)

# Two, so that one is on its way while the other is made; more would share less.
_WRITERS = 2
_MAX_GROUP = 100
# Firestore takes requests of 10 MiB.
_MAX_GROUP_BYTES = 4 * 1024**2
_ATTEMPTS = 8
_FAILURES_SECONDS = 1.0


class AlreadyStored(Exception):
    """There is a prediction with this id."""


@dataclass(slots=True)
class _Waiting:
    prediction: Prediction
    who: str
    """Tells whether a later answer comes from the same caller."""
    slots: str | None
    """Name of the slots of which the answer takes one, if there is an answer."""
    since: float
    done: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def size(self) -> int:
        return 4 * len(self.prediction.text) + len(self.prediction.explanation or b"") + 1000


class Commits:
    """Makes every change of the predictions.

    Args:
        connection: to Firestore.
        sharding: which documents share the counters.
        slots: how many answers a caller may have counted as its first ones.
    """

    def __init__(self, connection: Connection, sharding: Sharding, *, slots: int) -> None:
        self._connection = connection
        self._sharding = sharding
        self._slots = Slots(slots)
        # Two commits at once that take slots of the same caller would refuse each other.
        self._taking_slots = asyncio.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._writers = 0
        self._failures = Changes()
        self._failure_writer: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, prediction: Prediction, caller: str) -> None:
        """Store a prediction and count it.

        Args:
            prediction: a new one; whether its answer is capped is found out here.
            caller: digest of the caller's name.

        Raises:
            AlreadyStored: there is a prediction with this id; nothing was counted.
            Unconfirmed: it may have been stored and counted, or not.
            Problem: 503; it was not stored.
        """
        slots = None
        if prediction.is_positive_user_answered is not None:
            slots = slots_name(caller, prediction.model_version, prediction.timestamp)
        waiting = _Waiting(prediction, capped_by(caller, prediction.id), slots, time.monotonic())
        self._waiting.append(waiting)
        if self._writers < _WRITERS:
            self._writers += 1
            self._start(self._write_waiting())
        await waiting.done

    async def answer(
        self, prediction_id: str, user: bool | None, *, caller: str
    ) -> tuple[Prediction | None, bool]:
        """Set, change or take back the user's answer.

        Args:
            prediction_id: its id.
            user: the answer.
            caller: digest of the caller's name.

        Returns:
            The prediction, None: there is none with this id; and whether the answer is
            another one than before.

        Raises:
            Unconfirmed: the answer may have been changed, or not; it is safe to repeat.
            Problem: 503; it was not changed.
        """
        who = capped_by(caller, prediction_id)
        for _ in range(_ATTEMPTS):
            async with self._connection.client() as client:
                reference = client.collection(PREDICTIONS).document(prediction_id)
                snapshot = await self._connection.get(reference)
                if not snapshot.exists:
                    return None, False
                old = read_prediction(snapshot)
                if old.is_expired(datetime.now(UTC)):
                    return None, False
                if old.is_positive_user_answered is user:
                    return old, False
                new = replace(old, is_positive_user_answered=user)
                name = None
                # Whose answer counts as capped changes it without more ado. Another caller
                # needs a slot of its own, or the capped answer stays as it is.
                if old.capped_by == who:
                    new = replace(new, capped_answer=user)
                elif user is not None:
                    name = slots_name(caller, old.model_version, datetime.now(UTC))
                changes = Changes()
                try:
                    wants_slot = name is not None and not self._slots.is_full(name)
                    async with self._taking_slots if wants_slot else nullcontext():
                        if name is not None and wants_slot:
                            await self._slots.load([name], self._connection, client)
                        taken = {}
                        if name is not None and self._slots.free(name) > 0:
                            new = replace(new, capped_answer=user, capped_by=who)
                            taken[name] = 1
                        batch = client.batch()
                        batch.update(
                            reference,
                            {
                                "is_positive_user_answered": new.is_positive_user_answered,
                                "disagrees": new.disagrees,
                                "capped_answer": new.capped_answer,
                                "capped_by": new.capped_by,
                            },
                            option=client.write_option(last_update_time=snapshot.update_time),
                        )
                        changes.replace(old, new)
                        await self._commit(client, batch, changes, taken, before=1)
                    return new, True
                except Conflict:
                    pass
            await _pause()
        raise _contended()

    async def delete(self, prediction_id: str) -> bool:
        """Delete a prediction and count it no longer; False: there is none.

        Raises:
            Unconfirmed: it may have been deleted, or not; it is safe to repeat.
            Problem: 503; it was not deleted.
        """
        tried = False
        for _ in range(_ATTEMPTS):
            async with self._connection.client() as client:
                reference = client.collection(PREDICTIONS).document(prediction_id)
                snapshot = await self._connection.get(reference)
                if not snapshot.exists:
                    # Our own commit may have done it, and its answer was lost.
                    return tried
                changes = Changes()
                changes.remove(read_prediction(snapshot))
                batch = client.batch()
                batch.delete(
                    reference, option=client.write_option(last_update_time=snapshot.update_time)
                )
                tried = True
                try:
                    await self._commit(client, batch, changes, {}, before=1)
                    return True
                except Conflict:
                    pass
            await _pause()
        raise _contended()

    async def count_failure(self, day: str, revision: str | None) -> None:
        """Count a request that predict did not answer, if all goes well.

        Waits for that, and no longer than a second: on Cloud Run, a process without a request
        under way gets hardly any processor time.
        """
        self._failures.fail(day, revision)
        if self._failure_writer is None or self._failure_writer.done():
            self._failure_writer = self._start(self._write_failures())
        await asyncio.wait([self._failure_writer], timeout=_FAILURES_SECONDS)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _write_waiting(self) -> None:
        try:
            while group := self._take_group():
                try:
                    await self._create_together(group)
                except Exception as error:
                    for waiting in group:
                        _fail(waiting, error)
        finally:
            self._writers -= 1

    def _take_group(self) -> list[_Waiting]:
        oldest = time.monotonic() - self._connection.timeout
        group: list[_Waiting] = []
        ids: set[str] = set()
        later: list[_Waiting] = []
        size = 0
        while self._waiting and len(group) < _MAX_GROUP and size < _MAX_GROUP_BYTES:
            waiting = self._waiting.popleft()
            if waiting.prediction.id in ids:
                # The same request twice: a commit writes a document once.
                later.append(waiting)
            elif waiting.since < oldest:
                _fail(
                    waiting,
                    Problem(
                        503,
                        "The database is too slow. Nothing was stored; try again.",
                        retry_after=RETRY_AFTER_SECONDS,
                    ),
                )
            else:
                group.append(waiting)
                ids.add(waiting.prediction.id)
                size += waiting.size
        self._waiting.extendleft(reversed(later))
        return group

    async def _create_together(self, group: list[_Waiting]) -> None:
        for attempt in range(_ATTEMPTS):
            if attempt > 1:
                await _pause()
            try:
                await self._create(group)
            except Conflict:
                # One of them is there already, or somebody took a slot. Those that are there
                # are told, and the others go again.
                group = await self._without_stored(group)
                if not group:
                    return
                continue
            for waiting in group:
                if not waiting.done.done():
                    waiting.done.set_result(None)
            return
        raise _contended()

    async def _without_stored(self, group: list[_Waiting]) -> list[_Waiting]:
        async with self._connection.client() as client:
            predictions = client.collection(PREDICTIONS)
            documents = [predictions.document(waiting.prediction.id) for waiting in group]
            found = await self._connection.read_all(client, documents)
        stored = {snapshot.id for snapshot in found if snapshot.exists}
        for waiting in group:
            if waiting.prediction.id in stored:
                _fail(waiting, AlreadyStored())
        return [waiting for waiting in group if waiting.prediction.id not in stored]

    async def _create(self, group: Sequence[_Waiting]) -> None:
        wanted = {
            waiting.slots
            for waiting in group
            if waiting.slots is not None and not self._slots.is_full(waiting.slots)
        }
        if not wanted:
            await self._create_with(group, {})
            return
        async with self._taking_slots:
            async with self._connection.client() as client:
                await self._slots.load(wanted, self._connection, client)
            await self._create_with(group, {name: self._slots.free(name) for name in wanted})

    async def _create_with(self, group: Sequence[_Waiting], free: Mapping[str, int]) -> None:
        taken: Counter[str] = Counter()
        changes = Changes()
        async with self._connection.client() as client:
            batch = client.batch()
            predictions = client.collection(PREDICTIONS)
            for waiting in group:
                prediction = waiting.prediction
                name = waiting.slots
                if name is not None and taken[name] < free.get(name, 0):
                    taken[name] += 1
                    prediction = replace(
                        prediction,
                        capped_answer=prediction.is_positive_user_answered,
                        capped_by=waiting.who,
                    )
                # The precondition "does not exist" makes the commit safe to repeat.
                batch.create(predictions.document(prediction.id), prediction_fields(prediction))
                changes.add(prediction)
            await self._commit(client, batch, changes, +taken, before=len(group))

    async def _commit(
        self,
        client: firestore.AsyncClient,
        batch: firestore.AsyncWriteBatch,
        changes: Changes,
        taken: Mapping[str, int],
        *,
        before: int,
    ) -> None:
        """Commit what is in `batch` already, `before` writes, with slots and counters."""
        self._slots.write(taken, batch, client)
        await self._count(client, batch, changes)
        try:
            results = await self._connection.commit(batch)
        except BaseException:
            self._slots.forget(taken)
            raise
        self._slots.written(taken, results[before : before + len(taken)])

    async def _count(
        self, client: firestore.AsyncClient, batch: firestore.AsyncWriteBatch, changes: Changes
    ) -> None:
        shard = await self._sharding.pick(client)
        if totals := total_increments(changes):
            batch.set(client.collection(TOTALS).document(shard), totals, merge=True)
        for month in changes.months():
            if increments := month_increments(changes, month):
                reference = client.collection(MONTHS).document(f"{month}_{shard}")
                batch.set(reference, increments, merge=True)

    async def _write_failures(self) -> None:
        # Those that fail meanwhile go together in the next commit.
        while self._failures.revisions:
            changes, self._failures = self._failures, Changes()
            try:
                async with self._connection.client() as client:
                    batch = client.batch()
                    await self._count(client, batch, changes)
                    # Not repeated: it has no precondition, and would count twice.
                    await batch.commit(retry=None, timeout=self._connection.timeout)
            except (Problem, Unconfirmed):
                _log.warning("Failures of predict were not counted")


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.done.done():
        # Its own exception for each: a traceback grows with each that raises it.
        match error:
            case Unconfirmed():
                error = Unconfirmed()
            case Problem():
                error = Problem(error.status, error.detail, retry_after=RETRY_AFTER_SECONDS)
        waiting.done.set_exception(error)


def _contended() -> Problem:
    return Problem(
        503,
        "Others change the same prediction. Nothing was changed; try again.",
        retry_after=RETRY_AFTER_SECONDS,
    )


async def _pause() -> None:
    await asyncio.sleep(random.uniform(0.005, 0.1))  # noqa: S311
