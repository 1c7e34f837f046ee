"""Runs side by side: their curves on one axis, and the settings in which they differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.curves import smoothing_for
from dgsgpt.metric_shelf import CurvePoints
from dgsgpt.ui import atoms, charts, state, theme
from dgsgpt.ui.comparison import common_point
from dgsgpt.ui.labels import label_of
from dgsgpt.ui.loss_chart import AXES
from dgsgpt.ui.markup import esc
from dgsgpt.ui.runs_list import RunEntry
from dgsgpt.ui.runs_table import MAX_COMPARED, cell
from dgsgpt.ui.theme import Palette

METRICS = {"loss/val": "Validation loss", "loss/train": "Train loss", "bpb/val": "Bits per byte"}
HEIGHT, _POINTS, _LABEL_GAP_PX, _NAME = 320, 800, 15.0, 21
Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Chart:
    """The figure and one honest line on it."""

    figure: go.Figure
    note: str
    drawn: int


def curve(entry: RunEntry, metric: str, axis: str) -> CurvePoints:
    """One metric of a run over an axis of `AXES`; the training loss is smoothed over all its points."""
    weight = smoothing_for(state.summary(entry.run).rows) if metric == "loss/train" else 0.0
    return state.curve(entry.run, metric, AXES[axis], weight, _POINTS)


def chart(palette: Palette, compared: Sequence[RunEntry], metric: str, axis: str, log_y: bool = False) -> Chart:
    """The curves of up to `MAX_COMPARED` runs, each labelled at its end."""
    state.prefetch([e.run for e in compared[:MAX_COMPARED]])
    found = {e.id: curve(e, metric, axis) for e in compared[:MAX_COMPARED]}
    lines = {run_id: (points.x, points.y) for run_id, points in found.items() if np.isfinite(points.y).any()}
    figure = charts.fig(palette, HEIGHT, margin={"l": 44, "r": 180, "t": 8, "b": 24})
    total, drawn = sum(found[i].total for i in lines), sum(len(x) for x, _ in lines.values())
    for e in compared[:MAX_COMPARED]:
        if e.id not in lines:
            continue
        (x, y), slot = lines[e.id], e.run.color_slot
        trace = charts.line(x, y, palette.run(slot), e.title, dash=palette.dash(slot), hovertemplate="%{y:.4f}")
        figure.add_trace(trace.update(mode="lines+markers" if len(x) < 40 else "lines", marker={"size": 4}))
    far = max((float(x[-1]) for x, _ in lines.values()), default=1.0)
    figure.update_xaxes(range=[0, far], exponentformat="B", **({"tickformat": ",d"} if axis == "Step" else {}))
    span = _set_y(figure, [y for _, y in lines.values()], log_y)
    _labels(figure, palette, [e for e in compared if e.id in lines], lines, span, log_y)
    return Chart(figure, _note(compared, lines, axis, total, drawn), len(lines))


def _set_y(figure: go.Figure, curves: Sequence[np.ndarray], log_y: bool) -> tuple[float, float]:
    every = np.concatenate([*curves, np.empty(0)])
    every = every[np.isfinite(every)]
    if not len(every):
        return 0.0, 1.0
    low, high = float(every.min()), float(every.max())
    if log_y:
        charts.set_log_y(figure, max(low, 1e-6), max(high, 1e-5))
        return low, high
    knee = float(np.quantile(every, 0.95))
    high = knee + 0.25 * (knee - low) if high > low + 2 * (knee - low) and len(every) > 60 else high
    pad = max(0.06 * (high - low), 1e-3)
    figure.update_yaxes(range=[low - pad, high + pad])
    return low - pad, high + pad


def _labels(
    figure: go.Figure, palette: Palette, shown: Sequence[RunEntry], lines: Mapping[str, Points],
    span: tuple[float, float], log_y: bool,
) -> None:  # fmt: skip
    """Value and name at each line's end, pushed apart where they would cover one another."""
    scale = np.log10 if log_y else float
    low, high = (float(scale(max(v, 1e-6) if log_y else v)) for v in span)
    far = max((float(x[-1]) for x, _ in lines.values()), default=0.0)
    names, placed = short_names(shown), -np.inf
    ends = {run_id: _end(*points) for run_id, points in lines.items()}
    for e in sorted(shown, key=lambda one: ends[one.id][1]):
        x, y = ends[e.id]
        height = (float(scale(y)) - low) / ((high - low) or 1.0) * (HEIGHT - 32)
        at_edge = x >= 0.8 * far
        wanted = max(height, placed + _LABEL_GAP_PX) if at_edge else height
        placed = wanted if at_edge else placed
        name = names[e.id] if len(names[e.id]) <= _NAME else names[e.id][: _NAME - 1] + "…"
        figure.add_annotation(
            x=x, y=float(scale(y)), text=f"<b>{fmt.loss(y)}</b> {esc(name)}", showarrow=False, xanchor="left", xshift=6,
            yshift=wanted - height, font={"size": 12, "color": palette.run(e.run.color_slot)},
        )  # fmt: skip


def _end(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    last = np.flatnonzero(np.isfinite(y))[-1]
    return float(x[last]), float(y[last])


def short_names(shown: Sequence[RunEntry]) -> dict[str, str]:
    """Names by run id without the words that all begin with: `lr1e-3-s1` of `austen-moe4-lr1e-3-s1`."""
    parts = [re.split(r"(?<=[-_. ])", e.title) for e in shown]
    shared = 0
    while len(parts) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return {e.id: "".join(p[shared:]) for e, p in zip(shown, parts, strict=True)}


def _note(compared: Sequence[RunEntry], lines: Mapping[str, Points], axis: str, total: int, drawn: int) -> str:
    missing = [e.id for e in compared[:MAX_COMPARED] if e.id not in lines]
    said = [
        f"{MAX_COMPARED} of {len(compared)} runs drawn" if len(compared) > MAX_COMPARED else "",
        f"{fmt.number(total)} → {fmt.number(drawn)} points, extremes kept" if drawn < total else "",
        common_point(lines, axis) if len(lines) <= 4 else "",
        f"nothing measured of {', '.join(missing[:4])}" if missing else "",
    ]
    return " · ".join(filter(None, said))


def setting_rows(compared: Sequence[RunEntry], paths: Sequence[str]) -> list[tuple[str, ...]]:
    """One row for each setting: its label, then its value in each run."""
    return [(label_of(path), *(cell(e.settings, path) for e in compared)) for path in paths]


# ---------------------------------------------------------------- cards
def curves_card(compared: Sequence[RunEntry]) -> None:
    """The curves, with what they are of and over which axis."""
    kept: dict[str, Any] = {"persist_state": "session", "label_visibility": "collapsed"}
    with st.container(border=True, key="rn_card_curves", gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            atoms.section("Curves", width="content")
            axis = st.segmented_control("Axis", list(AXES), default="Step", required=True, key="rn_axis", **kept)
            st.space("stretch")
            metric = st.selectbox(
                "Metric", list(METRICS), format_func=METRICS.__getitem__, key="rn_metric", width=170, **kept
            )
            log_y = st.toggle("Log y", key="rn_log", persist_state="session")
        made = chart(theme.palette(), compared, metric, axis or "Step", log_y)
        if made.drawn:
            charts.show(made.figure, "rn_chart", f"{METRICS[metric]} of {made.drawn} runs over {axis}")
        else:
            atoms.para("None of these has measured it yet.")
        if made.note:
            atoms.note(made.note)


def settings_card(compared: Sequence[RunEntry], paths: Sequence[str]) -> None:
    """Settings in which the runs differ, a column a run."""
    with st.container(border=True, key="rn_card_settings", gap="xsmall"):
        whole = len(compared[0].settings)
        atoms.head("Settings that differ", note=f"{len(paths)} of {whole}" if paths else "")
        unreadable = [e.id for e in compared if not e.settings]
        if unreadable:
            atoms.note(f"▲ The config of {', '.join(unreadable)} cannot be read.", role="warn")
        if not paths:
            atoms.para("All settings are the same.")
            return
        shown = compared[:MAX_COMPARED]
        head = ["", *(atoms.run_name(e.title, theme.run_color(e.run.color_slot)) for e in shown)]
        tracks = f"minmax(130px,1fr) repeat({len(shown)},minmax(84px,1fr))"
        with st.container(height=380 if len(paths) > 12 else "content", border=False):
            atoms.table(setting_rows(shown, paths), tracks, head)
