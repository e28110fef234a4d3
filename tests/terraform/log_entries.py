"""Cloud Logging in small: a service's line as an entry, filters and extractors over it.

As much of the filter language as terraform/monitoring uses; anything else is refused.
https://cloud.google.com/logging/docs/structured-logging
https://cloud.google.com/logging/docs/view/logging-query-language
"""

import json
import re
from collections.abc import Mapping
from typing import Any

Entry = Mapping[str, Any]

# What Cloud Run's logging agent takes out of a line of JSON, and where it puts it.
_MOVED = {
    "severity": "severity",
    "time": "timestamp",
    "httpRequest": "httpRequest",
    "logging.googleapis.com/trace": "trace",
    "logging.googleapis.com/spanId": "spanId",
    "logging.googleapis.com/trace_sampled": "traceSampled",
}
_COMPARISON = re.compile(r'([A-Za-z_.]+)(=~|>=|=|:)("(?:[^"\\]|\\.)*"|-?[0-9.]+|\*)')
_EXTRACTOR = re.compile(r"EXTRACT\(([A-Za-z_.]+)\)")
_REGEXP_EXTRACTOR = re.compile(r'REGEXP_EXTRACT\(([A-Za-z_.]+), "(.*)"\)')


def entry_of(line: str, *, service: str, region: str, revision: str) -> Entry:
    """Return the entry that Cloud Logging makes of a line on a service's standard output."""
    resource = {
        "type": "cloud_run_revision",
        "labels": {"service_name": service, "location": region, "revision_name": revision},
    }
    try:
        payload = json.loads(line)
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        return {"resource": resource, "textPayload": line}
    entry: dict[str, Any] = {"resource": resource}
    for name, place in _MOVED.items():
        if name in payload:
            entry[place] = payload.pop(name)
    return {**entry, "jsonPayload": payload}


def matches(condition: str, entry: Entry) -> bool:
    """Return whether an entry passes a filter: one comparison a line, all of them hold."""
    lines = [line.strip() for line in condition.splitlines() if line.strip()]
    assert lines
    return all(_holds(line, entry) for line in lines)


def extract(extractor: str, entry: Entry) -> str:
    """Return what a label or a value is taken from an entry by; empty: nothing."""
    if found := _EXTRACTOR.fullmatch(extractor):
        return _text(_value(entry, found[1]))
    found = _REGEXP_EXTRACTOR.fullmatch(extractor)
    assert found, f"not an extractor that is known here: {extractor}"
    inner = re.search(found[2], _text(_value(entry, found[1])))
    return inner[1] if inner else ""


def _holds(line: str, entry: Entry) -> bool:
    found = _COMPARISON.fullmatch(line)
    assert found, f"not a comparison that is known here: {line}"
    path, operator, literal = found.groups()
    value = _value(entry, path)
    if operator == ":":
        assert literal == "*", line
        return value is not None
    if value is None:
        return False
    wanted = json.loads(literal)
    if operator == "=~":
        return re.search(wanted, _text(value)) is not None
    if operator == ">=":
        return float(value) >= float(wanted)
    return _text(value) == wanted if isinstance(wanted, str) else value == wanted


def _value(entry: Entry, path: str) -> Any:
    value: Any = entry
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
