"""The cards of the Train page's grid, each drawing into the cell it is called in."""

from __future__ import annotations

import time
from collections.abc import Callable

import plotly.graph_objects as go
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import best_of, list_checkpoints
from dgsgpt.ui import atoms, theme, train_menu, train_moment, train_view
from dgsgpt.ui.atoms import markup
from dgsgpt.ui.labels import name_of
from dgsgpt.ui.live_chart import Drawing, live, prepare
from dgsgpt.ui.loss_chart import AXES, LossOptions, loss_chart
from dgsgpt.ui.train_address import SMOOTHING, smoothing_chosen
from dgsgpt.ui.train_shown import (
    AXIS,
    LIVE,
    LOG_X,
    LOG_Y,
    RAW,
    SMOOTH,
    Shown,
    curves,
    curves_stamp,
    keep,
    smoothing,
)

SAVED_SHOWN = 5


# ---------------------------------------------------------------- the large chart
def toolbar(shown: Shown) -> LossOptions:
    """x axis, smoothing, raw, logarithms and Live, in one line above the loss chart."""
    smoothing(shown.config)
    for key, value in ((AXIS, "Step"), (RAW, True), (LIVE, True)):
        st.session_state.setdefault(key, value)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        atoms.h(markup('<div style="font-weight:600;line-height:20px;white-space:nowrap">Loss</div>'), width="content")
        axis = st.segmented_control(
            "x axis", list(AXES), required=True, label_visibility="collapsed", key=AXIS,
            persist_state="session",
        )  # fmt: skip
        log_x = st.toggle("Log x", key=LOG_X, persist_state="session")
        st.space("stretch")
        weight = st.selectbox(
            "Smoothing", SMOOTHING, label_visibility="collapsed", width=112, on_change=smoothing_chosen,
            format_func=lambda v: f"EMA {v:g}" if v else "No EMA", key=SMOOTH, persist_state="session",
        )  # fmt: skip
        raw = st.toggle("Raw", key=RAW, persist_state="session")
        log_y = st.toggle("Log y", key=LOG_Y, persist_state="session")
        st.toggle("Live", key=LIVE, persist_state="session", help="Follow the run as it goes on.")
    return LossOptions(axis or "Step", float(weight), raw, log_y, log_x)


def loss(shown: Shown) -> None:
    """The large chart with its toolbar and its note, and the moment that was clicked."""
    said = toolbar(shown)

    def draw() -> tuple[Drawing, str, float]:
        chart = loss_chart(theme.palette(), curves(shown), shown.events, said)
        return prepare(chart.figure), chart.caption, chart.scale

    drawing, caption, scale = keep("loss", curves_stamp(shown), draw)

    def clicked(x: object, seen: str) -> None:
        if seen == zoom and isinstance(x, int | float):
            step = train_moment.step_at(shown.metrics.columns, said.axis, float(x) * scale)
            if step is not None:
                train_moment.choose(shown.run.id, step)

    zoom = f"{shown.run.id} {said.axis} {said.log_x} {said.log_y}"
    runs, last = ", ".join(run.id for run in shown.runs), fmt.loss(shown.metrics.last("loss/train"))
    alt = f"Training loss of {runs} over {said.axis.lower()}, now {last}"
    live(drawing, "train_loss", alt, zoom, on_click=clicked, name=f"{shown.run.id}-loss", picture=train_menu.picture())
    atoms.note(f"{caption} · click a point for its sample and checkpoint")
    train_moment.panel(shown)


# ---------------------------------------------------------------- small charts
def _small(shown: Shown, key: str, alt: str, build: Callable[[], go.Figure]) -> None:
    """A small figure that grows in place, built only when there is anything new."""
    live(keep(key, shown.stamp, lambda: prepare(build())), key, alt, shown.run.id, name=f"{shown.run.id}-{key}")


def rate(shown: Shown) -> None:
    """Learning rate over the planned schedule, and whether it was lowered when the run went back."""
    schedule = name_of(shown.config.train.schedule.kind)
    lowered = train_view.lowered(shown.metrics, shown.config.train)
    plan = f"{schedule}, × {lowered:g} since it went back" if lowered else schedule
    atoms.head("Learning rate", fmt.lr(shown.metrics.last("lr")), plan)
    alt = "Learning rate over steps, with the planned schedule"
    _small(
        shown, "train_lr", alt,
        lambda: train_view.rate_chart(theme.palette(), shown.metrics, shown.color, shown.config),
    )  # fmt: skip


def gradient(shown: Shown) -> None:
    """Gradient norm, with the clipping norm dotted."""
    clip = shown.config.train.grad_clip
    atoms.head(
        "Gradient norm", fmt.number(shown.metrics.last("grad_norm"), 2), f"clip {clip:g}" if clip else "not clipped"
    )
    _small(
        shown, "train_norm", "Global gradient norm over steps",
        lambda: train_view.small_chart(
            theme.palette(), shown.metrics, "grad_norm", shown.color, "norm", log_y=True, limit=clip, hover=".3f"
        ),
    )  # fmt: skip


def throughput(shown: Shown) -> None:
    """Tokens per second."""
    atoms.head("Throughput", fmt.si(shown.metrics.last("perf/tokens_per_s")), "tok/s")
    _small(
        shown, "train_speed", "Tokens per second over steps",
        lambda: train_view.small_chart(theme.palette(), shown.metrics, "perf/tokens_per_s", shown.color, "tok/s"),
    )  # fmt: skip


def bits(shown: Shown) -> None:
    """Validation bits per byte."""
    now, every = shown.metrics.last("bpb/val"), shown.config.train.eval_every
    atoms.head("Bits per byte", fmt.loss(now), "validation")
    if now is None:
        atoms.para(f"First measured at step {fmt.number(every)}." if every else "Measured at the end.")
        return
    _small(
        shown, "train_bpb", "Validation bits per byte over steps",
        lambda: train_view.small_chart(
            theme.palette(), shown.metrics, "bpb/val", shown.color, "bits per byte", hover=".4f", dots=True
        ),
    )  # fmt: skip


# ---------------------------------------------------------------- lists
def saved(shown: Shown) -> None:
    """The newest checkpoints."""
    infos = list_checkpoints(shown.run)
    size = f"{fmt.size(infos[0].bytes)} each" if infos and infos[0].bytes else ""
    atoms.head("Saved", note=size)
    if not infos:
        every = shown.config.train.checkpoint_every
        atoms.para(
            f"The first is saved at step {fmt.number(every)}, or when you stop."
            if every
            else "One is saved at the end."
        )
        return
    rows = train_view.saved_rows(infos[:SAVED_SHOWN], best_of(infos), time.time())
    atoms.table(rows, "56px 1fr auto", ("step", "val loss", "ago"), align="llr")
    if len(infos) > SAVED_SHOWN:
        atoms.note(f"and {len(infos) - SAVED_SHOWN} older")
