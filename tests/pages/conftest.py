"""Pages run in streamlit's own test harness, from the router as in the browser."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt.ui.app import ROUTER, page_file

OpenPage = Callable[..., AppTest]


@pytest.fixture
def open_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[OpenPage]:
    """`open_page("train", run="r7")`: the page after its first run, with these query parameters.

    At the end of the test no page may have shown an exception, and streamlit must not have warned of anything
    deprecated. Runs are looked for in the folder that the `runs_dir` fixture names.
    """
    opened: list[AppTest] = []

    def open_one(name: str, **query: str) -> AppTest:
        app = AppTest.from_file(str(ROUTER), default_timeout=30)
        opened.append(app)
        app.run()
        for key, value in query.items():
            app.query_params[key] = value
        return app.switch_page(str(page_file(name))).run() if name != "home" or query else app

    with caplog.at_level(logging.WARNING):
        yield open_one
    for app in opened:
        assert not app.exception, [e.message for e in app.exception]
    warned = [r.getMessage() for r in caplog.records if "deprecat" in r.getMessage().lower()]
    assert not warned, warned


def html_of(app: AppTest) -> str:
    """All markup and text that the page shows, in order."""
    parts = []
    for element in app.main:
        proto = getattr(element, "proto", None)
        body = getattr(proto, "body", None)
        parts.append(body if isinstance(body, str) else str(getattr(element, "value", "")))
    return "\n".join(parts)


def button(app: AppTest, label: str):  # type: ignore[no-untyped-def]
    """The button with this label; exactly one must be there."""
    (found,) = [b for b in app.button if b.label == label]
    return found


def labels(app: AppTest) -> list[str]:
    """Labels of all buttons on the page."""
    return [b.label for b in app.button]
