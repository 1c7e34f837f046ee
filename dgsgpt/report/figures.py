"""The charts of a report, as plotly figures in plain values; the page gives them their colours, light or dark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dgsgpt import format as fmt
from dgsgpt.curves import decimate, ema, smoothing_for
from dgsgpt.palette import LIGHT, SANS
from dgsgpt.report.gather import Told

POINTS = 1500


def column(frame: pd.DataFrame, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values where the metric is known."""
    if key not in frame:
        return np.empty(0), np.empty(0)
    some = frame[["step", key]].dropna()
    return some["step"].to_numpy(dtype=float), some[key].to_numpy(dtype=float)


def losses(told: Sequence[Told]) -> tuple[str, str]:
    """Training losses (smoothed over all points, of a single run raw as well) and validation losses; JSON, caption."""
    figure, total, drawn = _empty(380), 0, 0
    for one in told:
        x, raw = column(one.frame, "loss/train")
        if len(x):
            weight = smoothing_for(len(x))
            if len(told) == 1:
                figure.add_trace(_line(*decimate(x, raw, POINTS), one, "raw", width=0.8, opacity=0.35))
            sx, sy = decimate(x, ema(raw, weight), POINTS)
            total, drawn = total + len(x), drawn + len(sx)
            figure.add_trace(_line(sx, sy, one, f"{one.title}, training, EMA {weight:g}", width=2))
        vx, vy = column(one.frame, "loss/val")
        if len(vx):
            marks = {"mode": "markers", "marker": {"size": 7, "symbol": "circle-open"}}
            figure.add_trace(_line(*decimate(vx, vy, POINTS), one, f"{one.title}, validation").update(marks))
    said = f"{fmt.plural(total, 'point')} of training"
    said += f", {fmt.number(drawn)} drawn, extremes kept" if drawn < total else ""
    return _json(figure), f"{said}, smoothed over all of them; ○ validation"


def small(told: Sequence[Told], key: str, name: str) -> str | None:
    """One metric of the runs over steps; None where none has it."""
    figure, any_ = _empty(190), False
    for one in told:
        x, y = column(one.frame, key)
        any_ = any_ or len(x) > 0
        figure.add_trace(_line(*decimate(x, y, 600), one, f"{one.title}, {name}", width=1.4))
    return _json(figure) if any_ else None


def _empty(height: int) -> go.Figure:
    figure = go.Figure()
    axis: dict[str, Any] = {"zeroline": False, "automargin": True, "exponentformat": "B"}
    figure.update_layout(
        template="none", height=height, showlegend=False, hovermode="x unified", font={"family": SANS, "size": 12},
        margin={"l": 44, "r": 12, "t": 8, "b": 28}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        xaxis={**axis, "showgrid": False}, yaxis=axis, separators=".\u202f",
    )  # fmt: skip
    return figure


def _line(x: np.ndarray, y: np.ndarray, one: Told, name: str, width: float = 1.5, opacity: float = 1.0) -> go.Scatter:
    slot = one.run.color_slot
    return go.Scatter(
        x=np.round(x, 6).tolist(), y=[float(f"{v:.6g}") if np.isfinite(v) else None for v in y.tolist()],
        mode="lines", name=escape(name), meta={"slot": slot % len(LIGHT.runs)}, opacity=opacity,
        line={"width": width, "dash": LIGHT.dash(slot)}, hovertemplate="%{y:.4g}",
    )  # fmt: skip


def _json(figure: go.Figure) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(figure.to_plotly_json(), allow_nan=False, default=_plain)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value.to_plotly_json()
