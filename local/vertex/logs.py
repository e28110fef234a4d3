"""The log of the jobs, as Cloud Logging stores and lists it."""

import itertools
import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock

import grpc
from google.api import monitored_resource_pb2  # type: ignore[import-untyped]  # ships no types
from google.cloud.logging_v2.types import (
    ListLogEntriesRequest,
    ListLogEntriesResponse,
    LogEntry,
)
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from local.cloud_run.validation import Refused, invalid

SERVICE = "service"
WORKER = "workerpool0-0"

_INFO, _ERROR = 200, 500
_FILTER = re.compile(
    r'resource\.type="ml_job" AND resource\.labels\.job_id="(?P<job>[0-9]+)"'
    r'( AND timestamp>="(?P<since>[^"]+)")?'
)
_DEFAULT_PAGE, _LARGEST_PAGE = 50, 1000


@dataclass(frozen=True)
class _Stored:
    entry: LogEntry
    job_id: str
    written: datetime
    visible_at: float


@dataclass
class Log:
    """All entries of one project.

    Attributes:
        project: its id.
        delay_seconds: from writing an entry until it is listed; each second one twice that,
            so that entries come out of order.
    """

    project: str
    delay_seconds: float
    _entries: list[_Stored] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _lock: Lock = field(default_factory=Lock)

    def write(self, job_id: str, line: str, *, task: str, is_error: bool = False) -> None:
        """Store a line as the agent does: one that is a JSON object becomes fields."""
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            fields = {"message": line, "levelname": "ERROR" if is_error else "INFO"}
        now = datetime.now(UTC)
        with self._lock:
            number = next(self._numbers)
            entry = LogEntry(
                log_name=f"projects/{self.project}/logs/{task}",
                resource=monitored_resource_pb2.MonitoredResource(
                    type="ml_job",
                    labels={"job_id": job_id, "project_id": self.project, "task_name": task},
                ),
                timestamp=now,
                insert_id=f"{number:012x}",
                severity=_ERROR if is_error else _INFO,
                json_payload=ParseDict(fields, Struct()),
            )
            delay = self.delay_seconds * (1 + number % 2)
            self._entries.append(_Stored(entry, job_id, now, time.monotonic() + delay))

    def list(self, request: ListLogEntriesRequest) -> ListLogEntriesResponse:
        """Answer ``ListLogEntries``.

        Raises:
            Refused: INVALID_ARGUMENT for what Cloud Logging refuses, or this stand-in does not
                know; PERMISSION_DENIED for another project.
        """
        if not request.resource_names:
            raise invalid("resource_names is required")
        if list(request.resource_names) != [f"projects/{self.project}"]:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Permission denied for all log views")
        if request.order_by not in ("", "timestamp asc"):
            raise invalid("order_by: the stand-in knows 'timestamp asc'")
        if not 0 <= request.page_size <= _LARGEST_PAGE:
            raise invalid(f"page_size must be between 0 and {_LARGEST_PAGE}")
        match = _FILTER.fullmatch(request.filter)
        if match is None:
            raise invalid(f"filter: the stand-in does not know {request.filter!r}")
        since = datetime.fromisoformat(match["since"] or "1970-01-01T00:00:00Z")
        now = time.monotonic()
        with self._lock:
            found = [
                each
                for each in self._entries
                if each.job_id == match["job"] and each.written >= since and each.visible_at <= now
            ]
        found.sort(key=lambda each: (each.written, each.entry.insert_id))
        begin = int(request.page_token or 0)
        end = begin + (request.page_size or _DEFAULT_PAGE)
        return ListLogEntriesResponse(
            entries=[each.entry for each in found[begin:end]],
            next_page_token=str(end) if end < len(found) else "",
        )
