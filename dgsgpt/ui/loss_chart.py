"""The loss chart: raw, smoothed and validation losses of several runs, labelled at their ends, over an event lane."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import plotly.graph_objects as go

from dgsgpt import format as fmt
from dgsgpt.ui import charts, loss_axes, loss_marks
from dgsgpt.ui.loss_data import AXES as AXES
from dgsgpt.ui.loss_data import MAX_POINTS as MAX_POINTS
from dgsgpt.ui.loss_data import Curve as Curve
from dgsgpt.ui.loss_data import Line as Line
from dgsgpt.ui.loss_data import LossOptions as LossOptions
from dgsgpt.ui.loss_data import columns as columns
from dgsgpt.ui.loss_data import default_smoothing as default_smoothing
from dgsgpt.ui.loss_data import lines_of, on_log, short_names, thin
from dgsgpt.ui.loss_marks import Hidden
from dgsgpt.ui.theme import Palette, rgba

RIGHT_PX = 134  # for labels
FEW, MANY_POINTS = 6, 800  # of more lines than that, each has fewer points: about one a pixel


@dataclass(frozen=True)
class LossChart:
    """The figure and one honest line on what it hides; `scale` is what its x positions are divided by."""

    figure: go.Figure
    caption: str
    drawn: int = field(default=0)
    total: int = field(default=0)
    scale: float = 1.0


def loss_chart(
    palette: Palette, curves: Sequence[Curve], events: Iterable[Mapping[str, Any]], options: LossOptions
) -> LossChart:
    """The main chart of the Train page; the selected run is drawn last and alone has raw, circles and events."""
    unit, scale = loss_axes.time_unit(curves) if options.axis == "Time" else ("", 1.0)
    figure = charts.fig(palette, charts.MAIN_HEIGHT, margin={"l": 40, "r": RIGHT_PX, "t": 6, "b": 20})
    lines = lines_of(curves, options, scale)
    reach = loss_axes.with_room(loss_axes.horizon(curves, options.axis), curves) / scale
    loss_axes.set_x(figure, options, reach, min((float(line.x[0]) for line in lines), default=0.0), unit)
    many = len(lines) > FEW
    drawn = sum(_add_line(figure, palette, line, options, MANY_POINTS if many else MAX_POINTS) for line in lines)
    mains = [curve for curve in curves if curve.main]
    for curve in mains:
        _add_validation(figure, palette, curve, options, scale)
    shown = loss_axes.y_range(lines, curves, options)
    loss_axes.set_y(figure, shown, options.log_y)
    hidden = Hidden(0, 0)
    if lines:
        top = 10 ** float(figure.layout.yaxis.range[1]) if options.log_y else shown.high
        hidden = loss_marks.add_edge(figure, palette, curves, lines, options, scale, replace(shown, high=top))
    loss_axes.add_labels(figure, palette, lines, _label_names(lines), shown, options)
    for curve in mains:
        loss_marks.add_events(figure, palette, curve, events, options, scale)
    total = sum(line.points for line in lines)
    return LossChart(figure, _caption(drawn, total, options, shown.cut, hidden, curves, lines), drawn, total, scale)


def _label_names(lines: Sequence[Line]) -> dict[str, str]:
    """Runs without what all their names begin with; groups as they are."""
    shortened = short_names([line.name for line in lines])
    return {line.name: line.name if len(line.low) else shortened[line.name] for line in lines}


def _add_line(figure: go.Figure, palette: Palette, line: Line, options: LossOptions, limit: int) -> int:
    """Draw one line, with its raw values or its band; returns how many points its curve has.

    The selected run's is never thinned out to less than `MAX_POINTS`.
    """
    color, limit = palette.run(line.slot), MAX_POINTS if line.main else limit
    if options.raw and line.main and options.weight > 0 and len(line.raw):
        rx, ry = thin(line.x, line.raw, options.log_x)
        figure.add_trace(charts.line(rx, ry, rgba(color, 0.3), "raw", width=0.8, hoverinfo="skip"))
    if line.runs > 1:
        for name, edge, fill in (("lowest", line.low, None), ("highest", line.high, "tonexty")):
            bx, by = thin(line.x, edge, options.log_x, limit)
            trace = charts.line(bx, by, rgba(color, 0.0), name, width=0, hoverinfo="skip")
            figure.add_trace(trace.update(fill=fill, fillcolor=rgba(color, 0.16)))
    sx, sy = thin(line.x, line.y, options.log_x, limit)
    width, dash = (2.2 if line.main else 1.5), palette.dash(line.slot)
    figure.add_trace(charts.line(sx, sy, color, line.name, width=width, dash=dash, hovertemplate="%{y:.4f}"))
    return len(sx)


def _add_validation(figure: go.Figure, palette: Palette, curve: Curve, options: LossOptions, scale: float) -> None:
    x, y = columns(curve.frame, "loss/val", options.axis)
    x = x / scale
    if options.log_x:
        x, y = on_log(x, y)
    if len(x):
        x, y = thin(x, y, options.log_x, 400)
        marker = {"size": 6.5, "color": palette["bg"], "line": {"color": palette.run(curve.slot), "width": 1.6}}
        figure.add_scatter(x=x, y=y, mode="markers", name="validation", marker=marker, hovertemplate="%{y:.4f}")


def _caption(
    drawn: int, total: int, options: LossOptions, cut: int, hidden: Hidden, curves: Sequence[Curve],
    lines: Sequence[Line],
) -> str:  # fmt: skip
    parts = []
    grouped = any(len(line.low) for line in lines)
    if drawn < total:
        parts.append(f"{fmt.number(total)} → {fmt.number(drawn)} points drawn, extremes kept, EMA on all data")
    elif total:
        parts.append(
            f"{fmt.plural(total, 'point')}, EMA {options.weight:g} on all of them" if options.weight else "raw values"
        )
    if grouped:
        alone = sum(len(line.low) > 0 and line.runs == 1 for line in lines)
        said = f"; {fmt.plural(alone, 'group')} with n=1: no band" if alone else ""
        short = sum(line.given - line.runs for line in lines)
        said += f"; {fmt.plural(short, 'shorter run')} left out" if short else ""
        parts.append(f"line: mean, band: lowest to highest run{said}")
    if cut:
        parts.append(f"axis cut: {fmt.plural(cut, 'point')} of the first drop above")
    if hidden.above:
        parts.append(f"▲ {fmt.plural(hidden.above, 'later point')} above the axis")
    if hidden.nan:
        parts.append(f"✕ {fmt.plural(hidden.nan, 'step')} without a finite loss")
    if any(len(columns(c.frame, "loss/val")[0]) for c in curves if c.main):
        parts.append("○ validation")
    return " · ".join(parts) or "The first line of metrics has not arrived yet."
