"""Schedules in the unix-cron format, as Cloud Scheduler reads them: pure functions."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

# 29 February on a given day of the week comes back within 40 years at most.
_LONGEST_DAYS = 366 * 40

_NUMBER = re.compile(r"[0-9]{1,2}")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


class InvalidSchedule(ValueError):
    """Not a schedule in the unix-cron format; the message says which part."""


@dataclass(frozen=True)
class Schedule:
    """What the five fields allow."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days_of_month: frozenset[int]
    months: frozenset[int]
    days_of_week: frozenset[int]
    """0 is Sunday."""
    either_day: bool
    """Both kinds of day are restricted: one of them is enough."""

    def includes(self, day: date) -> bool:
        """Return whether there is a run on `day`."""
        by_month = day.day in self.days_of_month
        by_week = day.isoweekday() % 7 in self.days_of_week
        matches = by_month or by_week if self.either_day else by_month and by_week
        return day.month in self.months and matches


def parse(text: str) -> Schedule:
    """Return the schedule that `text` describes: minute, hour, day, month, day of the week.

    Raises:
        InvalidSchedule: it describes none.
    """
    fields = text.split()
    if len(fields) != 5:
        raise InvalidSchedule(f"'{text}' has not the five fields of the unix-cron format")
    minute, hour, day_of_month, month, day_of_week = fields
    week = _values(day_of_week, 0, 7, _DAYS)
    return Schedule(
        minutes=_values(minute, 0, 59),
        hours=_values(hour, 0, 23),
        days_of_month=_values(day_of_month, 1, 31),
        months=_values(month, 1, 12, _MONTHS),
        days_of_week=frozenset(day % 7 for day in week),
        either_day=not day_of_month.startswith("*") and not day_of_week.startswith("*"),
    )


def following(schedule: Schedule, after: datetime, zone: ZoneInfo) -> datetime:
    """Return the first run after `after`, a whole minute in UTC.

    Args:
        schedule: when to run, by the clocks of `zone`.
        after: with a zone.
        zone: where the clocks hang.

    Raises:
        InvalidSchedule: there is none, such as on 30 February.
    """
    first = after.astimezone(zone).date()
    for offset in range(_LONGEST_DAYS):
        day = first + timedelta(days=offset)
        if not schedule.includes(day):
            continue
        for hour in sorted(schedule.hours):
            for minute in sorted(schedule.minutes):
                local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
                found = local.astimezone(UTC)
                # An hour that daylight saving time skips does not come back as it was.
                exists = found.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None)
                if exists and found > after:
                    return found
    raise InvalidSchedule("the schedule names a day that never comes")


def _values(field: str, low: int, high: int, names: tuple[str, ...] = ()) -> frozenset[int]:
    values: set[int] = set()
    for part in field.split(","):
        span, has_step, step = part.partition("/")
        first, is_range, last = span.partition("-")
        if span == "*":
            start, end = low, high
        elif is_range:
            start, end = _number(first, low, names, field), _number(last, low, names, field)
        elif has_step:
            raise InvalidSchedule(f"'{field}': a step follows '*' or a range")
        else:
            start = end = _number(first, low, names, field)
        if not low <= start <= end <= high:
            raise InvalidSchedule(f"'{field}' must be within {low} to {high}")
        every = _number(step, 1, (), field) if has_step else 1
        if every < 1:
            raise InvalidSchedule(f"'{field}': a step is at least 1")
        values.update(range(start, end + 1, every))
    return frozenset(values)


def _number(text: str, low: int, names: tuple[str, ...], field: str) -> int:
    if text.upper() in names:
        return names.index(text.upper()) + low
    if not _NUMBER.fullmatch(text):
        raise InvalidSchedule(f"'{field}': '{text}' is not a number")
    return int(text)
