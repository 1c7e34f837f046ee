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
    """The last step and finite value of every metric, the lowest validation loss, the smoothed training loss.

    `spark` has at most `SPARK_POINTS` values, extremes kept; the smoothing suits the number of rows.
    """

    rows: int = 0
    step: int = 0
    last: Mapping[str, float] = field(default_factory=dict)
    best_val: float | None = None
    best_val_step: int | None = None
    spark: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values without NaN, for JSON."""
        return {**asdict(self), "last": dict(self.last), "spark": [round(value, 6) for value in self.spark]}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> MetricSummary | None:
        """The summary that `to_dict` wrote; None when it is of another form."""
        try:
            last = {str(name): float(value) for name, value in told["last"].items()}
            best, at = told["best_val"], told["best_val_step"]
            spark = tuple(float(value) for value in told["spark"][:SPARK_POINTS])
            return cls(
                int(told["rows"]), int(told["step"]), last, None if best is None else float(best),
                None if at is None else int(at), spark,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None


def summarise(columns: Mapping[str, np.ndarray]) -> MetricSummary:
    """Sum up all rows of a run; `columns` as `MetricsTail.columns` gives them."""
    steps = columns["step"]
    if not len(steps):
        return MetricSummary()
    found = {name: last_finite(columns[name]) for name in columns if name != "step"}
    last = {name: value for name, value in found.items() if value is not None}
    best, at = _best(steps, columns.get(VALIDATION))
    return MetricSummary(len(steps), int(steps[-1]), last, best, at, _spark(columns.get(LOSS)))


def _best(steps: np.ndarray, losses: np.ndarray | None) -> tuple[float | None, int | None]:
    known = np.flatnonzero(np.isfinite(losses)) if losses is not None else np.empty(0, int)
    if losses is None or not len(known):
        return None, None
    at = known[int(np.argmin(losses[known]))]
    return float(losses[at]), int(steps[at])


def _spark(losses: np.ndarray | None) -> tuple[float, ...]:
    known = losses[np.isfinite(losses)] if losses is not None else np.empty(0)
    if len(known) < 2:
        return ()
    smooth = ema(known, smoothing_for(len(known)))
    return tuple(decimate(np.arange(len(smooth)), smooth, SPARK_POINTS)[1].tolist())
