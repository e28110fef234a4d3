"""``greenroom``: what operators ask and change, with their own credentials."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from itertools import pairwise
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from functions.promote.operators.access import Identity, OperatorError
from functions.promote.operators.doctor import SERVICES, Deployment, Finding, Outcome, examine
from functions.promote.operators.history import History, Line, Span, ends
from functions.promote.operators.releases import Record, Releases, caused_by, earlier
from functions.promote.operators.schedule import JobState, Schedule
from functions.promote.operators.status import (
    Status,
    action,
    ask,
    at_rest,
    in_sync,
    moment,
    printable,
    rows,
    span,
)

IN_SYNC, NOT_IN_SYNC, FAILED = 0, 1, 2

_POLL_SECONDS = 1.0

_OPTIONS: Mapping[str, Callable[[Callable[..., None]], Callable[..., None]]] = {
    "project": click.option(
        "--project",
        required=True,
        envvar=["GREENROOM_PROJECT", "GOOGLE_CLOUD_PROJECT"],
        show_envvar=True,
        help="Google Cloud project.",
    ),
    "region": click.option(
        "--region",
        required=True,
        envvar="GREENROOM_REGION",
        show_envvar=True,
        help="Region of the Cloud Scheduler job, such as europe-west1.",
    ),
    "job": click.option(
        "--job",
        default="promote",
        envvar="GREENROOM_JOB",
        show_default=True,
        show_envvar=True,
        help="Cloud Scheduler job that calls promote.",
    ),
    "scheduler_endpoint": click.option(
        "--scheduler-endpoint",
        default="",
        envvar="GREENROOM_SCHEDULER_ENDPOINT",
        show_envvar=True,
        help="Address of the Cloud Scheduler API; empty: Google's; http:// for a stand-in.",
    ),
    "promote_url": click.option(
        "--promote-url",
        required=True,
        envvar="GREENROOM_PROMOTE_URL",
        show_envvar=True,
        help="Address of the service promote. An ID token goes with https:// only.",
    ),
    "database": click.option(
        "--database",
        default="(default)",
        envvar="GREENROOM_DATABASE",
        show_default=True,
        show_envvar=True,
        help="Firestore database with the ledger.",
    ),
    "tracking_uri": click.option(
        "--tracking-uri",
        default="",
        envvar=["GREENROOM_TRACKING_URI", "MLFLOW_TRACKING_URI"],
        show_envvar=True,
        help="Address of MLflow for programs: in the cloud, of the service mlflow-api.",
    ),
    "model": click.option(
        "--model",
        default="yelp-model",
        envvar="GREENROOM_MODEL",
        show_default=True,
        show_envvar=True,
        help="Name in the model registry.",
    ),
    "promote_on": click.option(
        "--promote-on",
        default="alias:production,stage:Production",
        envvar="GREENROOM_PROMOTE_ON",
        show_default=True,
        show_envvar=True,
        help="What names the version to serve, as promote's PROMOTE_ON says.",
    ),
    "impersonate": click.option(
        "--impersonate",
        default="",
        metavar="ACCOUNT",
        envvar="GREENROOM_IMPERSONATE",
        show_envvar=True,
        help="Service account whose ID token promote and MLflow are called with.",
    ),
    "cloud_run_endpoint": click.option(
        "--cloud-run-endpoint",
        default="",
        envvar="GREENROOM_CLOUD_RUN_ENDPOINT",
        show_envvar=True,
        help="Address of the Cloud Run API; empty: Google's; http:// for a stand-in.",
    ),
    "http_proxy": click.option(
        "--http-proxy",
        default="",
        envvar="GREENROOM_HTTP_PROXY",
        show_envvar=True,
        help="HTTP proxy through which the services' own addresses are called.",
    ),
    "public": click.option(
        "--public",
        multiple=True,
        type=click.Choice(SERVICES),
        envvar="GREENROOM_PUBLIC",
        show_envvar=True,
        help="Service that is meant to answer strangers. May be repeated.",
    ),
    "buckets": click.option(
        "--bucket",
        "buckets",
        multiple=True,
        metavar="BUCKET",
        envvar="GREENROOM_BUCKETS",
        show_envvar=True,
        help="Bucket to check besides those that promote names. May be repeated; in the "
        "variable, separated by spaces.",
    ),
    "database_instance": click.option(
        "--database-instance",
        default="",
        envvar="GREENROOM_DATABASE_INSTANCE",
        show_envvar=True,
        help="Cloud SQL instance of MLflow; empty: it is not checked.",
    ),
    "sql_endpoint": click.option(
        "--sql-endpoint",
        default="",
        envvar="GREENROOM_SQL_ENDPOINT",
        show_envvar=True,
        help="Address of Cloud SQL's Admin API; empty: Google's; http:// for a stand-in.",
    ),
}
_JOB = ("project", "region", "job", "scheduler_endpoint")
_STATUS = ("promote_url", "impersonate")
_LEDGER = ("project", "database")
_REGISTRY = ("tracking_uri", "model", "promote_on", "impersonate")
_DEPLOYMENT = (
    *("cloud_run_endpoint", "http_proxy", "public"),
    *("buckets", "database_instance", "sql_endpoint"),
)


class _Failure(click.ClickException):
    exit_code = FAILED


def _needs(*groups: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these groups, and its errors one line."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**arguments: Any) -> None:
            try:
                command(**arguments)
            except OperatorError as error:
                raise _Failure(str(error)) from error

        decorated: Callable[..., None] = wrapped
        for name in reversed(dict.fromkeys(name for group in groups for name in group)):
            decorated = _OPTIONS[name](decorated)
        return decorated

    return decorate


_json = click.option("--json", "as_json", is_flag=True, help="JSON, for machines.")
_wait = click.option(
    "--wait", is_flag=True, help="Follow until promote comes to rest; runs it again meanwhile."
)
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=900,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait.",
)
_every = click.option(
    "--every",
    type=click.FloatRange(0.1),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="From one run to the next while waiting.",
)


@click.group(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
def main() -> None:
    """Operate a Greenroom: what is served and why, what was, and how to go back.

    The registry is the control panel: promote makes Cloud Run serve what it names, a step at
    each call of the Cloud Scheduler job. These commands look at that, pause and force the
    calls, and set the registry back. They use your own credentials: those of `gcloud auth
    application-default login`, and for https:// services an ID token of the service account
    that you are or impersonate, else of `gcloud auth login`.

    Options come from the environment as well; for the stack on this machine:
    eval "$(python -m local env)".

    Exit status: 0, done and in sync; 1, not in sync, nothing found, or a check failed; 2, it
    could not be asked or done.
    """


@main.command(short_help="Say what is served, and what should be.")
@_json
@_needs(_STATUS, _LEDGER, _JOB)
def status(
    promote_url: str, impersonate: str, project: str, database: str, as_json: bool, **job: str
) -> None:
    """Say what is served, what should be, and what promote does about it.

    Exits with 0 when the version that the registry names is served and nothing is on its way,
    with 1 when not (yet), with 2 when promote can't be asked. A paused job is no reason for 1.
    """
    found = dict(ask(promote_url, Identity(impersonate)))
    history, notes = History(project=project, database=database), []
    if found.get("error"):
        # Promote itself can't look: what it published last still says what is served.
        try:
            found = {**(history.status() or {}), **found}
        except OperatorError as error:
            notes.append(str(error))
    since = _served_since(found, history, notes)
    try:
        state: JobState | None = _schedule(project, job).read()
    except OperatorError as error:
        state = None
        notes.append(str(error))
    if as_json:
        _print_json(
            {
                **found,
                "in_sync": in_sync(found),
                "served_since": since and moment(since),
                "scheduler": state
                and {
                    "state": state.state,
                    "schedule": state.schedule,
                    "last_attempt": state.last_attempt and moment(state.last_attempt),
                    "last_outcome": state.last_outcome or None,
                },
                "notes": notes,
            }
        )
    else:
        _print_status(found, since, state, notes)
    raise SystemExit(IN_SYNC if in_sync(found) else NOT_IN_SYNC)


@main.command(short_help="Tell what was in production, when and why.")
@click.option(
    "--at",
    metavar="TIME",
    help='Only what was in production then, such as "2026-11-17 12:00"; UTC unless it has a zone.',
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Entries, the newest first.",
)
@_json
@_needs(_LEDGER, _REGISTRY)
def history(
    project: str, database: str, at: str | None, limit: int, as_json: bool, **registry: str
) -> None:
    """Tell what was promoted and blocked: when, by whom, why, from which version, how long.

    Who is known of `greenroom rollback`, which notes it in the registry; MLflow keeps no record
    of who moves an alias or a stage in its UI.
    """
    ledger, now = History(project=project, database=database), datetime.now(UTC)
    moment_asked = _time(at) if at else None
    if moment_asked is not None:
        found = ledger.in_production(moment_asked)
        spans = [found] if found else []
    else:
        lines = ledger.newest(limit)
        spans = [Span(line, end) for line, end in zip(lines, ends(lines), strict=True)]
    records, notes = _records(registry)
    promoted = [item.line for item in spans if item.line.event == "promoted"]
    before = {line.at: older.at for line, older in pairwise(promoted)}
    causes = [caused_by(item.line, records, before.get(item.line.at)) for item in spans]
    entries = [_entry(item, cause, now) for item, cause in zip(spans, causes, strict=True)]
    if as_json:
        _print_json({"entries": entries, "notes": notes})
    elif not entries:
        click.echo("nothing was in production then" if at else "nothing was ever promoted")
    else:
        _print_history(spans, causes, now)
    for note in () if as_json else notes:
        click.echo(f"note: {note}", err=True)
    raise SystemExit(IN_SYNC if entries else NOT_IN_SYNC)


@main.command()
@_wait
@_timeout
@_every
@_needs(_JOB, _STATUS)
def run_now(
    project: str,
    promote_url: str,
    impersonate: str,
    wait: bool,
    timeout: float,
    every: float,
    **job: str,
) -> None:
    """Force a run of promote now, also while it is paused.

    A run makes one step at most; --wait goes on until promote comes to rest, and exits with 1
    if that is not with the version that the registry names.
    """
    schedule = _schedule(project, job)
    schedule.run()
    click.echo("run forced")
    if wait:
        raise SystemExit(_follow(schedule, promote_url, Identity(impersonate), timeout, every))


@main.command(short_help="Stop the calls of promote.")
@_needs(_JOB)
def pause(project: str, **job: str) -> None:
    """Stop the calls of promote: nothing is rolled out until `resume` or `run-now`.

    What is served stays served; a rollout that is under way stays at its step.
    """
    changed = _schedule(project, job).pause()
    click.echo("paused; go on with: greenroom resume" if changed else "it was paused already")


@main.command()
@_needs(_JOB)
def resume(project: str, **job: str) -> None:
    """Let the calls of promote go on."""
    changed = _schedule(project, job).resume()
    click.echo("resumed" if changed else "it was not paused")


@main.command(short_help="Set the registry back to an earlier version.")
@click.argument("version", required=False)
@click.option("--reason", default="", help="Why; kept in the registry and shown by `history`.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_wait
@_timeout
@_every
@_needs(_REGISTRY, _LEDGER, _JOB, _STATUS)
def rollback(
    version: str | None,
    reason: str,
    yes: bool,
    tracking_uri: str,
    model: str,
    promote_on: str,
    impersonate: str,
    project: str,
    database: str,
    promote_url: str,
    wait: bool,
    timeout: float,
    every: float,
    **job: str,
) -> None:
    """Set the registry back to VERSION, and force a run of promote.

    Without VERSION: to the version that was in production last, other than the one that the
    registry names now. What names the version now (an alias, or else a stage) is changed; a
    version that leaves a stage is archived. Cloud Run is never changed directly: promote does
    that, at once where the version's revision is still there.
    """
    identity = Identity(impersonate)
    releases = _releases(tracking_uri, model, promote_on, identity)
    named, known = releases.named(), releases.known()
    if version is None:
        ledger = History(project=project, database=database)
        version = earlier(ledger.promotions(datetime.now(UTC)), named.version, known)
        if version is None:
            raise OperatorError(
                "the ledger has no earlier version that the registry still has: "
                "name one, greenroom rollback VERSION"
            )
    if version not in known:
        there = ", ".join(sorted(known, key=int)) or "none"
        raise OperatorError(f"{model} has no version {version}; there are: {there}")
    if version == named.version:
        click.echo(f"{named.source} names version {version} already")
    else:
        kind, _, name = named.source.partition(":")
        now = f"version {named.version}" if named.version else "no version"
        if not yes:
            click.confirm(f"{model}, {kind} {name}: from {now} to version {version}?", abort=True)
        by = identity.name(tracking_uri)
        for change in releases.name_version(version, named.source, by=by, reason=reason):
            click.echo(change)
    schedule = _schedule(project, job)
    try:
        paused = schedule.run().paused
    except OperatorError as error:
        raise OperatorError(f"the registry is changed, but no run was forced: {error}") from error
    click.echo("run forced")
    if wait:
        raise SystemExit(_follow(schedule, promote_url, identity, timeout, every))
    if paused:
        click.echo("the job is paused: that was one step; go on with greenroom run-now --wait")


@main.command(short_help="Check a deployment from outside.")
@_json
@_needs(_STATUS, _JOB, _LEDGER, ("tracking_uri", "model"), _DEPLOYMENT)
def doctor(
    project: str,
    region: str,
    database: str,
    promote_url: str,
    tracking_uri: str,
    model: str,
    impersonate: str,
    cloud_run_endpoint: str,
    http_proxy: str,
    public: tuple[str, ...],
    buckets: tuple[str, ...],
    database_instance: str,
    sql_endpoint: str,
    as_json: bool,
    **job: str,
) -> None:
    """Check a deployment from outside, and say what to do about what is wrong.

    Services ready, strangers refused at each door, traffic pinned to revisions by name, the
    scheduler ticking, the registry reachable, the last rollout, the settings of buckets and
    database. What can't be looked at is "not checked", which is neither passed nor failed.

    Exits with 0 when no check failed, else with 1. Changes nothing.
    """
    findings = examine(
        Deployment(
            project=project,
            region=region,
            cloud_run_endpoint=cloud_run_endpoint,
            http_proxy=http_proxy,
            public=public,
            buckets=buckets,
            database_instance=database_instance,
            sql_endpoint=sql_endpoint,
        ),
        schedule=_schedule(project, {"region": region, **job}),
        history=History(project=project, database=database),
        promote_url=promote_url,
        tracking_uri=tracking_uri,
        model=model,
        identity=Identity(impersonate),
    )
    seen = list(findings)
    healthy = all(item.outcome is not Outcome.FAILED for item in seen)
    if as_json:
        _print_json({"healthy": healthy, "checks": [item.as_json() for item in seen]})
    else:
        _print_findings(seen)
    raise SystemExit(IN_SYNC if healthy else NOT_IN_SYNC)


def _schedule(project: str, job: Mapping[str, str]) -> Schedule:
    return Schedule(
        project=project,
        region=job["region"],
        job=job["job"],
        endpoint=job["scheduler_endpoint"],
    )


def _releases(tracking_uri: str, model: str, promote_on: str, identity: Identity) -> Releases:
    if not tracking_uri:
        raise OperatorError("give MLflow's address: --tracking-uri or GREENROOM_TRACKING_URI")
    sources = [part.strip() for part in promote_on.split(",") if part.strip()]
    if not sources or any(part.split(":")[0] not in ("alias", "stage") for part in sources):
        raise click.BadParameter(
            f"{promote_on!r} is not alias:NAME or stage:NAME, comma-separated",
            param_hint="--promote-on",
        )
    return Releases(tracking_uri=tracking_uri, model=model, sources=sources, identity=identity)


def _records(registry: Mapping[str, str]) -> tuple[list[Record], list[str]]:
    """Return who rolled back; when MLflow can't be asked, a note in its place."""
    identity = Identity(registry["impersonate"])
    try:
        releases = _releases(
            registry["tracking_uri"], registry["model"], registry["promote_on"], identity
        )
        return releases.records(), []
    except OperatorError as error:
        return [], [f"who rolled back is not known: {error}"]


def _follow(
    schedule: Schedule, promote_url: str, identity: Identity, timeout: float, every: float
) -> int:
    """Run promote again and again until it is at rest; return the exit status."""
    started = last_run = time.monotonic()
    last = ""
    while time.monotonic() - started < timeout:
        time.sleep(min(_POLL_SECONDS, every))
        found = ask(promote_url, identity)
        words = str(found["error"]) if found.get("error") else action(found)
        if words != last:
            click.echo(f"{time.monotonic() - started:5.0f} s  {words}")
            last = words
        if at_rest(found):
            return IN_SYNC if in_sync(found) else NOT_IN_SYNC
        if time.monotonic() - last_run >= every:
            schedule.run()
            last_run = time.monotonic()
    click.echo(f"not at rest after {timeout:g} s: see greenroom status", err=True)
    return NOT_IN_SYNC


def _served_since(found: Status, history: History, notes: list[str]) -> datetime | None:
    revision = (found.get("served") or {}).get("revision")
    try:
        newest = next(history.promotions(datetime.now(UTC)), None)
    except OperatorError as error:
        notes.append(f"since when is not known: {error}")
        return None
    return newest.at if newest is not None and newest.revision == revision else None


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f'{text!r} is not a time such as "2026-11-17 12:00" or 2026-11-17T12:00:00+01:00',
            param_hint="--at",
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _entry(item: Span, cause: Record | None, now: datetime) -> dict[str, Any]:
    served = item.line.event == "promoted"
    return {
        **item.line.model_dump(mode="json"),
        "at": moment(item.line.at),
        "by": cause.by if cause else None,
        "rollback_reason": (cause.reason or None) if cause else None,
        "until": moment(item.end) if served and item.end else None,
        "seconds_served": item.duration(now).total_seconds() if served else None,
    }


def _why(line: Line, cause: Record | None) -> str:
    words = [line.because]
    if line.gate:
        words.append(f"{line.gate}: {line.reason}")
    elif line.reason:
        words.append(line.reason)
    if cause is not None:
        words.append(f"rollback: {cause.reason}" if cause.reason else "rollback")
    return printable("; ".join(filter(None, words)))


def _print_json(content: object) -> None:
    # The status document in Firestore may hold times.
    click.echo(json.dumps(content, indent=2, default=lambda value: value.isoformat()))


def _console() -> Console:
    # Into a file or a pipe, the lines are as long as they are.
    console = Console()
    return console if console.is_terminal else Console(width=400)


def _print_status(
    found: Status, since: datetime | None, state: JobState | None, notes: Sequence[str]
) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    now = datetime.now(UTC)
    for title, words in rows(found):
        if title == "served" and since is not None:
            words = f"{words}, since {moment(since)} ({span(now - since)})"
        style = {"error": "red", "blocked": "red", "next": "dim"}.get(title, "")
        table.add_row(Text(title, "bold"), Text(words, style))
    if state is not None:
        last = "never"
        if state.last_attempt is not None:
            last = f"{span(now - state.last_attempt)} ago: {state.last_outcome or 'running'}"
        words = f"{state.state.lower()} ({state.schedule}); last run {last}"
        table.add_row(Text("scheduler", "bold"), Text(words, "yellow" if state.paused else ""))
    synced = in_sync(found)
    table.add_row(
        Text("in sync", "bold"), Text("yes" if synced else "no", "green" if synced else "yellow")
    )
    _console().print(table)
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _print_history(spans: Sequence[Span], causes: Sequence[Record | None], now: datetime) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("when", "what", "version", "from", "served for", "by", "why"):
        table.add_column(title, overflow="fold", no_wrap=title != "why")
    for item, cause in zip(spans, causes, strict=True):
        line = item.line
        length = span(item.duration(now)) if line.event == "promoted" else ""
        table.add_row(
            moment(line.at),
            line.event,
            line.version,
            line.from_version or "-",
            f"{length}, still" if length and item.end is None else length,
            Text(printable(cause.by)) if cause else "-",
            Text(_why(line, cause)),
        )
    _console().print(table)


def _print_findings(findings: Sequence[Finding]) -> None:
    styles = {Outcome.PASSED: "green", Outcome.FAILED: "red", Outcome.NOT_CHECKED: "yellow"}
    table = Table(box=None, pad_edge=False)
    for title in ("check", "outcome", "what was seen", "what to do"):
        table.add_column(title, overflow="fold", no_wrap=title in ("check", "outcome"))
    for item in findings:
        table.add_row(
            Text(item.check, "bold"),
            Text(item.outcome, styles[item.outcome]),
            Text(item.detail),
            Text(item.remedy),
        )
    _console().print(table)
    counts = {outcome: sum(item.outcome is outcome for item in findings) for outcome in Outcome}
    click.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))


if __name__ == "__main__":
    main(prog_name="greenroom")
