"""Playground: one prompt, one checkpoint or two, and the text as it is written."""

from __future__ import annotations

import streamlit as st

from dgsgpt.launch import start_demo
from dgsgpt.ui import (
    atoms,
    checkpoint_pickers,
    playground_output,
    playground_panels,
    playground_prompt,
    playground_work,
    run_cards,
    sampling_panel,
    state,
)
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui.app import page_file
from dgsgpt.ui.playground_view import Shown


def nothing_yet() -> None:
    atoms.title_row("Playground", "no checkpoint to write with")
    with st.container(border=True):
        sentence = "Nothing has learned to write yet. The demo trains a small GPT in about a minute and saves it."
        if atoms.empty_state(sentence, "Start the demo", "dgsgpt train configs/demo.yaml", key="pg_demo"):
            if state.attempt(start_demo, state.root()):
                st.switch_page(page_file("train"))
            st.rerun()


def main() -> None:
    run_cards.show_flash()
    found = table.whole(table.entries(state.runs()))
    if not found:
        nothing_yet()
        return
    asked = st.session_state.pop("pg_asked", None)
    picked = checkpoint_pickers.title(found)
    with st.sidebar:
        sampling_panel.draw(comparing=len(picked) > 1)
    prompt = playground_prompt.card(picked[0], writing=asked is not None)
    writing = playground_work.begin(asked, picked, found, prompt) if asked else []
    outputs = st.session_state.get("pg_outputs", [])
    if not outputs:
        atoms.note("What the model writes appears here. Stop keeps what is written so far.")
    drawers = playground_output.cards(outputs, found, writing) if outputs else []
    if not writing:
        playground_panels.draw(Shown(picked, prompt, outputs))
    if playground_work.work(outputs, found, writing, drawers):
        st.rerun()


main()
