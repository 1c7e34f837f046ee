"""metrics.jsonl and events.jsonl: the one writer and the one reader.

One flushed object a line. A non-finite value is written as null. After a resume, lines past the checkpoint's step
are superseded: the writer cuts them, and a reader that meets a step again lets the later line win.

How a long file is read fast: `metric_lines` makes columns of many lines at once, `metric_table` puts them together,
`metric_store` keeps them beside the lines for the next reader, `metric_summary` has what a list of runs shows, and
`curves` smooths and thins out.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgsgpt import files, metric_store
from dgsgpt.curves import decimate, ema
from dgsgpt.metric_lines import parse_ahead, parse_row
from dgsgpt.metric_summary import MetricSummary, summarise
from dgsgpt.metric_table import Columns, GrowingTable

if TYPE_CHECKING:
    import pandas as pd

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
KEEP_BYTES = 1 << 16  # shorter files are read anew as fast
LONG_BYTES = 32 << 20  # from here on several threads read a file
QUIET_S = 30.0  # after which a run is taken not to write any more lines soon

__all__ = [
    "EVENTS", "METRICS", "MetricsTail", "MetricsWriter", "decimate", "ema", "read_events", "read_metrics",
    "read_summary",
]  # fmt: skip


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
            row = parse_row(line)
            if row is None or row["step"] > step:
                dropped += 1
            else:
                kept.append(line or b"")
        text = b"".join(line + b"\n" for line in kept)
        if dropped or path.stat().st_size != len(text):  # the second: a torn last line
            files.write_atomic(path, text)
        return dropped


# ---------------------------------------------------------------- reading
class MetricsTail:
    """Reads a growing metrics.jsonl piece by piece: `refresh` costs what is new, not what is there.

    What earlier readers kept beside the file is taken over, and the columns are kept there in turn, for the next
    one; `keep=False` does neither. With `over` nothing more will be written, so that they are kept at once. `skipped`
    counts damaged lines. A file that shrank or was replaced is read anew.
    """

    def __init__(self, run_dir: Path | str, *, keep: bool = True, over: bool = False) -> None:
        self.path = Path(run_dir) / METRICS
        self._keep, self._over = keep, over
        self._reset()

    def _reset(self) -> None:
        self._offset = self._kept = 0
        self._inside = False  # a line that is too long to be read
        self._end = ""  # the last bytes before the offset, hashed
        self._inode = -1
        self._table = GrowingTable()
        self._columns: Columns | None = None
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._table)

    def refresh(self) -> bool:
        """Read what was added; True when anything changed."""
        before = self._offset
        try:
            return self._refresh()
        except FileNotFoundError:  # there are no lines yet, or the run is being deleted
            self._reset()
            return before > 0

    def _refresh(self) -> bool:
        stat = self.path.stat()
        anew = stat.st_ino != self._inode or stat.st_size < self._offset
        if not anew and stat.st_size == self._offset:
            self._store(stat.st_mtime)
            return False
        if anew or not self._goes_on():
            changed = self._offset > 0
            self._reset()
            self._inode = stat.st_ino
            changed = self._take_over(stat.st_size) or changed
        else:
            changed = False
        changed = self._read(stat.st_size - self._offset) or changed
        self._store(stat.st_mtime)
        return changed

    def _goes_on(self) -> bool:
        """Whether the file still ends, up to where it was read, as it did then."""
        return not self._offset or metric_store.fingerprint(self.path, self._offset) == self._end != ""

    def _read(self, new_bytes: int) -> bool:
        before = self._offset
        blocks = files.read_blocks(self.path, self._offset, self._inside)
        threads = min(4, os.cpu_count() or 1) if new_bytes >= LONG_BYTES else 1
        pieces = parse_ahead(((block, (offset, inside)) for block, offset, inside in blocks), threads)
        for lines, (self._offset, inside) in pieces:
            self.skipped += lines.skipped + (inside and not self._inside)
            self._inside = inside
            self._table.add(lines)
        if self._offset == before:
            return False
        self._columns = None
        self._end = metric_store.fingerprint(self.path, self._offset)
        return True

    def _take_over(self, size: int) -> bool:
        """Begin with what an earlier reader kept."""
        stored = metric_store.read(self.path) if self._keep and size >= KEEP_BYTES else None
        if stored is None:
            return False
        self._table = GrowingTable(stored.columns)
        self._offset = self._kept = stored.source.offset
        self._end, self.skipped = stored.source.digest, stored.skipped
        return True

    def _store(self, written_at: float) -> None:
        """Keep the columns when much was read since they were kept last, or all is read and nothing more comes."""
        new = self._offset - self._kept
        much = new >= max(1 << 20, self._kept // 4)
        if not self._keep or self._inside or self._offset < KEEP_BYTES or new <= 0:
            return
        if much or self._over or time.time() - written_at > QUIET_S:
            self._table.settle()
            self._columns = None
            columns = self.columns
            metric_store.write(self.path, columns, self._offset, self.skipped, summarise(columns).to_dict())
            self._kept = self._offset  # also where it cannot be written: it is not tried again and again

    @property
    def columns(self) -> Columns:
        """All lines as columns (NaN where a line had no value), sorted by step; it does not change any more."""
        if self._columns is None:
            self._columns = self._table.columns()
        return self._columns

    @property
    def frame(self) -> pd.DataFrame:
        """All lines as a frame of float columns, `step` as int64: a copy of all columns."""
        import pandas as pd

        return pd.DataFrame(dict(self.columns))

    def last(self, key: str) -> float | None:
        """The latest finite value of a metric, or None."""
        return self.columns.last(key)


def keep_columns(run_dir: Path | str) -> None:
    """Keep the columns of a run that is over beside its lines: then its first reader need not parse them."""
    with contextlib.suppress(OSError):  # a disk that cannot be read now will tell whoever wants the figures
        MetricsTail(run_dir, over=True).refresh()


def read_metrics(run_dir: Path | str) -> pd.DataFrame:
    """All metrics of a run, one row a line, columns by key; empty when nothing was logged."""
    tail = MetricsTail(run_dir)
    tail.refresh()
    return tail.frame


def read_summary(run_dir: Path | str) -> MetricSummary:
    """What a list shows of a run's metrics; of a long run that is over it costs reading a few kilobytes."""
    path = Path(run_dir) / METRICS
    stored = metric_store.read(path, columns=False)
    if stored is not None and metric_store.covers(stored, path):
        known = MetricSummary.from_dict(stored.summary)
        if known is not None:
            return known
    tail = MetricsTail(run_dir)
    tail.refresh()
    return summarise(tail.columns)


def read_events(run_dir: Path | str, kinds: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Events in the order written, damaged lines left out; only some `kinds` if given."""
    path = Path(run_dir) / EVENTS
    if not path.exists():
        return []
    rows = (parse_row(line) for line, _ in files.read_lines(path))
    return [r for r in rows if r is not None and (kinds is None or r.get("kind") in kinds)]
