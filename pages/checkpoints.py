"""Checkpoints: one table over all runs; one of them in full, or two side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.launch import start_demo
from dgsgpt.ui import atoms, run_cards, same_prompt, state, theme
from dgsgpt.ui import checkpoint_cards as cards
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui.app import page_file
from dgsgpt.ui.atoms import markup
from dgsgpt.ui.checkpoint_table import Entry, Verdict


def nothing_yet() -> None:
    """No checkpoint anywhere: wait for the live run, or start one."""
    atoms.title_row("Checkpoints", "none yet")
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


def title(found: Sequence[Entry]) -> list[Entry]:
    """Name, filter and search; returns what they leave."""
    counts = {"all": len(found), "best": sum(e.best for e in found), "whole": len(table.whole(found))}
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="ck_title"):
        atoms.title_row("Checkpoints", width="content")
        which = st.pills(
            "Filter", list(table.FILTERS), default="all", required=True, label_visibility="collapsed", key="ck_filter",
            format_func=lambda key: f"{table.FILTERS[key]} {counts[key]}", persist_state="session",
        )  # fmt: skip
        st.space("stretch")
        query = st.text_input(
            "Search", placeholder="Run or config: n_layer=12", icon=":material/search:", width=270, key="ck_query",
            label_visibility="collapsed", persist_state="session",
        )  # fmt: skip
    configs = {run.id: state.config(run) for run in {e.run for e in found}} if "=" in (query or "") else {}
    shown = table.choose(found, which or "all", query or "", configs)
    if not shown:
        why = table.unknown_setting(query or "") or "No checkpoint matches the filter and the search."
        atoms.para(why)
    return shown


def actions(picked: Sequence[Entry], verdicts: dict[str, Verdict]) -> None:
    """Who was picked, and what can be done with them."""
    now = time.time()
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="ck_actions"):
        named = [cards.who(letter, e, verdicts.get(e.ref), now) for letter, e in zip("AB", picked, strict=False)]
        atoms.h(markup('<div style="display:flex;flex-wrap:wrap;gap:6px 26px">{}</div>', atoms.join(named)))
        if len(picked) > 1 and st.button("Swap", icon=":material/swap_horiz:", key="ck_swap"):
            st.session_state["ck_swapped"] = not st.session_state.get("ck_swapped", False)
            st.rerun()
        if st.button("Verify", icon=":material/verified:", key="ck_verify", help="Compares every byte's hash."):
            size = fmt.size(sum(e.info.bytes for e in picked))
            with st.spinner(f"Hashing {size}…"):
                verdicts.update({e.ref: table.check(e) for e in picked})
            st.rerun()
        label = "Open both in Playground" if len(picked) > 1 else "Open in Playground"
        usable = all(e.info.complete for e in picked)
        reason = "" if usable else "A damaged checkpoint cannot be opened."
        if st.button(label, icon=":material/edit_note:", key="ck_play", disabled=not usable, help=reason or None):
            st.switch_page(page_file("playground"), query_params={"checkpoint": [e.ref for e in picked]})


def troubles(picked: Sequence[Entry], verdicts: dict[str, Verdict]) -> None:
    """What is damaged, and what to do instead."""
    for entry in picked:
        verdict = verdicts.get(entry.ref)
        problem = entry.info.problem or (verdict.problem if verdict else None)
        if problem:
            atoms.error_card(
                f"{entry.label} is damaged: {problem}", "Another checkpoint of this run may still be whole."
            )


def main() -> None:
    run_cards.show_flash()
    found = table.entries(state.runs())
    if not found:
        nothing_yet()
        return
    wanted = [e.ref for ref in st.query_params.get_all("checkpoint") if (e := table.by_ref(found, ref))]
    if wanted and "ck_picked" not in st.session_state:
        st.session_state["ck_picked"] = wanted
    shown = title(found)
    if not shown:
        return
    verdicts: dict[str, Verdict] = st.session_state.setdefault("ck_verdicts", {})
    picked = table.pick(shown, verdicts, theme.palette(), time.time())
    if len(picked) > table.MAX_PICKED:
        atoms.note(f"{len(picked)} are selected; the first two are compared.", role="warn")
    picked = picked[: table.MAX_PICKED]
    if not picked:
        atoms.note("Select one for all that is known of it, two to compare them.")
        return
    if len(picked) > 1 and st.session_state.get("ck_swapped"):
        picked.reverse()
    actions(picked, verdicts)
    troubles(picked, verdicts)
    if len(picked) == 1:
        cards.one(picked[0])
    else:
        cards.two(*picked)
        same_prompt.draw(*picked)
    cards.sources(picked)


main()
