"""The loss chart: raw, smoothed and validation losses of several runs, labelled at their ends, over an event lane."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dgsgpt import format as fmt
from dgsgpt.config import RunConfig
from dgsgpt.metrics import decimate, ema
from dgsgpt.ui import charts
from dgsgpt.ui.health import look_of
from dgsgpt.ui.markup import esc
from dgsgpt.ui.theme import Palette, rgba

AXES = {"Step": "step", "Tokens": "tokens", "FLOPs": "flops", "Time": "time_s"}
MAX_POINTS = 2000
_LANE = {
    "checkpoint": ("saved", 2, "square", 7),
    "sample": ("samples", 1, "diamond", 7),
    "health": ("health", 0, "triangle-up", 9),
}
_LABEL_GAP_PX = 15.0
_PLOT_PX = (charts.MAIN_HEIGHT - 26) * 0.845  # what margins and the lane leave to the curves


def default_smoothing(config: RunConfig | None) -> float:
    """An EMA weight that suits the run's length.

    A weight of 0.9 averages some twenty points: on a curve of a hundred that lags visibly behind.
    """
    points = config.train.steps / config.train.log_every if config else MAX_POINTS
    return 0.5 if points <= 200 else 0.8 if points <= 1000 else 0.9


@dataclass(frozen=True)
class Curve:
    """One run's losses: name, colour slot, metrics, whether it is selected, whether it grows, and its last step."""

    name: str
    slot: int
    frame: pd.DataFrame
    main: bool = False
    live: bool = False
    last_step: int = 0


@dataclass(frozen=True)
class LossOptions:
    """What the toolbar says: x axis (a key of `AXES`), EMA weight, raw curve, logarithmic y."""

    axis: str = "Step"
    weight: float = 0.9
    raw: bool = True
    log_y: bool = False


@dataclass(frozen=True)
class LossChart:
    """The figure and one honest line on what it hides."""

    figure: go.Figure
    caption: str
    drawn: int = field(default=0)
    total: int = field(default=0)


def columns(frame: pd.DataFrame, name: str, axis: str = "Step") -> tuple[np.ndarray, np.ndarray]:
    """The axis and one metric where both are known; empty arrays for a metric that was never written."""
    key = AXES[axis]
    if name not in frame or key not in frame:
        return np.empty(0), np.empty(0)
    known = frame[[key, name]].dropna() if key != name else frame[[key]].dropna()
    return known[key].to_numpy(dtype=float), known[name].to_numpy(dtype=float)


def loss_chart(
    palette: Palette, curves: Sequence[Curve], events: Iterable[Mapping[str, Any]], options: LossOptions
) -> LossChart:
    """The main chart of the Train page; the selected run is drawn last and alone has raw, circles and events."""
    unit, scale = _time_unit(curves) if options.axis == "Time" else ("", 1.0)
    figure = charts.fig(palette, charts.MAIN_HEIGHT, margin={"l": 34, "r": 124, "t": 6, "b": 20})
    figure.update_xaxes(anchor="y2", ticks="", exponentformat="B", ticksuffix=unit)
    if options.axis == "Step":
        figure.update_xaxes(tickformat=",d")
    reach = _horizon(curves, options.axis) / scale
    figure.update_xaxes(range=[0, reach or 1])
    ends: list[tuple[Curve, float, float]] = []
    smoothed: list[np.ndarray] = []
    drawn = total = 0
    for curve in sorted(curves, key=lambda item: item.main):
        x, raw = columns(curve.frame, "loss/train", options.axis)
        x, total = x / scale, total + len(x)
        if len(x):
            smooth = ema(raw, options.weight)
            smoothed.append(smooth)
            ends.append((curve, float(x[-1]), float(smooth[-1])))
            drawn += _add_curve(figure, palette, curve, (x, raw, smooth), options)
        if curve.main:
            _add_validation(figure, palette, curve, options, scale)
    low, high, cut = _y_range(smoothed, curves, options)
    _set_y(figure, low, high, options.log_y)
    _add_labels(figure, palette, ends, (low, high), options.log_y, reach)
    for curve in (c for c in curves if c.main):
        _add_events(figure, palette, curve, events, options, scale)
    return LossChart(figure, _caption(drawn, total, options, cut, curves), drawn, total)


def _add_curve(
    figure: go.Figure,
    palette: Palette,
    curve: Curve,
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
    options: LossOptions,
) -> int:
    x, raw, smooth = data
    color = palette.run(curve.slot)
    if options.raw and curve.main and options.weight > 0:
        rx, ry = decimate(x, raw, MAX_POINTS)
        figure.add_trace(charts.line(rx, ry, rgba(color, 0.3), "raw", width=0.8, hoverinfo="skip"))
    sx, sy = decimate(x, smooth, MAX_POINTS)
    width = 2.2 if curve.main else 1.5
    trace = charts.line(sx, sy, color, curve.name, width=width, dash=palette.dash(curve.slot), hovertemplate="%{y:.4f}")
    figure.add_trace(trace)
    return len(sx)


def _add_validation(figure: go.Figure, palette: Palette, curve: Curve, options: LossOptions, scale: float) -> None:
    x, y = columns(curve.frame, "loss/val", options.axis)
    if len(x):
        marker = {"size": 6.5, "color": palette["bg"], "line": {"color": palette.run(curve.slot), "width": 1.6}}
        figure.add_scatter(x=x / scale, y=y, mode="markers", name="validation", marker=marker, hovertemplate="%{y:.4f}")


def _horizon(curves: Sequence[Curve], axis: str) -> float:
    """Where the x axis ends: at the furthest run's end, with room for a label while it still grows."""
    far = 0.0
    for curve in curves:
        x, _ = columns(curve.frame, AXES[axis], axis)
        if len(x):
            steps, end = float(curve.frame["step"].max()), float(x[-1])
            whole = end * curve.last_step / steps if curve.live and curve.last_step > steps > 0 else end
            far = max(far, min(whole, 1.2 * end))
    return far


def _time_unit(curves: Sequence[Curve]) -> tuple[str, float]:
    last = max((float(c.frame["time_s"].max()) for c in curves if "time_s" in c.frame and len(c.frame)), default=0.0)
    return ("\u00a0h", 3600.0) if last >= 7200 else ("\u00a0m", 60.0) if last >= 120 else ("\u00a0s", 1.0)


def _y_range(smoothed: Sequence[np.ndarray], curves: Sequence[Curve], options: LossOptions) -> tuple[float, float, int]:
    """Lowest and highest loss shown, and how many points the cut leaves out; the first steep drop may be cut."""
    if not smoothed:
        return 0.0, 1.0, 0  # nothing yet: an empty frame
    mains = [curve.frame for curve in curves if curve.main]
    val = [columns(frame, "loss/val", options.axis)[1] for frame in mains]
    every = np.concatenate([*smoothed, *val])
    low, top = float(every.min()), float(every.max())
    raw = np.concatenate([columns(frame, "loss/train", options.axis)[1] for frame in mains] or [np.empty(0)])
    if options.raw and len(raw):
        low = min(low, float(np.quantile(raw, 0.02)))
    if options.log_y:
        return low, top, 0
    knee = float(np.quantile(np.concatenate(smoothed), 0.95))
    pad = max(0.06 * (knee - low), 1e-3)
    if top - low <= 2.0 * (knee - low):
        return low - pad, top + pad, 0
    high = knee + 4 * pad
    return low - pad, high, int(sum((s > high).sum() for s in smoothed))


def _set_y(figure: go.Figure, low: float, high: float, log_y: bool) -> None:
    figure.update_layout(yaxis={"domain": [0.155, 1]})
    if log_y:
        charts.set_log_y(figure, max(low, 1e-6), max(high, 1e-5))
    else:
        figure.update_yaxes(range=[low, high])


def _add_labels(
    figure: go.Figure,
    palette: Palette,
    ends: Sequence[tuple[Curve, float, float]],
    span: tuple[float, float],
    log_y: bool,
    reach: float,
) -> None:
    """Name and value at each line's own end; labels that end at the right edge are pushed apart."""
    if not ends:
        return
    low, high = (np.log10(max(v, 1e-6)) for v in span) if log_y else span
    placed = -np.inf
    for curve, x, y in sorted(ends, key=lambda end: end[2]):
        height = ((np.log10(y) if log_y else y) - low) / ((high - low) or 1.0) * _PLOT_PX
        at_edge = x >= 0.85 * reach
        wanted = max(height, placed + _LABEL_GAP_PX) if at_edge else height
        placed = wanted if at_edge else placed
        name = curve.name if len(curve.name) <= 13 else curve.name[:12] + "…"
        figure.add_annotation(
            x=x, y=np.log10(y) if log_y else y, text=f"<b>{fmt.loss(y)}</b> {esc(name)}", showarrow=False,
            xanchor="left", xshift=6, yshift=wanted - height, font={"size": 12, "color": palette.run(curve.slot)},
        )  # fmt: skip


def _event_rows(
    curve: Curve, events: Iterable[Mapping[str, Any]], options: LossOptions, scale: float
) -> dict[str, list[tuple[float, str, str]]]:
    """Events of each lane as position on the x axis, hover text and the role of its colour."""
    steps, positions = columns(curve.frame, AXES[options.axis])
    rows: dict[str, list[tuple[float, str, str]]] = {kind: [] for kind in _LANE}
    for event in events:
        kind, step = event.get("kind"), event.get("step")
        if kind in rows and isinstance(step, int | float) and len(steps):
            at = float(np.interp(step, steps, positions)) / scale
            role = look_of(dict(event))[1] if kind == "health" else "ink3"
            rows[kind].append((at, f"step {fmt.number(step)} {event.get('message') or ''}", role))
    return rows


def _add_events(
    figure: go.Figure,
    palette: Palette,
    curve: Curve,
    events: Iterable[Mapping[str, Any]],
    options: LossOptions,
    scale: float,
) -> None:
    """Three rows under the same x axis: what was saved, sampled, and what went wrong."""
    rows = _event_rows(curve, events, options, scale)
    for kind, (name, level, symbol, size) in _LANE.items():
        points = rows[kind]
        figure.add_scatter(
            x=[at for at, _, _ in points], y=[level] * len(points), yaxis="y2", mode="markers", name=name,
            text=[esc(label.strip()) for _, label, _ in points], hovertemplate="%{text}", cliponaxis=False,
            marker={"symbol": symbol, "size": size, "color": [palette[role] for *_, role in points]},
        )  # fmt: skip
        figure.add_annotation(
            x=1.006, xref="paper", yref="y2", y=level, text=name, showarrow=False, xanchor="left",
            font={"size": 11, "color": palette["ink3"]},
        )  # fmt: skip
    for at, _, role in rows["health"][-5:]:
        figure.add_shape(
            type="line",
            x0=at,
            x1=at,
            yref="paper",
            y0=0.04,
            y1=1,
            line={"color": palette[role], "width": 1, "dash": "dot"},
        )
    figure.update_layout(
        yaxis2={
            "domain": [0, 0.115], "range": [-0.7, 2.7], "showgrid": False, "zeroline": False,
            "showticklabels": False, "fixedrange": True,
        }
    )  # fmt: skip


def _caption(drawn: int, total: int, options: LossOptions, cut: int, curves: Sequence[Curve]) -> str:
    parts = []
    if drawn < total:
        parts.append(f"{fmt.number(total)} → {fmt.number(drawn)} points drawn, extremes kept, EMA on all data")
    elif total:
        parts.append(
            f"{fmt.plural(total, 'point')}, EMA {options.weight:g} on all of them" if options.weight else "raw values"
        )
    if cut:
        parts.append(f"axis cut: {fmt.plural(cut, 'point')} of the first drop above")
    if any(len(columns(c.frame, "loss/val")[0]) for c in curves if c.main):
        parts.append("○ validation")
    return " · ".join(parts) or "The first line of metrics has not arrived yet."
