"""metrics.jsonl and events.jsonl: the one writer, the one reader, and what charts need of the columns.

One flushed object a line. A non-finite value is written as null. After a resume, lines past the checkpoint's step
are superseded: the writer cuts them, and a reader that meets a step again lets the later line win.
"""

from __future__ import annotations

import json
import math
import time
from array import array
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgsgpt import files

if TYPE_CHECKING:
    import pandas as pd

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"


# ---------------------------------------------------------------- writing
class MetricsWriter:
    """Appends metrics and events of one run; there is one writer at a time (the trainer holds a lock)."""

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir

    def log(self, step: int, values: Mapping[str, float | int | None]) -> list[str]:
        """Append one line; returns the names of values that were not finite and went out as null."""
        bad = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        files.append_line(
            self._dir / METRICS, {"step": step, **{k: None if k in bad else v for k, v in values.items()}}
        )
        return bad

    def event(self, kind: str, step: int, **details: Any) -> None:
        """Append one event."""
        files.append_line(self._dir / EVENTS, {"time": time.time(), "step": step, "kind": kind, **details})

    def cut_after(self, step: int) -> int:
        """Drop metrics past `step`, as a resume from there does; returns how many lines went."""
        path = self._dir / METRICS
        if not path.exists():
            return 0
        kept: list[bytes] = []
        dropped = 0
        for line, _ in files.read_lines(path):
            row = _parse(line)
            if row is None or row["step"] > step:
                dropped += 1
            else:
                kept.append(line or b"")
        text = b"".join(line + b"\n" for line in kept)
        if dropped or path.stat().st_size != len(text):  # the second: a torn last line
            files.write_atomic(path, text)
        return dropped


def _parse(line: bytes | None) -> dict[str, Any] | None:
    """One line's object, or None when it is damaged, too long or lacks a step."""
    if line is None:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or isinstance(row["step"], bool):
        return None
    return row


# ---------------------------------------------------------------- reading
class MetricsTail:
    """Reads a growing metrics.jsonl piece by piece: `refresh` costs what is new, not what is there.

    `skipped` counts damaged lines. A file that shrank or was replaced is read anew.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.path = Path(run_dir) / METRICS
        self._reset()

    def _reset(self) -> None:
        self._offset = 0
        self._inode = -1
        self._columns: dict[str, array[float]] = {"step": array("d")}
        self._frame: pd.DataFrame | None = None
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._columns["step"])

    def refresh(self) -> bool:
        """Read what was added; True when anything changed."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            changed = self._offset > 0
            self._reset()
            return changed
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._reset()
            self._inode = stat.st_ino
        if stat.st_size == self._offset:
            return False
        before = self._offset
        for line, self._offset in files.read_lines(self.path, self._offset):  # noqa: B020
            row = _parse(line)
            if row is None:
                self.skipped += bool(line is None or line.strip())
            else:
                self._append(row)
        if self._offset == before:
            return False
        self._frame = None
        return True

    def _append(self, row: dict[str, Any]) -> None:
        steps = self._columns["step"]
        while steps and steps[-1] >= row["step"]:  # a resume went back: the later line wins
            for column in self._columns.values():
                column.pop()
        n = len(steps)
        for key, value in row.items():
            if key not in self._columns:
                self._columns[key] = array("d", [math.nan]) * n
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self._columns[key].append(float(value) if number else math.nan)
        for column in self._columns.values():
            if len(column) == n:
                column.append(math.nan)

    @property
    def frame(self) -> pd.DataFrame:
        """All lines as float columns (NaN where a line had no value), sorted by step."""
        import pandas as pd

        if self._frame is None:
            self._frame = pd.DataFrame({k: np.array(v, dtype=float) for k, v in self._columns.items()})
            self._frame["step"] = self._frame["step"].astype("int64")
        return self._frame

    def last(self, key: str) -> float | None:
        """The latest finite value of a metric, or None."""
        column = self._columns.get(key, ())
        return next((v for v in reversed(column) if math.isfinite(v)), None)


def read_metrics(run_dir: Path | str) -> pd.DataFrame:
    """All metrics of a run, one row a line, columns by key; empty when nothing was logged."""
    tail = MetricsTail(run_dir)
    tail.refresh()
    return tail.frame


def read_events(run_dir: Path | str, kinds: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Events in the order written, damaged lines left out; only some `kinds` if given."""
    path = Path(run_dir) / EVENTS
    if not path.exists():
        return []
    rows = (_parse(line) for line, _ in files.read_lines(path))
    return [r for r in rows if r is not None and (kinds is None or r.get("kind") in kinds)]


# ---------------------------------------------------------------- for charts
def ema(values: np.ndarray, weight: float) -> np.ndarray:
    """Debiased exponential moving average over all values: each the weighted mean of itself and those before it.

    NaN entries stay NaN and do not disturb the others.
    """
    import pandas as pd

    values = np.asarray(values, dtype=float)
    if weight <= 0 or len(values) == 0:
        return values
    smooth = pd.Series(values).ewm(alpha=1 - weight, adjust=True, ignore_na=True).mean().to_numpy(copy=True)
    smooth[~np.isfinite(values)] = np.nan
    return smooth


def decimate(x: np.ndarray, y: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `max_points` of the points, with both ends and each bucket's lowest and highest value kept."""
    x, y = np.asarray(x), np.asarray(y, dtype=float)
    n = len(y)
    if n <= max_points or max_points < 4:
        return x, y
    edges = np.linspace(1, n - 1, (max_points - 2) // 2 + 1).astype(int)
    keep = {0, n - 1}
    for a, b in pairwise(edges):
        bucket = y[a:b]
        if b > a and np.isfinite(bucket).any():
            keep.update((a + int(np.nanargmin(bucket)), a + int(np.nanargmax(bucket))))
        elif b > a:
            keep.add(a)  # a gap in the curve must stay a gap
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]
