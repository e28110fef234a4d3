"""The proxy's client, and what a visitor is told when it has no answer."""

import math

import streamlit as st

from functions.client import Client, ClientError
from ui.plain import plain
from ui.settings import Settings, load_settings

_MAX_SHOWN_SECONDS = 300


@st.cache_resource
def get_settings() -> Settings:
    """Return the settings, read once for the whole server."""
    return load_settings()


@st.cache_resource
def get_client() -> Client:
    """Return the client, whose connections all visitors share."""
    settings = get_settings()
    return Client(
        str(settings.proxy_url),
        audience=settings.proxy_audience,
        timeout=settings.proxy_timeout_seconds,
    )


def friendly(error: ClientError) -> str:
    """Return what became of a request, in words for the page's visitor, as Markdown."""
    match error.kind:
        case "timeout":
            return "The answer takes longer than usual. Please try again."
        case "unreachable":
            return "The service can't be reached. Please try again soon."
        case "refused":
            return "This page may not ask the service. Its operator must allow it."
        case "invalid" if error.status == 404:
            return "The prediction is no longer there."
        case "invalid" if error.status == 422:
            return (
                f"The service does not take this. Please change it. Its reason: {plain(str(error))}"
            )
        case "invalid":
            return "The service does not take this. Please change it."
        case "unavailable":
            return f"The service can't answer right now. Please try again {_when(error)}."
        case "busy":
            return f"The service has too much to do. Please try again {_when(error)}."
        case "nonsense":
            return "The service's answer makes no sense. Please try again."
        case "failed":
            return "Something went wrong. Please try again."


def show_failure(error: ClientError) -> None:
    """Show what became of a request."""
    st.error(friendly(error), icon=":material/cloud_off:")


def _when(error: ClientError) -> str:
    if error.retry_after is None or not 1 < error.retry_after <= _MAX_SHOWN_SECONDS:
        return "in a moment"
    return f"in {math.ceil(error.retry_after)} seconds"
