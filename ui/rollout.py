"""What promote says, read leniently: a field that is missing or of another form is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

Document = Mapping[str, Any]

_TITLES = {
    "promoted": "Version {version} serves everybody",
    "stepped": "Version {version} serves {percent} % of the requests",
    "blocked": "Version {version} was blocked",
    "withdrawn": "Version {version} was withdrawn",
}
_ICONS = {"promoted": "✓", "stepped": "↗", "blocked": "✗", "withdrawn": "↩"}
OUTCOMES = {"passed": "✓", "failed": "✗", "skipped": "–"}


@dataclass(frozen=True)
class Gate:
    """What became of one check."""

    name: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class Happening:
    """A line of the ledger."""

    at: datetime | None
    event: str
    version: str
    icon: str
    title: str
    facts: tuple[str, ...]
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class Blocked:
    """What failed, and is not tried again as it is."""

    version: str
    gate: str
    reason: str
    at: datetime | None


@dataclass(frozen=True)
class Candidate:
    """What is on its way."""

    version: str
    since: datetime | None
    percent: int
    """Share of the requests that it has."""
    step_since: datetime | None
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class Status:
    """What is."""

    at: datetime | None
    error: str
    served_version: str
    served_revision: str
    traffic: tuple[tuple[str, int], ...]
    """Revisions and their shares of the requests, in percent."""
    desired_version: str
    because: str
    candidate: Candidate | None
    blocked: tuple[Blocked, ...]
    doing: str


def read_status(document: Document) -> Status:
    """Return what the status document says."""
    served, desired = _part(document, "served"), _part(document, "desired")
    return Status(
        at=_moment(document, "at"),
        error=_text(document, "error"),
        served_version=_text(served, "version"),
        served_revision=_text(served, "revision"),
        traffic=tuple(
            (_text(item, "revision"), _number(item, "percent"))
            for item in _parts(document, "traffic")
        ),
        desired_version=_text(desired, "version"),
        because=_text(desired, "because"),
        candidate=_candidate(document),
        blocked=tuple(
            Blocked(
                version=_text(item, "version"),
                gate=_text(item, "gate"),
                reason=_text(item, "reason"),
                at=_moment(item, "at"),
            )
            for item in _parts(document, "blocked")
        ),
        doing=_text(_part(document, "action"), "detail"),
    )


def _candidate(document: Document) -> Candidate | None:
    candidate = _part(document, "candidate")
    if not candidate:
        return None
    step = _part(candidate, "step") or _part(document, "step")
    return Candidate(
        version=_text(candidate, "version"),
        since=_moment(candidate, "since"),
        percent=_number(step, "percent"),
        step_since=_moment(step, "since"),
        gates=_gates(step) or _gates(candidate) or _gates(document),
    )


def read_entry(document: Document) -> Happening:
    """Return what a ledger entry tells."""
    event, version = _text(document, "event"), _text(document, "version") or "?"
    title = _TITLES.get(event, f"{event or 'Something happened'}: version {version}")
    at, since = _moment(document, "at"), _moment(document, "since")
    before, because = _text(document, "from_version"), _text(document, "because")
    gate, reason = _text(document, "gate"), _text(document, "reason")
    facts = []
    if before and before != version:
        facts.append(f"before it: version {before}")
    if because:
        facts.append(f"asked for by {because}")
    if reason:
        facts.append(f"{gate}: {reason}" if gate else reason)
    if at and since and at > since:
        facts.append(f"took {span(at - since)}")
    if revision := _text(document, "revision"):
        facts.append(f"revision {revision}")
    return Happening(
        at=at,
        event=event,
        version=version,
        icon=_ICONS.get(event, "•"),
        title=title.format(version=version, percent=_number(document, "percent")),
        facts=tuple(facts),
        gates=_gates(document),
    )


@dataclass(frozen=True)
class Reign:
    """A time during which a version served everybody."""

    version: str
    since: datetime
    until: datetime


def reigns(happenings: Sequence[Happening], now: datetime) -> list[Reign]:
    """Return who served everybody and when, oldest first, as far as the ledger tells.

    Args:
        happenings: of the ledger, in any order.
        now: the end of the last one.
    """
    promoted = sorted(
        (item.at, item.version)
        for item in happenings
        if item.event == "promoted" and item.at is not None
    )
    ends = [*(at for at, _ in promoted[1:]), now]
    return [
        Reign(version, at, max(at, end)) for (at, version), end in zip(promoted, ends, strict=False)
    ]


def span(length: timedelta) -> str:
    """Return a duration in its largest unit or two, such as ``3 d 4 h``."""
    seconds = max(0, round(length.total_seconds()))
    for unit, size, smaller, part in (
        ("d", 86_400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds} s"


def _gates(document: Document) -> tuple[Gate, ...]:
    return tuple(
        Gate(_text(item, "gate"), _text(item, "outcome"), _text(item, "reason"))
        for item in _parts(document, "gates")
    )


def _part(document: Document, name: str) -> Document:
    value = document.get(name)
    return value if isinstance(value, Mapping) else {}


def _parts(document: Document, name: str) -> list[Document]:
    value = document.get(name)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _text(document: Document, name: str) -> str:
    value = document.get(name)
    return str(value) if isinstance(value, str | int | float) else ""


def _number(document: Document, name: str) -> int:
    value = document.get(name)
    return round(value) if isinstance(value, int | float) and 0 <= value <= 100 else 0


def _moment(document: Document, name: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(document.get(name)))
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
