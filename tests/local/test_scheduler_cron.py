"""Schedules: every minute that they name, and no other."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.scheduler.cron import InvalidSchedule, following, parse

UTC_ZONE = ZoneInfo("Etc/UTC")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("* * * * *", "2026-11-17T12:00:00", "2026-11-17T12:01"),
        ("* * * * *", "2026-11-17T12:00:59", "2026-11-17T12:01"),
        ("*/15 9-17 * * MON-FRI", "2026-11-20T17:45", "2026-11-23T09:00"),
        ("0 0 29 2 *", "2026-01-01T00:00", "2028-02-29T00:00"),
        ("0 0 1,15 JAN *", "2026-01-02T00:00", "2026-01-15T00:00"),
        ("0 8 * * 7", "2026-11-17T12:00", "2026-11-22T08:00"),
        # Either of the two kinds of day: the 20th is a Friday, the 19th a Thursday.
        ("0 0 20 * 4", "2026-11-17T00:00", "2026-11-19T00:00"),
        ("0 0 20 * 4", "2026-11-19T00:00", "2026-11-20T00:00"),
    ],
)
def test_the_next_run(schedule: str, after: str, expected: str) -> None:
    assert following(parse(schedule), at(after), UTC_ZONE) == at(expected)


def test_clocks_that_change() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    # On 29 March 2026 there was no half past two.
    found = following(parse("30 2 * * *"), at("2026-03-28T12:00"), berlin)
    assert found == at("2026-03-30T00:30")
    assert following(parse("0 9 * * *"), at("2026-07-01T00:00"), berlin) == at("2026-07-01T07:00")


@given(
    minute=st.integers(0, 59),
    step=st.integers(1, 30),
    after=st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1)),  # made aware
)
def test_it_is_the_first_minute_that_matches(minute: int, step: int, after: datetime) -> None:
    after = after.replace(tzinfo=UTC)
    schedule = parse(f"{minute}-59/{step} * * * *")
    found = following(schedule, after, UTC_ZONE)
    assert after < found <= after + timedelta(hours=1)
    expected = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while expected.minute < minute or (expected.minute - minute) % step:
        expected += timedelta(minutes=1)
    assert found == expected


@pytest.mark.parametrize(
    "text", ["", "* * * *", "a * * * *", "5/2 * * * *", "9-3 * * * *", "-1 * * * *"]
)
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(InvalidSchedule):
        parse(text)
