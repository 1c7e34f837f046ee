"""Home: what this machine can do, what runs now, one way to begin, and what ran."""

from __future__ import annotations

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt import run_queue
from dgsgpt.launch import start_demo
from dgsgpt.profiles import choose_profile, load_profile
from dgsgpt.runs import Run
from dgsgpt.ui import atoms, queue_view, run_cards, state
from dgsgpt.ui.app import page_file
from dgsgpt.ui.atoms import markup

RECENT = 8
COLUMNS = "96px minmax(0,1fr) 120px 70px 150px"


def watch(run: Run) -> None:
    st.switch_page(page_file("train"), query_params={"run": run.id})


def title(runs: list[Run], live: list[Run]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="home_title"):
        kept = f"{len(live) or 'nothing'} running, {fmt.plural(len(runs), 'run')} kept" if runs else "no runs yet"
        atoms.title_row("Train a GPT on this machine", kept)
        if st.button("New run", type="primary", icon=":material/add:", key="home_new"):
            st.switch_page(page_file("configure"))


def running_card(run: Run) -> None:
    status = run.status()
    atoms.h(run_cards.running(run, status))
    if run.is_demo:
        atoms.note("Started by itself because there were no runs yet: about a minute of training on Jane Austen.")
    with st.container(horizontal=True, gap="xsmall"):
        if st.button("Watch", icon=":material/monitoring:", key=f"home_watch_{run.id}"):
            watch(run)
        run_cards.stop_button(run, status, f"home_stop_{run.id}")


def nothing_running(last: Run | None) -> None:
    """The newest run that has ended; without any, the way to a first one."""
    if last is None:
        sentence = "No runs yet. The demo trains a small GPT on Jane Austen in about a minute."
        if atoms.empty_state(sentence, "Start the demo", "dgsgpt train configs/demo.yaml", key="home_empty"):
            begin_demo()
        return
    status = last.status()
    atoms.h(run_cards.running(last, status))
    with st.container(horizontal=True, gap="xsmall"):
        if st.button("Open", icon=":material/monitoring:", key="home_open_last"):
            watch(last)
        if status.has_ended and status.state != "finished":
            run_cards.resume_button(last, "home_resume_last")


def overview(live: list[Run], last: Run | None) -> None:
    """Refreshes by itself while something runs."""
    known = {run.id for run in live}

    @st.fragment(run_every=state.REFRESH_S if live else None, key="home_live")
    def now() -> None:
        still = [run for run in live if run.status().is_live]
        if {run.id for run in still} != known:
            st.rerun()
        grid = st.grid(3, min_column_width=430, border=True)
        with grid.cell(column_span=2), st.container(key="home_running", gap="small"):
            atoms.head("Running now" if still or last is None else "Last run")
            for run in still:
                running_card(run)
            if not still:
                nothing_running(last)
        with grid.cell(), st.container(key="home_machine", gap="xsmall"):
            machine = state.machine()
            profile = load_profile(choose_profile(machine))
            atoms.head("This machine", atoms.tag("✓ ready", "good"))
            atoms.table(run_cards.machine_rows(machine), "64px minmax(0,1fr) 120px", pad=5, align="llr")
            atoms.note(f"Profile by the rule: {profile.title}. With this memory free, Configure shows what fits.")

    now()


BEGIN = (  # title, what happens, button, page (none: the demo)
    ("A minute with Austen", "Train a small GPT on the embedded novels: it learns to spell.", "Start the demo", ""),
    ("Your own text", "Upload a file or name a path; get a tokenizer and counts.", "Prepare data", "data"),
    ("A model that fits", "A profile, a few knobs, memory and time before you start.", "Configure", "configure"),
    ("Make it write", "Pick a checkpoint, give it a beginning, watch it go on.", "Play with a model", "playground"),
)


def begin() -> None:
    atoms.section("Begin")
    grid = st.grid(4, min_column_width=300, border=True)
    for name, description, label, page in BEGIN:
        with grid.cell(), st.container(gap="small", height="stretch", vertical_alignment="distribute"):
            atoms.card_text(name, description)
            if st.button(label, key=f"home_begin_{page or 'demo'}", width="stretch"):
                if page:
                    st.switch_page(page_file(page))
                begin_demo()


def begin_demo() -> None:
    if state.attempt(start_demo, state.root()):
        st.switch_page(page_file("train"))
    st.rerun()


def recent_row(run: Run) -> None:
    status = run.status()
    cells = run_cards.row(run, status)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
        with st.container():
            atoms.table([cells], COLUMNS, pad=5, align="lllrr")
        with st.container(horizontal=True, width=64):
            if status.state in ("stopped", "lost") and run.checkpoints():
                run_cards.resume_button(run, f"home_resume_{run.id}", ":blue[Resume]", kind="tertiary")
            elif st.button(":blue[Open]", type="tertiary", key=f"home_open_{run.id}"):
                watch(run)


def recent(runs: list[Run]) -> None:
    atoms.section("Recent runs", f"{RECENT} of {fmt.number(len(runs))}" if len(runs) > RECENT else "")
    with st.container(border=True, key="home_recent", gap=None):
        header = ("state", "run", "loss", "val loss", "when, took")
        atoms.h(
            markup('<div style="padding-right:71px">{}</div>', atoms.table_html((), COLUMNS, header, align="lllrr"))
        )
        state.summaries(runs[:RECENT])  # read side by side
        for run in runs[:RECENT]:
            recent_row(run)


all_runs = state.runs()
live_now = state.live_runs(all_runs)
title(all_runs, live_now)
run_cards.show_flash()
ended = [run for run in all_runs if run not in live_now]
overview(live_now, ended[0] if ended else None)
queue_view.card(state.root(), run_queue.read_queue(state.root()), live_now)
begin()
if ended:
    recent(ended)
