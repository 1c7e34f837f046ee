"""Axes of the loss chart: how far they reach, in which unit, and what a cut leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dgsgpt import format as fmt
from dgsgpt.ui import charts
from dgsgpt.ui.loss_data import AXES, Curve, Line, LossOptions, columns
from dgsgpt.ui.markup import esc
from dgsgpt.ui.theme import Palette

LANE_TOP = 0.115  # share of the plot's height that the event lane takes, and where the curves begin above it
PLOT_BOTTOM = 0.155
PLOT_PX = (charts.MAIN_HEIGHT - 26) * (1 - PLOT_BOTTOM)
DROPPED = 0.15  # share of the axis below its upper end where a first drop is over
ROOM = 1.006
SAMPLED = 20_000
_LABEL_GAP_PX = 15.0
_NAME = 15


@dataclass(frozen=True)
class Range:
    """Lowest and highest loss shown, and how many points of the first drop lie above."""

    low: float
    high: float
    cut: int = 0


def horizon(curves: Sequence[Curve], axis: str) -> float:
    """Where the x axis ends: at the furthest run's end, with room for a label while it still grows."""
    far = 0.0
    for curve in curves:
        x, _ = columns(curve.frame, AXES[axis], axis)
        if len(x):
            steps, end = float(np.max(np.asarray(curve.frame["step"]))), float(x[-1])
            whole = end * curve.last_step / steps if curve.live and curve.last_step > steps > 0 else end
            far = max(far, min(whole, 1.2 * end))
    return far


def with_room(reach: float, curves: Sequence[Curve]) -> float:
    """The same with room for half a ring behind the last point, where the axis would end at it."""
    return reach if any(curve.live for curve in curves) else ROOM * reach


def time_unit(curves: Sequence[Curve]) -> tuple[str, float]:
    """The unit that suits the longest run, and its seconds."""
    times = [columns(curve.frame, "time_s", "Time")[1] for curve in curves]
    last = max((float(t.max()) for t in times if len(t)), default=0.0)
    return ("\u00a0h", 3600.0) if last >= 7200 else ("\u00a0m", 60.0) if last >= 120 else ("\u00a0s", 1.0)


def set_x(figure: go.Figure, options: LossOptions, reach: float, first: float, unit: str) -> None:
    """The x axis from zero to `reach`, or logarithmic from the first point."""
    figure.update_xaxes(anchor="y2", ticks="", exponentformat="B", ticksuffix=unit)
    if options.log_x and 0 < first < reach:
        low, high = np.log10(first), np.log10(reach)
        ticks = charts.log_ticks(first, reach, 9)
        text = [fmt.scientific(v) if options.axis == "FLOPs" else fmt.si(v) for v in ticks]
        figure.update_xaxes(
            type="log", range=[low - 0.01 * (high - low), high], tickvals=ticks, ticktext=[t + unit for t in text],
            ticksuffix="", exponentformat=None,
        )  # fmt: skip
        return
    if options.axis == "Step":
        figure.update_xaxes(tickformat=",d")
    figure.update_xaxes(range=[0, reach or 1])


def y_range(lines: Sequence[Line], curves: Sequence[Curve], options: LossOptions) -> Range:
    """The losses shown; where both axes are linear, a first steep drop may be cut off."""
    if not lines:
        return Range(0.0, 1.0)  # nothing yet: an empty frame
    smoothed = [line.y for line in lines]
    bands = [part for line in lines for part in (line.low, line.high)]
    val = [columns(curve.frame, "loss/val", options.axis)[1] for curve in curves if curve.main]
    every = np.concatenate([*smoothed, *bands, *val])
    low, top = float(every.min()), float(every.max())
    raw = np.concatenate([line.raw for line in lines if line.main] or [np.empty(0)])
    if options.raw and len(raw):
        low = min(low, float(np.quantile(_some(raw), 0.02)))
    if options.log_y:
        return Range(low, top)
    # Of all points nearly all, but of each run enough too: a short one must not vanish above many points of a long one.
    own = [float(np.quantile(_some(line.y), 0.9 if line.main else 0.5)) for line in lines]
    knee = max(float(np.quantile(_some(np.concatenate(smoothed)), 0.95)), *own)
    pad = max(0.06 * (knee - low), 1e-3)
    if options.log_x or top - low <= 2.0 * (knee - low):
        return Range(low - pad, top + pad)
    high = knee + 4 * pad
    shown = Range(low - pad, high)
    return Range(low - pad, high, sum(int((line.y[: first_drop(line, shown)] > high).sum()) for line in lines))


def _some(values: np.ndarray) -> np.ndarray:
    """Evenly spaced ones of very many values: enough to say where an axis is cut."""
    return values[:: len(values) // SAMPLED + 1]


def first_drop(line: Line, shown: Range) -> int:
    """How many points of a curve belong to its first drop: until it is well inside the axis, past all wavering."""
    inside = np.flatnonzero(line.y <= shown.high - DROPPED * (shown.high - shown.low))
    return int(inside[0]) if len(inside) else len(line.y)


def set_y(figure: go.Figure, shown: Range, log_y: bool) -> None:
    """The y axis above the event lane, and a frame over it whose edges stay where they are under every zoom."""
    figure.update_yaxes(domain=[PLOT_BOTTOM, 1])
    if log_y:
        charts.set_log_y(figure, max(shown.low, 1e-6), max(shown.high, 1e-5))
    else:
        figure.update_yaxes(range=[shown.low, shown.high])
    figure.update_layout(
        yaxis3={
            "overlaying": "y", "range": [0, 1], "domain": [PLOT_BOTTOM, 1], "fixedrange": True, "showgrid": False,
            "zeroline": False, "showticklabels": False, "visible": False,
        },
    )  # fmt: skip


def _across(line: Line, log_x: bool) -> float:
    """Where a line ends, as an annotation wants it: on a logarithmic axis by its exponent."""
    return float(np.log10(line.x[-1]) if log_x else line.x[-1])


def add_labels(
    figure: go.Figure,
    palette: Palette,
    lines: Sequence[Line],
    names: dict[str, str],
    shown: Range,
    options: LossOptions,
) -> None:
    """Name and value at each line's own end; labels that end at the right edge are pushed apart."""
    low, high = (np.log10(max(v, 1e-6)) for v in (shown.low, shown.high)) if options.log_y else (shown.low, shown.high)
    placed, (left, right) = -np.inf, figure.layout.xaxis.range
    log_x = figure.layout.xaxis.type == "log"
    labels: list[dict[str, Any]] = []
    furthest = max((_across(line, log_x) for line in lines), default=0.0)
    for line in sorted(lines, key=lambda one: float(one.y[-1])):
        y = float(line.y[-1])
        at = np.log10(y) if options.log_y else y
        height = (at - low) / ((high - low) or 1.0) * PLOT_PX
        across = _across(line, log_x)
        at_edge = across >= left + 0.85 * (right - left)
        across = furthest if at_edge else across  # a line that goes on would run through it
        wanted = max(height, placed + _LABEL_GAP_PX) if at_edge else height
        placed = wanted if at_edge else placed
        name = names[line.name] if len(names[line.name]) <= _NAME else names[line.name][: _NAME - 1] + "…"
        of = f" of {line.given}" if line.given > line.runs else ""
        count = f" n={line.runs}{of}" if len(line.low) else ""
        labels.append(
            {
                "x": across, "y": at, "text": f"<b>{fmt.loss(y)}</b> {esc(name)}{count}", "showarrow": False,
                "xanchor": "left", "xshift": 6, "yshift": wanted - height,
                "font": {"size": 12, "color": palette.run(line.slot)},
            }
        )  # fmt: skip
    figure.update_layout(annotations=labels)  # all at once: each that is added has plotly check all of them again
