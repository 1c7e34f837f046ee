"""Evaluate: how well one checkpoint predicts a text, where it does not, and what was found before."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dgsgpt.launch import start_demo
from dgsgpt.ui import atoms, evaluate_automatic, evaluate_form, evaluate_kept, evaluate_view, run_cards, state
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui.app import page_file
from dgsgpt.ui.checkpoint_cards import config_of
from dgsgpt.ui.checkpoint_table import Entry
from dgsgpt.ui.theme import run_color


def nothing_yet(damaged: int) -> None:
    atoms.title_row("Evaluate", "no checkpoint to judge")
    with st.container(border=True):
        sentence = "Nothing has been trained yet. The demo trains a small GPT in about a minute and saves it."
        if damaged:
            sentence = (
                "No checkpoint is whole: the page Checkpoints tells what is damaged. The demo trains a small GPT."
            )
        if atoms.empty_state(sentence, "Start the demo", "dgsgpt train configs/demo.yaml", key="ev_demo"):
            if state.attempt(start_demo, state.root()):
                st.switch_page(page_file("train"))
            st.rerun()


def main(found: Sequence[Entry]) -> None:
    entry = evaluate_form.title(found)
    config = config_of(entry)
    asked_for = bool(st.session_state.pop("ev_asked", False))
    work, done = evaluate_form.card(entry, config, asked_for)
    if done:
        evaluate_view.draw(done.report, run_color(entry.run.color_slot))
    runs = state.runs()
    automatic = evaluate_automatic.read(runs)
    evaluate_kept.section(runs, entry, automatic)
    evaluate_automatic.section(automatic, entry)
    if work:
        work()


run_cards.show_flash()
listed = table.entries(state.runs())
whole = table.whole(listed)
if whole:
    main(whole)
else:
    nothing_yet(len(listed))
