"""What a list of runs shows of one run's metrics: the last and best figures, and a small curve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dgsgpt.curves import decimate, ema, smoothing_for
from dgsgpt.metric_table import last_finite

SPARK_POINTS = 120
LOSS, VALIDATION = "loss/train", "loss/val"


@dataclass(frozen=True)
class MetricSummary:
    """The last step and finite value of every metric, the lowest of each figure of validation, a curve of the loss.

    `lowest` has value and step by name. `spark` is the smoothed training loss in at most `SPARK_POINTS` values with
    extremes kept; the smoothing suits the number of rows.
    """

    rows: int = 0
    step: int = 0
    last: Mapping[str, float] = field(default_factory=dict)
    lowest: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    spark: tuple[float, ...] = ()

    @property
    def best_val(self) -> float | None:
        """The lowest validation loss."""
        return self.lowest[VALIDATION][0] if VALIDATION in self.lowest else None

    @property
    def best_val_step(self) -> int | None:
        """The step of the lowest validation loss."""
        return self.lowest[VALIDATION][1] if VALIDATION in self.lowest else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values without NaN, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> MetricSummary | None:
        """The summary that `to_dict` wrote; None when it is of another form."""
        try:
            last = {str(name): float(value) for name, value in told["last"].items()}
            lowest = {str(name): (float(value), int(at)) for name, (value, at) in told["lowest"].items()}
            spark = tuple(float(value) for value in told["spark"][:SPARK_POINTS])
            return cls(int(told["rows"]), int(told["step"]), last, lowest, spark)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None


def summarise(columns: Mapping[str, np.ndarray]) -> MetricSummary:
    """Sum up all rows of a run; `columns` as `MetricsTail.columns` gives them."""
    steps = columns["step"]
    if not len(steps):
        return MetricSummary()
    found = {name: last_finite(columns[name]) for name in columns if name != "step"}
    last = {name: value for name, value in found.items() if value is not None}
    lowest = {name: _lowest(steps, columns[name]) for name in last if name.endswith("/val")}
    return MetricSummary(len(steps), int(steps[-1]), last, lowest, _spark(columns.get(LOSS)))


def _lowest(steps: np.ndarray, values: np.ndarray) -> tuple[float, int]:
    known = np.flatnonzero(np.isfinite(values))
    at = known[int(np.argmin(values[known]))]
    return float(values[at]), int(steps[at])


def _spark(losses: np.ndarray | None) -> tuple[float, ...]:
    known = losses[np.isfinite(losses)] if losses is not None else np.empty(0)
    if len(known) < 2:
        return ()
    smooth = ema(known, smoothing_for(len(known)))
    thin = decimate(np.arange(len(smooth)), smooth, SPARK_POINTS)[1]
    return tuple(thin[np.isfinite(thin)].tolist())
