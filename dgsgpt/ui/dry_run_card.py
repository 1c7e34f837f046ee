"""A dry run from the Configure page: its start, how far it is, predicted against measured, and those before."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from dgsgpt import dry_run
from dgsgpt.config import RunConfig
from dgsgpt.dry_run import STEPS, DryRun, Pending
from dgsgpt.errors import DgsgptError
from dgsgpt.format import MISSING, ago, duration, percent, size, step_time
from dgsgpt.hardware import Hardware
from dgsgpt.pace import Evidence, choose, step_flops
from dgsgpt.ui import state
from dgsgpt.ui.atoms import field_error, h, note, table, text
from dgsgpt.ui.markup import Html, markup
from dgsgpt.ui.theme import c

POLL_S = 0.7
SHOWN = 8
CLOSE = 0.1  # share by which a prediction may be off and still be called right


# ---------------------------------------------------------------- begun
def start(config: RunConfig, machine: Hardware, known: Evidence) -> None:
    """Begin a dry run; what it predicts is from other measurements, not from an earlier dry run of the same."""
    speed = choose(config, None, known.measured, known.calibration)
    step_s = step_flops(config) / speed.flops_per_s if speed else None
    try:
        dry_run.begin(state.root(), config, machine, STEPS, step_s, speed.source if speed else "")
    except DgsgptError as e:
        state.flash_error(str(e))


@st.fragment(run_every=POLL_S)
def _watch() -> None:
    going = dry_run.pending(state.root())
    if going is None:
        st.rerun()
    share = min(1.0, (going.step + 0.5) / going.request.steps) if going.step or "step" in going.message else 0.05
    st.progress(share, text=f"Dry run: {going.message}")
    st.button("Cancel the dry run", key="dry_cancel", on_click=going.cancel, width="stretch")


# ---------------------------------------------------------------- what it found
def card(config: RunConfig | None, past: Sequence[DryRun], going: Pending | None) -> None:
    """What is at work or was found for this draft, else of which draft the last one was; the history below."""
    if going is not None:
        _rule("Dry run", f"of {going.request.title}")
        _watch()
    wanted = dry_run.fingerprint(config) if config is not None else None
    newest = next((run for run in past if run.fingerprint == wanted), None)
    if newest is not None and going is None:
        _rule("Dry run", f"{ago(newest.at, time.time())}, {newest.steps} real steps")
        _result(newest)
    if past:
        with st.expander(f"Dry runs so far: {len(past)}"):
            _history(past[:SHOWN])


def _result(found: DryRun) -> None:
    if found.error:
        field_error(found.error)
        return
    table(
        result_rows(found),
        "minmax(56px,1fr) minmax(0,1fr) minmax(0,1fr) 78px",
        ("", "predicted", "measured", "difference"),
        align="lrrr",
    )
    chosen = found.settled
    by = f"time predicted by {found.predicted_by}" if found.predicted_by else "no time was predicted"
    note(
        f"{chosen.get('precision', MISSING)}, compile {chosen.get('compile', MISSING)}; set up in "
        f"{duration(found.set_up_s)}; {by}. No run was left behind."
    )


def result_rows(found: DryRun) -> list[tuple[object, ...]]:
    """Memory, a step and the whole run: predicted, measured, and by what share that differs."""
    planned, taken, steps = found.predicted_step_s, found.step_s, found.total_steps
    return [
        ("Memory", size(found.predicted_bytes), size(found.peak_bytes), off_by(found.memory_error)),
        ("Step", step_time(planned), step_time(taken), off_by(found.time_error)),
        ("All steps", duration(planned and planned * steps), duration(taken and taken * steps), ""),
    ]


def off_by(share: float | None) -> Html:
    """A relative error with its sign; grey where the prediction was close, amber where it was not."""
    if share is None:
        return text(MISSING, "ink3")
    said = percent(share, 0 if abs(share) >= 0.0995 else 1)
    said = said if share < 0 else f"+{said}"
    return text(said, "ink3" if abs(share) <= CLOSE else "warn")


def _history(past: Sequence[DryRun]) -> None:
    now = time.time()
    rows: list[tuple[object, ...]] = []
    for run in past:
        what = markup("{}<br>{}", run.title, text(ago(run.at, now), "ink3", px=12.5))
        if run.error:
            rows.append((what, text("✕", "bad"), text(run.error, "ink3", px=12.5), ""))
            continue
        rows.append((what, off_by(run.memory_error), step_time(run.step_s), off_by(run.time_error)))
    table(rows, "minmax(0,1fr) 64px 64px 64px", ("draft", "memory", "step", "time"), align="lrrr")


def _rule(title: str, aside: str) -> None:
    h(
        markup(
            '<div style="border-top:1px solid {};padding-top:10px;display:flex;justify-content:space-between;'
            'font-size:13px;color:{}"><span>{}</span>{}</div>',
            c("grid"), c("ink2"), title, text(aside, "ink3"),
        )
    )  # fmt: skip
