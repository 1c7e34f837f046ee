"""Same data, paired: checkpoints judged on one text, and the card that shows by how much they differ.

What is drawn is `Judged`, plain figures; `paired_run` measures them.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.ui import atoms, charts, theme
from dgsgpt.ui.atoms import Html, Role, markup
from dgsgpt.ui.checkpoint_table import LETTERS
from dgsgpt.ui.comparison import Side
from dgsgpt.ui.theme import Palette

if TYPE_CHECKING:
    from dgsgpt.evaluation.paired import Comparison, Pair

_ROW_PX, _SIDE_PX = 28, 14
_ALT = "Differences between A and the others with their 95 % intervals"


# ---------------------------------------------------------------- what is shown
@dataclass(frozen=True)
class Estimate:
    """A minus another: the mean over the text and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the interval does not hold zero."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Line:
    """One figure: its value for each side, and A minus each of the others; None where it means nothing.

    `forest` is its name beside the axis of the chart; empty keeps it out.
    """

    label: str
    values: tuple[float | None, ...]
    gaps: tuple[Estimate | None, ...]
    digits: int = 4
    forest: str = ""


@dataclass(frozen=True)
class Judged:
    """What a comparison gave: lines of figures, a verdict on A and each other one, and what must be said with it."""

    lines: tuple[Line, ...]
    verdicts: tuple[str, ...]
    sentences: tuple[str, ...]
    caption: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


_WANTED = (
    ("bpb", "Bits per byte", "bits/byte", 4),
    ("loss", "Loss", "loss", 4),
    ("ppl", "Perplexity", "", 2),
    ("rare", "Rare tokens", "rare tokens", 4),
    ("late", "Last quarter", "last quarter", 4),
)


def judged(found: Comparison, warnings: Sequence[str] = ()) -> Judged:
    """A comparison as the card shows it."""
    lines = []
    for key, label, short, digits in _WANTED:
        values = tuple(getattr(model, key) for model in found.models)
        gaps = tuple(_estimate(pair, key, values) for pair in found.pairs)
        if any(value is not None for value in values):
            lines.append(Line(label, values, gaps, digits, short))
    windows = len(np.unique(found.scores[0].windows)) if found.scores else 0
    what = f"{fmt.plural(windows, 'identical window')}, " if found.same_tokenizer and windows else ""
    sha = f"{found.sha256[:4]}…{found.sha256[-4:]}"
    caption = (
        f"{what}{fmt.si(found.tokens)} tokens, {fmt.size(found.bytes)} · sha {sha} over {found.hashed} · "
        f"{fmt.number(found.draws)} bootstrap draws over {fmt.plural(found.blocks, 'block')}"
    )
    rules = tuple(rule for rule in (found.text_rule, found.window_rule, found.block_rule, found.rare_rule) if rule)
    return Judged(
        tuple(lines), tuple(p.verdict for p in found.pairs), tuple(p.sentence for p in found.pairs), caption,
        (*rules, found.caveat), (*found.warnings, *warnings),
    )  # fmt: skip


def _estimate(pair: Pair, key: str, values: Sequence[float | None]) -> Estimate | None:
    """A minus the other; perplexity is the loss's exponential, so its difference is shown where the loss's is."""
    known = pair.differences.get("loss" if key == "ppl" else key)
    if known is None:
        return None
    if key != "ppl":
        return Estimate(known.value, known.low, known.high)
    a, b = values[0], values[LETTERS.index(pair.letter)]
    if a is None or b is None or not math.isfinite(a - b):
        return None
    return Estimate(a - b, b * math.expm1(known.low), b * math.expm1(known.high))


def verdict_tag(verdict: str) -> Html:
    """A verdict on a tint: green when one is better, grey when nothing is shown."""
    role: Role = "good" if verdict.endswith("is better") else "idle"
    return atoms.tag(verdict, role)


def gap_html(gap: Estimate | None, digits: int) -> object:
    """A difference with sign, arrow and colour, grey when its interval holds zero; the interval on hover."""
    if gap is None:
        return fmt.MISSING
    told = f"95 % interval {fmt.signed(gap.low, digits)} to {fmt.signed(gap.high, digits)}"
    good = gap.mean < 0 if gap.shown else None
    return markup('<span title="{}">{}</span>', told, atoms.delta(fmt.signed(gap.mean, digits), good))


def table(lines: Sequence[Line], sides: Sequence[Side]) -> None:
    """The figures of each side, and A minus the others: beside them for two, below them for more."""
    letters = [side.letter for side in sides]
    gaps = [f"A − {letter}" for letter in letters[1:]]
    values = [(line.label, *(fmt.number(v, line.digits) for v in line.values)) for line in lines]
    differences = [[gap_html(gap, line.digits) for gap in line.gaps] for line in lines]
    width = "minmax(0,1fr)" + " 62px" * len(sides)
    if len(sides) == 2:
        rows = [(*line, *gap) for line, gap in zip(values, differences, strict=True)]
        atoms.table(rows, width + " 82px", ["", *letters, *gaps], align="lrrr")
        return
    atoms.table(values, width, ["", *letters], align="lrrrr")
    rows = [(line.label, *gap) for line, gap in zip(lines, differences, strict=True)]
    atoms.table(rows, "minmax(0,1fr)" + " 82px" * len(gaps), ["difference", *gaps], align="lrrr")


# ---------------------------------------------------------------- forest
def forest(palette: Palette, lines: Sequence[Line], sides: Sequence[Side]) -> go.Figure:
    """A dot and its interval for each figure and each of the others; left of zero A is better."""
    drawn = [line for line in lines if line.forest and any(line.gaps)]
    others = sides[1:]
    row = max(_ROW_PX, _SIDE_PX * len(others) + 8)
    height = round(row * max(1, len(drawn)) + 58)
    figure = charts.fig(palette, height, margin={"l": 82, "r": 20, "t": 4, "b": 44}, hovermode="closest")
    figure.add_vline(x=0, line={"color": palette["ink3"], "width": 1})
    for j, side in enumerate(others):
        color = palette.run(sides[0].slot if len(others) == 1 else side.slot)
        known = [(i, gap) for i, line in enumerate(drawn) if (gap := line.gaps[j]) is not None]
        offset = (j - (len(others) - 1) / 2) * _SIDE_PX / row
        named = len(others) > 1
        figure.add_scatter(
            x=[gap.mean for _, gap in known], y=[i + offset for i, _ in known], name=f"A − {side.letter}",
            mode="markers+text" if named else "markers", text=[side.letter] * len(known), textposition="top center",
            textfont={"size": 10, "color": color}, marker={"size": 8 if not named else 7, "color": color},
            error_x={
                "type": "data", "symmetric": False, "array": [gap.high - gap.mean for _, gap in known],
                "arrayminus": [gap.mean - gap.low for _, gap in known], "thickness": 2, "width": 0, "color": color,
            },
            customdata=[[drawn[i].forest, fmt.signed(g.mean), fmt.signed(g.low), fmt.signed(g.high)] for i, g in known],
            hovertemplate=f"A − {side.letter}, %{{customdata[0]}}: %{{customdata[1]}}"
            "<br>95 % interval %{customdata[2]} to %{customdata[3]}<extra></extra>",
        )  # fmt: skip
    _forest_axes(figure, palette, drawn, "B" if len(others) == 1 else "each")
    return figure


def _forest_axes(figure: go.Figure, palette: Palette, drawn: Sequence[Line], other: str) -> None:
    ends = [end for line in drawn for gap in line.gaps if gap for end in (gap.low, gap.high)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    span = (high - low) or 0.02
    low, high = low - 0.1 * span, high + 0.1 * span
    pace = charts.nice_step(high - low)
    ticks = [i * pace for i in range(math.ceil(low / pace), math.floor(high / pace) + 1)]
    digits = next((d for d in range(8) if math.isclose(round(pace, d), pace)), 8)
    figure.update_xaxes(
        range=[low, high], tickvals=ticks,
        ticktext=["0" if abs(t) < pace / 2 else fmt.number(t, digits) for t in ticks],
        title={"text": f"A minus {other} with 95 % interval; left of zero favours A", "standoff": 10},
    )  # fmt: skip
    figure.update_yaxes(
        range=[len(drawn) - 0.4, -0.6], tickvals=list(range(len(drawn))), ticktext=[line.forest for line in drawn],
        showgrid=False, tickfont={"size": 12, "color": palette["ink2"]},
    )  # fmt: skip


# ---------------------------------------------------------------- the card
def draw(found: Judged, sides: Sequence[Side]) -> None:
    """A finished comparison: verdict, forest, table and everything that must be said with it."""
    charts.show(forest(theme.palette(), found.lines, sides), "ck_forest", _ALT)
    table(found.lines, sides)
    for sentence in found.sentences:
        atoms.para(sentence)
    for warning in found.warnings:
        atoms.note(f"▲ {warning}", role="warn")
    atoms.note(found.caption, top=2)
    with st.popover("How to read this", type="tertiary"):
        for note in found.notes:
            atoms.para(note)


def command(sides: Sequence[Side], corpus: str | None, pasted: bool, tokens: int) -> str:
    """The command that gives the same figures; `corpus` None is the default, A's own validation text."""
    words = ["dgsgpt", "compare", *(side.entry.ref for side in sides)]
    words += ["--text", "FILE"] if pasted else ["--corpus", corpus] if corpus else []
    return shlex.join([*words, "--max-tokens", str(tokens)])


def head(found: Judged | None) -> None:
    """The card's heading, with the verdict when there is one of two."""
    single = found is not None and len(found.verdicts) == 1
    atoms.head("Same data, paired", verdict_tag(found.verdicts[0]) if found and single else "")
    if found and not single:
        tags = (verdict_tag(f"A vs {LETTERS[i]}: {verdict}") for i, verdict in enumerate(found.verdicts, 1))
        atoms.h(markup('<div style="display:flex;flex-wrap:wrap;gap:6px">{}</div>', atoms.join(tags)))
