"""Read from Cloud Monitoring what the requests to two revisions show.

Cloud Run reports every minute, and a point is seen one to four minutes later. A series
without requests is missing; it is not zero. Requests through a tag count as any other.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import cast

import grpc
from google.api import distribution_pb2  # type: ignore[import-untyped]  # ships no types
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud import monitoring_v3
from google.cloud.monitoring_v3.services.metric_service.transports import (
    MetricServiceGrpcTransport,
)

from functions.promote.bake import Figures, Signals
from functions.promote.deadline import Deadline

TIMEOUT_SECONDS = 10.0

REQUEST_COUNT = "run.googleapis.com/request_count"
REQUEST_LATENCIES = "run.googleapis.com/request_latencies"
ERROR_CLASS = "5xx"

_MILLISECONDS = 1000.0

Bucket = tuple[float, float]
"""Lower and upper bound; the first bucket has no lower, the last no upper one but infinity."""


class Monitoring:
    """Cloud Monitoring's view of one Cloud Run service.

    Args:
        project: Google Cloud project.
        region: region of the service.
        service: short name of the service.
        endpoint: address of the API; empty: Google's; ``http://`` for one without TLS.
    """

    def __init__(self, *, project: str, region: str, service: str, endpoint: str = "") -> None:
        self._project = project
        self._region = region
        self._service = service
        self._endpoint = endpoint

    # Made on first use: the server forks before it, and channels don't survive that.
    @cached_property
    def _client(self) -> monitoring_v3.MetricServiceClient:
        if self._endpoint.startswith("http://"):
            channel = grpc.insecure_channel(self._endpoint.removeprefix("http://"))
            return monitoring_v3.MetricServiceClient(
                transport=MetricServiceGrpcTransport(channel=channel)
            )
        options = {"api_endpoint": self._endpoint} if self._endpoint else None
        return monitoring_v3.MetricServiceClient(client_options=options)

    def read(
        self, candidate: str, served: str, *, since: datetime, now: datetime, deadline: Deadline
    ) -> Signals:
        """Return what is known of the requests since a step began.

        Monitoring that does not answer is no error: the signals say so.

        Args:
            candidate: short name of the candidate's revision.
            served: short name of the revision that it is compared with.
            since: points that start before are of another step, and are left out.
            now: end of the period.
            deadline: end of the tick.

        Raises:
            OutOfTime: the deadline has passed.
        """
        revisions = (candidate, served)
        try:
            counts = self._list(REQUEST_COUNT, revisions, since, now, deadline)
            latencies = self._list(REQUEST_LATENCIES, revisions, since, now, deadline)
        except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
            return Signals(problem=f"Cloud Monitoring: {error}")
        figures = [_figures(name, counts, latencies, since) for name in revisions]
        return Signals(candidate=figures[0], served=figures[1])

    def _list(
        self,
        metric: str,
        revisions: Sequence[str],
        since: datetime,
        now: datetime,
        deadline: Deadline,
    ) -> list[monitoring_v3.TimeSeries]:
        names = ", ".join(f'"{name}"' for name in revisions)
        return list(
            self._client.list_time_series(
                request=monitoring_v3.ListTimeSeriesRequest(
                    name=f"projects/{self._project}",
                    filter=" AND ".join(
                        (
                            f'metric.type = "{metric}"',
                            'resource.type = "cloud_run_revision"',
                            f'resource.labels.location = "{self._region}"',
                            f'resource.labels.service_name = "{self._service}"',
                            f"resource.labels.revision_name = one_of({names})",
                        )
                    ),
                    interval=monitoring_v3.TimeInterval(start_time=since, end_time=now),
                    view=monitoring_v3.ListTimeSeriesRequest.TimeSeriesView.FULL,
                ),
                timeout=deadline.within(TIMEOUT_SECONDS),
                retry=None,
            )
        )


def percentile(counts: dict[Bucket, int], share: float) -> float | None:
    """Return a percentile of a histogram, linear within its bucket; None when it is empty.

    Args:
        counts: number of values in each bucket.
        share: 0 to 1.
    """
    rank = share * sum(counts.values())
    seen = 0
    for (low, high), count in sorted(counts.items()):
        if count and seen + count >= rank:
            # Open at the end: its bound is all that is known.
            return low if high == float("inf") else low + (high - low) * (rank - seen) / count
        seen += count
    return None


def buckets(options: distribution_pb2.Distribution.BucketOptions) -> list[Bucket]:
    """Return the bounds of a distribution's buckets, in order; values are not negative."""
    kind = options.WhichOneof("options")
    if kind == "exponential_buckets":
        exponential = options.exponential_buckets
        bounds = [
            exponential.scale * exponential.growth_factor**number
            for number in range(exponential.num_finite_buckets + 1)
        ]
    elif kind == "linear_buckets":
        linear = options.linear_buckets
        bounds = [
            linear.offset + linear.width * number for number in range(linear.num_finite_buckets + 1)
        ]
    else:
        bounds = list(options.explicit_buckets.bounds)
    edges = [min(0.0, *bounds), *bounds, float("inf")] if bounds else [0.0, float("inf")]
    return list(pairwise(edges))


def _figures(
    revision: str,
    counts: Iterable[monitoring_v3.TimeSeries],
    latencies: Iterable[monitoring_v3.TimeSeries],
    since: datetime,
) -> Figures:
    requests = errors = 0
    for series in counts:
        if series.resource.labels["revision_name"] == revision:
            number = sum(point.value.int64_value for point in _points(series, since))
            requests += number
            if series.metric.labels["response_code_class"] == ERROR_CLASS:
                errors += number
    histogram: dict[Bucket, int] = defaultdict(int)
    for series in latencies:
        if series.resource.labels["revision_name"] == revision:
            for point in _points(series, since):
                value = point.value.distribution_value
                # Buckets at the end that are empty are left out.
                for bucket, number in zip(
                    buckets(value.bucket_options), value.bucket_counts, strict=False
                ):
                    histogram[bucket] += number
    p95 = percentile(histogram, 0.95)
    return Figures(requests, errors, None if p95 is None else p95 / _MILLISECONDS)


def _points(series: monitoring_v3.TimeSeries, since: datetime) -> list[monitoring_v3.Point]:
    # The library gives a datetime where its types say Timestamp.
    return [p for p in series.points if cast("datetime", p.interval.start_time) >= since]
