"""The cards of the Train page's grid, each drawing into the cell it is called in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import best_of, list_checkpoints
from dgsgpt.config import RunConfig
from dgsgpt.runs import Run
from dgsgpt.ui import atoms, charts, live_chart, run_cards, state, theme, train_view
from dgsgpt.ui.atoms import dot, markup, text
from dgsgpt.ui.labels import name_of
from dgsgpt.ui.loss_chart import AXES, Curve, LossOptions, default_smoothing, loss_chart
from dgsgpt.ui.state import Metrics
from dgsgpt.ui.theme import run_color

SMOOTHING = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
SAVED_SHOWN = 5


@dataclass(frozen=True)
class Shown:
    """What the page shows: the selected run, those laid over it, and what was read of the first."""

    run: Run
    others: Sequence[Run]
    config: RunConfig
    metrics: Metrics
    events: list[dict[str, Any]]

    @property
    def color(self) -> str:
        """The selected run's colour."""
        return run_color(self.run.color_slot)


def toolbar() -> LossOptions:
    """x axis, smoothing, raw, logarithm and Live, in one line above the loss chart."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        atoms.h(markup('<div style="font-weight:600;line-height:20px;white-space:nowrap">Loss</div>'), width="content")
        axis = st.segmented_control(
            "x axis", list(AXES), default="Step", required=True, label_visibility="collapsed", key="train_axis",
            persist_state="session",
        )  # fmt: skip
        st.space("stretch")
        weight = st.selectbox(
            "Smoothing", SMOOTHING, label_visibility="collapsed", width=112,
            format_func=lambda v: f"EMA {v:g}" if v else "No EMA", key="train_smooth", persist_state="session",
        )  # fmt: skip
        raw = st.toggle("Raw", True, key="train_raw", persist_state="session")
        log_y = st.toggle("Log y", key="train_logy", persist_state="session")
        st.toggle("Live", True, key="train_live", persist_state="session", help="Follow the run as it goes on.")
    return LossOptions(axis or "Step", float(weight), raw, log_y)


def smoothing(config: RunConfig) -> float:
    """The EMA weight the toolbar holds, also before it is drawn; at first one that suits the run's length."""
    if "train_smooth" not in st.session_state:
        st.session_state["train_smooth"] = default_smoothing(config)
    return float(st.session_state["train_smooth"])


def follows() -> bool:
    """Whether Live is on."""
    return bool(st.session_state.get("train_live", True))


def loss(shown: Shown) -> None:
    """The large chart with its toolbar and its note."""
    options = toolbar()
    runs = [shown.run, *shown.others]
    curves = [
        Curve(run.id, run.color_slot, state.metrics(run).frame, run == shown.run, status.is_live, status.max_steps)
        for run, status in ((run, run.status()) for run in runs)
    ]
    chart = loss_chart(theme.palette(), curves, shown.events, options)
    losses = shown.metrics.last("loss/train")
    alt = f"Training loss of {', '.join(run.id for run in runs)} over {options.axis.lower()}, now {fmt.loss(losses)}"
    live_chart.live(chart.figure, "train_loss", alt, zoom=f"{shown.run.id} {options.axis} {options.log_y}")
    atoms.note(chart.caption)


def runs_shown(shown: Shown, kept: int) -> None:
    """Which runs the chart shows, with their validation losses."""
    runs = [shown.run, *shown.others]
    atoms.head("Runs shown", note=f"{len(runs)} of {fmt.number(kept)}")
    rows = []
    for run in runs:
        name = text(run.id, bold=run == shown.run)
        about = text(run_cards.words(state.config(run)), "ink3", px=12.5)
        value = fmt.loss(state.metrics(run).last("loss/val"))
        rows.append((dot(run_color(run.color_slot)), markup("{}<br>{}", name, about), value))
    atoms.table(rows, "9px 1fr auto", ("", "run", "val loss"), pad=5, align="llr")


def rate(shown: Shown) -> None:
    """Learning rate over the planned schedule, and whether it was lowered when the run went back."""
    schedule = name_of(shown.config.train.schedule.kind)
    lowered = train_view.lowered(shown.metrics, shown.config.train)
    plan = f"{schedule}, × {lowered:g} since it went back" if lowered else schedule
    atoms.head("Learning rate", fmt.lr(shown.metrics.last("lr")), plan)
    figure = train_view.rate_chart(theme.palette(), shown.metrics, shown.color, shown.config)
    charts.show(figure, "train_lr", "Learning rate over steps, with the planned schedule")


def gradient(shown: Shown) -> None:
    """Gradient norm, with the clipping norm dotted."""
    clip = shown.config.train.grad_clip
    atoms.head(
        "Gradient norm", fmt.number(shown.metrics.last("grad_norm"), 2), f"clip {clip:g}" if clip else "not clipped"
    )
    figure = train_view.small_chart(
        theme.palette(), shown.metrics, "grad_norm", shown.color, "norm", log_y=True, limit=clip, hover=".3f"
    )
    charts.show(figure, "train_norm", "Global gradient norm over steps")


def throughput(shown: Shown) -> None:
    """Tokens per second."""
    atoms.head("Throughput", fmt.si(shown.metrics.last("perf/tokens_per_s")), "tok/s")
    figure = train_view.small_chart(theme.palette(), shown.metrics, "perf/tokens_per_s", shown.color, "tok/s")
    charts.show(figure, "train_speed", "Tokens per second over steps")


def last_small(shown: Shown) -> None:
    """Load of the busiest expert for a mixture of experts, else validation bits per byte."""
    moe = shown.config.model.moe
    if moe:
        busiest = shown.metrics.last("moe/max_load")
        atoms.head("Expert load", f"max {fmt.percent(busiest)}", f"even {fmt.percent(1 / moe.n_expert)}")
        figure = train_view.small_chart(
            theme.palette(), shown.metrics, "moe/max_load", shown.color, "busiest expert", scale=100,
            limit=100 / moe.n_expert, hover=".1f",
        )  # fmt: skip
        figure.update_yaxes(ticksuffix="\u00a0%")
        charts.show(figure, "train_moe", "Share of tokens sent to the busiest expert over steps")
        return
    bits, every = shown.metrics.last("bpb/val"), shown.config.train.eval_every
    atoms.head("Bits per byte", fmt.loss(bits), "validation")
    if bits is None:
        atoms.para(f"First measured at step {fmt.number(every)}." if every else "Measured at the end.")
        return
    figure = train_view.small_chart(
        theme.palette(), shown.metrics, "bpb/val", shown.color, "bits per byte", hover=".4f", dots=True
    )
    charts.show(figure, "train_bpb", "Validation bits per byte over steps")


def samples(shown: Shown) -> None:
    """What the model wrote on the way."""
    written = [event for event in shown.events if event.get("kind") == "sample"]
    seed = written[-1].get("seed") if written else None
    atoms.head("Samples", text(f"seed {seed}" if seed is not None else "", "ink3", px=13))
    if written:
        atoms.h(train_view.samples_html(written, shown.metrics, shown.color))
    else:
        every = shown.config.train.sample_every
        atoms.para(f"The first is written at step {fmt.number(every)}." if every else "None: train.sample_every is 0.")


def machine() -> None:
    """The machine's readings as small curves."""
    found = state.machine()
    atoms.head("Machine", note=found.name)
    atoms.table(
        train_view.machine_rows(state.machine_history(), theme.c("ink3")), "84px minmax(0,1fr) max-content", align="llr"
    )


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


def log(run: Run) -> None:
    """The end of what the trainer printed."""
    with st.expander("Log", icon=":material/terminal:"):
        lines = run.log_tail(200)
        if lines:
            st.code("\n".join(lines), language=None, height=320)
        else:
            st.text("Nothing was printed yet.")
