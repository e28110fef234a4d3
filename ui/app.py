"""The page: write a review, say what you think of it, see what the model thinks."""

import uuid

import streamlit as st

from ui.client import Item, Prediction, ProxyClient, ProxyError
from ui.settings import Settings, load_settings

MIN_CHARACTERS = 5
MAX_CHARACTERS = 5120
LATEST = 10


@st.cache_resource
def get_settings() -> Settings:
    """Return the settings, read once for the whole server."""
    return load_settings()


@st.cache_resource
def get_client() -> ProxyClient:
    """Return the client, whose connections all visitors share."""
    return ProxyClient(get_settings())


def show_page() -> None:
    """Show the page."""
    title = get_settings().title
    st.set_page_config(page_title=title, page_icon="🎭", layout="centered")
    st.title(title)
    st.caption("Write a review. Is it a positive one? See whether the model agrees with you.")

    text, is_positive, submitted = show_form()
    if submitted:
        st.session_state.pop("prediction", None)
        if len(text.strip()) < MIN_CHARACTERS:
            st.warning(f"Please write at least {MIN_CHARACTERS} characters.")
        else:
            ask(text, is_positive)
    if prediction := st.session_state.get("prediction"):
        show_answer(prediction)
    show_past()


def show_form() -> tuple[str, bool, bool]:
    """Show the form; return the text, whether the user calls it positive, and if sent."""
    with st.form("review"):
        text = st.text_area(
            "What are you going to post?",
            key="text",
            placeholder="Very good cafe",
            height=120,
            max_chars=MAX_CHARACTERS,
        )
        choice = st.radio(
            "Is this a positive or a negative review?",
            ["positive", "negative"],
            key="is_positive",
            horizontal=True,
        )
        submitted = st.form_submit_button("Let me tell you!", type="primary")
    return text, choice == "positive", submitted


def ask(text: str, is_positive: bool) -> None:
    """Ask the proxy; keep the prediction in the session, or show what went wrong."""
    # The same key until there is an answer: trying again counts once.
    request = (text, is_positive)
    if st.session_state.get("pending", (None, None))[0] != request:
        st.session_state.pending = (request, str(uuid.uuid4()))
    try:
        with st.spinner("The model is reading..."):
            st.session_state.prediction = get_client().predict(
                text, is_positive=is_positive, key=st.session_state.pending[1]
            )
    except ProxyError as error:
        st.error(str(error), icon=":material/cloud_off:")
    else:
        del st.session_state.pending


def show_answer(prediction: Prediction) -> None:
    """Show what the user thinks beside what the model thinks."""
    answers = prediction.is_positive
    with st.container(border=True):
        you, model = st.columns(2)
        you.metric("You think", describe(answers.user_answered))
        model.metric("The model thinks", describe(answers.model_answered))
        probability = prediction.model_probability
        # A score is never quite certain: 0.9999 is not "100.0%".
        sure = f"{probability:.1%}" if probability < 0.9995 else "> 99.9%"
        model.progress(probability, text=f"{sure} sure")
        if answers.user_answered == answers.model_answered:
            you.badge("You agree", icon=":material/check:", color="green")
        else:
            you.badge("You disagree", icon=":material/close:", color="orange")
        st.caption(
            f"Model version `{prediction.model_version}` · "
            f"MLflow run `{prediction.details.mlflow_run_id}` · "
            f"answered in {prediction.details.inference_elapsed * 1000:.2f} ms"
        )


def show_past() -> None:
    """Show the statistics over all requests, and the latest ones."""
    st.subheader("So far")
    try:
        statistics = get_client().statistics()
        latest = get_client().latest(LATEST)
    except ProxyError:
        st.info("The statistics are not available right now.")
        return
    rate = statistics.correctness_rate
    right, answered, requests = st.columns(3)
    right.metric("The model was right", "–" if rate is None else f"{rate:.1%}")
    answered.metric("Right / answered", f"{statistics.correct:,} / {statistics.answered:,}")
    requests.metric("Requests", f"{statistics.predictions:,}")
    if latest:
        st.dataframe(
            [row(item) for item in latest],
            hide_index=True,
            width="stretch",
            column_config={
                "When (UTC)": st.column_config.TextColumn(width=140),
                "Review": st.column_config.TextColumn(width=260),
                "Score": st.column_config.NumberColumn(format="%.3f"),
            },
        )


def describe(is_positive: bool | None) -> str:
    """Return an answer in a word."""
    if is_positive is None:
        return "–"
    return "Positive" if is_positive else "Negative"


def row(item: Item) -> dict[str, object]:
    """Return a prediction as a row of the table."""
    return {
        "When (UTC)": item.timestamp.strftime("%Y-%m-%d %H:%M:%S"),
        "Review": item.text,
        "User": describe(item.is_positive_user_answered),
        "Model": describe(item.is_positive_model_answered),
        "Score": item.score,
        "Version": item.model_version,
    }


show_page()
