"""The log drawer: the end of what the trainer printed, its last error on top, and a search."""

from __future__ import annotations

import re
from collections.abc import Sequence

import streamlit as st

from dgsgpt import files
from dgsgpt import format as fmt
from dgsgpt.runs import Run
from dgsgpt.ui import atoms
from dgsgpt.ui.atoms import Html, markup, text
from dgsgpt.ui.theme import c

OPEN = "train_log_open"
SIZES = (200, 1000, 5000)
MAX_BYTES = 2_000_000
PEEK = 60  # lines read while the drawer is closed
_ERROR = re.compile(r"^\s*(?:[\w.]*(?:Error|Exception)\b|error:|Traceback |.*\b(?:health|error)\s.*severity error)")
_FRAME = re.compile(r"^(?:\s|Traceback )")


def last_error(lines: Sequence[str]) -> list[str]:
    """The last error of a log: a line of the trainer's, or the whole traceback that ends in it; empty without one."""
    at = next((i for i in range(len(lines) - 1, -1, -1) if _ERROR.match(lines[i])), None)
    if at is None:
        return []
    begin = at
    while begin > 0 and _FRAME.match(lines[begin - 1]):
        begin -= 1
    return list(lines[begin : at + 1])


def matching(lines: Sequence[str], query: str) -> list[str]:
    """The lines with all the words of the query in them."""
    words = query.lower().split()
    return [line for line in lines if all(word in line.lower() for word in words)]


def drawer(run: Run) -> None:
    """One line while closed: whether there was an error, and what was printed last."""
    path = run.path / "train.log"
    size = path.stat().st_size if path.exists() else 0
    peek = files.tail_text(path, PEEK)
    is_open = bool(st.session_state.get(OPEN))
    with st.container(border=True, key="train_log", gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small", wrap=False):
            said = "Close" if is_open else "Open"
            st.button(
                "Log", icon=":material/terminal:", key="train_log_button", type="tertiary", on_click=_toggle, help=said
            )
            atoms.h(summary(size, peek))
        if not is_open:
            return
        if not size:
            st.text("Nothing was printed yet.")
            return
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            query = st.text_input(
                "Search the log", key="train_log_query", placeholder="Search: loss, checkpoint, error", width=300,
                label_visibility="collapsed", icon=":material/search:", persist_state="session",
            )  # fmt: skip
            count = st.selectbox(
                "Lines", SIZES, key="train_log_lines", label_visibility="collapsed", width=150,
                format_func=lambda n: f"last {fmt.number(n)} lines", persist_state="session",
            )  # fmt: skip
        lines = files.tail_text(path, int(count), MAX_BYTES)
        _pinned(last_error(lines))
        found = matching(lines, query or "")
        with st.container(height=340, autoscroll=True, border=False, key="train_log_lines_box"):
            st.code("\n".join(found) or "No line has these words.", language=None)
        at_most = f"{fmt.number(len(found))} of the last {fmt.number(len(lines))} lines"
        atoms.note(f"{at_most} · {fmt.size(size)} · {path}")


def _toggle() -> None:
    st.session_state[OPEN] = not st.session_state.get(OPEN)


def _pinned(error: Sequence[str]) -> None:
    if error:
        style = f"border-left:3px solid {c('bad')};padding-left:10px;white-space:pre-wrap;overflow-wrap:anywhere"
        head, *_ = error[-1:]
        atoms.h(markup('<div role="alert" style="{}"><b style="font-weight:600">Last error</b> {}</div>', style, head))
        if len(error) > 1:
            st.code("\n".join(error), language=None)


def summary(size: int, peek: Sequence[str]) -> Html:
    """How large the log is, the last error if there is one, and else the last line."""
    if not size:
        return text("nothing printed yet", "ink3", px=13)
    error = last_error(peek)
    found = markup("last error: {}", error[-1]) if error else markup("no error lately · {}", peek[-1] if peek else "")
    line = (
        '<div style="font-size:13px;color:{};white-space:nowrap;overflow:hidden;text-overflow:ellipsis">{} · {}</div>'
    )
    return markup(line, c("bad" if error else "ink3"), fmt.size(size), found)
