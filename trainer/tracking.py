"""Metrics that reach MLflow even when it is away for minutes.

MLflow's own asynchronous logging drops what it could not send; Lightning's logger for MLflow
sends each step's metrics while the training waits.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from threading import Condition, Event, Thread
from types import TracebackType
from typing import Any, Self, TypeVar

from google.api_core.exceptions import RetryError, ServerError, TooManyRequests
from google.api_core.retry import Retry
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException, RestException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from requests.exceptions import RequestException
from tqdm import tqdm

from trainer.auth import AuthError

_Result = TypeVar("_Result")

PATIENCE_SECONDS = 600.0

# MLflow's limit for one request.
_BATCH = 1000
# A request a second is nothing to MLflow; one for each step may be more than it can take.
_GATHER_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 5.0
_SILENT_SECONDS = 5.0
_LAST_TRY_SECONDS = 10.0


class TrackingError(Exception):
    """Metrics could not be sent; the message says why, and where they are kept."""


class MetricLogger(Logger):
    """A logger for `lightning.pytorch.Trainer` that never waits for MLflow.

    Metrics are queued with the time and step at which they were measured, and sent in order
    by one thread, as often as it takes; sent twice they count once. They wait in memory, some
    hundred bytes each. Leaving its ``with`` block is `close`.

    Args:
        run_id: run of the metrics; it must be active until they are sent.
        unsent: file for the metrics that could not be sent, JSON lines with the keys
            ``run_id``, ``key``, ``value``, ``timestamp`` (milliseconds since 1970) and ``step``.
        tracking_uri: MLflow server; None: the process's.
        patience_seconds: how long `flush` waits for MLflow.
        system_seconds: seconds between two samples of the machine, logged from now until
            `close` as ``system/...`` (CPU, memory, disk, network, and GPU where there is one)
            with the seconds since the run's start as step; None: not measured.

    Raises:
        mlflow.exceptions.MlflowException: there is no such run, or no answer.
    """

    def __init__(
        self,
        run_id: str,
        *,
        unsent: Path,
        tracking_uri: str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        system_seconds: float | None = None,
    ) -> None:
        super().__init__()
        self._run_id = run_id
        self._unsent = unsent
        self._patience_seconds = patience_seconds
        self._client = MlflowClient(tracking_uri)
        self._address = self._client.tracking_uri
        self._started_ms: int = self._client.get_run(run_id).info.start_time
        self._queue: deque[Metric] = deque()
        self._changed = Condition()
        # Counts of metrics since the start; `_awaited`: up to which somebody waits.
        self._queued = 0
        self._sent = 0
        self._awaited = 0
        self._flushes = 0
        self._failure: Exception | None = None
        self._closed = False
        self._sending = Thread(target=self._send, name="metrics", daemon=True)
        self._sending.start()
        self._stopping = Event()
        self._sampling: Thread | None = None
        if system_seconds is not None:
            self._sampling = Thread(
                target=self._sample, args=(system_seconds,), name="system metrics", daemon=True
            )
            self._sampling.start()

    @property
    def name(self) -> None:
        """None: the run's experiment is not the logger's concern."""
        return None

    @property
    def version(self) -> str:
        """Return the id of the run."""
        return self._run_id

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: whoever made the run logged its parameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue metrics (name to value) of a step; None counts as 0."""
        now = int(time.time() * 1000)
        points = [Metric(key, float(value), now, step or 0) for key, value in metrics.items()]
        with self._changed:
            self._queue.extend(points)
            self._queued += len(points)
            self._changed.notify_all()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is queued; after a failed training, tried for a moment only.

        Raises:
            TrackingError: as `flush` does, unless the training failed: its own error counts.
        """
        if status == "success":
            self.flush()
        else:
            self._flush_after_failure()

    def flush(self) -> None:
        """Return once all metrics queued so far are sent.

        Raises:
            TrackingError: MLflow refuses them, or was away for `patience_seconds`. They are in
                the file `unsent` then, and stay queued.
        """
        self._flush(self._patience_seconds)

    def close(self) -> None:
        """Flush and stop; the last sample of the machine is taken now.

        Raises:
            TrackingError: as `flush` does; it has stopped all the same.
        """
        self._stop_sampling()
        try:
            self.flush()
        finally:
            self._stop_sending()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Close; an error on its way out is not replaced by another."""
        if error is None:
            self.close()
            return
        self._stop_sampling()
        try:
            self._flush_after_failure()
        finally:
            self._stop_sending()

    def _flush_after_failure(self) -> None:
        try:
            self._flush(min(self._patience_seconds, _LAST_TRY_SECONDS))
        except TrackingError as error:
            _say(str(error))

    def _flush(self, patience_seconds: float) -> None:
        ends = time.monotonic() + patience_seconds
        with self._changed:
            target = self._queued
            self._awaited = target
            self._flushes += 1
            # From before: what was refused may be taken now.
            self._failure = None
            self._changed.notify_all()

            def is_over() -> bool:
                return self._sent >= target or self._is_refused()

            if not self._changed.wait_for(is_over, min(_SILENT_SECONDS, patience_seconds)):
                _say(
                    f"waiting for MLflow at {self._address}: {target - self._sent} metrics to send"
                )
                self._changed.wait_for(is_over, ends - time.monotonic())
            if self._sent >= target:
                return
            left = list(self._queue)
            reason = "no answer" if self._failure is None else _one_line(self._failure)
        self._keep(left)
        raise TrackingError(
            f"{len(left)} metrics of run {self._run_id} could not be sent to MLflow at "
            f"{self._address} ({reason}); they are in {self._unsent}"
        )

    def _is_refused(self) -> bool:
        return self._failure is not None and not _is_transient(self._failure)

    def _keep(self, metrics: list[Metric]) -> None:
        self._unsent.parent.mkdir(parents=True, exist_ok=True)
        with self._unsent.open("w", encoding="utf-8") as file:
            for metric in metrics:
                point = {
                    "run_id": self._run_id,
                    "key": metric.key,
                    "value": metric.value,
                    "timestamp": metric.timestamp,
                    "step": metric.step,
                }
                file.write(json.dumps(point) + "\n")
        # Said here as well: an error that MLflow raises next may take the place of ours.
        _say(f"{len(metrics)} metrics that MLflow did not take are in {self._unsent}")

    def _send(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._changed.wait_for(self._is_due, _GATHER_SECONDS)
                if self._closed:
                    return
                flushes = self._flushes
                batch = list(islice(self._queue, _BATCH))
            try:
                self._client.log_batch(self._run_id, metrics=batch)
            # Whatever it is, it must not end this thread: MLflow raises more than its own errors.
            except Exception as error:
                with self._changed:
                    is_news = self._failure is None
                    self._failure = error
                    self._changed.notify_all()
                if is_news:
                    _say(f"MLflow at {self._address} takes no metrics now: {_one_line(error)}")
                self._pause(pause, flushes)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                with self._changed:
                    for _ in batch:
                        self._queue.popleft()
                    self._sent += len(batch)
                    self._failure = None
                    self._changed.notify_all()
                pause = _FIRST_PAUSE_SECONDS

    def _is_due(self) -> bool:
        return self._closed or self._sent < self._awaited or len(self._queue) >= _BATCH

    def _pause(self, seconds: float, flushes: int) -> None:
        """Wait, unless somebody begins to wait for the metrics."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._flushes > flushes, seconds)

    def _sample(self, seconds: float) -> None:
        monitor = SystemMetricsMonitor(self._run_id, tracking_uri=self._address)
        # The first share of the CPU's time has no time to refer to.
        monitor.collect_metrics()
        stopping = False
        while not stopping:
            for each in monitor.monitors:
                each.clear_metrics()
            stopping = self._stopping.wait(seconds)
            monitor.collect_metrics()
            values = {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
            self.log_metrics(values, int(time.time() - self._started_ms / 1000))

    def _stop_sampling(self) -> None:
        self._stopping.set()
        if self._sampling is not None:
            self._sampling.join()

    def _stop_sending(self) -> None:
        # It is not waited for: in the middle of a request that could take minutes.
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def patiently(
    call: Callable[[], _Result], *, patience_seconds: float = PATIENCE_SECONDS
) -> _Result:
    """Call until MLflow or the bucket answers.

    Tried again, with growing pauses: no connection, no answer in time, too many requests
    (429), an error of the server (5xx), no token.

    Args:
        call: what may be done twice.
        patience_seconds: since the first call, after which the error is final.

    Raises:
        Exception: of the last call; any other error of `call` at once.
    """
    retry = Retry(
        predicate=_is_transient,
        initial=_FIRST_PAUSE_SECONDS,
        maximum=_LONGEST_PAUSE_SECONDS,
        timeout=patience_seconds,
        on_error=lambda error: _say(f"trying again: {_one_line(error)}"),
    )
    try:
        result: _Result = retry(call)()
        return result
    except RetryError as error:
        if error.cause is None:
            raise
        raise error.cause from error


def _is_transient(error: Exception) -> bool:
    if isinstance(error, RestException) or (
        isinstance(error, MlflowException) and error.error_code == "TEMPORARILY_UNAVAILABLE"
    ):
        status = error.get_http_status_code()
        return status in (408, 429) or status >= 500
    if isinstance(error, MlflowException):
        # MLflow's word for a request without an answer, once its own retries are used up.
        return isinstance(error.__context__, RequestException | AuthError)
    return isinstance(
        error, ServerError | TooManyRequests | RequestException | AuthError | ConnectionError
    )


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
