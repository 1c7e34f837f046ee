"""All that runs logged as one table of comma-separated values: every line, nothing smoothed and nothing left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import IO

import numpy as np

from dgsgpt.metrics import read_metrics
from dgsgpt.runs import Run

FIRST = ("step", "time_s", "tokens", "flops")


def header(names: Sequence[str]) -> list[str]:
    """Columns in their order: run, what every line has, then the metrics by name."""
    return ["run", *FIRST, *sorted(set(names) - set(FIRST))]


def write_csv(runs: Sequence[Run], out: IO[str]) -> int:
    """Write the metrics of these runs, one row a logged step with a header; returns how many rows.

    Values are as they were logged, to the last digit; an empty cell is one that was not measured or not finite.
    """
    frames = [read_metrics(run.path) for run in runs]
    names = header([str(name) for frame in frames for name in frame])
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    rows = 0
    for run, frame in zip(runs, frames, strict=True):
        columns = [_cells(np.asarray(frame[name])) if name in frame else None for name in names[1:]]
        count = len(np.asarray(frame["step"]))
        rows += count
        for i in range(count):
            writer.writerow([run.id, *("" if column is None else column[i] for column in columns)])
    return rows


def _cells(values: np.ndarray) -> list[str]:
    whole = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 2**53)
    return [
        "" if not np.isfinite(value) else str(int(value)) if is_whole else repr(float(value))
        for value, is_whole in zip(values.tolist(), whole.tolist(), strict=True)
    ]


def to_csv(runs: Sequence[Run]) -> bytes:
    """The same as bytes, for a download."""
    out = io.StringIO()
    write_csv(runs, out)
    return out.getvalue().encode()
