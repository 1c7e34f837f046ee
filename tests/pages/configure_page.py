"""Driving the Configure page from the router, for the tests of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt import hardware
from dgsgpt.hardware import Hardware
from dgsgpt.ui import form, state
from dgsgpt.ui.app import ROUTER, page_file
from dgsgpt.ui.draft import Workbench

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hardware]:
    """A machine without a GPU and with known memory, so that verdicts do not depend on where tests run.

    Called with other facts, it becomes another machine.
    """
    found = replace(hardware.detect("."), gpus=(), ram_total_bytes=24 * GIB, ram_available_bytes=20 * GIB)

    def become(**facts: Any) -> Hardware:
        other = replace(found, **facts)
        monkeypatch.setattr(state, "detect", lambda path: other)
        state._machine.clear()
        return other

    become()
    return become


def open_page() -> AppTest:
    at = AppTest.from_file(str(ROUTER), default_timeout=60).run()
    return settled(at.switch_page(str(page_file("configure"))).run())


def settled(at: AppTest) -> AppTest:
    assert not at.exception, [e.message for e in at.exception]
    return at


def bench(at: AppTest) -> Workbench:
    return at.session_state["configure"]  # type: ignore[no-any-return]


def draft_value(at: AppTest, path: str) -> Any:
    return form.get(bench(at).draft, path)


def shown(at: AppTest) -> str:
    return "\n".join(element.proto.body for element in at.get("html"))


def start_button(at: AppTest) -> Any:
    return at.button(key="start")


def widget(at: AppTest, key: str) -> Any:
    """The widget of that key, whatever kind it is."""
    kinds = (at.number_input, at.select_slider, at.selectbox, at.toggle, at.text_input, at.text_area)
    return next(w for kind in (*kinds, at.segmented_control) for w in kind if w.key == key)


def set_to(at: AppTest, key: str, value: Any) -> AppTest:
    """Set the widget of that key."""
    return settled(widget(at, key).set_value(value).run())


def all_settings(at: AppTest) -> AppTest:
    """Show every setting instead of the essentials."""
    return settled(at.segmented_control(key="tier").set_value(f"All {len(form.SETTINGS)} settings").run())


def name_text(at: AppTest, corpus: str) -> AppTest:
    """Type a text into the Data field; AppTest itself only picks from the list."""
    bench(at).change(form.apply(bench(at).draft, {"data.corpus": corpus.strip()}))
    return settled(at.run())
