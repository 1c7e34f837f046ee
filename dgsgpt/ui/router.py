"""The script every session runs: page settings, stylesheet, menu, then the chosen page."""

from __future__ import annotations

import streamlit as st

from dgsgpt.run_queue import ensure_runner
from dgsgpt.ui import garbage, state, theme, theme_watch
from dgsgpt.ui.app import ASSETS, PAGES, page_file


def navigate() -> None:
    """Draw the menu and run the page that the address names."""
    logo = str(ASSETS / "logo.svg")
    st.set_page_config(page_icon=logo, layout="wide")  # a page_title here would replace the pages' own
    st.logo(logo, size="medium")
    pages = [
        st.Page(
            page_file(name), title=name.capitalize(), url_path=None if name == "home" else name, default=name == "home"
        )
        for name in PAGES
    ]
    page = st.navigation(pages, position="top")
    theme.page_css()
    theme_watch.watch()
    keep_queue_going()
    page.run()
    garbage.settle()


def keep_queue_going() -> None:
    """After a reboot nothing works the queue off until somebody opens the dashboard."""
    state.attempt(ensure_runner, state.root())


navigate()
