"""Plotly figures in the product's style: columns in, figure out, no session and no files.

No vertical grid, no legend (lines carry their own labels), colours of runs passed explicitly, svg only: WebGL
freezes machines without a GPU.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import ArrayLike

from dgsgpt import format as fmt
from dgsgpt.ui.markup import esc
from dgsgpt.ui.theme import SANS, Palette

HIDDEN_BUTTONS = ("lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "sendChartToCloud")
CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "displayModeBar": "hover",
    "responsive": True,
    "modeBarButtonsToRemove": list(HIDDEN_BUTTONS),
}
MAIN_HEIGHT, SMALL_HEIGHT = 392, 132


def fig(palette: Palette, height: int, **layout: Any) -> go.Figure:
    """An empty figure with the product's axes, type and colours; `layout` overrides."""
    title = {"font": {"size": 11, "color": palette["ink3"]}, "standoff": 4}
    axis: dict[str, Any] = {
        "zeroline": False, "automargin": False, "title": title,
        "tickfont": {"size": 11, "color": palette["ink3"]}, "exponentformat": "B",
    }  # fmt: skip
    base: dict[str, Any] = {
        "template": "none",
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": SANS, "size": 12, "color": palette["ink2"]},
        "margin": {"l": 40, "r": 10, "t": 6, "b": 24},
        "separators": ".\u202f",
        "showlegend": False,
        "hovermode": "x unified",
        "hoverlabel": {
            "bgcolor": palette["bg"],
            "bordercolor": palette["line"],
            "font": {"size": 12, "color": palette["ink"], "family": SANS},
        },
        "xaxis": {
            **axis, "showgrid": False, "showline": True, "linecolor": palette["line"], "ticks": "outside",
            "ticklen": 3, "tickcolor": palette["line"], "nticks": 7,
            "spikecolor": palette["ink3"], "spikethickness": 1, "spikedash": "solid",
        },
        "yaxis": {**axis, "gridcolor": palette["grid"], "gridwidth": 1, "nticks": 5, "showline": False, "ticks": ""},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": palette["ink3"], "activecolor": palette["accent"]},
    }  # fmt: skip
    figure = go.Figure(layout=base)  # at once: updating an existing figure takes fifteen times as long
    if layout:
        figure.update_layout(**layout)
    return figure


def nice_step(span: float, at_most: int = 4) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that parts `span` into at most `at_most` pieces."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / at_most))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * at_most >= span * (1 - 1e-9))


def log_ticks(low: float, high: float, at_most: int = 6) -> list[float]:
    """Round values of a logarithmic axis between two positive bounds: as many as fit, coarse ones first."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    chosen: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), [m / 10 for m in range(10, 100, 2)]):
        ticks = [round(m * 10.0**k, 12) for k in decades for m in mantissas if low <= m * 10.0**k <= high]
        if len(ticks) > at_most:
            break
        chosen = ticks
        if len(chosen) >= 3:
            break
    return chosen


def set_log_y(figure: go.Figure, low: float, high: float, pad: float = 0.06) -> None:
    """Make the y axis logarithmic between two positive values, with round ticks."""
    bottom, top = math.log10(low), math.log10(max(high, low * 1.01))
    edge = pad * (top - bottom)
    ticks = log_ticks(10 ** (bottom - edge), 10 ** (top + edge))
    figure.update_yaxes(
        type="log", range=[bottom - edge, top + edge], tickvals=ticks, ticktext=[f"{v:.4g}" for v in ticks]
    )


def line(
    x: ArrayLike, y: ArrayLike, color: str, name: str, *, width: float = 1.5, dash: str = "solid", **trace: Any
) -> go.Scatter:
    """A curve; `name` appears in the hover box."""
    return go.Scatter(
        x=x, y=y, mode="lines", name=esc(name), line={"color": color, "width": width, "dash": dash}, **trace
    )


def set_steps(figure: go.Figure, last: float) -> None:
    """A step axis from zero with a few round ticks, written short."""
    pace = nice_step(last)
    ticks = [i * pace for i in range(int(last / pace + 1e-9) + 1)]
    figure.update_xaxes(range=[0, last], tickvals=ticks, ticktext=[fmt.si(v) for v in ticks])


def show(figure: go.Figure, key: str, alt: str | None = None) -> None:
    """Draw a figure that is not live; an unchanged figure is left alone by the browser."""
    st.plotly_chart(figure, theme=None, key=key, width="stretch", config=CONFIG, alt=alt)


def small(
    palette: Palette,
    x: ArrayLike,
    y: ArrayLike,
    color: str,
    name: str,
    *,
    log_y: bool = False,
    limit: float | None = None,
    hover: str = ".3~s",
    dots: bool = False,
) -> go.Figure:
    """A small curve for a card; `limit` draws a dotted horizontal line (e.g. the clipping norm).

    `hover` is a d3 format for the value in the hover box; `dots` marks each point, for values measured now and then.
    """
    figure = fig(palette, SMALL_HEIGHT, margin={"l": 36, "r": 10, "t": 6, "b": 18})
    figure.add_trace(line(x, y, color, name, hovertemplate=f"%{{y:{hover}}}"))
    if dots:
        ring = {"size": 5, "color": palette["bg"], "line": {"color": color, "width": 1.4}}
        figure.data[0].update(mode="lines+markers", marker=ring, cliponaxis=False)  # the last ring is whole
    if limit is not None:
        figure.add_hline(y=limit, line={"color": palette["ink3"], "width": 1, "dash": "dot"})
    known = np.asarray(x, dtype=float)
    if len(known):
        set_steps(figure, float(known.max()))
    figure.update_yaxes(nticks=4)
    values = np.append(np.asarray(y, dtype=float), [] if limit is None else [limit])
    values = values[np.isfinite(values) & (values > 0)]
    if log_y and len(values):
        set_log_y(figure, float(values.min()), float(values.max()))
    return figure
