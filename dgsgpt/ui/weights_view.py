"""What the weights of checkpoints are like, layer by layer, and how far two of one shape are apart.

Read from the files alone, without building a model; what was measured is kept by the file's stamp.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import MODEL
from dgsgpt.errors import CheckpointError
from dgsgpt.ui import atoms, charts, engines, theme
from dgsgpt.ui.checkpoint_list import told
from dgsgpt.ui.comparison import Side
from dgsgpt.ui.engines import Stamp
from dgsgpt.ui.side_by_side import named
from dgsgpt.ui.theme import Palette

if TYPE_CHECKING:
    from dgsgpt.inspect.weights import LayerDistance, Statistics, WeightReport

AT_ONCE_BYTES = 32 << 20
MEASURES = {"rms": "RMS", "std": "Deviation", "max_abs": "Largest", "spectral_norm": "Spectral norm"}
_ABOUT = {
    "rms": "root mean square of the weights",
    "std": "standard deviation of the weights",
    "max_abs": "largest absolute weight",
    "spectral_norm": "largest singular value of a matrix of the layer",
}
HEIGHT, _LABEL_GAP_PX = 190, 13.0
_BLOCK = re.compile(r"block (\d+)$")
Curves = Mapping[str, Mapping[str, float]]


# ---------------------------------------------------------------- measuring
@st.cache_resource(max_entries=64, show_spinner=False)
def _report(path: Path, changed: Stamp) -> WeightReport:
    from dgsgpt.inspect.weights import weight_report

    return weight_report(path)


@st.cache_resource(max_entries=64, show_spinner=False)
def _distances(a: Path, b: Path, changed: tuple[Stamp, Stamp]) -> tuple[LayerDistance, ...] | str:
    """Distances by layer, or why there are none."""
    from dgsgpt.inspect.weights import layer_distances

    try:
        return tuple(layer_distances(a, b))
    except CheckpointError as error:
        return str(error)


def _measure(sides: Sequence[Side]) -> tuple[dict[str, WeightReport], dict[str, tuple[LayerDistance, ...]]]:
    """Reports by letter, and the distances to the first of those that have its shapes.

    Raises:
        CheckpointError: a file is gone or cannot be read.
    """
    paths = [side.entry.info.path for side in sides]
    stamps = [engines.stamp(path, MODEL) for path in paths]
    reports = {s.letter: _report(path, stamp) for s, path, stamp in zip(sides, paths, stamps, strict=True)}
    apart = {}
    for side, path, stamp in zip(sides[1:], paths[1:], stamps[1:], strict=True):
        found = _distances(paths[0], path, (stamps[0], stamp))
        if not isinstance(found, str):
            apart[side.letter] = found
    return reports, apart


# ---------------------------------------------------------------- figures
def order_of(layers: Iterable[str]) -> list[str]:
    """Layers of networks of any depth in one order: what comes before the blocks, the blocks, the rest."""

    def place(layer: str) -> tuple[int, int, str]:
        block = _BLOCK.match(layer)
        if block:
            return 1, int(block[1]), layer
        return (0 if layer.startswith(("embed", "ngram", "positions")) else 2), 0, layer

    return sorted(set(layers), key=place)


def short(layer: str) -> str:
    """A layer's name below an axis: blocks by their number, counted from 1."""
    block = _BLOCK.match(layer)
    return str(int(block[1]) + 1) if block else layer


def curves_of(reports: Mapping[str, WeightReport], measure: str) -> dict[str, dict[str, float]]:
    """One measure by letter and layer; layers without a matrix are left out: their weights are of another scale."""
    return {
        letter: {
            layer.layer: value
            for layer in report.layers
            if layer.statistics.spectral_norm is not None
            if (value := getattr(layer.statistics, measure)) is not None
        }
        for letter, report in reports.items()
    }


def chart(palette: Palette, curves: Curves, colors: Mapping[str, str], digits: str = ".4~g") -> go.Figure:
    """One line for each letter over the layers, named at its end."""
    layers = order_of(layer for curve in curves.values() for layer in curve)
    figure = charts.fig(palette, HEIGHT, margin={"l": 46, "r": 30, "t": 8, "b": 36})
    top = max((value for curve in curves.values() for value in curve.values()), default=0.0) or 1.0
    ends = []
    for letter, curve in curves.items():
        known = [(i, curve[layer]) for i, layer in enumerate(layers) if layer in curve]
        if not known:
            continue
        x, y = zip(*known, strict=True)
        color = colors[letter]
        trace = charts.line(x, y, color, letter or "weights", width=1.7, hovertemplate=f"%{{y:{digits}}}")
        figure.add_trace(trace.update(mode="lines+markers", marker={"size": 5}))
        ends.append((y[-1], x[-1], letter))
    _label(figure, ends, top, colors)
    every = max(1, -(-len(layers) // 14))
    ticks = [i for i, layer in enumerate(layers) if not _BLOCK.match(layer) or i % every == 0]
    figure.update_xaxes(
        tickvals=ticks, ticktext=[short(layers[i]) for i in ticks], range=[-0.3, max(1, len(layers) - 1) + 0.3],
        title={"text": "layer", "standoff": 6},
    )  # fmt: skip
    figure.update_yaxes(range=[0, 1.08 * top], nticks=5)
    return figure


def _label(figure: go.Figure, ends: Sequence[tuple[float, int, str]], top: float, colors: Mapping[str, str]) -> None:
    placed = -100.0
    for y, x, letter in sorted(ends):
        height = y / (1.08 * top) * (HEIGHT - 44)
        wanted = max(height, placed + _LABEL_GAP_PX)
        placed = wanted
        figure.add_annotation(
            x=x, y=y, text=f"<b>{letter}</b>", showarrow=False, xanchor="left", xshift=8, yshift=wanted - height,
            font={"size": 12, "color": colors[letter]},
        )  # fmt: skip


def tensor_frame(report: WeightReport) -> pd.DataFrame:
    """One line a tensor."""
    rows = [
        {"tensor": t.name, "shape": " × ".join(map(str, t.shape)), "dtype": t.dtype, **_row(t.statistics)}
        for t in report.tensors
    ]
    return pd.DataFrame(rows)


def layer_frame(reports: Mapping[str, WeightReport]) -> pd.DataFrame:
    """One line a layer, the measures of each letter side by side."""
    found = {
        letter: {layer.layer: _row(layer.statistics) for layer in report.layers} for letter, report in reports.items()
    }
    layers = order_of(layer for rows in found.values() for layer in rows)
    empty = dict.fromkeys(_row(None))
    rows = [
        {"layer": layer}
        | {f"{name} {letter}": found[letter].get(layer, empty)[name] for name in empty for letter in found}
        for layer in layers
    ]
    return pd.DataFrame(rows)


def _row(statistics: Statistics | None) -> dict[str, Any]:
    names = {
        "parameters": "parameters", "rms": "RMS", "std": "deviation", "max_abs": "largest", "spectral_norm": "spectral",
        "zeros": "zeros", "non_finite": "not finite",
    }  # fmt: skip
    return {shown: getattr(statistics, name, None) for name, shown in names.items()}


def broken(reports: Mapping[str, WeightReport]) -> list[str]:
    """Which weights are no numbers, a sentence for each letter that has some."""
    said = []
    for letter, report in reports.items():
        bad = [layer for layer in report.layers if layer.statistics.non_finite]
        count = sum(layer.statistics.non_finite for layer in bad)
        if bad:
            where = ", ".join(layer.layer for layer in bad[:4]) + (" and more" if len(bad) > 4 else "")
            said.append(f"{letter + ': ' if letter else ''}{fmt.plural(count, 'weight')} not finite, in {where}")
    return said


# ---------------------------------------------------------------- the card
def card(sides: Sequence[Side]) -> None:
    """Two charts and a table; at once for small files where torch is in memory anyway, else when asked for."""
    with st.container(border=True, key="ck_card_weights", gap="xsmall"):
        key = tuple(side.entry.ref for side in sides)
        size = sum(_size(side.entry.info.path) for side in sides)
        asked: set[tuple[str, ...]] = st.session_state.setdefault("ck_weights_asked", set())
        quick = size <= AT_ONCE_BYTES and "torch" in sys.modules  # importing it would hold the page up for seconds
        if not quick and key not in asked:
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                atoms.head("Weights by layer", note=f"reads {fmt.size(size)}")
                st.button("Measure", icon=":material/straighten:", key="ck_weights", on_click=asked.add, args=(key,))
            return
        try:
            with st.spinner(f"Reading {fmt.size(size)} of weights…", show_time=True):
                reports, apart = _measure(sides)
        except CheckpointError as error:
            atoms.head("Weights by layer")
            atoms.para(told(error, sides[0].entry) if len(sides) == 1 else named(error, sides), role="bad")
            return
        _draw(sides, reports, apart)


def _size(path: Path) -> int:
    try:
        return (path / MODEL).stat().st_size
    except OSError:  # measuring tells what is wrong with it
        return 0


def _draw(
    sides: Sequence[Side], reports: Mapping[str, WeightReport], apart: Mapping[str, tuple[LayerDistance, ...]]
) -> None:
    colors = {side.letter: side.color for side in sides}
    palette = theme.palette()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        atoms.section("Weights by layer", width="content")
        st.space("stretch")
        measure = st.segmented_control(
            "Measure", list(MEASURES), default="rms", required=True, label_visibility="collapsed", key="ck_measure",
            format_func=MEASURES.__getitem__, persist_state="session",
        ) or "rms"  # fmt: skip
    for sentence in broken(reports):
        atoms.field_error(sentence)
    with st.grid(2, min_column_width=380) as grid:
        with grid.cell(), st.container(gap="xsmall"):
            atoms.head(MEASURES[measure], note=_ABOUT[measure])
            charts.show(chart(palette, curves_of(reports, measure), colors), "ck_weights_measure", _ABOUT[measure])
        with grid.cell(), st.container(gap="xsmall"):
            _second(palette, sides, reports, apart, colors, measure)
    with st.expander("All layers" if len(sides) > 1 else "All tensors"):
        table = layer_frame(reports) if len(sides) > 1 else tensor_frame(next(iter(reports.values())))
        st.dataframe(_styled(table), hide_index=True, width="stretch", placeholder=fmt.MISSING, key="ck_weights_table")
    atoms.note("Charts leave out layers without a matrix, such as the last norm; the table has them.")


def _second(
    palette: Palette, sides: Sequence[Side], reports: Mapping[str, WeightReport],
    apart: Mapping[str, tuple[LayerDistance, ...]], colors: Mapping[str, str], measure: str,
) -> None:  # fmt: skip
    if len(sides) == 1:
        other = "rms" if measure == "spectral_norm" else "spectral_norm"
        atoms.head(MEASURES[other], note=_ABOUT[other])
        charts.show(chart(palette, curves_of(reports, other), colors), "ck_weights_second", _ABOUT[other])
        return
    atoms.head("Distance from A", note="length of the difference, A's weights being 1")
    away = {k: {d.layer: d.distance for d in found if d.distance is not None} for k, found in apart.items()}
    if away:
        charts.show(chart(palette, away, colors), "ck_weights_second", "Relative distance of the weights from A")
    missing = [side.letter for side in sides[1:] if side.letter not in apart]
    if missing:
        atoms.para(f"{', '.join(missing)} and A differ in their tensors' names or shapes: no distance by layer.")


def _styled(table: pd.DataFrame) -> Any:
    formats: dict[Any, Any] = {
        name: fmt.number if name.startswith(("parameters", "not finite")) else fmt.percent if name.startswith("zeros")
        else "{:.4g}".format
        for name in table.columns if pd.api.types.is_numeric_dtype(table[name])
    }  # fmt: skip
    return table.style.format(formats, na_rep=fmt.MISSING)


__all__ = ["broken", "card", "chart", "curves_of", "layer_frame", "order_of", "short", "tensor_frame"]
