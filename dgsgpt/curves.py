"""What charts need of a column: smoothing over all values that never sees the future, fewer points with extremes."""

from __future__ import annotations

import numpy as np

_NEGLIGIBLE = 1e-150  # share of a value in a moving average


def smoothing_for(points: float) -> float:
    """An EMA weight that suits a curve of so many points: 0.9 averages some twenty, too many on one of a hundred."""
    return 0.5 if points <= 200 else 0.8 if points <= 1000 else 0.9


def ema(values: np.ndarray, weight: float) -> np.ndarray:
    """Debiased exponential moving average over all values: each the weighted mean of itself and those before it.

    NaN entries stay NaN and do not disturb the others.
    """
    values = np.asarray(values, dtype=float)
    if weight <= 0 or len(values) == 0:
        return values
    known = np.isfinite(values)
    smooth = np.full(len(values), np.nan)
    ages = np.arange(1, int(known.sum()) + 1)
    smooth[known] = _decayed_sums(values[known], weight) * (1 - weight) / -np.expm1(ages * np.log(weight))
    return smooth


def _decayed_sums(x: np.ndarray, weight: float) -> np.ndarray:
    """`s[t] = x[t] + weight * s[t - 1]`, each pass reaching back twice as far as the one before."""
    sums, reach, decay = x.copy(), 1, weight
    with np.errstate(over="ignore", invalid="ignore"):  # losses near the largest float: the curve has a gap there
        while reach < len(x) and decay > _NEGLIGIBLE:
            sums[reach:] += decay * sums[:-reach]
            reach, decay = 2 * reach, decay * decay
    return sums


def decimate(x: np.ndarray, y: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `max_points` of the points, with both ends and each bucket's lowest and highest value kept.

    A bucket without any finite value leaves one point, so that a gap in the curve stays a gap.
    """
    x, y = np.asarray(x), np.asarray(y, dtype=float)
    n = len(y)
    if n <= max_points or max_points < 4:
        return x, y
    buckets = (max_points - 2) // 2
    size = -(-(n - 2) // buckets)
    count = -(-(n - 2) // size)
    padded = np.full(count * size, np.nan)
    padded[: n - 2] = y[1:-1]
    inner = padded.reshape(count, size)
    gap = ~np.isfinite(inner).any(axis=1)
    unknown = np.isnan(inner)
    lows = np.where(unknown, np.inf, inner).argmin(axis=1)
    highs = np.where(unknown, -np.inf, inner).argmax(axis=1)
    lows[gap] = highs[gap] = 0
    begin = 1 + size * np.arange(count)
    chosen = np.unique(np.concatenate(([0, n - 1], begin + lows, begin + highs)))
    return x[chosen], y[chosen]
