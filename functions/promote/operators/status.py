"""Promote's status: asked over HTTP, judged, and put into words."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from functions.promote.operators.access import Identity, OperatorError, one_line

# A tick that only looks takes as long as the registry and Cloud Run let it.
TIMEOUT_SECONDS = 60.0

Status = Mapping[str, Any]
"""What promote's ``GET /status`` answers: JSON, of this version of promote or a later one."""

_ROWS = frozenset({"schema_version", "at", "error", "desired", "served", "candidate", "step"})
_KNOWN = _ROWS | {"gates", "blocked", "action"}


def ask(url: str, identity: Identity) -> Status:
    """Return promote's status; one that promote can't tell has ``error``.

    Raises:
        OperatorError: promote can't be asked.
    """
    token = identity.token(url)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        response = httpx.get(f"{url.rstrip('/')}/status", headers=headers, timeout=TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OperatorError(
            f"promote at {url} can't be reached: {one_line(error)}; check --promote-url"
        ) from error
    if response.status_code in (401, 403):
        raise OperatorError(
            f"promote at {url} refuses you ({response.status_code}): ask the project's owner for "
            "roles/run.invoker on the service promote, or name an account that has it with "
            "--impersonate"
        )
    try:
        content = response.json()
    except ValueError:
        content = None
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE and isinstance(content, dict):
        return {"error": content.get("detail") or content.get("title")}
    if not response.is_success or not isinstance(content, dict) or "action" not in content:
        raise OperatorError(
            f"{url} answers {response.status_code}, not as promote does: check --promote-url"
        )
    return content


def in_sync(status: Status) -> bool:
    """Return whether the version that the registry names is served, and nothing is on its way."""
    desired, served = status.get("desired"), status.get("served") or {}
    if not desired or status.get("error") or status.get("candidate"):
        return False
    return bool(served.get("version") == desired["version"])


def at_rest(status: Status) -> bool:
    """Return whether further ticks change nothing by themselves."""
    return not status.get("error") and action(status).startswith("idle")


def action(status: Status) -> str:
    """Return what promote does, or would do at its next tick, in words."""
    found = status.get("action") or {}
    return f"{found.get('kind', 'unknown')}: {found.get('detail', '')}".rstrip(": ")


def rows(status: Status) -> Iterator[tuple[str, str]]:
    """Yield what promote says, as titles and words."""
    for title, words in _rows(status):
        yield printable(title), printable(words)


def _rows(status: Status) -> Iterator[tuple[str, str]]:
    desired, served = status.get("desired"), status.get("served") or {}
    candidate = status.get("candidate")
    if status.get("error"):
        yield "error", str(status["error"])
    if desired:
        run = f", run {desired['run_id']}" if desired.get("run_id") else ""
        yield "registry", f"version {desired['version']} ({desired['because']}){run}"
    elif "desired" in status:
        yield "registry", "names no version"
    if served:
        version, revision = served.get("version"), served.get("revision")
        words = f"version {version}" if version else "no version that promote has served"
        yield "served", f"{words}, revision {revision}" if revision else "nothing"
    if candidate:
        yield "candidate", f"version {candidate['version']}, since {candidate.get('since')}"
        step = status.get("step") or candidate.get("step")
        yield "step", _step(step) if step else "no traffic yet"
        gates = status.get("gates") or candidate.get("gates") or _gates_of(step)
        for gate in gates or ():
            yield f"gate {gate['gate']}", f"{gate['outcome']}: {gate['reason']}"
    for item in status.get("blocked") or ():
        yield (
            "blocked",
            f"version {item['version']} by {item['gate']}: {item['reason']} "
            f"({_SCOPES.get(item['scope'], item['scope'])}; {item['at']})",
        )
    for name, value in status.items():
        if name not in _KNOWN and value not in (None, [], {}):
            yield name, value if isinstance(value, str) else json.dumps(value)
    if "action" in status:
        yield "next", action(status)


def printable(text: str) -> str:
    """Return text that moves no cursor: a reason may quote what a candidate answered."""
    return "".join(character if character.isprintable() else " " for character in text)


def moment(at: datetime) -> str:
    """Return a time as RFC 3339 in UTC, to the second."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def span(length: timedelta) -> str:
    """Return a duration in its two largest units, such as ``3 d 4 h``."""
    seconds = max(0, round(length.total_seconds()))
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or (parts and len(parts) < 2) or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if not (part.startswith("0 ") and len(parts) > 1))


_SCOPES = {
    "model": "this model, with any code",
    "code": "this code, with any model",
    "pair": "this model with this code",
}


def _step(step: object) -> str:
    if not isinstance(step, dict):
        return str(step)
    since = f", since {step['since']}" if step.get("since") else ""
    return f"{step.get('percent', '?')} % of the traffic{since}"


def _gates_of(step: object) -> list[dict[str, str]]:
    found = step.get("gates") if isinstance(step, dict) else None
    return found if isinstance(found, list) else []
