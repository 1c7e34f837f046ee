"""The queue on a page: which runs wait, in which order, and why some could not be started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from dgsgpt import run_queue
from dgsgpt.run_queue import Queue
from dgsgpt.runs import Run
from dgsgpt.ui import atoms, run_cards, state
from dgsgpt.ui.atoms import markup, text
from dgsgpt.ui.theme import run_color

_SHOWN = 12
_LINE = (
    '<div style="display:flex;gap:14px;align-items:center;min-width:0;font-size:13.5px">'
    '<span style="width:22px;flex:none">{}</span>{}<span style="overflow:hidden;text-overflow:ellipsis;'
    'white-space:nowrap">{}</span></div>'
)


def card(root: Path, queue: Queue, live: list[Run]) -> None:
    """The waiting runs with what moves them; nothing is drawn while none waits and none was refused."""
    if not queue.ids and not queue.problems:
        return
    with st.container(border=True, key="rq_card", gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            atoms.section("Queue", _told(queue, live), width="content")
            st.space("stretch")
            if queue.ids:
                label, icon, act = (
                    ("Release", "play_arrow", run_queue.release) if queue.held else ("Hold", "pause", run_queue.hold)
                )
                said = "Starts the next run." if queue.held else "Starts nothing more; what runs goes on."
                st.button(label, icon=f":material/{icon}:", key="rq_hold", help=said, on_click=_do, args=(act, root))
        for place, run_id in enumerate(queue.ids[:_SHOWN], 1):
            _row(root, run_id, place, len(queue.ids))
        if len(queue.ids) > _SHOWN:
            atoms.note(f"and {len(queue.ids) - _SHOWN} more; `dgsgpt queue` lists all.")
        for run_id, why in queue.problems.items():
            atoms.field_error(markup("{} was not started: {}", run_id, why))
        if queue.problems:
            st.button("Dismiss", type="tertiary", key="rq_forget", on_click=_do, args=(run_queue.forget_problems, root))


def _told(queue: Queue, live: list[Run]) -> str:
    if queue.held:
        return "held: nothing is started"
    if live and queue.ids:
        waits = f"{live[0].id}" + (f" and {len(live) - 1} more" if len(live) > 1 else "")
        return f"the first starts when {waits} has ended"
    return "one after another, also when this page is closed"


def _row(root: Path, run_id: str, place: int, count: int) -> None:
    run = Run(root / run_id)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key=f"rq_row_{run_id}", wrap=False):
        name = atoms.run_name(run_id, run_color(run.color_slot))
        words = text(run_cards.words(state.config(run)), "ink2")
        atoms.h(markup(_LINE, text(f"{place}.", "ink3"), name, words))
        for label, icon, to in (("Earlier", "arrow_upward", place - 1), ("Later", "arrow_downward", place + 1)):
            st.button(
                "", icon=f":material/{icon}:", key=f"rq_{label}_{run_id}", help=label, type="tertiary",
                disabled=not 1 <= to <= count, on_click=_do, args=(run_queue.move, root, run_id, to),
            )  # fmt: skip
        st.button(
            "Remove", key=f"rq_remove_{run_id}", type="tertiary", on_click=_do, args=(run_queue.remove, root, run_id),
            help="Takes it off the list; the run stays.",
        )  # fmt: skip


def _do(act: Callable[..., None], root: Path, *rest: object) -> None:
    state.attempt(act, root, *rest)
