"""Checkpoints: one table over all runs; one of them in full, or two to four side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.launch import start_demo
from dgsgpt.ui import (
    atoms,
    checkpoint_actions,
    dialogs,
    lineage_view,
    quantize_view,
    run_cards,
    state,
    theme,
)
from dgsgpt.ui import checkpoint_cards as cards
from dgsgpt.ui import checkpoint_list as listing
from dgsgpt.ui import checkpoint_search as search
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui.app import page_file
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.trash_view import trash_button, undo_line


def nothing_yet() -> None:
    """No checkpoint anywhere: wait for the live run, or start one, or import one."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="ck_title"):
        atoms.title_row("Checkpoints", "none yet", width="content")
        st.space("stretch")
        coming_and_going()
    live = state.live_runs(state.runs())
    with st.container(border=True):
        if live:
            sentence = f"No checkpoint yet. {live[0].id} saves its first by itself, or when you stop it."
            if atoms.empty_state(sentence, "Watch it", f"dgsgpt stop {live[0].id}", key="ck_watch"):
                st.switch_page(page_file("train"), query_params={"run": live[0].id})
            return
        sentence = "No checkpoint yet. The demo trains a small GPT in about a minute and saves it."
        if atoms.empty_state(sentence, "Start the demo", "dgsgpt train configs/demo.yaml", key="ck_demo"):
            if state.attempt(start_demo, state.root()):
                st.switch_page(page_file("train"))
            st.rerun()


def coming_and_going() -> None:
    trash_button(state.root())
    st.button("Import", icon=":material/download:", key="ck_import", on_click=dialogs.ask, args=("import",))


def title(found: Sequence[Entry]) -> list[Entry]:
    """Name, filter and search; returns what they leave."""
    now = time.time()
    names = search.filters(found, now)
    if st.session_state.get("ck_filter") not in (None, *names):  # the last of its kind is gone
        st.session_state["ck_filter"] = "all"
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="ck_title"):
        atoms.title_row("Checkpoints", width="content")
        which = st.pills(
            "Filter", names, default="all", required=True, label_visibility="collapsed", key="ck_filter",
            format_func=lambda key: f"All {len(found)}" if key == "all" else search.FILTERS[key],
            persist_state="session",
        )  # fmt: skip
        st.space("stretch")
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False, width="content"):
            query = st.text_input(
                "Search", placeholder="Run, tag, note or n_layer=12", icon=":material/search:", width=230,
                key="ck_query", label_visibility="collapsed", persist_state="session",
            )  # fmt: skip
            coming_and_going()
    configs = {run.id: state.config(run) for run in {e.run for e in found}} if "=" in (query or "") else {}
    shown = search.choose(found, which or "all", query or "", configs, now)
    if not shown:
        why = search.unknown_setting(query or "") or "No checkpoint matches the filter and the search."
        atoms.para(why)
    return shown


def how_many(shown: Sequence[Entry], found: Sequence[Entry]) -> str:
    """How much the table shows, and how large it is."""
    counted = fmt.plural(len(shown), "checkpoint") if shown == found else f"{len(shown)} of {len(found)} checkpoints"
    runs = fmt.plural(len({entry.run.id for entry in shown}), "run")
    return f"{counted} of {runs}, {fmt.size(sum(entry.info.bytes for entry in shown))}"


def browse(found: Sequence[Entry]) -> None:
    """The table, and below it what is picked."""
    shown = title(found)
    undo_line()
    if not shown:
        return
    atoms.note(how_many(shown, found))  # and the table's own toolbar, which floats above it, covers no button
    selected = table.pick(shown, listing.verdicts(), theme.palette(), time.time(), checkpoint_actions.star_clicked)
    picked = selected[: table.MAX_PICKED]
    table.to_address(picked)
    if len(selected) > table.MAX_PICKED:
        said = f"{len(selected)} are selected: the first {len(picked)} are compared, star and delete mean all."
        atoms.note(said, role="warn")
    if not picked:
        atoms.note("Select one for all that is known of it, two to four to compare them.")
        return
    checkpoint_actions.bar(picked, selected)
    checkpoint_actions.troubles(picked, found)
    if len(picked) == 1:
        lineage_view.line(picked[0], found)
        lineage_view.import_line(picked[0])
        quantize_view.line(picked[0])
        cards.one(picked[0])
    else:
        cards.many(picked)
    cards.sources(picked)
    checkpoint_actions.commands(picked)


def main() -> None:
    run_cards.show_flash()
    checkpoint_actions.leave_for_configure()
    found = listing.entries(state.runs())
    checkpoint_actions.open_dialog(found)
    if not found:
        undo_line()
        nothing_yet()
        return
    table.from_address(found)
    browse(found)


main()
