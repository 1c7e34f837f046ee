"""Health events as they happen: a toast for each new one, and on top of the page what can be done about a bad one."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import CheckpointInfo, list_checkpoints
from dgsgpt.launch import stop_run
from dgsgpt.runs import Run, Status
from dgsgpt.ui import health, state
from dgsgpt.ui.app import page_file
from dgsgpt.ui.health import Event
from dgsgpt.ui.playground_view import plain_label
from dgsgpt.ui.run_cards import step_of

_TOLD = "train_told"
AT_ONCE = 3
_ICONS = {"good": ":material/check:", "warn": ":material/warning:", "bad": ":material/error:"}


def new_findings(events: Sequence[Event], told: int | None) -> list[Event]:
    """Findings after the first `told`, oldest first; none when nobody has looked before."""
    found = [event for event in events if event.get("kind") == "health"]
    return [] if told is None else found[told:]


def toasts(run: Run, events: Sequence[Event]) -> None:
    """Tell what was found since the last look, once."""
    told: dict[str, int] = st.session_state.setdefault(_TOLD, {})
    for event in new_findings(events, told.get(run.id))[-AT_ONCE:]:
        _, role = health.look_of(event)
        where = f"Step {fmt.number(event.get('step'))}: "
        st.toast(where + plain_label(health.said(event), 160), icon=_ICONS.get(role), duration="long")
    told[run.id] = sum(event.get("kind") == "health" for event in events)


def before(saved: Sequence[CheckpointInfo], step: object) -> CheckpointInfo | None:
    """The newest whole checkpoint from before a step."""
    if not isinstance(step, int | float):
        return None
    return next((info for info in saved if info.complete and step_of(info.path) < step), None)


def alert(run: Run, events: Sequence[Event], status: Status) -> None:
    """The newest severe finding of a live run, with the way back."""
    found = health.recent_error(events, status)
    if found is None:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="train_alert"):
        health.alert(events, status)
        good = before(list_checkpoints(run), found.get("step"))
        if good is not None:
            step = step_of(good.path)
            label = f"Fork from step {fmt.number(step)}, before it"
            if st.button(label, key="train_alert_fork", icon=":material/undo:"):
                st.switch_page(page_file("configure"), query_params={"base": f"{run.id}@{step}", "how": "fork"})
        if status.state in ("running", "stalled") and st.button("Stop and save", key="train_alert_stop"):
            state.attempt(stop_run, run)
            st.rerun()
