"""Write a review, say what you think of it, see what the model thinks."""

import uuid
from typing import NamedTuple

import streamlit as st

from functions.client import ClientError, PredictionCreated, PredictionItem
from ui import words
from ui.client import friendly, get_client, get_settings, show_failure
from ui.measures import describe, likelihood, show_correctness
from ui.mlflow_links import run_link, version_link
from ui.plain import plain
from ui.visitor import caller

MIN_CHARACTERS = 5
MAX_CHARACTERS = 5120
STRONGEST = 6

LATER = "I'll say later"
ANSWERS: dict[str, bool | None] = {"positive": True, "negative": False, LATER: None}


class Example(NamedTuple):
    """A review to begin with."""

    label: str
    text: str


EXAMPLES = [
    Example(
        "A lovely evening",
        "What a lovely evening! The pasta was fresh, the waiter kind and quick, and the tiramisu "
        "alone is worth the trip. We will come back soon.",
    ),
    Example(
        "Never again",
        "We waited an hour for cold soup, and nobody said sorry. The table was sticky and the "
        "bill wrong. Never again.",
    ),
    Example(
        "A bit of both",
        "The view over the river is great and the staff is friendly, but the food was bland and "
        "far too expensive for what it is.",
    ),
    Example("Not bad", "Not bad at all! I did not expect much, and it was not a disappointment."),
]


def show_page() -> None:
    """Show the form, the verdict if there is one, and how often the model was right."""
    st.title(get_settings().title)
    st.write("Write a review. Is it a positive one? See whether the model agrees with you.")
    show_examples()
    text, answer, submitted = show_form()
    if submitted:
        st.session_state.pop("prediction", None)
        if len(text.strip()) < MIN_CHARACTERS:
            st.warning(f"Please write at least {MIN_CHARACTERS} characters.")
        else:
            ask(text, answer)
    if prediction := st.session_state.get("prediction"):
        show_verdict(prediction)
    show_so_far()


def show_examples() -> None:
    """Show reviews to choose from; one click writes it into the form."""
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.caption("No idea? Take one:", width="content")
        for example in EXAMPLES:
            st.button(
                example.label,
                key=f"example-{example.label}",
                on_click=st.session_state.update,
                args=[{"text": example.text}],
            )


def show_form() -> tuple[str, bool | None, bool]:
    """Show the form; return the text, the user's own answer, and if it was sent."""
    with st.form("review"):
        text = st.text_area(
            "What are you going to post?",
            key="text",
            placeholder="Very good cafe",
            height=120,
            max_chars=MAX_CHARACTERS,
            persist_state="session",
        )
        choice = st.radio(
            "Is this a positive or a negative review?",
            list(ANSWERS),
            key="is_positive",
            horizontal=True,
            persist_state="session",
        )
        submitted = st.form_submit_button("Let me tell you!", type="primary", key="tell")
    return text or "", ANSWERS[choice], submitted


def ask(text: str, answer: bool | None) -> None:
    """Ask the proxy; keep the prediction in the session, or show what went wrong."""
    # The same key until there is an answer: trying again counts once.
    request = (text, answer)
    if st.session_state.get("pending", (None, None))[0] != request:
        st.session_state.pending = (request, str(uuid.uuid4()))
    try:
        with st.spinner("The model is reading. If it was asleep, it has to wake up first..."):
            st.session_state.prediction = get_client().predict(
                text,
                is_positive=answer,
                explain=True,
                key=st.session_state.pending[1],
                caller=caller(),
            )
    except ClientError as error:
        show_failure(error)
    else:
        del st.session_state.pending


def show_verdict(prediction: PredictionCreated) -> None:
    """Show what the user thinks beside what the model thinks, and why."""
    answers = prediction.is_positive
    with st.container(border=True, key="verdict"):
        you, model = st.columns(2)
        you.metric("You think", describe(answers.user_answered))
        model.metric("The model thinks", describe(answers.model_answered))
        model.progress(prediction.score, text=likelihood(prediction.score))
        if answers.user_answered is None:
            you.badge("Is the model right?", icon=":material/help:", color="gray")
        elif answers.user_answered == answers.model_answered:
            you.badge("You agree", icon=":material/check:", color="green")
        else:
            you.badge("You disagree", icon=":material/close:", color="orange")
        show_reasons(prediction)
        show_feedback(prediction)
        show_origin(prediction)


def show_origin(prediction: PredictionCreated) -> None:
    """Show which model answered, and what it was made from."""
    settings = get_settings()
    facts = [
        f"Model version {version_link(settings, prediction.model_version)}",
        f"MLflow run {run_link(settings, prediction.details.mlflow_run_id)}",
        f"answered in {prediction.details.inference_elapsed * 1000:.2f} ms",
    ]
    if prediction.git_commit:
        facts.insert(2, f"trained from commit {plain(prediction.git_commit[:12])}")
    st.markdown(f":small[{' · '.join(facts)}]")


def show_reasons(prediction: PredictionCreated) -> None:
    """Show the review with each word's share of the verdict."""
    if not prediction.explanation:
        return
    weights = words.weigh(prediction.text, prediction.explanation)
    st.header("Why?", anchor=False)
    st.html(words.to_html(prediction.text, weights))
    st.caption(
        "Green with a line under it: speaks for a positive review. Orange with dashes: speaks "
        "against it. The stronger the colour, the more it weighs."
    )
    with st.expander("The numbers"):
        strongest = words.strongest(prediction.text, weights, STRONGEST)
        st.html(words.to_table(strongest, weights, prediction.bias or 0.0))
        st.caption(
            "What each word adds, phrases spread over their words. The sum is the log-odds of a "
            f"positive review: {likelihood(prediction.score)}. The model calls a review positive "
            "from a probability near 50% on, the one with which it was right most often in "
            "training."
        )


def show_feedback(prediction: PredictionCreated) -> None:
    """Show what lets the user change the answer, or take everything back."""
    key = f"answer-{prediction.id}"
    answers = list(ANSWERS.values())
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.radio(
            "Changed your mind?",
            list(ANSWERS),
            index=answers.index(prediction.is_positive.user_answered),
            horizontal=True,
            key=key,
            on_change=change_answer,
            args=[prediction, key],
        )
        st.button(
            "Forget this review",
            key="forget",
            type="tertiary",
            icon=":material/delete:",
            on_click=forget,
            args=[prediction],
        )
    if problem := st.session_state.pop("feedback_problem", None):
        st.error(problem, icon=":material/cloud_off:")


def change_answer(prediction: PredictionCreated, key: str) -> None:
    """Leave the answer that was just chosen, or put back the one before."""
    before = prediction.is_positive.user_answered
    try:
        item = get_client().answer(prediction.id, ANSWERS[st.session_state[key]], caller=caller())
    except ClientError as error:
        st.session_state[key] = next(name for name, answer in ANSWERS.items() if answer == before)
        st.session_state.feedback_problem = friendly(error)
    else:
        st.session_state.prediction = answered(prediction, item)


def answered(prediction: PredictionCreated, item: PredictionItem) -> PredictionCreated:
    """Return the prediction with the answer that is stored now."""
    answers = prediction.is_positive.model_copy(
        update={"user_answered": item.is_positive_user_answered}
    )
    return prediction.model_copy(update={"is_positive": answers})


def forget(prediction: PredictionCreated) -> None:
    """Delete the prediction for good."""
    try:
        get_client().delete(prediction.id)
    except ClientError as error:
        if error.status != 404:
            st.session_state.feedback_problem = friendly(error)
            return
    st.session_state.pop("prediction", None)
    st.toast("The review is deleted, and no longer counted.", icon=":material/delete:")


def show_so_far() -> None:
    """Show how often the model was right, over all requests."""
    st.header("So far", anchor=False)
    try:
        statistics = get_client().statistics()
    except ClientError:
        st.info("The statistics are not available right now.")
        return
    show_correctness(statistics)


show_page()
