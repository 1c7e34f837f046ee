"""Playground: one prompt, one checkpoint or two, and the text as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from dgsgpt.launch import start_demo
from dgsgpt.ui import atoms, checkpoint_pickers, playground_panels, run_cards, state
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui import playground_view as view
from dgsgpt.ui.app import page_file
from dgsgpt.ui.checkpoint_cards import config_of
from dgsgpt.ui.checkpoint_table import Entry
from dgsgpt.ui.playground_view import Output
from dgsgpt.ui.theme import run_color

FIRST_PROMPT = "The letter had been lying on the table since morning, and"


def nothing_yet() -> None:
    atoms.title_row("Playground", "no checkpoint to write with")
    with st.container(border=True):
        sentence = "Nothing has learned to write yet. The demo trains a small GPT in about a minute and saves it."
        if atoms.empty_state(sentence, "Start the demo", "dgsgpt train configs/demo.yaml", key="pg_demo"):
            if state.attempt(start_demo, state.root()):
                st.switch_page(page_file("train"))
            st.rerun()


# ---------------------------------------------------------------- what is asked
def ask(next_seed: bool = False) -> None:
    if next_seed:
        st.session_state["pg_seed"] = (st.session_state["pg_seed"] + 1) % (view.MAX_SEED + 1)
    st.session_state["pg_asked"] = True


def recall() -> None:
    st.session_state["pg_prompt"] = st.session_state["pg_history_menu"]


def prompt_card(entry: Entry, writing: bool) -> str:
    """Prompt, buttons and the prompt's length; returns the prompt."""
    kept = st.session_state
    kept.setdefault("pg_prompt", FIRST_PROMPT)
    history: list[str] = kept.setdefault("pg_history", [])
    with st.container(border=True, key="pg_card_prompt", gap="xsmall"):
        prompt = st.text_area(
            "Prompt", key="pg_prompt", height=78, label_visibility="collapsed", persist_state="session",
            placeholder="The beginning of a text",
        )  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            st.button(
                "Generate", type="primary", icon=":material/play_arrow:", key="pg_go", on_click=ask,
                shortcut="Ctrl+Enter",
            )  # fmt: skip
            # Its press needs no answer: any press ends the stream, and the text so far is in the session.
            st.button("Stop", icon=":material/stop:", key="pg_stop", disabled=not writing)
            st.button("Again, next seed", icon=":material/refresh:", key="pg_again", on_click=ask, args=(True,))
            st.menu_button(
                "History", history or ["nothing yet"], key="pg_history_menu", on_click=recall, disabled=not history,
                format_func=view.plain_label,
            )  # fmt: skip
            st.space("stretch")
            config = config_of(entry)
            note, _ = view.prompt_note(entry, prompt or "", config.model.block_size if config else None)
            atoms.h(note, width="content")
    return prompt or ""


# ---------------------------------------------------------------- what was written
def begin(picked: Sequence[Entry], prompt: str) -> list[Output]:
    """Fresh outputs in the session, and the prompt in its history."""
    history: list[str] = st.session_state["pg_history"]
    if prompt.strip():
        st.session_state["pg_history"] = [prompt, *(old for old in history if old != prompt)][: view.HISTORY]
    letters = "AB" if len(picked) > 1 else " "
    outputs = [
        Output(e.ref, e.label, run_color(e.run.color_slot), prompt, view.sampling(), letter.strip())
        for e, letter in zip(picked, letters, strict=True)
    ]
    st.session_state["pg_outputs"] = outputs
    return outputs


def cards(outputs: Sequence[Output]) -> list[Callable[[], None]]:
    """Draw what was written so far, and return what draws each of them again."""
    grid = st.grid(max(1, len(outputs)), min_column_width=400, border=True)
    drawers: list[Callable[[], None]] = []
    for i, output in enumerate(outputs):
        with grid.cell(), st.container(key=f"pg_card_out_{i}"):
            drawers.append(drawer(output, st.empty()))
        drawers[-1]()
    return drawers


def drawer(output: Output, slot: Any) -> Callable[[], None]:
    return lambda: view.show(output, slot)


def main() -> None:
    run_cards.show_flash()
    found = table.whole(table.entries(state.runs()))
    if not found:
        nothing_yet()
        return
    asked = bool(st.session_state.pop("pg_asked", False))
    with st.sidebar:
        view.sampling_panel()
    picked = checkpoint_pickers.title(found)
    prompt = prompt_card(picked[0], asked)
    outputs = begin(picked, prompt) if asked else st.session_state.get("pg_outputs", [])
    if not outputs:
        atoms.note("What the model writes appears here. Stop keeps what is written so far.")
    drawers = cards(outputs) if outputs else []
    if asked:
        for entry, output, draw in zip(picked, outputs, drawers, strict=True):
            view.write(entry, output, draw)
        st.rerun()
    playground_panels.draw(view.Shown(picked, prompt, outputs))


main()
