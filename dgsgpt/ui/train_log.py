"""The log drawer: the end of what the trainer printed, its last error on top, and a search."""

from __future__ import annotations

import re
from collections.abc import Sequence

import streamlit as st

from dgsgpt import files
from dgsgpt import format as fmt
from dgsgpt.runs import Run
from dgsgpt.ui import atoms
from dgsgpt.ui.atoms import markup
from dgsgpt.ui.playground_view import plain_label
from dgsgpt.ui.theme import c

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
    error = last_error(peek)
    shown = st.expander(_label(size, peek, error), icon=":material/terminal:", key="train_log", on_change="rerun")
    if not shown.open:
        return
    with shown:
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


def _pinned(error: Sequence[str]) -> None:
    if error:
        style = f"border-left:3px solid {c('bad')};padding-left:10px;white-space:pre-wrap;overflow-wrap:anywhere"
        head, *_ = error[-1:]
        atoms.h(markup('<div role="alert" style="{}"><b style="font-weight:600">Last error</b> {}</div>', style, head))
        if len(error) > 1:
            st.code("\n".join(error), language=None)


def _label(size: int, peek: Sequence[str], error: Sequence[str]) -> str:
    if not size:
        return "Log · nothing printed yet"
    if error:
        return f"Log · {fmt.size(size)} · last error: {plain_label(error[-1], 120)}"
    return f"Log · {fmt.size(size)} · no error lately · last: {plain_label(peek[-1], 90) if peek else ''}"
