"""The page: what all its views have in common."""

import streamlit as st

from ui.client import get_settings

# Without icons: Streamlit would fetch each of them from elsewhere, for the browser's tab.
VIEWS = [
    st.Page("views/try_it.py", title="Try it", default=True),
    st.Page("views/statistics.py", title="Statistics"),
    st.Page("views/predictions.py", title="Predictions"),
    st.Page("views/rollouts.py", title="Rollouts"),
]

view = st.navigation(VIEWS, position="top")
st.set_page_config(
    page_title=f"{view.title} · {get_settings().title}", page_icon="🎭", layout="centered"
)
view.run()
