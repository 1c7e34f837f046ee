"""The address of the Train page: a link shows the same runs on the same axes, and a reload keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dgsgpt.ui import train_moment
from dgsgpt.ui.loss_data import AXES
from dgsgpt.ui.train_shown import AXIS, GROUP, LOG_X, LOG_Y, OTHERS, RAW, SMOOTH

SMOOTHING = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
RUN, WITH, AT = "run", "with", "at"
_NAMES = {"x": AXIS, "ema": SMOOTH, "raw": RAW, "logx": LOG_X, "logy": LOG_Y, "by": GROUP}
_SEEN = "train_address"


def restore(ids: Sequence[str]) -> list[str]:
    """Take over what a new address says; returns the runs it lays over that are not there."""
    told = {name: st.query_params.get(name) for name in (WITH, AT, *_NAMES)}
    if told == st.session_state.get(_SEEN):
        return []
    st.session_state[_SEEN] = told
    for name, key in _NAMES.items():
        value = _parse(name, told[name])
        if value is not None:
            st.session_state[key] = value
            if name == "ema":
                smoothing_chosen()
    run_id, at = st.query_params.get(RUN), told[AT]
    if run_id and at and at.isascii() and at.isdigit():
        train_moment.choose(run_id, int(at[:12]))
    if not (laid_over := told[WITH]):
        return []
    wanted = [run_id for run_id in laid_over.split(",") if run_id]
    st.session_state[OTHERS] = [run_id for run_id in wanted if run_id in ids]
    return [run_id for run_id in wanted if run_id not in ids]


def _parse(name: str, text: str | None) -> object:
    """The value of a widget; None where the address says nothing that it knows."""
    if text is None:
        return None
    if name == "x":
        return next((axis for axis in AXES if axis.lower() == text.lower()), None)
    if name == "ema":
        return next((weight for weight in SMOOTHING if f"{weight:g}" == text), None)
    if name == "by":
        return text
    return {"0": False, "1": True}.get(text)


def write(run_id: str) -> None:
    """Say in the address what is shown, where it is not the usual."""
    kept, at = st.session_state, train_moment.chosen(run_id)
    values = {
        AT: "" if at is None else str(at),
        WITH: ",".join(kept.get(OTHERS, [])),
        "x": "" if kept.get(AXIS, "Step") == "Step" else str(kept[AXIS]).lower(),
        "ema": f"{kept[SMOOTH]:g}" if kept.get("train_smooth_chosen") else "",
        "raw": "" if kept.get(RAW, True) else "0",
        "logx": "1" if kept.get(LOG_X) else "",
        "logy": "1" if kept.get(LOG_Y) else "",
        "by": str(kept.get(GROUP) or ""),
    }
    for name, value in values.items():
        if value and st.query_params.get(name) != value:
            st.query_params[name] = value
        elif not value and name in st.query_params:
            del st.query_params[name]
    if any(values.values()) and RUN not in st.query_params:
        st.query_params[RUN] = run_id
    kept[_SEEN] = {name: values[name] or None for name in (WITH, AT, *_NAMES)}


def smoothing_chosen() -> None:
    """The reader has chosen an EMA weight, which a link then carries."""
    st.session_state["train_smooth_chosen"] = True
