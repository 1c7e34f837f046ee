"""Which dialog is open: kept in the session, so that it stays through a rerun of the page until it is closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from dgsgpt.errors import DgsgptError

_OPEN = "open_dialog"
_PROBLEMS = "dialog_problems"
_KEPT = "dialog_kept"


def ask(name: str, refs: Sequence[str] = ()) -> None:
    """Open the dialog `name` about these checkpoints on this page's next drawing."""
    close()
    st.session_state[_OPEN] = name, tuple(refs)


def close() -> None:
    """Close whatever dialog is open, with its errors and all that was kept for it."""
    for key in (_OPEN, _PROBLEMS, _KEPT):
        st.session_state.pop(key, None)


def asked() -> tuple[str, tuple[str, ...]]:
    """The name of the open dialog and what it is about; an empty name when none is open."""
    name, refs = st.session_state.get(_OPEN, ("", ()))
    return str(name), tuple(refs)


def kept() -> dict[str, Any]:
    """What the open dialog remembers until it is closed."""
    found: dict[str, Any] = st.session_state.setdefault(_KEPT, {})
    return found


def problems() -> dict[str, str]:
    """What is wrong, by field of the open dialog."""
    found: dict[str, str] = st.session_state.setdefault(_PROBLEMS, {})
    return found


def problem(field: str, error: DgsgptError | str | None) -> None:
    """Keep or clear (None) what is wrong with a field."""
    if error is None:
        problems().pop(field, None)
    else:
        problems()[field] = str(error)
