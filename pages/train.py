"""Train: the run bar, six figures, the loss chart, small charts, samples, saved checkpoints, machine and log."""

from __future__ import annotations

import time

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.launch import start_demo
from dgsgpt.runs import Run, Status
from dgsgpt.ui import (
    atoms,
    run_cards,
    state,
    train_address,
    train_alerts,
    train_grid,
    train_log,
    train_menu,
    train_runs,
    train_shown,
    train_view,
)
from dgsgpt.ui.atoms import markup, pill, text
from dgsgpt.ui.theme import run_color


def nothing_yet() -> None:
    atoms.title_row("Train", "no runs yet")
    with st.container(border=True):
        sentence = "No run to watch yet. The demo trains a small GPT on Jane Austen in about a minute."
        if atoms.empty_state(sentence, "Start the demo", "dgsgpt train configs/demo.yaml", key="train_demo"):
            state.attempt(start_demo, state.root())
            st.rerun()


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
        others = train_runs.choose(runs, run)
        if status.is_live:
            run_cards.pause_button(run, status, "train_pause")
            run_cards.save_button(run, status, "train_save")
            run_cards.stop_button(run, status, "train_stop")
        elif status.state == "queued":
            run_cards.resume_button(run, "train_resume", "Start")
        elif status.state != "finished":
            run_cards.resume_button(run, "train_resume")
        train_menu.menu(run, others)
    return others


def main() -> None:
    runs = state.runs()
    if not runs:
        nothing_yet()
        return
    wanted = st.query_params.get(train_address.RUN)
    run = state.pick_run(runs, wanted)
    status = run.status()
    strangers = train_address.restore([one.id for one in runs])
    others = run_bar(runs, run, status)
    if wanted and wanted != run.id:
        atoms.note(markup("There is no run {}; this is {}.", wanted[:80], run.id), role="warn")
    if strangers:
        atoms.note(f"The address also names runs that are not here: {', '.join(strangers)[:200]}", role="warn")
    run_cards.show_flash()
    run_cards.trouble(run, status)
    problem = state.config_problem(run)
    if problem:
        atoms.error_card(problem, "Its figures cannot be shown without its config.")
        return
    live = any(one.status().is_live for one in (run, *others))
    watch(run, status, state.REFRESH_S if live else None)
    plots(run, others, len(runs), state.REFRESH_S if live and train_shown.follows() else None)


def watch(run: Run, before: Status, every: float | None) -> None:
    """Progress, what is wrong now, and figures; a change of state draws the whole page anew."""
    drawn = run_cards.phase(run, before)

    @st.fragment(run_every=every, key="train_watch")
    def now() -> None:
        status, metrics, config, events = run.status(), state.metrics(run), run.config, state.events(run)
        if run_cards.phase(run, status) != drawn:
            st.rerun()
        saved = max((float(e["time"]) for e in events if e.get("kind") == "checkpoint"), default=None)
        aside = f"saved {fmt.ago(saved, time.time())}" if saved else "nothing saved yet"
        atoms.h(run_cards.progress(status, time.time(), aside))
        train_alerts.toasts(run, events)
        train_alerts.alert(run, events, status)
        machine = state.machine()
        device = ("GPU", machine.total_bytes) if machine.gpus else ("CPU", machine.ram_total_bytes)
        weight = train_shown.smoothing(config)
        tokens = config.train.steps * config.tokens_per_step, train_view.corpus_tokens(run.facts)
        figures = train_shown.Shown(run, [], config, metrics, events)
        cards = train_shown.keep(
            "figures", (*figures.stamp, weight, device, tokens),
            lambda: train_view.figures(metrics, weight, run_color(run.color_slot), state.planned(run), tokens, device),
        )  # fmt: skip
        atoms.kpis(cards, 205)

    now()


def plots(run: Run, others: list[Run], kept: int, every: float | None) -> None:
    """The grid of cards; with Live off it stays as it is."""

    @st.fragment(run_every=every, key="train_plots")
    def now() -> None:
        followed = train_shown.follows()
        state.prefetch((run, *others))
        shown = train_shown.Shown(run, others, run.config, state.metrics(run), state.events(run))
        grid = st.grid(4, min_column_width=300, border=True)
        for card in train_grid.cards(shown, kept):
            with grid.cell(column_span=card.columns, row_span=card.rows), card.frame():
                card.draw()
        train_log.drawer(run)
        train_address.write(run.id)
        if train_shown.follows() != followed:
            st.rerun()

    now()


main()
