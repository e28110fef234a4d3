"""Structured logs: one JSON object a line on stdout, in Cloud Logging's form.

Standard library only, since every function pays for this import at a cold start.
What a caller sent (a review's text, a query) is never logged.
"""

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple


class Trace(NamedTuple):
    """The trace that a request belongs to."""

    trace_id: str
    """32 lower-case hex digits."""
    span_id: str
    """16 lower-case hex digits of the caller's span."""
    sampled: bool
    """Whether the caller records this trace."""

    @property
    def traceparent(self) -> str:
        """The W3C ``traceparent`` header that hands the trace on."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


_encode = json.JSONEncoder(default=str).encode

# Set by whoever answers a request; every line logged meanwhile carries it.
current_trace: ContextVar[Trace | None] = ContextVar("current_trace", default=None)

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_CLOUD_TRACE = re.compile(r"([0-9a-fA-F]{32})(?:/(\d{1,20}))?(?:;o=(\d))?")


def parse_trace(headers: Mapping[str, str]) -> Trace | None:
    """Read the trace from ``traceparent``, else from ``X-Cloud-Trace-Context``.

    Args:
        headers: request headers, by lower-case name.

    Returns:
        The trace, or None when there is none or it is malformed.
    """
    if match := _TRACEPARENT.fullmatch(headers.get("traceparent", "")):
        return Trace(match[1], match[2], bool(int(match[3], 16) & 1))
    if match := _CLOUD_TRACE.fullmatch(headers.get("x-cloud-trace-context", "")):
        span_id = f"{int(match[2] or 0) % 2**64:016x}"
        return Trace(match[1].lower(), span_id, match[3] == "1")
    return None


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON that Cloud Logging understands.

    Args:
        project: Google Cloud project id, to link lines to Cloud Trace; None logs
            the bare trace id.
    """

    def __init__(self, project: str | None = None) -> None:
        super().__init__()
        self._project = project
        # The last second that was written out: most lines fall into the same.
        self._second = (0, "1970-01-01T00:00:00")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON; ``extra={"fields": {...}}`` adds members."""
        fields = getattr(record, "fields", None)
        members: dict[str, object] = {"message": record.getMessage(), "logger": record.name}
        members |= fields if isinstance(fields, Mapping) else {}
        if record.exc_info and record.exc_info[0] is not None:
            members["exception"] = record.exc_info[0].__name__
            members["stack_trace"] = _frames(record.exc_info[2])
        return self._line(record.levelname, record.created, _members(members))

    def request_line(
        self,
        *,
        method: str,
        path: str,
        status: int,
        seconds: float,
        logger: str,
        members: Mapping[str, object],
    ) -> str:
        """Return a finished request as a line of JSON, with ``httpRequest``.

        Args:
            method: HTTP method.
            path: path without the query, which may hold what a caller sent.
            status: HTTP status of the answer.
            seconds: how long it took.
            logger: who says so.
            members: further members of the entry.
        """
        # Written by hand, for what each prediction pays: the encoder has what is left.
        start = _request_members(method, path[:200], status, logger)
        more = f", {_members(members)}" if members else ""
        return self._line(
            "ERROR" if status >= 500 else "INFO",
            time.time(),
            f'{start}, "latency": "{seconds:.6f}s"}}{more}',
        )

    def _line(self, severity: str, created: float, members: str) -> str:
        second, text = self._second
        if int(created) != second:
            second = int(created)
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = (second, text)
        trace = current_trace.get()
        return (
            f'{{"severity": "{severity}", '
            f'"time": "{text}.{int((created - second) * 1e6):06d}Z", '
            f"{members}{self._trace_members(trace) if trace else ''}}}"
        )

    def _trace_members(self, trace: Trace) -> str:
        prefix = f"projects/{self._project}/traces/" if self._project else ""
        members: dict[str, object] = {
            "logging.googleapis.com/trace": f"{prefix}{trace.trace_id}",
            "logging.googleapis.com/spanId": trace.span_id,
            "logging.googleapis.com/trace_sampled": trace.sampled,
        }
        return f", {_members(members)}"


_formatter = JsonFormatter()


def configure_logging(*, project: str | None = None, level: int = logging.INFO) -> None:
    """Send every log record of this process to stdout as JSON.

    Call once per process; a second call replaces the first.

    Args:
        project: Google Cloud project id for trace links, or None.
        level: lowest severity that is logged.
    """
    global _formatter
    _formatter = JsonFormatter(project)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # What no line of ours says need not be found out for each (the logging HOWTO's
    # "Optimization").
    logging._srcfile = None
    logging.logThreads = False
    logging.logProcesses = False
    logging.logMultiprocessing = False
    # Libraries log each request they send at INFO: noise beside our own line.
    for noisy in ("httpx", "httpcore", "google", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def write_request(
    *,
    method: str,
    path: str,
    status: int,
    seconds: float,
    logger: str,
    members: Mapping[str, object],
) -> None:
    """Write a finished request to stdout, past the loggers, which cost twice as much.

    In the form that `configure_logging` set; see `JsonFormatter.request_line`.
    """
    line = _formatter.request_line(
        method=method, path=path, status=status, seconds=seconds, logger=logger, members=members
    )
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# Few, unless someone tries paths: what is the same in most lines is encoded once.
@lru_cache(maxsize=64)
def _request_members(method: str, path: str, status: int, logger: str) -> str:
    request = {"requestMethod": method, "requestUrl": path, "status": status}
    members = {"message": f"{method} answered {status}", "logger": logger, "httpRequest": request}
    # Without the brace that ends the request: its latency follows.
    return _members(members).removesuffix("}")


def _members(members: Mapping[str, object]) -> str:
    return _encode(members)[1:-1]


def _frames(stack: TracebackType | None) -> str:
    # Where it happened, without the exception's message: libraries put the
    # offending value there, and that may be a caller's text.
    return "".join(traceback.format_tb(stack))
