"""The list of predictions, those first where user and model disagree."""

from datetime import UTC, date, datetime
from html import escape
from io import BytesIO
from typing import Literal, TypedDict

import streamlit as st

from functions.client import ClientError, Page, PredictionItem
from ui.client import friendly, get_client, get_settings, show_failure
from ui.measures import describe, likelihood
from ui.mlflow_links import version_link

PAGE_SIZE = 20
SHORT = 280
# Of a file that goes through the page's memory; the service's own export has no limit.
MAX_EXPORT_MIB = 20

DISAGREEMENTS = "Disagreements"
EVERYTHING = "Everything"
ANY_VERSION = "Any"
PLACES = "predictions_places"

# Names for people, names for the service, and media types.
FORMATS: list[tuple[str, Literal["csv", "jsonl"], str]] = [
    ("CSV", "csv", "text/csv"),
    ("JSON lines", "jsonl", "application/x-ndjson"),
]


class Filters(TypedDict):
    """What is looked for, as the client takes it."""

    model_version: str | None
    day: date | None
    disagreements: bool


def show_page() -> None:
    """Show the filters, a page of predictions, and what saves them all."""
    st.title("Predictions")
    filters = choose_filters()
    places: list[str | None] = st.session_state.setdefault(PLACES, [None])
    try:
        page = get_client().predictions(limit=PAGE_SIZE, cursor=places[-1], **filters)
    except ClientError as error:
        show_failure(error)
        return
    if not page.items and len(places) > 1:
        # The last one of this page was deleted.
        turn_to(places[:-1])
        st.rerun()
    if problem := st.session_state.pop("list_problem", None):
        st.error(problem, icon=":material/cloud_off:")
    if not page.items:
        show_nothing(filters)
    for item in page.items:
        show_item(item)
    show_paging(page, places)
    if page.items or len(places) > 1:
        show_export(filters)


def choose_filters() -> Filters:
    """Show the filters; return what they say.

    They stay while other views are visited, as the page of the list does.
    """
    options = [ANY_VERSION, *versions()]
    # What is chosen stays, also where the versions can't be told right now.
    chosen: str = st.session_state.get("version", ANY_VERSION)
    if chosen not in options:
        options.append(chosen)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        shown = st.radio(
            "Show",
            [DISAGREEMENTS, EVERYTHING],
            horizontal=True,
            key="shown",
            on_change=to_first_page,
            persist_state="session",
        )
        version = st.selectbox(
            "Model version",
            options,
            key="version",
            width=160,
            on_change=to_first_page,
            persist_state="session",
        )
        day = st.date_input(
            "Day (UTC)",
            None,
            max_value=datetime.now(UTC).date(),
            format="YYYY-MM-DD",
            key="day",
            width=180,
            on_change=to_first_page,
            persist_state="session",
        )
    return {
        "model_version": None if version == ANY_VERSION else version,
        "day": day,
        "disagreements": shown == DISAGREEMENTS,
    }


def versions() -> list[str]:
    """Return the versions that have predictions, the newest first; none if not known."""
    try:
        found = get_client().statistics().by_model_version
    except ClientError:
        return []
    return [item.model_version for item in reversed(found)]


def to_first_page() -> None:
    """Begin anew with the newest."""
    turn_to([None])


def turn_to(places: list[str | None]) -> None:
    """Go to the page whose cursor is the last of `places`; a second click changes nothing."""
    st.session_state[PLACES] = places


def show_nothing(filters: Filters) -> None:
    """Say that nothing was found."""
    if filters["disagreements"]:
        st.info(
            f"No disagreements here. Choose *{EVERYTHING}* above to see all predictions.",
            icon=":material/check:",
        )
    elif filters["day"] or filters["model_version"]:
        st.info("No predictions fit these filters.")
    else:
        st.info("There are no predictions yet.")


def show_item(item: PredictionItem) -> None:
    """Show one prediction."""
    user, model = item.is_positive_user_answered, item.is_positive_model_answered
    with st.container(border=True, key=f"item-{item.id}", gap="small"):
        st.markdown(
            f":small[{item.timestamp:%Y-%m-%d %H:%M:%S} UTC · "
            f"version {version_link(get_settings(), item.model_version)}]"
        )
        st.html(text_html(item.text))
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"User: **{describe(user)}**", width="content")
            st.markdown(f"Model: **{describe(model)}**, {likelihood(item.score)}", width="content")
            if user is None:
                st.badge("No answer", icon=":material/help:", color="gray")
            elif user == model:
                st.badge("Agreement", icon=":material/check:", color="green")
            else:
                st.badge("Disagreement", icon=":material/close:", color="orange")
            with st.popover("Delete", type="tertiary", icon=":material/delete:"):
                st.write("It is deleted for good, and no longer counted in the statistics.")
                st.button(
                    "Delete this prediction",
                    key=f"delete-{item.id}",
                    type="primary",
                    on_click=delete,
                    args=[item.id],
                )


def text_html(text: str) -> str:
    """Return a review as HTML, as it was written; a long one is folded."""
    style = 'style="white-space: pre-wrap; overflow-wrap: anywhere; margin: 0"'
    if len(text) <= SHORT:
        return f"<p {style}>{escape(text)}</p>"
    return (
        f"<details><summary>{escape(text[:SHORT])}…</summary>"
        f"<p {style}>{escape(text)}</p></details>"
    )


def delete(prediction_id: str) -> None:
    """Delete a prediction; one that is gone already is as good."""
    try:
        get_client().delete(prediction_id)
    except ClientError as error:
        if error.status != 404:
            st.session_state["list_problem"] = friendly(error)
            return
    st.toast("The prediction is deleted.", icon=":material/delete:")


def show_paging(page: Page, places: list[str | None]) -> None:
    """Show the ways to newer and older predictions."""
    if len(places) == 1 and page.next_cursor is None:
        return
    with st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    ):
        st.button(
            "Newer",
            icon=":material/arrow_back:",
            key="newer",
            disabled=len(places) == 1,
            on_click=turn_to,
            args=[places[:-1] or [None]],
        )
        st.caption(f"Page {len(places)}", width="content")
        st.button(
            "Older",
            icon=":material/arrow_forward:",
            icon_position="right",
            key="older",
            disabled=page.next_cursor is None,
            on_click=turn_to,
            args=[[*places, page.next_cursor]],
        )


def show_export(filters: Filters) -> None:
    """Show what collects all predictions that fit the filters, and then what saves them."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Export all that fit the filters:", width="content")
        clicked = [
            st.button(label, icon=":material/download:", key=f"export-{kind}")
            for label, kind, _ in FORMATS
        ]
    for chosen, (_, kind, mime) in zip(clicked, FORMATS, strict=True):
        if chosen:
            show_file(kind, mime, filters)


def show_file(kind: Literal["csv", "jsonl"], mime: str, filters: Filters) -> None:
    """Collect a file of predictions and show what saves it, or why there is none.

    Not by the download button's own callable: of its failures, Streamlit tells no reason.
    """
    try:
        with st.spinner("Collecting the predictions..."):
            file = collect(kind, filters)
    except ClientError as error:
        st.error(f"There is no file to save. {friendly(error)}", icon=":material/cloud_off:")
        return
    if file is None:
        st.warning(
            f"These predictions are more than {MAX_EXPORT_MIB} MiB, too many for this page. "
            "Choose a day or a model version above, and export again. The service itself gives "
            "them all, at `/predictions/export`.",
            icon=":material/filter_alt:",
        )
        return
    name = f"predictions.{kind}"
    st.download_button(
        f"Save {name}",
        file,
        file_name=name,
        mime=mime,
        icon=":material/save:",
        type="primary",
        key=f"save-{kind}",
        on_click="ignore",
    )


def collect(kind: Literal["csv", "jsonl"], filters: Filters) -> BytesIO | None:
    """Return the file of all predictions that fit the filters; None: it is too large.

    Raises:
        ClientError: the service does not give it.
    """
    # Streamlit takes its content over without a copy.
    file = BytesIO()
    for part in get_client().export(kind, **filters):
        if file.tell() + len(part) > MAX_EXPORT_MIB * 2**20:
            return None
        file.write(part)
    return file


show_page()
