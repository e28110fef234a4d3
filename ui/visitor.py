"""Who is looking: a name for each visitor that says nothing about them."""

import hashlib
import secrets

import streamlit as st

_IAP_USER_ID = "X-Goog-Authenticated-User-Id"


def caller() -> str:
    """Return an opaque id of the visitor, 64 hex digits.

    Behind Identity-Aware Proxy it is the same at every visit; else it is a random one that
    lasts as long as the page stays open.
    """
    user_id = st.context.headers.get(_IAP_USER_ID)
    if user_id:
        return hashlib.sha256(b"visitor:" + user_id.encode()).hexdigest()
    name: str = st.session_state.setdefault("caller", secrets.token_hex(32))
    return name
