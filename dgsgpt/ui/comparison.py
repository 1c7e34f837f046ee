"""Two checkpoints side by side: which figures may be compared, by how much they differ, and how they came there.

Pure functions: metadata, configs and metrics in, rows and figures out.
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
from dgsgpt.rules import differences, flatten
from dgsgpt.ui import charts
from dgsgpt.ui.checkpoint_table import as_figure
from dgsgpt.ui.loss_chart import AXES, columns
from dgsgpt.ui.theme import Palette

Metric = Literal["loss/val", "bpb/val"]
HEIGHT = 290
_CUT_FROM_POINTS = 12


# ---------------------------------------------------------------- may they be compared?
@dataclass(frozen=True)
class Comparable:
    """Which figures of two checkpoints mean the same, and one sentence on why."""

    losses: bool
    bits: bool
    note: str

    @property
    def metric(self) -> Metric:
        """The curve both can share a chart with."""
        return "loss/val" if self.losses else "bpb/val"


def comparable(
    a: Mapping[str, Any], b: Mapping[str, Any], config_a: RunConfig | None, config_b: RunConfig | None
) -> Comparable:
    """What may be compared, from two checkpoints' metadata and configs.

    A loss per token depends on the tokenizer; bits per byte do not, but they depend on the text.
    """
    same_tokenizer = _same(a, b, "tokenizer_sha256")
    if _same(a, b, "data_fingerprint") and same_tokenizer:
        if config_a and config_b and _sample_of(config_a) != _sample_of(config_b):
            note = "Same validation text, but sampled differently (train.eval_tokens, model.block_size)."
            return Comparable(True, True, f"{note} Lower is better; without an interval, a small gap may be chance.")
        return Comparable(
            True, True, "Same validation tokens. Lower is better; without an interval, a small gap may be chance."
        )
    if not (a.get("data_fingerprint") and b.get("data_fingerprint")):
        return Comparable(False, False, "At least one does not say what it was validated on: nothing can be compared.")
    if _same_text(a, b, config_a, config_b):
        return Comparable(
            False, True, "Same text, other tokens: a loss per token cannot be compared, bits per byte can."
        )
    return Comparable(
        False, False, "Validated on different data: the figures stand side by side, their difference means nothing."
    )


def _same(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> bool:
    return bool(a.get(key)) and a.get(key) == b.get(key)


def _sample_of(config: RunConfig) -> tuple[int, int]:
    return config.train.eval_tokens, config.model.block_size


def _same_text(
    a: Mapping[str, Any], b: Mapping[str, Any], config_a: RunConfig | None, config_b: RunConfig | None
) -> bool:
    """Whether the validation texts are the same by name and share; only embedded corpora keep what a name means."""
    if not _same(a, b, "corpus") or "/" in str(a["corpus"]) or "\\" in str(a["corpus"]):
        return False
    return bool(config_a and config_b and config_a.data.val_fraction == config_b.data.val_fraction)


# ---------------------------------------------------------------- figures
@dataclass(frozen=True)
class Row:
    """One figure of both; `difference` is A minus B, None where it means nothing."""

    label: str
    a: float | None
    b: float | None
    digits: int
    difference: float | None


def rows(a: Mapping[str, Any], b: Mapping[str, Any], allowed: Comparable) -> list[Row]:
    """The validation figures of two checkpoints; those over the whole split where both have them."""
    wanted = [
        ("Bits per byte", "bpb_val", 4, allowed.bits),
        ("Loss", "loss_val", 4, allowed.losses),
        ("Perplexity", "ppl_val", 2, allowed.losses),
    ]
    made = [_row(label, a.get(key), b.get(key), digits, may) for label, key, digits, may in wanted]
    ends = [side.get("whole_split_eval") for side in (a, b)]
    if all(isinstance(end, dict) for end in ends):
        made.append(_row("Bits per byte, all of it", ends[0].get("bpb"), ends[1].get("bpb"), 4, allowed.bits))  # type: ignore[union-attr]
    return made


def _row(label: str, a: object, b: object, digits: int, may: bool) -> Row:
    x, y = as_figure(a), as_figure(b)
    return Row(label, x, y, digits, x - y if may and x is not None and y is not None else None)


def setting_rows(a: RunConfig, b: RunConfig) -> tuple[list[tuple[str, str, str]], int]:
    """Settings in which two configs differ, as shown, and how many settings there are in all."""
    left, right = a.model_dump(), b.model_dump()
    rows = [(path, shown(x), shown(y)) for path, (x, y) in differences(left, right).items()]
    return rows, len({*flatten(left), *flatten(right)})


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
class Side:
    """A or B: its letter, name, colour slot, and the metrics of its run."""

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


def validation_chart(palette: Palette, sides: Sequence[Side], axis: str, metric: Metric) -> Chart:
    """Validation curves of both up to their checkpoints, over steps, tokens, FLOPs or time."""
    curves = [columns(side.until_saved(), metric, axis) for side in sides]
    scale, title = _unit(axis, max((float(x[-1]) for x, _ in curves if len(x)), default=0.0))
    figure = charts.fig(palette, HEIGHT, margin={"l": 38, "r": 14, "t": 8, "b": 40})
    ends = [(x[-1] / scale, y[-1]) for x, y in curves if len(x)]
    for side, (x, y) in zip(sides, curves, strict=True):
        if not len(x):
            continue
        color = palette.run(side.slot)
        dash = palette.dash(side.slot) if side is sides[0] or side.slot != sides[0].slot else "dot"
        trace = charts.line(x / scale, y, color, f"{side.letter} {side.name}", width=1.9, dash=dash)
        trace.update(hovertemplate="%{y:.4f}", mode="lines+markers" if len(x) < 40 else "lines", marker={"size": 4})
        figure.add_trace(trace)
        _label_end(figure, side.letter, (x[-1] / scale, float(y[-1])), ends, color)
    figure.update_xaxes(title={"text": title, "standoff": 10}, exponentformat="B")
    if axis == "Step":
        figure.update_xaxes(tickformat=",d")
    cut = _fit_y(figure, [y for _, y in curves if len(y)])
    said = [common_point(curves, axis), f"axis cut: {fmt.plural(cut, 'early point')} above" if cut else ""]
    return Chart(figure, " · ".join(filter(None, said)), bool(ends))


def _label_end(
    figure: go.Figure, letter: str, end: tuple[float, float], ends: Sequence[tuple[float, float]], color: str
) -> None:
    """Letter and value at a curve's end: the higher of two above it, the other below, where a falling curve is not."""
    other = next((e for e in ends if e != end), None)
    above = end[1] > other[1] if other else letter == "A"
    room = end[0] <= 0.85 * max(x for x, _ in ends)
    figure.add_annotation(
        x=end[0], y=end[1], text=f"<b>{letter}</b> {fmt.loss(end[1])}", showarrow=False, yshift=13 if above else -13,
        xanchor="left" if above and room else "right", font={"size": 12, "color": color},
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
    """Leave the first steep drop above the axis where there are many points; returns how many points that hides."""
    if not curves or max(map(len, curves)) < _CUT_FROM_POINTS:
        return 0
    every = np.concatenate(curves)
    low, knee = float(every.min()), float(np.quantile(every, 0.9))
    pad = max(0.08 * (knee - low), 1e-3)
    if float(every.max()) <= low + 2 * (knee - low):
        return 0
    high = knee + 3 * pad
    figure.update_yaxes(range=[low - 3 * pad, high])
    return int((every > high).sum())


def common_point(curves: Sequence[tuple[np.ndarray, np.ndarray]], axis: str) -> str:
    """Both curves read off at the last point of the axis that both have reached; empty when there is none."""
    if len(curves) != 2 or not all(len(x) for x, _ in curves):
        return ""
    at = min(float(x[-1]) for x, _ in curves)
    if any(at < x[0] for x, _ in curves):
        return ""
    a, b = (float(np.interp(at, x, y)) for x, y in curves)
    where = {
        "Step": f"step {fmt.number(at)}",
        "Tokens": f"{fmt.si(at)} tokens",
        "FLOPs": f"{fmt.scientific(at)} FLOPs",
        "Time": fmt.duration(at),
    }[axis]
    return f"At {where}, the most both have: A {fmt.loss(a)}, B {fmt.loss(b)}"


def parting(a: str, b: str) -> int | None:
    """Where two texts part: the start of the first word that is not the same in both; None when they are equal."""
    if a == b:
        return None
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    while at > 0 and not a[at - 1].isspace():
        at -= 1
    return at


__all__ = [
    "AXES",
    "Chart",
    "Comparable",
    "Row",
    "Side",
    "common_point",
    "comparable",
    "parting",
    "rows",
    "setting_rows",
    "shown",
    "validation_chart",
]  # fmt: skip
