"""Signals, read by Google's client from the stand-in of Cloud Monitoring over gRPC."""

import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.api import distribution_pb2  # type: ignore[import-untyped]  # ships no types
from google.api_core.exceptions import InvalidArgument, NotFound, PermissionDenied
from google.cloud import monitoring_v3
from hypothesis import given
from hypothesis import strategies as st

from functions.promote.bake import Figures, Signals
from functions.promote.deadline import Deadline
from functions.promote.signals import Bucket, Monitoring, buckets, percentile
from local import monitoring as stand_in
from local.settings import free_port

STEP = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
Write = Callable[..., None]


class Clock:
    now = STEP

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Log requests as the local Cloud Run does."""
    log = tmp_path / "requests.jsonl"

    def add(
        revision: str, second: float, count: int = 1, *, status: int = 200, latency: float = 0.1
    ) -> None:
        line = {
            "timestamp": (STEP + timedelta(seconds=second)).isoformat(),
            "service": "predict",
            "revision": revision,
            "tag": "candidate",
            "method": "POST",
            "path": "/predict",
            "status": status,
            "latency_seconds": latency,
        }
        with log.open("a") as file:
            file.write((json.dumps(line) + "\n") * count)

    return add


@pytest.fixture
def endpoint(tmp_path: Path, clock: Clock) -> Iterator[str]:
    port = free_port()
    server = stand_in.create_server(
        stand_in.Monitoring(tmp_path / "requests.jsonl", project="p", region="r", now=clock), port
    )
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None)


def read(endpoint: str, clock: Clock) -> Signals:
    monitoring = Monitoring(project="p", region="r", service="predict", endpoint=endpoint)
    return monitoring.read("new", "old", since=STEP, now=clock(), deadline=Deadline(30))


def test_requests_errors_and_latency_of_both(endpoint: str, clock: Clock, write: Write) -> None:
    write("new", 10, 90, latency=0.1)
    write("new", 20, 10, latency=1.0, status=503)
    write("old", 10, 400, latency=0.1)
    write("old", 70, 500, latency=0.1, status=404)
    write("old", 71, status=0)
    clock.now = STEP + timedelta(minutes=10)
    signals = read(endpoint, clock)
    assert signals.problem == ""
    assert (signals.candidate.requests, signals.candidate.errors) == (100, 10)
    assert (signals.served.requests, signals.served.errors) == (901, 0)
    assert signals.candidate.p95_seconds == pytest.approx(1.0, rel=0.4)
    assert signals.served.p95_seconds == pytest.approx(0.1, rel=0.4)


def test_without_requests_there_is_no_series(endpoint: str, clock: Clock) -> None:
    clock.now = STEP + timedelta(minutes=10)
    assert read(endpoint, clock) == Signals()


def test_points_come_one_to_four_minutes_late(endpoint: str, clock: Clock, write: Write) -> None:
    write("new", 1)
    seen = []
    for seconds in range(0, 360, 10):
        clock.now = STEP + timedelta(seconds=seconds)
        seen.append(read(endpoint, clock).candidate.requests)
    first = seen.index(1) * 10
    assert 60 + 60 <= first <= 60 + 240
    assert seen == sorted(seen)


def test_points_that_start_before_the_step_are_of_another(
    endpoint: str, clock: Clock, write: Write
) -> None:
    write("new", -1, 50, status=500)
    write("new", 1, 3)
    clock.now = STEP + timedelta(minutes=10)
    monitoring = Monitoring(project="p", region="r", service="predict", endpoint=endpoint)

    def requests(since: datetime) -> Figures:
        signals = monitoring.read("new", "old", since=since, now=clock(), deadline=Deadline(30))
        return signals.candidate

    assert (requests(STEP).requests, requests(STEP).errors) == (3, 0)
    # The step began within the period: its point mixes two steps.
    assert requests(STEP + timedelta(seconds=1)).requests == 0


def test_monitoring_that_does_not_answer_is_said() -> None:
    clock = Clock()
    signals = read(f"http://127.0.0.1:{free_port()}", clock)
    assert signals.candidate == Figures()
    assert "Cloud Monitoring" in signals.problem


def test_another_project_is_refused_and_said(endpoint: str, clock: Clock) -> None:
    monitoring = Monitoring(project="other", region="r", service="predict", endpoint=endpoint)
    signals = monitoring.read("new", "old", since=STEP, now=clock(), deadline=Deadline(30))
    assert "no access" in signals.problem


COUNT = f'metric.type = "{stand_in.REQUEST_COUNT}"'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", InvalidArgument),
        ('resource.type = "cloud_run_revision"', InvalidArgument),
        ('metric.type = "run.googleapis.com/other"', NotFound),
        (f'{COUNT} AND resource.type = "gce_instance"', InvalidArgument),
        (f'{COUNT} AND resource.labels.revision = "x"', InvalidArgument),
        (f'{COUNT} AND resource.revision_name = "x"', InvalidArgument),
        (f'{COUNT} AND metric.labels.revision_name = "x"', InvalidArgument),
        (f'{COUNT} OR resource.labels.revision_name = "x"', InvalidArgument),
        (f'{COUNT} AND resource.labels.revision_name = starts_with("x")', InvalidArgument),
        (f"{COUNT} AND resource.labels.revision_name = one_of(x)", InvalidArgument),
        (f"{COUNT} AND {COUNT}", InvalidArgument),
    ],
)
def test_the_stand_in_refuses_filters_that_it_does_not_know(
    endpoint: str, text: str, error: type[Exception]
) -> None:
    client = Monitoring(project="p", region="r", service="s", endpoint=endpoint)._client
    with pytest.raises(error):
        client.list_time_series(request=request(filter=text))


def request(**changes: object) -> monitoring_v3.ListTimeSeriesRequest:
    fields: dict[str, object] = {
        "name": "projects/p",
        "filter": COUNT,
        "interval": monitoring_v3.TimeInterval(
            start_time=STEP, end_time=STEP + timedelta(minutes=5)
        ),
        **changes,
    }
    return monitoring_v3.ListTimeSeriesRequest(fields)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "projects/other"}, PermissionDenied),
        ({"interval": None}, InvalidArgument),
        ({"order_by": "x"}, InvalidArgument),
        ({"aggregation": monitoring_v3.Aggregation(alignment_period="60s")}, InvalidArgument),
        ({"view": monitoring_v3.ListTimeSeriesRequest.TimeSeriesView.HEADERS}, InvalidArgument),
    ],
)
def test_the_stand_in_refuses_requests_that_it_does_not_know(
    endpoint: str, changes: dict[str, object], error: type[Exception]
) -> None:
    client = Monitoring(project="p", region="r", service="s", endpoint=endpoint)._client
    assert not list(client.list_time_series(request=request()))
    with pytest.raises(error):
        client.list_time_series(request=request(**changes))


def test_the_bounds_of_each_kind_of_buckets() -> None:
    options = distribution_pb2.Distribution.BucketOptions
    exponential = options(
        exponential_buckets=options.Exponential(num_finite_buckets=2, growth_factor=2, scale=1)
    )
    linear = options(linear_buckets=options.Linear(num_finite_buckets=2, width=5, offset=1))
    explicit = options(explicit_buckets=options.Explicit(bounds=[1, 10]))
    assert buckets(exponential) == [(0, 1), (1, 2), (2, 4), (4, math.inf)]
    assert buckets(linear) == [(0, 1), (1, 6), (6, 11), (11, math.inf)]
    assert buckets(explicit) == [(0, 1), (1, 10), (10, math.inf)]


@given(st.dictionaries(st.integers(0, 30), st.integers(1, 50), min_size=1), st.floats(0.01, 1))
def test_a_percentile_lies_in_the_bucket_of_its_rank(counts: dict[int, int], share: float) -> None:
    histogram: dict[Bucket, int] = {(n, n + 1.0): count for n, count in counts.items()}
    values = sorted(n for n, count in counts.items() for _ in range(count))
    exact = values[max(0, math.ceil(share * len(values)) - 1)]
    found = percentile(histogram, share)
    assert found is not None
    assert exact - 1e-9 <= found <= exact + 1 + 1e-9


def test_the_percentile_of_nothing() -> None:
    assert percentile({}, 0.95) is None
    assert percentile({(1.0, math.inf): 3}, 0.95) == 1.0
