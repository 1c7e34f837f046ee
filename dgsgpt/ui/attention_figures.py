"""Figures of attention: one head as a matrix of tokens by tokens, and all heads of a layer as small ones.

Numbers in, figure out: no session and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from dgsgpt import format as fmt
from dgsgpt.ui import charts
from dgsgpt.ui.looking import colorscale, tick
from dgsgpt.ui.theme import Palette

if TYPE_CHECKING:
    from dgsgpt.inspect.attention import AttentionLook
    from dgsgpt.inspect.heads import Head

_LEFT, _BOTTOM = 84, 64
_BEFORE = -1.5  # where the column of earlier tokens stands
_MINI, _SLOTS, _STRIP_PX = 32, 12, 520
_FEWEST_SLOTS = 6  # fewer heads would be as large as the figure above them
_LEAST_CAP, _CAP_SHARE = 0.03, 0.98
Floats = npt.NDArray[np.float32]
Booleans = npt.NDArray[np.bool_]


def cap_of(look: AttentionLook) -> float:
    """The probability that gets the full colour: one for all heads of a layer, so that they compare."""
    size = len(look.labels)
    seen = look.maps[:, np.tril(np.ones((size, size), dtype=bool), -1)]
    return float(np.clip(np.quantile(seen, _CAP_SHARE), _LEAST_CAP, 1.0)) if seen.size else 1.0


# ---------------------------------------------------------------- one head
def heat(palette: Palette, look: AttentionLook, head: int) -> go.Figure:
    """One head: row looks at column; white is later, grey outside the window, the first column all before."""
    size = len(look.labels)
    figure = charts.fig(
        palette, max(330, size * _cell_px(size) + _BOTTOM + 8), hovermode="closest",
        margin={"l": _LEFT, "r": 6, "t": 4, "b": _BOTTOM},
    )  # fmt: skip
    _among_shown(figure, palette, look, head)
    if look.first:
        _before_shown(figure, palette, look, head)
    _name_tokens(figure, palette, look)
    return figure


def _among_shown(figure: go.Figure, palette: Palette, look: AttentionLook, head: int) -> None:
    """The matrix of the shown tokens."""
    names = [tick(label) for label in look.labels]
    size, window = len(names), look.heads[head].window
    outside, later = look.hidden(head), np.triu(np.ones((size, size), dtype=bool), 1)
    said = [
        [f"“{names[row]}” looks at “{names[key]}”: {fmt.percent(float(look.maps[head, row, key]))}"
         if key <= row else "" for key in range(size)]
        for row in range(size)
    ]  # fmt: skip
    _matrix(figure, palette, np.where(outside | later, np.nan, look.maps[head]), said, np.arange(size), cap_of(look))
    _grey(figure, palette, outside & ~later, np.arange(size), window)


def _before_shown(figure: go.Figure, palette: Palette, look: AttentionLook, head: int) -> None:
    """A column of its own: what went to all tokens before the shown ones."""
    window, place = look.heads[head].window, np.arange(len(look.labels))[:, None]
    gone = place + 1 >= window if window is not None else np.zeros_like(place, dtype=bool)
    earlier, at = look.earlier[head][:, None], np.array([_BEFORE])
    before = f"looks at the {fmt.plural(look.first, 'token')} before these"
    pairs = zip(look.labels, earlier[:, 0].tolist(), strict=True)
    said = [[f"“{tick(label)}” {before}: {fmt.percent(share)}"] for label, share in pairs]
    _matrix(figure, palette, np.where(gone, np.nan, earlier), said, at, cap_of(look))
    _grey(figure, palette, gone, at, window)


def _name_tokens(figure: go.Figure, palette: Palette, look: AttentionLook) -> None:
    """Tokens along both axes; of many only some across, where there is less room."""
    names = [tick(label) for label in look.labels]
    size, before = len(names), bool(look.first)
    axis: dict[str, Any] = {
        "showgrid": False, "showline": False, "ticks": "", "zeroline": False, "fixedrange": True,
        "tickfont": {"size": 10.5 if size <= 24 else 9, "color": palette["ink2"]},
    }  # fmt: skip
    across = range(0, size, -(-size // 48))
    figure.update_xaxes(
        **axis, tickvals=[_BEFORE] * before + list(across), tickangle=-60,
        ticktext=["before"] * before + [names[i] for i in across],
        range=[_BEFORE - 0.6 if before else -0.5, size - 0.5],
    )  # fmt: skip
    figure.update_yaxes(**axis, tickvals=list(range(size)), ticktext=names, range=[size - 0.5, -0.5])


def _cell_px(size: int) -> int:
    return 14 if size <= 24 else 12 if size <= 48 else 10


def _matrix(
    figure: go.Figure, palette: Palette, shares: Any, said: Sequence[Sequence[str]], x: Any, cap: float
) -> None:
    figure.add_heatmap(
        z=shares, x=x, y=np.arange(len(shares)), text=said, colorscale=colorscale(palette), zmin=0, zmax=cap,
        showscale=False, xgap=1, ygap=1, hovertemplate="%{text}<extra></extra>", hoverongaps=False, dx=1,
    )  # fmt: skip


def _grey(figure: go.Figure, palette: Palette, outside: Booleans, x: Any, window: int | None) -> None:
    """Cells that the head could not see; nothing is drawn where there are none."""
    if not outside.any():
        return
    figure.add_heatmap(
        z=np.where(outside, 1.0, np.nan), x=x, y=np.arange(len(outside)), showscale=False, xgap=1, ygap=1, dx=1,
        colorscale=[(0, palette["idlebg"]), (1, palette["idlebg"])], hoverongaps=False, name="outside",
        hovertemplate=f"outside the window of {fmt.number(window)}<extra></extra>",
    )  # fmt: skip


# ---------------------------------------------------------------- all heads of the layer
def strip(palette: Palette, look: AttentionLook, chosen: int) -> go.Figure:
    """All heads as small maps, a gap between those of different key/value heads, a frame around the chosen one."""
    sharing = len(look.heads) // len({head.group for head in look.heads})
    places = _places(len(look.heads), sharing)
    slots = max(_FEWEST_SLOTS, *(column + 1 for column, _ in places))
    rows, px = 1 + max(row for _, row in places), _STRIP_PX / slots
    figure = charts.fig(palette, int(rows * px) + 12, hovermode="closest", margin={"l": 2, "r": 2, "t": 4, "b": 4})
    cap, step = cap_of(look), 1.12
    for head, (column, row) in zip(look.heads, places, strict=True):
        _small(figure, palette, look, head.number, (column * step, row * step), cap)
    column, row = places[chosen]
    _frame(figure, (column * step, row * step), 0.03, line={"width": 1.5, "color": palette["accent"]})
    _handles(figure, look.heads, [(column * step + 0.5, row * step + 0.5) for column, row in places], sharing, px)
    hidden: dict[str, Any] = {"visible": False, "fixedrange": True}
    figure.update_xaxes(**hidden, range=[-0.05, slots * step], constrain="domain", constraintoward="left")
    figure.update_yaxes(**hidden, range=[rows * step, -0.06], scaleanchor="x")
    return figure


def _small(
    figure: go.Figure, palette: Palette, look: AttentionLook, head: int, place: tuple[float, float], cap: float
) -> None:
    """One head in a square of width 1 at its place (left, top)."""
    map_ = _pooled(np.where(look.hidden(head), np.nan, look.maps[head]))
    size = len(map_)
    later = np.triu(np.ones((size, size), dtype=bool), 1)
    middles = (np.arange(size) + 0.5) / size
    _frame(figure, place, 0.0, fillcolor=palette["sunk"], layer="below", line={"width": 0})
    figure.add_heatmap(
        z=np.where(later, np.nan, map_), x=place[0] + middles, y=place[1] + middles, zmin=0, zmax=cap,
        colorscale=colorscale(palette), showscale=False, hoverinfo="skip",
    )  # fmt: skip


def _frame(figure: go.Figure, place: tuple[float, float], edge: float, **style: Any) -> None:
    left, top = place
    figure.add_shape(type="rect", x0=left - edge, x1=left + 1 + edge, y0=top - edge, y1=top + 1 + edge, **style)


def _places(count: int, sharing: int) -> list[tuple[float, int]]:
    """Column and row of each head; those that share keys and values stay together where they fit a row."""
    in_row = max(1, _SLOTS // sharing) * sharing if sharing <= _SLOTS else _SLOTS
    gap = 0.2 if sharing > 1 else 0.0
    return [(i % in_row + gap * (i % in_row // sharing), i // in_row) for i in range(count)]


def _handles(
    figure: go.Figure, heads: Sequence[Head], middles: Sequence[tuple[float, float]], sharing: int, px: float
) -> None:
    """Invisible markers over the maps, which can be hovered and clicked."""
    names = [f"head {h.number}{f', group {h.group}' if sharing > 1 else ''}: {h.reach}" for h in heads]
    unseen = {"marker": {"opacity": 0}}
    figure.add_scatter(
        x=[x for x, _ in middles], y=[y for _, y in middles], mode="markers", text=names,
        marker={"symbol": "square", "size": px, "opacity": 0, "color": "#000"},
        hovertemplate="%{text}<extra></extra>", selected=unseen, unselected=unseen,
    )  # fmt: skip


def _pooled(shares: Floats) -> Floats:
    """A map with at most `_MINI` rows: of the cells that become one the largest is kept, NaN where all are hidden."""
    size = len(shares)
    every = -(-size // _MINI)
    if every == 1:
        return shares
    small = -(-size // every)
    padded = np.full((small * every, small * every), -1.0, np.float32)
    padded[:size, :size] = np.where(np.isnan(shares), -1.0, shares)
    best = padded.reshape(small, every, small, every).max(axis=(1, 3))
    return np.where(best < 0, np.nan, best).astype(np.float32)


__all__ = ["cap_of", "heat", "strip"]
