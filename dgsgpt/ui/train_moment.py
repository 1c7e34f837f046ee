"""One moment of a run, chosen by a click on the loss chart: its figures, the nearest sample and checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import CheckpointInfo, list_checkpoints
from dgsgpt.runs import Run
from dgsgpt.ui import atoms, health
from dgsgpt.ui.app import page_file
from dgsgpt.ui.atoms import Html, bold, join, markup, text
from dgsgpt.ui.loss_data import AXES, columns
from dgsgpt.ui.run_cards import step_of
from dgsgpt.ui.theme import c
from dgsgpt.ui.train_shown import Shown

_CHOSEN = "train_moment"
NEAR_SHARE = 0.01  # of the run: how far from a click a health event still belongs to it


@dataclass(frozen=True)
class Moment:
    """What is known around one step; sample and checkpoint are the nearest ones, earlier ones where two are as near."""

    step: int
    figures: dict[str, float]
    sample: dict[str, Any] | None
    checkpoint: CheckpointInfo | None
    findings: list[dict[str, Any]]


# ---------------------------------------------------------------- which one
def choose(run_id: str, step: int) -> None:
    """Show this step of this run until it is closed."""
    st.session_state[_CHOSEN] = run_id, step


def chosen(run_id: str) -> int | None:
    """The step that is shown; None when none is, or one of another run."""
    of, step = st.session_state.get(_CHOSEN, ("", 0))
    return step if of == run_id else None


def close() -> None:
    """Show none."""
    st.session_state.pop(_CHOSEN, None)


def step_at(frame: Any, axis: str, position: float) -> int | None:
    """The logged step nearest to a position on an axis; None before the first line of metrics."""
    steps, positions = columns(frame, AXES[axis])
    return int(steps[np.abs(positions - position).argmin()]) if len(steps) else None


def moment_at(
    frame: Any, events: Sequence[dict[str, Any]], saved: Sequence[CheckpointInfo], step: int, span: int
) -> Moment:
    """What is known around `step` of a run of `span` steps."""
    figures: dict[str, float] = {}
    for key in ("loss/train", "lr", "grad_norm", "loss/val"):
        steps, values = columns(frame, key)
        before = np.flatnonzero(steps <= step)
        if len(before):
            figures[key] = float(values[before[-1]])
    found = [e for e in events if isinstance(e.get("step"), int)]
    samples = [e for e in found if e.get("kind") == "sample"]
    near = max(1.0, NEAR_SHARE * span)
    findings = [e for e in found if e.get("kind") == "health" and abs(e["step"] - step) <= near]
    sample = min(samples, key=lambda e: abs(e["step"] - step), default=None)
    checkpoint = min(saved, key=lambda info: abs(step_of(info.path) - step), default=None)
    return Moment(step, figures, sample, checkpoint, findings)


def away(step: int, other: int) -> str:
    """How far an event is from the step that was asked for."""
    if other == step:
        return "at this step"
    return f"{fmt.plural(abs(other - step), 'step')} {'later' if other > step else 'earlier'}"


# ---------------------------------------------------------------- drawn
def panel(shown: Shown) -> None:
    """The moment that was clicked, with what can be done from there; nothing while none is."""
    step = chosen(shown.run.id)
    if step is None:
        return
    saved = list_checkpoints(shown.run)
    moment = moment_at(shown.metrics.columns, shown.events, saved, step, shown.config.train.steps)
    with st.container(border=True, key="train_moment", gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
            atoms.h(_figures(moment))
            st.button("Close", icon=":material/close:", key="train_moment_close", on_click=close, type="tertiary")
        for event in moment.findings[:3]:
            glyph, role = health.look_of(event)
            atoms.h(markup('<div style="font-size:13.5px">{} {}</div>', text(glyph, role), health.said(event)))
        if moment.sample:
            atoms.h(_sample(moment.sample, step, shown.color))
        _checkpoint(shown.run, moment, saved)


def _figures(moment: Moment) -> Html:
    shown = [
        bold(f"Step {fmt.number(moment.step)}"),
        *(
            markup('<span style="white-space:nowrap">{} {}</span>', text(label, "ink3"), write(moment.figures[key]))
            for key, label, write in (
                ("loss/train", "train", fmt.loss),
                ("loss/val", "last validation", fmt.loss),
                ("lr", "rate", fmt.lr),
                ("grad_norm", "norm", lambda v: fmt.number(v, 2)),
            )
            if key in moment.figures
        ),
    ]
    return markup('<div style="display:flex;flex-wrap:wrap;gap:2px 18px;font-size:13.5px">{}</div>', join(shown))


def _sample(sample: dict[str, Any], step: int, color: str) -> Html:
    where = f"Sample of step {fmt.number(sample['step'])}, {away(step, sample['step'])}"
    return markup(
        '<div style="border-left:3px solid {};padding-left:10px"><div style="font-size:12.5px;color:{}">{}</div>'
        '<div style="font-size:14px;line-height:20px;white-space:pre-wrap;overflow-wrap:anywhere;max-height:120px;'
        'overflow:auto">{}{}</div></div>',
        color, c("ink3"), where, text(sample.get("prompt") or "", "ink3"), str(sample.get("text") or ""),
    )  # fmt: skip


def _checkpoint(run: Run, moment: Moment, saved: Sequence[CheckpointInfo]) -> None:
    info = moment.checkpoint
    if info is None:
        atoms.note("No checkpoint of this run is kept.")
        return
    step, newest = step_of(info.path), saved[0]
    ref = f"{run.id}@{step}"
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        note = f"Checkpoint of step {fmt.number(step)}, {away(moment.step, step)}"
        atoms.h(text(note if info.complete else f"{note}: incomplete", "ink3", px=12.5), width="content")
        st.space("stretch")
        usable = info.complete
        if st.button("Open in Playground", key="train_moment_play", icon=":material/edit_note:", disabled=not usable):
            st.switch_page(page_file("playground"), query_params={"checkpoint": ref})
        pair = newest.path != info.path and newest.complete and usable
        if st.button("Compare with the newest", key="train_moment_compare", disabled=not pair):
            refs = [ref, f"{run.id}@{step_of(newest.path)}"]
            st.switch_page(page_file("checkpoints"), query_params={"checkpoint": refs})
        if st.button("Fork from here", key="train_moment_fork", icon=":material/call_split:", disabled=not usable):
            st.switch_page(page_file("configure"), query_params={"base": ref, "how": "fork"})
        if st.button("Checkpoint page", key="train_moment_page", help="Everything known of this checkpoint."):
            st.switch_page(page_file("checkpoints"), query_params={"checkpoint": ref})
