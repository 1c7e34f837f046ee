"""Metrics of many runs for whoever looks again and again: read once, thinned out once, within a bounded memory.

Thread-safe. What is held can be lost at any time; everything durable lies in the run directories.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgsgpt.curves import decimate, ema
from dgsgpt.metric_summary import MetricSummary, summarise
from dgsgpt.metric_table import Columns, GrowingTable, last_finite
from dgsgpt.metrics import METRICS, MetricsTail, read_summary

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 512 << 20  # of columns; the run looked at last stays whatever its size
MAX_CURVES = 512
MAX_SUMMARIES = 10_000
_WORKERS = 4  # more would compete for the same disk
Stamp = tuple[int, ...]
NOTHING = GrowingTable().columns()


@dataclass(frozen=True)
class Reading:
    """A run's metrics at one moment: columns by name, how many damaged lines were left out, a number of this state.

    `revision` is another number whenever the metrics are. Prefer `columns` (arrays, nothing is copied) to `frame`.
    """

    columns: Mapping[str, np.ndarray]
    skipped: int
    revision: int

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A copy of all columns as a frame."""
        import pandas as pd

        return pd.DataFrame(dict(self.columns))

    def last(self, key: str) -> float | None:
        """The latest known value of a metric, or None."""
        return last_finite(np.asarray(self.columns[key], dtype=float)) if key in self.columns else None

    def column(self, key: str) -> np.ndarray:
        """All known values of a metric as an array, in the order of steps; empty when it was never written."""
        if key not in self.columns:
            return np.empty(0)
        values = np.asarray(self.columns[key], dtype=float)
        return values[np.isfinite(values)]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, with the frame if there is one."""
        copied = 2 if "frame" in vars(self) else 1
        return copied * self.columns.nbytes if isinstance(self.columns, Columns) else 0


@dataclass(frozen=True)
class CurvePoints:
    """A metric over an axis, smoothed on all `total` points, then thinned out with extremes kept."""

    x: np.ndarray
    y: np.ndarray
    total: int


def file_stamp(path: Path) -> Stamp:
    """What is another tuple as soon as a file is written to; costs one look at its directory. Empty without it."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@dataclass
class _Book:
    """One run's open tail."""

    tail: MetricsTail
    lock: threading.Lock = field(default_factory=threading.Lock)
    reading: Reading = Reading(NOTHING, 0, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of what was read."""
        return self.reading.nbytes


class _Crew:
    """A few threads that end with the process at once, whatever they have before them."""

    def __init__(self) -> None:
        self._todo: queue.SimpleQueue[tuple[Future[Any], Callable[[Path], Any], Path]] = queue.SimpleQueue()
        self._started = False
        self._lock = threading.Lock()

    def submit(self, work: Callable[[Path], Any], run_dir: Path) -> Future[Any]:
        """Do `work(run_dir)` on one of the threads."""
        with self._lock:
            if not self._started:
                for _ in range(min(_WORKERS, os.cpu_count() or 1)):
                    threading.Thread(target=self._work, name="metrics", daemon=True).start()
            self._started = True
        future: Future[Any] = Future()
        self._todo.put((future, work, run_dir))
        return future

    def _work(self) -> None:
        while True:
            future, work, run_dir = self._todo.get()
            try:
                future.set_result(work(run_dir))
            except Exception as error:  # noqa: BLE001 - whoever waits for the result gets it
                future.set_exception(error)


class MetricShelf:
    """Open tails of the runs looked at last, curves drawn of them, and summaries of all."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._books: OrderedDict[Path, _Book] = OrderedDict()
        self._curves: OrderedDict[tuple[object, ...], tuple[Stamp, CurvePoints]] = OrderedDict()
        self._summaries: OrderedDict[Path, tuple[Stamp, MetricSummary]] = OrderedDict()
        self._coming: dict[Path, Future[MetricSummary]] = {}
        self._revisions = itertools.count(1)
        self._lists, self._pages = _Crew(), _Crew()  # a page that waits is not behind a long list

    # ------------------------------------------------------------ all of a run
    def read(self, run_dir: Path) -> Reading:
        """A run's metrics now; costs only what was written since the last call."""
        with self._lock:
            book = self._books.setdefault(run_dir, _Book(MetricsTail(run_dir)))
            self._books.move_to_end(run_dir)
        with book.lock:
            if book.tail.refresh():
                book.reading = Reading(book.tail.columns, book.tail.skipped, next(self._revisions))
            elif book.tail.columns is not book.reading.columns:  # kept on disk meanwhile: the same in one piece
                book.reading = Reading(book.tail.columns, book.tail.skipped, book.reading.revision)
            reading = book.reading
        self._make_room()
        return reading

    @property
    def nbytes(self) -> int:
        """Bytes of all columns that are held."""
        with self._lock:
            return sum(book.nbytes for book in self._books.values())

    def _make_room(self) -> None:
        with self._lock:
            total = sum(book.nbytes for book in self._books.values())
            while total > self._max_bytes and len(self._books) > 1:
                total -= self._books.popitem(last=False)[1].nbytes

    def prefetch(self, run_dirs: Sequence[Path]) -> None:
        """Read several runs side by side, for a page that is about to draw them."""
        if len(run_dirs) > 1:
            wait([self._pages.submit(self.read, run_dir) for run_dir in run_dirs])

    # ------------------------------------------------------------ curves
    def curve(
        self, run_dir: Path, key: str, axis: str = "step", weight: float = 0.0, points: int = 2000
    ) -> CurvePoints:
        """Metric `key` over the metric `axis` where both are known; made anew only when the run has written more."""
        now = file_stamp(run_dir / METRICS)
        wanted = (run_dir, key, axis, weight, points)
        with self._lock:
            known = self._curves.get(wanted)
            if known is not None and known[0] == now:
                self._curves.move_to_end(wanted)
                return known[1]
        made = draw_curve(self.read(run_dir).columns, key, axis, weight, points)
        with self._lock:
            self._curves[wanted] = (now, made)
            while len(self._curves) > MAX_CURVES:
                self._curves.popitem(last=False)
        return made

    # ------------------------------------------------------------ lists of runs
    def summary(self, run_dir: Path) -> MetricSummary:
        """What a list shows of a run."""
        now = file_stamp(run_dir / METRICS)
        with self._lock:
            known = self._summaries.get(run_dir)
        if known is not None and known[0] == now:
            return known[1]
        # A run that is seen to grow is read piece by piece; of others a few kilobytes beside the lines are enough.
        grows = known is not None or run_dir in self._books
        made = summarise(self.read(run_dir).columns) if grows else read_summary(run_dir)
        with self._lock:
            self._summaries[run_dir] = (now, made)
            while len(self._summaries) > MAX_SUMMARIES:
                self._summaries.popitem(last=False)
        return made

    def summaries(self, run_dirs: Sequence[Path], within_s: float | None = None) -> list[MetricSummary | None]:
        """Summaries of many runs, read side by side.

        With `within_s`, what is not known by then is None, or as it was before, and goes on being read.
        """
        with self._lock:
            known = {run_dir: self._summaries.get(run_dir) for run_dir in run_dirs}
        asked = [d for d, found in known.items() if found is None or found[0] != file_stamp(d / METRICS)]
        with self._lock:
            for run_dir in asked:
                if run_dir not in self._coming:
                    self._coming[run_dir] = self._lists.submit(self._bring, run_dir)
            coming = [self._coming[run_dir] for run_dir in asked if run_dir in self._coming]
        wait(coming, within_s)
        for future in coming:
            if future.done():
                future.result()  # what went wrong must not be hidden
        with self._lock:
            return [found[1] if (found := self._summaries.get(run_dir)) else None for run_dir in run_dirs]

    def pending(self, run_dirs: Iterable[Path]) -> int:
        """How many of these runs have no summary yet, or a new one is being read."""
        with self._lock:
            return sum(run_dir in self._coming or run_dir not in self._summaries for run_dir in run_dirs)

    def _bring(self, run_dir: Path) -> MetricSummary:
        try:
            return self.summary(run_dir)
        finally:
            with self._lock:
                self._coming.pop(run_dir, None)


def draw_curve(columns: Mapping[str, np.ndarray], key: str, axis: str, weight: float, points: int) -> CurvePoints:
    """A curve of columns, without any memory of it."""
    if key not in columns or axis not in columns:
        return CurvePoints(np.empty(0), np.empty(0), 0)
    x, y = np.asarray(columns[axis], float), np.asarray(columns[key], float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    thin_x, thin_y = decimate(x, ema(y, weight), points)
    return CurvePoints(thin_x, thin_y, len(y))
