"""``python -m local.monitoring``: Cloud Monitoring's ``ListTimeSeries`` over Cloud Run's log.

It knows two metrics of the resource ``cloud_run_revision``, both DELTA, one point for
each period: ``run.googleapis.com/request_count`` and
``run.googleapis.com/request_latencies`` (a distribution, in milliseconds). As in the
cloud a point is seen minutes after its period, each with a delay of its own; a period
without requests has no point, and a revision without points no series; requests through
a tag count. Of filters it takes comparisons with ``=`` and ``one_of`` joined by ``AND``,
on labels that exist. Everything else is refused.
"""

import argparse
import hashlib
import json
import re
import signal
import threading
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, cast

import grpc
from google.api import (  # type: ignore[import-untyped]  # ships no types
    distribution_pb2,
    metric_pb2,
    monitored_resource_pb2,
)
from google.cloud import monitoring_v3

from local.cloud_run.validation import Refused, invalid

REQUEST_COUNT = "run.googleapis.com/request_count"
REQUEST_LATENCIES = "run.googleapis.com/request_latencies"
RESOURCE = "cloud_run_revision"

# Bounds of the latency's buckets in milliseconds: scale, factor, number of finite ones.
BUCKETS = (0.1, 1.4, 66)

_RESOURCE_LABELS = frozenset(
    {"project_id", "service_name", "revision_name", "location", "configuration_name"}
)
_METRIC_LABELS = frozenset({"response_code", "response_code_class"})
_CLAUSE = re.compile(
    r'\s*(?P<key>[a-z_.]+)\s*=\s*(?:"(?P<value>[^"]*)"|one_of\((?P<values>[^()]*)\))\s*'
)
_VALUE = re.compile(r'\s*"([^"]*)"\s*')
_CLIENT_GONE = 499
"""How Cloud Run logs a request whose client went away; the log of the stand-in has 0."""


class _Key(NamedTuple):
    service: str
    revision: str
    status: int


@dataclass
class _Sum:
    """The requests of one period."""

    count: int = 0
    sum_ms: float = 0.0


class Monitoring:
    """The series of one project and region.

    Args:
        log: the local Cloud Run's ``requests.jsonl``; it may not be there yet.
        project: project id.
        region: location of all services.
        period_seconds: length of a point.
        delay_seconds: least and most time from the end of a period until its point is seen.
        now: the clock.
    """

    def __init__(
        self,
        log: Path,
        *,
        project: str,
        region: str,
        period_seconds: float = 60.0,
        delay_seconds: tuple[float, float] = (60.0, 240.0),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._log = log
        self._project = project
        self._region = region
        self._period = period_seconds
        self._delay = delay_seconds
        self._now = now
        self._offset = 0
        self._sums: dict[_Key, dict[int, _Sum]] = defaultdict(lambda: defaultdict(_Sum))
        self._buckets: dict[tuple[_Key, int], Counter[int]] = defaultdict(Counter)
        self._lock = threading.Lock()
        scale, factor, count = BUCKETS
        self._bounds = [scale * factor**number for number in range(count + 1)]

    def list_time_series(
        self, request: monitoring_v3.ListTimeSeriesRequest
    ) -> monitoring_v3.ListTimeSeriesResponse:
        """Answer the call.

        Raises:
            Refused: what the real API refuses, or the stand-in does not know.
        """
        if request.name != f"projects/{self._project}":
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"name: no access to {request.name}")
        for name in ("aggregation", "secondary_aggregation", "order_by", "page_size", "page_token"):
            if name in request:
                raise invalid(f"{name}: the stand-in returns raw points, all at once")
        if request.view != monitoring_v3.ListTimeSeriesRequest.TimeSeriesView.FULL:
            raise invalid("view: the stand-in knows FULL only")
        interval = request.interval
        if "end_time" not in interval or "start_time" not in interval:
            raise invalid("interval: needs start_time and end_time")
        # The library gives a datetime where its types say Timestamp.
        start, end = cast("datetime", interval.start_time), cast("datetime", interval.end_time)
        if start > end:
            raise invalid("interval: start_time is after end_time")
        metric, wanted = parse_filter(request.filter)
        with self._lock:
            self._read()
            series = [
                self._series(metric, key, start, end)
                for key in self._sums
                if all(self._labels(key)[name] in values for name, values in wanted.items())
            ]
        return monitoring_v3.ListTimeSeriesResponse(
            time_series=[item for item in series if item.points]
        )

    def _read(self) -> None:
        """Read what was logged since; a line that is still being written is left."""
        if not self._log.exists():
            return
        with self._log.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                entry = json.loads(line)
                self._count(
                    _Key(entry["service"], entry["revision"], entry["status"] or _CLIENT_GONE),
                    datetime.fromisoformat(entry["timestamp"]).timestamp(),
                    entry["latency_seconds"] * 1000,
                )

    def _count(self, key: _Key, timestamp: float, milliseconds: float) -> None:
        period = int(timestamp // self._period)
        total = self._sums[key][period]
        total.count += 1
        total.sum_ms += milliseconds
        self._buckets[key, period][bisect_right(self._bounds, milliseconds)] += 1

    def _labels(self, key: _Key) -> dict[str, str]:
        return {
            "resource.project_id": self._project,
            "resource.service_name": key.service,
            "resource.revision_name": key.revision,
            "resource.location": self._region,
            "resource.configuration_name": key.service,
            "metric.response_code": str(key.status),
            "metric.response_code_class": f"{key.status // 100}xx",
        }

    def _series(
        self, metric: str, key: _Key, start: datetime, end: datetime
    ) -> monitoring_v3.TimeSeries:
        def of(kind: str) -> dict[str, str]:
            return {
                name.removeprefix(kind): value
                for name, value in self._labels(key).items()
                if name.startswith(kind)
            }

        is_count = metric == REQUEST_COUNT
        value_type = metric_pb2.MetricDescriptor.ValueType
        return monitoring_v3.TimeSeries(
            metric=metric_pb2.Metric(type=metric, labels=of("metric.")),
            resource=monitored_resource_pb2.MonitoredResource(
                type=RESOURCE, labels=of("resource.")
            ),
            metric_kind=metric_pb2.MetricDescriptor.MetricKind.DELTA,
            value_type=value_type.INT64 if is_count else value_type.DISTRIBUTION,
            unit="1" if is_count else "ms",
            points=[
                self._point(key, period, total, is_count=is_count)
                for period, total in sorted(self._sums[key].items(), reverse=True)
                if start < self._time(period + 1) <= end and self._seen(key, period)
            ],
        )

    def _point(self, key: _Key, period: int, total: _Sum, *, is_count: bool) -> monitoring_v3.Point:
        if is_count:
            value = monitoring_v3.TypedValue(int64_value=total.count)
        else:
            counts = self._buckets[key, period]
            scale, factor, number = BUCKETS
            value = monitoring_v3.TypedValue(
                distribution_value=distribution_pb2.Distribution(
                    count=total.count,
                    mean=total.sum_ms / total.count,
                    bucket_options=distribution_pb2.Distribution.BucketOptions(
                        exponential_buckets=distribution_pb2.Distribution.BucketOptions.Exponential(
                            num_finite_buckets=number, growth_factor=factor, scale=scale
                        )
                    ),
                    # Empty ones at the end are left out, as in the cloud.
                    bucket_counts=[counts[index] for index in range(max(counts) + 1)],
                )
            )
        return monitoring_v3.Point(
            interval=monitoring_v3.TimeInterval(
                start_time=self._time(period), end_time=self._time(period + 1)
            ),
            value=value,
        )

    def _time(self, period: int) -> datetime:
        return datetime.fromtimestamp(period * self._period, UTC)

    def _seen(self, key: _Key, period: int) -> bool:
        """Return whether the point has arrived: its delay is drawn once, by its name."""
        least, most = self._delay
        drawn = hashlib.sha256(repr((key, period)).encode()).digest()[0] / 255
        delay = timedelta(seconds=least + (most - least) * drawn)
        return self._now() >= self._time(period + 1) + delay


def parse_filter(text: str) -> tuple[str, dict[str, frozenset[str]]]:
    """Return the metric's type, and label -> values that it may have.

    Labels are named ``resource.NAME`` and ``metric.NAME``.

    Raises:
        Refused: syntax, labels, metrics or resources that the stand-in does not know.
    """
    wanted: dict[str, frozenset[str]] = {}
    for clause in text.split(" AND "):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise invalid(f"filter: {clause!r} is not understood")
        key = re.sub(r"^(resource|metric)\.labels?\.", r"\1.", match["key"])
        known = {f"resource.{name}" for name in _RESOURCE_LABELS}
        known |= {f"metric.{name}" for name in _METRIC_LABELS}
        if match["key"] in ("metric.type", "resource.type"):
            key = match["key"]
            if match["value"] is None:
                raise invalid(f"filter: {key} must be one string")
        elif key not in known or key == match["key"]:
            raise invalid(f"filter: {match['key']} is no label of {RESOURCE} or its metrics")
        if key in wanted:
            raise invalid(f"filter: {key} is given twice")
        wanted[key] = _values(match)
    types = wanted.pop("metric.type", frozenset())
    if len(types) != 1:
        raise invalid("filter: must name one metric.type")
    (metric,) = types
    if metric not in (REQUEST_COUNT, REQUEST_LATENCIES):
        raise Refused(
            grpc.StatusCode.NOT_FOUND, f"Cannot find metric(s) that match type = {metric!r}"
        )
    if wanted.pop("resource.type", frozenset({RESOURCE})) != {RESOURCE}:
        raise invalid(f"filter: the metric is of the resource type {RESOURCE}")
    return metric, wanted


def _values(match: re.Match[str]) -> frozenset[str]:
    if match["value"] is not None:
        return frozenset({match["value"]})
    found = [_VALUE.fullmatch(part) for part in match["values"].split(",")]
    values = [value[1] for value in found if value is not None]
    if len(values) != len(found):
        raise invalid(f"filter: one_of({match['values']}) is not understood")
    return frozenset(values)


def create_server(monitoring: Monitoring, port: int) -> grpc.Server:
    """Return a gRPC server on 127.0.0.1, not yet started.

    Raises:
        RuntimeError: the port is taken.
    """

    def answer(
        request: monitoring_v3.ListTimeSeriesRequest, context: grpc.ServicerContext
    ) -> monitoring_v3.ListTimeSeriesResponse:
        try:
            return monitoring.list_time_series(request)
        except Refused as refusal:
            context.abort(refusal.code, refusal.message)
            raise

    # Without SO_REUSEPORT a second stand-in on the same port fails instead of
    # taking half of the calls.
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "google.monitoring.v3.MetricService",
                {
                    "ListTimeSeries": grpc.unary_unary_rpc_method_handler(
                        answer,
                        request_deserializer=monitoring_v3.ListTimeSeriesRequest.deserialize,
                        response_serializer=monitoring_v3.ListTimeSeriesResponse.serialize,
                    )
                },
            ),
        )
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    return server


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m local.monitoring", description="Stand-in of Cloud Monitoring."
    )
    parser.add_argument("--log", type=Path, required=True, help="requests.jsonl of Cloud Run")
    parser.add_argument("--project", required=True, help="project id")
    parser.add_argument("--region", required=True, help="location of the services")
    parser.add_argument("--port", type=int, required=True, help="gRPC, on 127.0.0.1")
    parser.add_argument("--period-seconds", type=float, default=60.0, help="length of a point")
    parser.add_argument(
        "--delay-seconds",
        type=float,
        nargs=2,
        default=(60.0, 240.0),
        metavar=("LEAST", "MOST"),
        help="how late points are seen",
    )
    arguments = parser.parse_args()
    server = create_server(
        Monitoring(
            arguments.log,
            project=arguments.project,
            region=arguments.region,
            period_seconds=arguments.period_seconds,
            delay_seconds=tuple(arguments.delay_seconds),
        ),
        arguments.port,
    )
    server.start()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    stopping.wait()
    server.stop(grace=1).wait()


if __name__ == "__main__":
    main()
