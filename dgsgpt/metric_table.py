"""A table of metrics that grows at its end: what was read before as fixed arrays, what came since in growing ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from dgsgpt.metric_lines import Lines

STEP = "step"
_NEAR = 1024


@dataclass(frozen=True)
class Columns(Mapping[str, np.ndarray]):
    """All rows at one moment, sorted by step: `step` as int64, the others as float64 with NaN where unknown.

    A mapping of names to arrays, not to be written to. It stays as it is when the run goes on.
    """

    base: Mapping[str, np.ndarray]
    rows: int  # of the base that still count
    extra: Mapping[str, np.ndarray]
    names: tuple[str, ...]
    length: int
    _joined: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        if name not in self._joined:
            more = self.length - self.rows
            first, last = _part(self.base, name, self.rows), _part(self.extra, name, more)
            whole = first if not more else last if not self.rows else np.concatenate((first, last))
            whole.flags.writeable = False  # of a view: what it shows can still grow
            self._joined[name] = whole
        return self._joined[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        """How many columns there are; `length` has the rows."""
        return len(self.names)

    def last(self, name: str) -> float | None:
        """The latest finite value of a metric, or None."""
        if name not in self.names:
            return None
        found = last_finite(_part(self.extra, name, self.length - self.rows))
        return found if found is not None else last_finite(_part(self.base, name, self.rows))

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        return sum(array.nbytes for part in (self.base, self.extra, self._joined) for array in part.values())


def last_finite(values: np.ndarray) -> float | None:
    """The last finite value, or None; looks at the end first, where it mostly is."""
    for part in (values[-_NEAR:], values):
        known = np.flatnonzero(np.isfinite(part))
        if len(known):
            return float(part[known[-1]])
    return None


def _part(part: Mapping[str, np.ndarray], name: str, rows: int) -> np.ndarray:
    found = part.get(name)
    return found[:rows] if found is not None else np.full(rows, np.nan)


class GrowingTable:
    """Rows by step, to which blocks of lines are added; the later line of a step wins, as after a resume."""

    def __init__(self, base: Mapping[str, np.ndarray] | None = None) -> None:
        self._base: Mapping[str, np.ndarray] = base or {STEP: np.empty(0, np.int64)}
        self._rows = len(self._base[STEP])
        self._names: dict[str, None] = dict.fromkeys(self._base)
        self._extra: dict[str, np.ndarray] = {}
        self._more = 0

    def __len__(self) -> int:
        return self._rows + self._more

    def columns(self) -> Columns:
        """All rows as they are now."""
        shown = {name: array[: self._more] for name, array in self._extra.items()} if self._more else {}
        return Columns(self._base, self._rows, shown, tuple(self._names), len(self))

    def settle(self) -> None:
        """Make all rows one piece, so that reading a column copies nothing until more rows come."""
        whole = self.columns()
        self._base = {name: np.ascontiguousarray(whole[name]) for name in whole}
        self._rows, self._extra, self._more = len(self), {}, 0

    def add(self, lines: Lines) -> None:
        """Append rows; rows at or beyond a step that comes again are dropped first."""
        if not len(lines.steps):
            return
        lowest = np.minimum.accumulate(lines.steps[::-1])[::-1]  # of this row and those after it
        kept = np.append(lines.steps[:-1] < lowest[1:], True)
        self._cut(int(lowest[0]))
        values = {STEP: lines.steps, **lines.values}
        count = int(kept.sum())
        self._reserve(count, values)
        at = slice(self._more, self._more + count)
        for name, array in self._extra.items():
            array[at] = values[name][kept] if name in values else np.nan
        self._more += count

    def _cut(self, step: int) -> None:
        """Drop rows from `step` on."""
        if self._more:
            left = int(np.searchsorted(self._extra[STEP][: self._more], step))
            if left < self._more:  # anew: what was handed out must not change
                self._extra = {name: array[:left].copy() for name, array in self._extra.items()}
                self._more = left
        if not self._more:
            self._rows = int(np.searchsorted(self._base[STEP][: self._rows], step))

    def _reserve(self, count: int, values: Mapping[str, np.ndarray]) -> None:
        """Room for `count` more rows in every column, also in those that are new."""
        needed = self._more + count
        room = len(self._extra.get(STEP, ()))
        if room < needed:
            room = max(needed, 2 * room if room else count)
            for name, array in self._extra.items():
                wider = np.empty(room, array.dtype)
                wider[: self._more] = array[: self._more]
                self._extra[name] = wider
        for name in values:
            self._names.setdefault(name)
            if name not in self._extra:
                dtype = np.int64 if name == STEP else np.float64
                self._extra[name] = np.empty(room, dtype)
                if name != STEP:
                    self._extra[name][: self._more] = np.nan
