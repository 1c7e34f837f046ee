"""Two to four checkpoints side by side: which figures may be compared, how they differ, and how they came there.

Pure functions: metadata, configs and metrics in, rows and figures out. The first checkpoint, A, is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dgsgpt import format as fmt
from dgsgpt.config import RunConfig
from dgsgpt.rules import flatten
from dgsgpt.ui import charts
from dgsgpt.ui.checkpoint_table import LETTERS, Entry, as_figure
from dgsgpt.ui.loss_chart import AXES as AXES
from dgsgpt.ui.loss_chart import columns
from dgsgpt.ui.theme import Palette, run_color

Metric = Literal["loss/val", "bpb/val"]
Points = tuple[np.ndarray, np.ndarray]
HEIGHT = 270
_CUT_FROM_POINTS, _COLORS = 12, 8
_LABEL_GAP_PX = 15.0


@dataclass(frozen=True)
class Side:
    """One of A to D: its letter, its checkpoint, and its colour slot here."""

    letter: str
    entry: Entry
    slot: int

    @property
    def color(self) -> str:
        """Its colour in the theme this browser shows now."""
        return run_color(self.slot)


def sides_of(picked: Sequence[Entry]) -> list[Side]:
    """The picked checkpoints with letters, and colours that tell them apart."""
    slots = color_slots([entry.run.color_slot for entry in picked])
    return [Side(letter, entry, slot) for letter, entry, slot in zip(LETTERS, picked, slots, strict=False)]


def color_slots(slots: Sequence[int]) -> list[int]:
    """A colour slot for each side: its run's own, or the next free one where an earlier side has that colour."""
    given: list[int] = []
    for slot in slots:
        taken = {s % _COLORS for s in (*given, *slots)}
        free = next((s for s in range(_COLORS) if s not in taken), slot)
        given.append(free if slot % _COLORS in {s % _COLORS for s in given} else slot)
    return given


# ---------------------------------------------------------------- may they be compared?
@dataclass(frozen=True)
class Comparable:
    """Which validation figures of the checkpoints mean the same, and one sentence on why."""

    losses: bool
    bits: bool
    note: str

    @property
    def metric(self) -> Metric:
        """The curve all can share a chart with."""
        return "loss/val" if self.losses else "bpb/val"


def comparable(metas: Sequence[Mapping[str, Any]], configs: Sequence[RunConfig | None]) -> Comparable:
    """What may be compared, from the checkpoints' metadata and configs.

    A loss per token depends on the tokenizer; bits per byte do not, but they depend on the text.
    """
    same_tokenizer = _same(metas, "tokenizer_sha256")
    if _same(metas, "data_fingerprint") and same_tokenizer:
        known = {_sample_of(config) for config in configs if config}
        note = "Same validation tokens."
        if len(known) > 1:
            note = "Same validation text, but sampled differently (train.eval_tokens, model.block_size)."
        return Comparable(True, True, f"{note} Lower is better; without an interval, a small gap may be chance.")
    if not all(meta.get("data_fingerprint") for meta in metas):
        return Comparable(
            False, False, "Not all say what they were validated on: these figures cannot be compared. Compare on the "
            "same text instead.",
        )  # fmt: skip
    if _same_text(metas, configs):
        return Comparable(
            False, True, "Same text, other tokens: a loss per token cannot be compared, bits per byte can."
        )
    return Comparable(
        False, False, "Validated on different data: the figures stand side by side, their difference means nothing."
    )


def _same(metas: Sequence[Mapping[str, Any]], key: str) -> bool:
    values = [meta.get(key) for meta in metas]
    return bool(values[0]) and all(value == values[0] for value in values)


def _sample_of(config: RunConfig) -> tuple[int, int]:
    return config.train.eval_tokens, config.model.block_size


def _same_text(metas: Sequence[Mapping[str, Any]], configs: Sequence[RunConfig | None]) -> bool:
    """Whether the validation texts are the same by name and share; only embedded corpora keep what a name means."""
    corpus = str(metas[0].get("corpus"))
    if not _same(metas, "corpus") or "/" in corpus or "\\" in corpus:
        return False
    return None not in configs and len({config.data.val_fraction for config in configs if config}) == 1


# ---------------------------------------------------------------- figures
@dataclass(frozen=True)
class Row:
    """One figure of each; `difference` is A minus B where there are two and it means something, else None."""

    label: str
    values: tuple[float | None, ...]
    digits: int
    difference: float | None


def rows(metas: Sequence[Mapping[str, Any]], allowed: Comparable) -> list[Row]:
    """The validation figures of the checkpoints; those over the whole split where all have them."""
    wanted = [
        ("Bits per byte", "bpb_val", 4, allowed.bits),
        ("Loss", "loss_val", 4, allowed.losses),
        ("Perplexity", "ppl_val", 2, allowed.losses),
    ]
    made = [_row(label, [meta.get(key) for meta in metas], digits, may) for label, key, digits, may in wanted]
    ends = [end for meta in metas if isinstance(end := meta.get("whole_split_eval"), dict)]
    if len(ends) == len(metas):
        made.append(_row("Bits per byte, all of it", [end.get("bpb") for end in ends], 4, allowed.bits))
    return made


def _row(label: str, found: Sequence[object], digits: int, may: bool) -> Row:
    values = tuple(as_figure(value) for value in found)
    a, b = values[:2]
    gap = a - b if may and len(values) == 2 and a is not None and b is not None else None
    return Row(label, values, digits, gap)


def setting_rows(configs: Sequence[RunConfig], model_only: bool = False) -> tuple[list[tuple[str, ...]], int]:
    """Settings in which configs differ, as shown, and how many settings there are in all.

    `model_only` leaves out how they were trained: of an imported model that is not known.
    """
    flat = [flatten(config.model_dump()) for config in configs]
    paths = sorted(path for path in set().union(*flat) if not model_only or path.startswith("model."))
    values = {path: [side.get(path) for side in flat] for path in paths}
    differing = [path for path, found in values.items() if any(value != found[0] for value in found)]
    return [(path, *map(shown, values[path])) for path in differing], len(paths)


def shown(value: Any) -> str:
    """A setting's value in a few characters."""
    if value is None:
        return fmt.MISSING
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return fmt.number(value)
    if isinstance(value, float):
        return f"{value:g}" if 1e-3 <= abs(value) < 1e6 or value == 0 else fmt.lr(value)
    return str(value).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


# ---------------------------------------------------------------- curves
@dataclass(frozen=True)
class Curve:
    """The metrics of a run until one of its checkpoints: that one's letter, name and colour slot."""

    letter: str
    name: str
    slot: int
    frame: pd.DataFrame
    step: int

    def until_saved(self) -> pd.DataFrame:
        """The metrics that led to the checkpoint; what the run did later is not its."""
        return self.frame[self.frame["step"] <= self.step] if "step" in self.frame else self.frame


@dataclass(frozen=True)
class Chart:
    """The figure, what can be read off it, and whether there is anything on it."""

    figure: go.Figure
    note: str
    drawn: bool


def validation_chart(palette: Palette, sides: Sequence[Curve], axis: str, metric: Metric) -> Chart:
    """Validation curves up to each checkpoint, over steps, tokens, FLOPs or time."""
    found = {side.letter: columns(side.until_saved(), metric, axis) for side in sides}
    curves = {letter: points for letter, points in found.items() if len(points[0])}
    scale, title = _unit(axis, max((float(x[-1]) for x, _ in curves.values()), default=0.0))
    many = len(curves) > 2
    figure = charts.fig(palette, HEIGHT, margin={"l": 38, "r": 66 if many else 14, "t": 8, "b": 40})
    for side in sides:
        if side.letter not in curves:
            continue
        x, y = curves[side.letter]
        color, name = palette.run(side.slot), f"{side.letter} {side.name}"
        trace = charts.line(x / scale, y, color, name, width=1.9, dash=palette.dash(side.slot))
        trace.update(hovertemplate="%{y:.4f}", mode="lines+markers" if len(x) < 40 else "lines", marker={"size": 4})
        figure.add_trace(trace)
    figure.update_xaxes(title={"text": title, "standoff": 10}, exponentformat="B")
    if axis == "Step":
        figure.update_xaxes(tickformat=",d")
    cut = _fit_y(figure, [y for _, y in curves.values()])
    colors = {side.letter: palette.run(side.slot) for side in sides}
    ends = {letter: (float(x[-1]) / scale, float(y[-1])) for letter, (x, y) in curves.items()}
    (_label_right if many else _label_above_and_below)(figure, ends, colors)
    missing = [side.letter for side in sides if side.letter not in curves]
    said = [
        common_point(curves, axis),
        f"axis cut: {fmt.plural(cut, 'early point')} above" if cut else "",
        f"no curve of {', '.join(missing)}" if missing and curves else "",
    ]
    return Chart(figure, " · ".join(filter(None, said)), bool(curves))


def _label_above_and_below(
    figure: go.Figure, ends: Mapping[str, tuple[float, float]], colors: Mapping[str, str]
) -> None:
    """Letter and value at a curve's end: the higher of two above it, the other below, where a falling curve is not."""
    highest = max(ends, key=lambda letter: ends[letter][1], default="")
    far = max((x for x, _ in ends.values()), default=0.0)
    for letter, (x, y) in ends.items():
        above = letter == highest
        figure.add_annotation(
            x=x, y=y, text=f"<b>{letter}</b> {fmt.loss(y)}", showarrow=False, yshift=13 if above else -13,
            xanchor="left" if above and x <= 0.85 * far else "right", font={"size": 12, "color": colors[letter]},
        )  # fmt: skip


def _label_right(figure: go.Figure, ends: Mapping[str, tuple[float, float]], colors: Mapping[str, str]) -> None:
    """Letter and value right of each curve's end; those that end at one place are pushed apart."""
    low, high = figure.layout.yaxis.range
    far, placed = max(x for x, _ in ends.values()), -np.inf
    for letter, (x, y) in sorted(ends.items(), key=lambda end: end[1][1]):
        height = (y - low) / (high - low) * (HEIGHT - 48)
        wanted = max(height, placed + _LABEL_GAP_PX) if x >= 0.8 * far else height
        placed = wanted if x >= 0.8 * far else placed
        figure.add_annotation(
            x=x, y=y, text=f"<b>{letter}</b> {fmt.loss(y)}", showarrow=False, xanchor="left", xshift=5,
            yshift=wanted - height, font={"size": 12, "color": colors[letter]},
        )  # fmt: skip


def _unit(axis: str, last: float) -> tuple[float, str]:
    """What to divide an axis by, and its title."""
    if axis == "FLOPs" and last > 0:
        power = int(np.floor(np.log10(last)))
        return 10.0**power, f"training FLOPs, 1e{power}"
    if axis == "Time":
        return (3600.0, "hours") if last >= 7200 else (60.0, "minutes") if last >= 120 else (1.0, "seconds")
    return 1.0, axis.lower() + ("s" if axis == "Step" else "")


def _fit_y(figure: go.Figure, curves: Sequence[np.ndarray]) -> int:
    """Set the y axis; the first steep drop of many points is left above it. Returns how many points that hides."""
    if not curves:
        return 0
    every = np.concatenate(curves)
    low, knee, top = float(every.min()), float(np.quantile(every, 0.9)), float(every.max())
    pad = max(0.08 * (knee - low), 1e-3)
    if max(map(len, curves)) < _CUT_FROM_POINTS or top <= low + 2 * (knee - low):
        figure.update_yaxes(range=[low - 0.12 * (top - low) - 1e-3, top + 0.1 * (top - low) + 1e-3])
        return 0
    high = knee + 3 * pad
    figure.update_yaxes(range=[low - 3 * pad, high])
    return int((every > high).sum())


def common_point(curves: Mapping[str, Points], axis: str) -> str:
    """The curves read off at the last point of the axis that all have reached; empty when there is none."""
    if len(curves) < 2:
        return ""
    at = min(float(x[-1]) for x, _ in curves.values())
    if any(at < x[0] for x, _ in curves.values()):
        return ""
    where = {
        "Step": f"step {fmt.number(at)}",
        "Tokens": f"{fmt.si(at)} tokens",
        "FLOPs": f"{fmt.scientific(at)} FLOPs",
        "Time": fmt.duration(at),
    }[axis]
    read = ", ".join(f"{letter} {fmt.loss(float(np.interp(at, x, y)))}" for letter, (x, y) in curves.items())
    return f"At {where}, the most {'both' if len(curves) == 2 else 'all'} have: {read}"
