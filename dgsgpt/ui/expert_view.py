"""Mixture of experts while it trains: which expert gets how many tokens, what is dropped, how sure the router is."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.metrics import decimate
from dgsgpt.ui import atoms, charts, theme
from dgsgpt.ui.atoms import markup, text
from dgsgpt.ui.live_chart import live, prepare
from dgsgpt.ui.loss_data import columns
from dgsgpt.ui.theme import Palette
from dgsgpt.ui.train_shown import Shown, keep

COLUMNS = 120  # of the heat map: more steps are averaged
_LOAD = "moe/load/"


def loads_of(frame: Any) -> dict[int, list[str]]:
    """The metrics of each MoE layer's load, by expert; empty for a run that logged none."""
    found: dict[int, dict[int, str]] = {}
    for name in frame:
        layer, _, expert = str(name).removeprefix(_LOAD).partition("/")
        if str(name).startswith(_LOAD) and layer.isdigit() and expert.isdigit():
            found.setdefault(int(layer), {})[int(expert)] = str(name)
    return {layer: [names[e] for e in sorted(names)] for layer, names in sorted(found.items())}


def load_map(frame: Any, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and shares [E, S] of the experts' loads, averaged over neighbours to at most `COLUMNS` steps."""
    steps = np.asarray(frame["step"], dtype=float)
    shares = np.array([np.asarray(frame[name], dtype=float) for name in names])
    known = np.isfinite(shares).all(axis=0)
    steps, shares = steps[known], shares[:, known]
    if len(steps) <= COLUMNS:
        return steps, shares
    parts = np.array_split(np.arange(len(steps)), COLUMNS)
    return np.array([steps[p].mean() for p in parts]), np.stack([shares[:, p].mean(1) for p in parts], 1)


def heat_map(palette: Palette, steps: np.ndarray, shares: np.ndarray) -> go.Figure:
    """Experts over steps; an even share of tokens is the middle of the scale, twice that or more its end."""
    experts = len(shares)
    figure = charts.fig(palette, charts.SMALL_HEIGHT, margin={"l": 36, "r": 10, "t": 6, "b": 18}, hovermode="closest")
    figure.add_heatmap(
        x=steps, y=np.arange(experts), z=shares * 100, zmin=0, zmax=200 / experts,
        colorscale=palette.scale(), showscale=False,
        hovertemplate="step %{x:,.0f}<br>expert %{y}: %{z:.1f}\u00a0%<extra></extra>", xgap=0, ygap=1,
    )  # fmt: skip
    if len(steps):
        half = (steps[-1] - steps[0]) / max(1, len(steps) - 1) / 2 or 0.5
        charts.set_steps(figure, float(steps[-1] + half))
    ticks = sorted({0, experts // 2, experts - 1})
    figure.update_yaxes(range=[-0.5, experts - 0.5], tickvals=ticks, showgrid=False)
    return figure


# ---------------------------------------------------------------- cards
def load_card(shown: Shown) -> None:
    """The heat map of one MoE layer; for a run that logged no loads, the busiest expert's share."""
    moe = shown.config.model.moe
    assert moe is not None
    even = fmt.percent(1 / moe.n_expert)
    layers = loads_of(shown.metrics.columns)
    if not layers:
        atoms.head("Expert load", f"max {fmt.percent(shown.metrics.last('moe/max_load'))}", f"even {even}")
        _curve(shown, "moe/max_load", "busiest expert", "train_moe", 100 / moe.n_expert)
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
        atoms.h(
            markup(
                '<div style="line-height:20px;white-space:nowrap"><b style="font-weight:600">Expert load</b> {}</div>',
                text(f"even {even}, darkest twice that or more", "ink3", px=12.5),
            )
        )  # fmt: skip
        layer = _layer(list(layers))
        busiest = max((shown.metrics.last(name) or 0.0 for name in layers[layer]), default=0.0)
        value = markup('<div style="font-weight:600;white-space:nowrap">max {}</div>', fmt.percent(busiest))
        atoms.h(value, width="content")
    drawn = keep(
        "experts", (*shown.stamp, layer),
        lambda: prepare(heat_map(theme.palette(), *load_map(shown.metrics.columns, layers[layer]))),
    )  # fmt: skip
    alt = f"Share of tokens of each expert of MoE layer {layer} over steps, now at most {fmt.percent(busiest)}"
    live(drawn, "train_experts", alt, zoom=f"{shown.run.id} {layer}")


def _layer(layers: list[int]) -> int:
    if len(layers) < 2:
        return layers[0]
    if st.session_state.get("train_layer") not in layers:
        st.session_state["train_layer"] = layers[-1]
    chosen = st.selectbox(
        "MoE layer", layers, key="train_layer", label_visibility="collapsed", width=116,
        format_func=lambda layer: f"layer {layer}",
    )  # fmt: skip
    return int(chosen)


def dropped_card(shown: Shown) -> None:
    """The share of assignments dropped for want of capacity."""
    moe = shown.config.model.moe
    assert moe is not None
    note = f"capacity {moe.capacity_factor:g}" if moe.capacity_factor else "dropless"
    atoms.head("Tokens dropped", fmt.percent(shown.metrics.last("moe/dropped")), note)
    _curve(shown, "moe/dropped", "dropped", "train_dropped")


def entropy_card(shown: Shown) -> None:
    """How undecided the router is."""
    now = shown.metrics.last("moe/entropy")
    atoms.head("Router entropy", fmt.percent(now), "100 % is undecided")
    if now is None:
        atoms.para("This run did not log it.")
        return
    _curve(shown, "moe/entropy", "entropy", "train_entropy")


def _curve(shown: Shown, metric: str, name: str, key: str, limit: float | None = None) -> None:
    def build() -> go.Figure:
        x, y = decimate(*columns(shown.metrics.columns, metric), 400)
        figure = charts.small(theme.palette(), x, y * 100, shown.color, name, limit=limit, hover=".1f")
        figure.update_yaxes(ticksuffix="\u00a0%", rangemode="tozero")
        return figure

    live(keep(key, shown.stamp, lambda: prepare(build())), key, f"{name} over steps, in percent", zoom=shown.run.id)
