"""Runs: the table of all of them, what can be done with those picked, and any set of them compared."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt import run_queue
from dgsgpt.launch import start_demo
from dgsgpt.ui import atoms, polling, queue_view, run_cards, runs_actions, runs_compare, runs_list, state, theme
from dgsgpt.ui import runs_table as table
from dgsgpt.ui.app import page_file
from dgsgpt.ui.checkpoint_search import unknown_setting
from dgsgpt.ui.labels import label_of
from dgsgpt.ui.runs_list import RunEntry
from dgsgpt.ui.trash_view import trash_button, undo_line


def nothing_yet() -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="rn_title"):
        atoms.title_row("Runs", "none yet", width="content")
        st.space("stretch")
        trash_button(state.root())
    undo_line()
    with st.container(border=True):
        sentence = "No run yet. The demo trains a small GPT on Jane Austen in about a minute."
        if atoms.empty_state(sentence, "Start the demo", "dgsgpt train configs/demo.yaml", key="rn_demo"):
            if state.attempt(start_demo, state.root()):
                st.switch_page(page_file("train"))
            st.rerun()


def title(found: Sequence[RunEntry]) -> list[RunEntry]:
    """Name, filter, search; returns the runs they leave."""
    names = runs_list.filters(found)
    if st.session_state.get("rn_filter") not in (None, *names):  # the last of its kind is gone
        st.session_state["rn_filter"] = "all"
    here = sum(not e.said.archived for e in found)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="rn_title"):
        atoms.title_row("Runs", width="content")
        which = st.pills(
            "Filter", names, default="all", required=True, label_visibility="collapsed", key="rn_filter",
            format_func=lambda key: f"All {here}" if key == "all" else runs_list.FILTERS[key],
            persist_state="session",
        )  # fmt: skip
        st.space("stretch")
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False, width="content"):
            query = st.text_input(
                "Search", placeholder="Run, tag, note or n_layer=12", icon=":material/search:", width=230,
                key="rn_query", label_visibility="collapsed", persist_state="session",
            )  # fmt: skip
            trash_button(state.root())
            if st.button("New run", type="primary", icon=":material/add:", key="rn_new"):
                st.switch_page(page_file("configure"))
    shown = runs_list.choose(found, which or "all", query or "")
    if not shown:
        atoms.para(unknown_setting(query or "") or "No run matches the filter and the search.")
    return shown


def setting_columns(shown: Sequence[RunEntry]) -> list[str]:
    """Settings shown as columns: the first that differ, or those a person chose."""
    differ = runs_list.differing(shown)
    chosen = [path for path in st.session_state.get("rn_columns") or differ[: table.SETTING_COLUMNS] if path in differ]
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="rn_counts"):
        live = sum(e.status.is_live for e in shown)
        said = f"{fmt.plural(len(shown), 'run')}, {live or 'none'} live"
        more = f" · {len(chosen)} of {fmt.plural(len(differ), 'setting')} that differ as columns" if differ else ""
        atoms.h(atoms.text(said + more, "ink3", px=12.5), width="content")
        if differ:
            with st.popover("Columns", icon=":material/view_column:", type="tertiary"):
                st.multiselect(
                    "Settings that differ", differ, default=chosen, key="rn_columns", format_func=label_of,
                    persist_state="session",
                )  # fmt: skip
    return chosen


def browse(shown: Sequence[RunEntry]) -> None:
    """The table, and below it what is picked."""
    paths = setting_columns(shown)
    plans = {e.id: plan for e in shown if (plan := state.planned(e.run)) is not None}
    params = {run_id: plan.params for run_id, plan in plans.items()}
    picked = table.pick(shown, paths, params, theme.palette(), time.time(), runs_actions.star_clicked)
    table.to_address(picked)
    if waiting := state.pending(e.run for e in shown):
        atoms.note(f"The figures of {fmt.plural(waiting, 'run')} are being summed up for the first time.")
    if not picked:
        atoms.note("Select one for what can be done with it, two or more to compare them.")
        return
    runs_actions.bar(picked)
    for e in picked:
        if e.state in ("failed", "lost", "stalled") and len(picked) == 1:
            run_cards.trouble(e.run, e.status)
    with st.container(key="rn_compare"):
        runs_compare.curves_card(picked)
        if len(picked) > 1:
            runs_compare.settings_card(picked, runs_list.differing(picked))
    runs_actions.commands(picked)


def main() -> None:
    run_cards.show_flash()
    runs_actions.leave_for_configure()
    runs, queue = state.runs(), run_queue.read_queue(state.root())
    moving = bool(queue.ids) or state.pending(runs) or state.live_runs(runs)
    polling.poll({polling.PAGE: lambda: runs_list.news(state.runs())}, state.REFRESH_S if moving else None)
    found = runs_list.entries(runs, queue)
    runs_actions.open_dialog(found)
    if not found:
        nothing_yet()
        return
    table.from_address(found)
    shown = title(found)
    undo_line()
    runs_actions.archive_line()
    queue_view.card(state.root(), queue, [e.run for e in found if e.status.is_live])
    if shown:
        browse(shown)


main()
