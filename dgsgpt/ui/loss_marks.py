"""Marks on the loss chart: what was saved, sampled and found under the curves, and what no curve can show on top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dgsgpt import format as fmt
from dgsgpt.ui.health import look_of
from dgsgpt.ui.loss_axes import LANE_TOP, Range, first_drop
from dgsgpt.ui.loss_data import AXES, Curve, Line, LossOptions, columns, missing, thin
from dgsgpt.ui.markup import esc
from dgsgpt.ui.theme import Palette

_LANE = {
    "checkpoint": ("saved", 2, "square", 7),
    "sample": ("samples", 1, "diamond", 7),
    "health": ("health", 0, "triangle-up", 9),
}
_NAMES = {"nonfinite": "not finite", "grad_norm_spike": "gradient spike", "grad_norm_risen": "gradient norm risen"}
LINES = 5  # health events that get a line through the plot
MAX_STRETCHES = 200
_EDGE = 0.975  # where on the frame marks of the upper edge lie


@dataclass(frozen=True)
class Hidden:
    """What marks stand for: logged steps without a finite loss, and points above the axis after the first drop."""

    nan: int = 0
    above: int = 0


@dataclass(frozen=True)
class _Mark:
    """An event on the chart: its place on the x axis, what it says, the role of its colour, its short name."""

    at: float
    said: str
    role: str
    name: str


# ---------------------------------------------------------------- the event lane
def add_events(
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
            x=[mark.at for mark in points], y=[level] * len(points), yaxis="y2", mode="markers", name=name,
            text=[esc(mark.said) for mark in points], hovertemplate="%{text}", cliponaxis=False,
            marker={"symbol": symbol, "size": size, "color": [palette[mark.role] for mark in points]},
        )  # fmt: skip
        figure.add_annotation(
            x=1.006, xref="paper", yref="y2", y=level, text=name, showarrow=False, xanchor="left",
            font={"size": 11, "color": palette["ink3"]},
        )  # fmt: skip
    _add_health_lines(figure, palette, rows["health"], figure.layout.xaxis.type == "log")
    figure.update_layout(
        yaxis2={
            "domain": [0, LANE_TOP], "range": [-0.7, 2.7], "showgrid": False, "zeroline": False,
            "showticklabels": False, "fixedrange": True,
        }
    )  # fmt: skip


def _add_health_lines(figure: go.Figure, palette: Palette, found: Sequence[_Mark], log_x: bool) -> None:
    """A dotted line for each of the last findings, to see what the curve did then; the last has its name."""
    found = [mark for mark in found if mark.role != "good"]
    for mark in found[-LINES:]:
        line = {"color": palette[mark.role], "width": 1, "dash": "dot"}
        figure.add_shape(type="line", x0=mark.at, x1=mark.at, yref="paper", y0=0.04, y1=1, line=line)
    if found:
        place = float(np.log10(found[-1].at)) if log_x else found[-1].at
        low, high = figure.layout.xaxis.range
        right = place > low + 0.7 * (high - low)
        figure.add_annotation(
            x=place, y=0.9, yref="paper", text=esc(found[-1].name[:40]), showarrow=False,
            xanchor="right" if right else "left", xshift=-6 if right else 6,
            font={"size": 11, "color": palette[found[-1].role]},
        )  # fmt: skip


def _event_rows(
    curve: Curve, events: Iterable[Mapping[str, Any]], options: LossOptions, scale: float
) -> dict[str, list[_Mark]]:
    """Events of each lane."""
    steps, positions = columns(curve.frame, AXES[options.axis])
    rows: dict[str, list[_Mark]] = {kind: [] for kind in _LANE}
    for event in events:
        kind, step = event.get("kind"), event.get("step")
        if kind in rows and isinstance(step, int | float) and len(steps):
            at = float(np.interp(step, steps, positions)) / scale
            role = look_of(dict(event))[1] if kind == "health" else "ink3"
            if at > 0 or not options.log_x:
                said = f"step {fmt.number(step)} {event.get('message') or ''}".strip()
                rows[kind].append(_Mark(at, said, role, _name(event)))
    return rows


def _name(event: Mapping[str, Any]) -> str:
    name = str(event.get("name") or "")
    return _NAMES.get(name) or name.replace("_", " ")


# ---------------------------------------------------------------- the upper edge
def add_edge(
    figure: go.Figure, palette: Palette, curves: Sequence[Curve], lines: Sequence[Line], options: LossOptions,
    scale: float, shown: Range,
) -> Hidden:  # fmt: skip
    """✕ where a loss was not finite, ▲ where a curve runs above the axis; both at the edge, under every zoom."""
    nan = _add_missing(figure, palette, curves, options, scale)
    stretches = [(line, *one) for line in lines for one in _above(line, options, shown)]
    count = sum(n for *_, n in stretches)
    biggest = sorted(stretches, key=lambda one: one[2])[-MAX_STRETCHES:]
    if biggest:
        marker = {"symbol": "triangle-up-open", "size": 8, "color": [palette.run(line.slot) for line, *_ in biggest]}
        text = [
            f"{esc(line.name)}: {fmt.plural(n, 'point')} above the axis, up to {fmt.loss(top)}"
            for line, _, top, n in biggest
        ]
        figure.add_scatter(
            x=[x for _, x, _, _ in biggest], y=[_EDGE] * len(biggest), yaxis="y3", mode="markers", name="above",
            text=text, hovertemplate="%{text}", marker=marker, cliponaxis=False,
        )  # fmt: skip
    return Hidden(nan, count)


def _add_missing(
    figure: go.Figure, palette: Palette, curves: Sequence[Curve], options: LossOptions, scale: float
) -> int:
    xs: list[np.ndarray] = []
    text: list[str] = []
    total = 0
    for curve in curves:
        x = missing(curve.frame, "loss/train", options.axis) / scale
        x = x[x > 0] if options.log_x else x
        total += len(x)
        shown, _ = thin(x, np.zeros(len(x)), options.log_x, MAX_STRETCHES)
        xs.append(shown)
        text += [f"{esc(curve.name)}: the loss was not finite"] * len(shown)
    if total:
        marker = {"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": palette["bad"]}}
        x = np.concatenate(xs)
        figure.add_scatter(
            x=x, y=[_EDGE] * len(x), yaxis="y3", mode="markers", name="not finite", text=text,
            hovertemplate="%{text}", marker=marker, cliponaxis=False,
        )  # fmt: skip
    return total


def _above(line: Line, options: LossOptions, shown: Range) -> list[tuple[float, float, int]]:
    """Stretches above the axis after the first drop: where the highest point is, its value, how many points."""
    values = line.raw if options.raw and line.main and len(line.raw) else line.y
    begin = first_drop(line, shown)
    above = np.flatnonzero(values[begin:] > shown.high) + begin
    if not len(above):
        return []
    parts = np.split(above, np.flatnonzero(np.diff(above) > 1) + 1)
    tops = [part[int(values[part].argmax())] for part in parts]
    return [(float(line.x[top]), float(values[top]), len(part)) for top, part in zip(tops, parts, strict=True)]
