"""What is on stage, what is on its way there, and what happened so far."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from html import escape

import streamlit as st

from functions.client import ClientError
from ui import charts
from ui.client import get_client, get_settings, show_failure
from ui.mlflow_links import version_link
from ui.plain import plain
from ui.rollout import (
    OUTCOMES,
    Candidate,
    Gate,
    Happening,
    Status,
    read_entry,
    read_status,
    reigns,
    span,
)

ENTRIES = 100
# Promote is called every minute; after this, its word is old.
STALE = timedelta(minutes=5)


def show_page() -> None:
    """Show the status and the ledger."""
    st.title("Rollouts")
    with st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    ):
        st.markdown(
            "Which version of the model is on stage, and which one is next?", width="content"
        )
        st.button("Look again", icon=":material/refresh:", key="refresh")
    try:
        rollouts = get_client().rollouts(ENTRIES)
    except ClientError as error:
        show_failure(error)
        return
    if rollouts.status is None:
        st.info("Nothing was rolled out yet.")
    else:
        show_status(read_status(rollouts.status))
    show_ledger([read_entry(entry) for entry in rollouts.ledger])


def show_status(status: Status) -> None:
    """Show what is."""
    now = datetime.now(UTC)
    if status.error:
        st.warning(f"The last look failed: {plain(status.error)}", icon=":material/warning:")
    if status.at and now - status.at > STALE:
        st.warning(
            f"This was said {span(now - status.at)} ago: promote is paused, or does not run.",
            icon=":material/schedule:",
        )
    settings = get_settings()
    with st.container(border=True, key="on-stage"):
        st.header("On stage", anchor=False)
        if status.served_version:
            st.markdown(f"### Version {version_link(settings, status.served_version)}")
        elif status.served_revision:
            st.markdown("A model that promote has not brought there itself")
        else:
            st.markdown("Nothing yet")
        for revision, share in status.traffic:
            st.progress(share / 100, text=f"{share} % of the requests: {plain(revision)}")
        if status.desired_version:
            why = f" ({plain(status.because)})" if status.because else ""
            wanted = version_link(settings, status.desired_version)
            st.markdown(f"The registry asks for version {wanted}{why}.")
        elif status.at and not status.error:
            st.markdown("The registry names no version.")
        if status.doing:
            st.caption(plain(status.doing))
    if status.candidate:
        show_candidate(status.candidate, now)
    for item in status.blocked:
        at = f", {item.at:%Y-%m-%d %H:%M} UTC" if item.at else ""
        st.error(
            f"**Version {plain(item.version)} is blocked** by {plain(item.gate)}{at}: "
            f"{plain(item.reason)}",
            icon=":material/block:",
        )


def show_candidate(candidate: Candidate, now: datetime) -> None:
    """Show what is on its way."""
    with st.container(border=True, key="on-its-way"):
        st.header("On its way", anchor=False)
        st.markdown(f"### Version {version_link(get_settings(), candidate.version)}")
        st.progress(candidate.percent / 100, text=f"{candidate.percent} % of the requests")
        times = []
        if candidate.since:
            times.append(f"Chosen {span(now - candidate.since)} ago")
        if candidate.step_since:
            times.append(f"at this share for {span(now - candidate.step_since)}")
        if times:
            st.caption(", ".join(times))
        if candidate.gates:
            st.html(f"{gates_html(candidate.gates)}{STYLE}")
        else:
            st.caption("It has no traffic until it has passed all gates.")


def show_ledger(happenings: Sequence[Happening]) -> None:
    """Show what happened, the newest first."""
    st.header("What happened", anchor=False)
    if not happenings:
        st.info("The ledger is empty.")
        return
    on_stage = reigns(happenings, datetime.now(UTC))
    if on_stage:
        st.altair_chart(
            charts.on_stage(on_stage),
            width="stretch",
            theme=None,
            alt="Bars that show which version served everybody, and when: "
            + "; ".join(
                f"version {item.version} from {item.since:%Y-%m-%d %H:%M}" for item in on_stage
            ),
        )
    entries = "".join(map(entry_html, happenings))
    st.html(f'<ol class="ledger">{entries}</ol>{STYLE}')


def entry_html(item: Happening) -> str:
    """Return a ledger entry as HTML."""
    return "<li>" + "".join(_entry_parts(item)) + "</li>"


def _entry_parts(item: Happening) -> Iterator[str]:
    if item.at:
        yield (f'<time datetime="{item.at.isoformat()}">{item.at:%Y-%m-%d %H:%M:%S} UTC</time>')
    icon = f'<span aria-hidden="true">{item.icon}</span>'
    yield f"<div>{icon} <strong>{escape(item.title)}</strong></div>"
    if item.facts:
        yield f"<div>{escape('; '.join(item.facts))}</div>"
    if item.gates:
        outcomes = Counter(gate.outcome for gate in item.gates)
        told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        yield f"<details><summary>Gates: {escape(told)}</summary>"
        yield f"{gates_html(item.gates)}</details>"


def gates_html(gates: Sequence[Gate]) -> str:
    """Return what became of the gates as an HTML list."""
    rows = "".join(
        f'<li><span aria-hidden="true">{OUTCOMES.get(gate.outcome, "?")}</span> '
        f"<strong>{escape(gate.name)}</strong> {escape(gate.outcome)}: {escape(gate.reason)}</li>"
        for gate in gates
    )
    return f'<ul class="gates">{rows}</ul>'


STYLE = """<style>
.ledger.ledger { list-style: none; margin: 0; padding: 0 0 0 0.4em; overflow-wrap: anywhere; }
.ledger > li {
  border-left: 3px solid #3f8f69; margin: 0; padding: 0 0 1.2em 1.1em; position: relative;
}
.ledger > li::before {
  background: #3f8f69; border-radius: 50%; content: ""; height: 11px; left: -7px;
  position: absolute; top: 0.45em; width: 11px;
}
.ledger time { font-size: 0.875em; font-variant-numeric: tabular-nums; }
.gates.gates { list-style: none; margin: 0.3em 0 0; overflow-wrap: anywhere; padding: 0; }
.gates li { margin: 0 0 0.25em; padding: 0; }
</style>"""


show_page()
