"""What the loss chart is made of: losses as columns, what the toolbar says, and groups of runs with their bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, pairwise
from typing import Any

import numpy as np

from dgsgpt.config import RunConfig
from dgsgpt.metrics import decimate, ema

AXES = {"Step": "step", "Tokens": "tokens", "FLOPs": "flops", "Time": "time_s"}
MAX_POINTS = 2000
Points = tuple[np.ndarray, np.ndarray]


def default_smoothing(config: RunConfig | None) -> float:
    """An EMA weight that suits the run's length.

    A weight of 0.9 averages some twenty points: on a curve of a hundred that lags visibly behind.
    """
    points = config.train.steps / config.train.log_every if config else MAX_POINTS
    return 0.5 if points <= 200 else 0.8 if points <= 1000 else 0.9


@dataclass(frozen=True)
class Curve:
    """One run's losses.

    `frame` has the metrics as columns by name, `group` what runs are drawn as one with, `main` is the selected run,
    `live` one that grows until `last_step`.
    """

    name: str
    slot: int
    frame: Any
    main: bool = False
    live: bool = False
    last_step: int = 0
    group: str = ""


@dataclass(frozen=True)
class LossOptions:
    """What the toolbar says: x axis (a key of `AXES`), EMA weight, raw curve, logarithmic axes."""

    axis: str = "Step"
    weight: float = 0.9
    raw: bool = True
    log_y: bool = False
    log_x: bool = False


@dataclass(frozen=True)
class Line:
    """What is drawn as one curve: a run, or the mean of `runs` of the `given` ones of a group, lowest and highest."""

    name: str
    slot: int
    x: np.ndarray
    y: np.ndarray
    main: bool = False
    raw: np.ndarray = field(default_factory=lambda: np.empty(0))
    low: np.ndarray = field(default_factory=lambda: np.empty(0))
    high: np.ndarray = field(default_factory=lambda: np.empty(0))
    runs: int = 1
    given: int = 1
    points: int = 0


def columns(frame: Any, name: str, axis: str = "Step") -> Points:
    """The axis and one metric where both are known; empty arrays for a metric that was never written."""
    key = AXES[axis]
    if name not in frame or key not in frame:
        return np.empty(0), np.empty(0)
    x, y = np.asarray(frame[key], dtype=float), np.asarray(frame[name], dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def missing(frame: Any, name: str, axis: str = "Step") -> np.ndarray:
    """Where on the axis a logged step has no finite value of a metric that other steps have."""
    key = AXES[axis]
    if name not in frame or key not in frame:
        return np.empty(0)
    x, y = np.asarray(frame[key], dtype=float), np.asarray(frame[name], dtype=float)
    return x[np.isfinite(x) & ~np.isfinite(y)]


def on_log(x: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays where `x` is positive, as a logarithmic axis can show them."""
    shown = x > 0
    return (x[shown], *(other[shown] for other in others))


def thin(x: np.ndarray, y: np.ndarray, log_x: bool = False, limit: int = MAX_POINTS) -> Points:
    """About `limit` points with extremes kept, spread as evenly over a logarithmic axis as over a linear one."""
    if not log_x or len(x) <= limit:
        return decimate(x, y, limit)
    edges = [0, *np.searchsorted(x, x[-1] / 2.0 ** np.arange(int(np.log2(x[-1] / x[0])), 0, -1)), len(x)]
    edges = sorted(set(map(int, edges)))
    parts = [decimate(x[a:b], y[a:b], max(4, limit // (len(edges) - 1))) for a, b in pairwise(edges)]
    return np.concatenate([px for px, _ in parts]), np.concatenate([py for _, py in parts])


# ---------------------------------------------------------------- lines and groups
def lines_of(curves: Sequence[Curve], options: LossOptions, scale: float = 1.0) -> list[Line]:
    """A line for each run that has a loss, or for each group; the selected one last, so that it lies on top."""
    members: dict[str, list[Line]] = {}
    for index, curve in enumerate(curves):
        x, raw = columns(curve.frame, "loss/train", options.axis)
        smooth = ema(raw, options.weight)
        count, x = len(x), x / scale
        if options.log_x:
            x, raw, smooth = on_log(x, raw, smooth)
        if len(x):
            line = Line(curve.name, curve.slot, x, smooth, curve.main, raw, points=count)
            members.setdefault(curve.group or f"\0{index}", []).append(line)
    drawn = [band(name, lines) if name[0] != "\0" else lines[0] for name, lines in members.items()]
    return sorted(drawn, key=lambda line: line.main)


def band(name: str, lines: Sequence[Line]) -> Line:
    """Mean, lowest and highest of the runs that go as far as the line does; those cut short before are left out.

    How far that is weighs length against runs, and the selected run is always one of them.
    """
    main = next((line for line in lines if line.main), lines[0])
    ends = [line.x[-1] for line in lines if line.x[-1] <= main.x[-1] or not main.main]
    end = max(ends, key=lambda at: (at * sum(line.x[-1] >= at for line in lines), at))
    members = [line for line in lines if line.x[-1] >= end]
    begin = max(line.x[0] for line in members)
    grid = np.unique(np.concatenate([line.x for line in members]))
    grid = grid[(grid >= begin) & (grid <= end)]
    points, is_main = sum(line.points for line in lines), any(line.main for line in lines)
    if not len(grid):  # they have no part of the axis in common
        members, grid = [main], main.x
    values = np.array([np.interp(grid, line.x, line.y) for line in members])
    low, high = values.min(0), values.max(0)
    return Line(
        name, main.slot, grid, values.mean(0), is_main, np.empty(0), low, high, len(members), len(lines), points
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names without the words that all of them begin with: `lr1e-3-s1` of `austen-moe4-lr1e-3-s1`."""
    parts = [_words(name) for name in names]
    shared = 0
    while len(parts) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return {name: "".join(p[shared:]) for name, p in zip(names, parts, strict=True)}


def _words(name: str) -> list[str]:
    words = [""]
    for letter in name:
        words[-1] += letter
        if letter in "-_. ":
            words.append("")
    return [word for word in words if word]


# ---------------------------------------------------------------- grouping by settings
SEED = "train.seed"
BY_SEED = "seed"
TOLD = 40  # settings among which a pair is sought that tells groups apart


def group_fields(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings in which some of these runs differ, besides the seed; each is flat, as `rules.flatten` gives it."""
    every = {path for one in settings for path in one}
    return sorted(path for path in every if path != SEED and len({_value(one, path) for one in settings}) > 1)


def group_names(settings: Sequence[Mapping[str, Any]], by: str) -> list[str]:
    """The group of each run: the value of the setting `by`, or with `BY_SEED` what differs besides the seed."""
    if by != BY_SEED:
        return [_named(one, (by,)) for one in settings]
    fields = group_fields(settings)
    kinds = [tuple(_value(one, path) for path in fields) for one in settings]
    order = list(dict.fromkeys(kinds))
    if len(order) == 1:
        return ["all seeds"] * len(kinds)
    for chosen in chain(combinations(fields[:TOLD], 1), combinations(fields[:TOLD], 2)):  # what tells them apart
        named = [_named(one, chosen) for one in settings]
        if len(set(named)) == len(order):
            return named
    return [f"config {chr(65 + order.index(kind) % 26)}" for kind in kinds]


def _named(one: Mapping[str, Any], paths: Sequence[str]) -> str:
    return ", ".join(f"{path.rsplit('.', 1)[-1]} {_value(one, path)}" for path in paths)


def _value(one: Mapping[str, Any], path: str) -> str:
    if path not in one:
        return "on" if any(known.startswith(f"{path}.") for known in one) else "–"
    value = one[path]
    return "off" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
