"""Runs read off at the same place of an axis: as many steps, tokens, FLOPs or seconds for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dgsgpt import format as fmt
from dgsgpt.metrics import ema
from dgsgpt.ui.loss_data import Points, columns


@dataclass(frozen=True)
class ReadOut:
    """How much higher another run's loss is at `at` of the axis; of validation where both have it, else of training."""

    difference: float
    at: float
    validation: bool


def read_out(main: Any, other: Any, axis: str, weight: float) -> ReadOut | None:
    """Two runs' metrics at the furthest point that both have reached; None when they share none."""
    val = _at_equal(columns(main, "loss/val", axis), columns(other, "loss/val", axis))
    if val is not None:
        return ReadOut(*val, True)
    train = _at_equal(*(_smooth(columns(frame, "loss/train", axis), weight) for frame in (main, other)))
    return None if train is None else ReadOut(*train, False)


def _smooth(points: Points, weight: float) -> Points:
    return points[0], ema(points[1], weight)


def _at_equal(main: Points, other: Points) -> tuple[float, float] | None:
    """Difference and place, at the last point of either that the other has gone as far as; between points, a line."""
    if not len(main[0]) or not len(other[0]):
        return None
    at = min(float(main[0][-1]), float(other[0][-1]))
    if at < max(float(main[0][0]), float(other[0][0])):
        return None
    return float(np.interp(at, *other) - np.interp(at, *main)), at


def place(at: float, axis: str) -> str:
    """A place on an axis in words."""
    words = {"Step": f"step {fmt.number(at)}", "Tokens": f"{fmt.si(at)} tokens", "Time": fmt.duration(at)}
    return words.get(axis) or f"{fmt.scientific(at)} FLOPs"
