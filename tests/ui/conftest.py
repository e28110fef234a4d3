"""The proxy's stub, and the page that talks to it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from tests.ui import stub_proxy
from tests.ui.stub_proxy import StubProxy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def proxy() -> Iterator[StubProxy]:
    with stub_proxy.running() as stub:
        yield stub


@pytest.fixture
def visit(proxy: StubProxy, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Open the page, or one of its views by the name of its file."""

    def open_page(view: str | None = None, **settings: str) -> AppTest:
        environment = {"PROXY_URL": proxy.url, "PROXY_TIMEOUT_SECONDS": "5"} | settings
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        st.cache_resource.clear()
        page = AppTest.from_file(str(ROOT / "ui" / "app.py"), default_timeout=30)
        return (page.switch_page(f"views/{view}.py") if view else page).run()

    return open_page
