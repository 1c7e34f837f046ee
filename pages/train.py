"""Train: the run bar, six figures, the loss chart, small charts, samples, saved checkpoints, machine and log."""

from __future__ import annotations

import time

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.launch import start_demo
from dgsgpt.runs import Run, Status
from dgsgpt.ui import atoms, health, run_cards, run_recipe, state, train_view
from dgsgpt.ui import train_panels as panels
from dgsgpt.ui.atoms import markup, pill, text
from dgsgpt.ui.theme import run_color

MAX_OVERLAYS = 7


def nothing_yet() -> None:
    atoms.title_row("Train", "no runs yet")
    with st.container(border=True):
        sentence = "No run to watch yet. The demo trains a small GPT on Jane Austen in about a minute."
        if atoms.empty_state(sentence, "Start the demo", "dgsgpt train configs/demo.yaml", key="train_demo"):
            state.attempt(start_demo, state.root())
            st.rerun()


def choose(runs: list[Run], main: Run) -> list[Run]:
    """The popover with the selected run (kept in the address) and those laid over it."""
    ids = [run.id for run in runs]
    rest = [run_id for run_id in ids if run_id != main.id]
    st.session_state["train_run"] = main.id
    st.session_state["train_others"] = [i for i in st.session_state.get("train_others", []) if i in rest]

    def selected() -> None:
        st.query_params["run"] = st.session_state["train_run"]

    with st.popover("Choose runs", icon=":material/tune:"):
        st.selectbox("Run", ids, key="train_run", on_change=selected)
        st.multiselect(
            "Lay over it", rest, key="train_others", max_selections=MAX_OVERLAYS, persist_state="session",
            placeholder="other runs",
        )  # fmt: skip
    return [run for run in runs if run.id in st.session_state["train_others"]]


def run_bar(runs: list[Run], run: Run, status: Status) -> list[Run]:
    """Who it is, with Pause, Save and Stop, or Resume, top right; returns the runs laid over it."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False, key="train_bar"):
        atoms.h(
            markup(
                '<div style="display:flex;align-items:center;gap:0 10px;flex-wrap:wrap">{}'
                '<span role="heading" aria-level="1" style="font-size:20px;font-weight:600;line-height:28px">{}</span>'
                "{}</div>",
                pill(run_cards.shown_state(status)), run.id, text(run_cards.about(run), "ink3"),
            )
        )  # fmt: skip
        others = choose(runs, run)
        if status.is_live:
            run_cards.pause_button(run, status, "train_pause")
            run_cards.save_button(run, status, "train_save")
            run_cards.stop_button(run, status, "train_stop")
        elif status.state == "queued":
            run_cards.resume_button(run, "train_resume", "Start")
        elif status.state != "finished":
            run_cards.resume_button(run, "train_resume")
    return others


def main() -> None:
    runs = state.runs()
    if not runs:
        nothing_yet()
        return
    wanted = st.query_params.get("run")
    run = state.pick_run(runs, wanted)
    status = run.status()
    others = run_bar(runs, run, status)
    if wanted and wanted != run.id:
        atoms.note(markup("There is no run {}; this is {}.", wanted[:80], run.id), role="warn")
    run_cards.show_flash()
    run_cards.trouble(run, status)
    problem = state.config_problem(run)
    if problem:
        atoms.error_card(problem, "Its figures cannot be shown without its config.")
        return
    live = any(one.status().is_live for one in (run, *others))
    watch(run, status, state.REFRESH_S if live else None)
    plots(run, others, len(runs), state.REFRESH_S if live and panels.follows() else None)


def watch(run: Run, before: Status, every: float | None) -> None:
    """Progress, what is wrong now, and figures; a change of state draws the whole page anew."""
    drawn = run_cards.phase(run, before)

    @st.fragment(run_every=every, key="train_watch")
    def now() -> None:
        status, metrics, config = run.status(), state.metrics(run), run.config
        if run_cards.phase(run, status) != drawn:
            st.rerun()
        saved = max((float(e["time"]) for e in state.events(run) if e.get("kind") == "checkpoint"), default=None)
        aside = f"saved {fmt.ago(saved, time.time())}" if saved else "nothing saved yet"
        atoms.h(run_cards.progress(status, time.time(), aside))
        health.alert(state.events(run), status)
        machine = state.machine()
        device = ("GPU", machine.total_bytes) if machine.gpus else ("CPU", machine.ram_total_bytes)
        target = config.train.steps * config.tokens_per_step
        color = run_color(run.color_slot)
        atoms.kpis(
            train_view.figures(metrics, panels.smoothing(config), color, state.planned(run), target, device), 205
        )

    now()


def plots(run: Run, others: list[Run], kept: int, every: float | None) -> None:
    """The grid of cards; with Live off it stays as it is."""

    @st.fragment(run_every=every, key="train_plots")
    def now() -> None:
        followed = panels.follows()
        shown = panels.Shown(run, others, run.config, state.metrics(run), state.events(run))
        grid = st.grid(4, min_column_width=300, border=True)
        with grid.cell(column_span=3, row_span=2), st.container(key="train_card_loss", gap="xsmall"):
            panels.loss(shown)
        cards = (
            ("runs", 1, lambda: panels.runs_shown(shown, kept)),
            ("health", 1, lambda: health.card(shown.events, shown.metrics.skipped)),
            ("lr", 1, lambda: panels.rate(shown)), ("norm", 1, lambda: panels.gradient(shown)),
            ("speed", 1, lambda: panels.throughput(shown)), ("extra", 1, lambda: panels.last_small(shown)),
            ("samples", 2, lambda: panels.samples(shown)), ("machine", 1, panels.machine),
            ("saved", 1, lambda: panels.saved(shown)), ("recipe", 2, lambda: run_recipe.card(run)),
            ("groups", 2, lambda: run_recipe.groups(run)),
        )  # fmt: skip
        for name, span, draw in cards:
            with grid.cell(column_span=span), st.container(key=f"train_card_{name}", gap="xxsmall"):
                draw()
        panels.log(run)
        if panels.follows() != followed:
            st.rerun()

    now()


main()
