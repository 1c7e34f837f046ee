"""Lines of metrics.jsonl as columns, a block at a time: the fast way where every line is plain, else line by line.

Both ways give the same figures. A line counts when it is one JSON object with a whole number as `step`; what is not
a number in it (null, text, true, lists) is NaN. pyarrow comes with streamlit; without it everything is read line by
line.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import Future

MAX_LINE = 1_000_000
FAST_BYTES = 1 << 19  # a block from which loading pyarrow pays
_STEPS = range(-(2**63), 2**63)
T = TypeVar("T")


@dataclass(frozen=True)
class Lines:
    """Rows in the order written: steps (int64), the other columns (float64, NaN where a line lacks them), bad lines."""

    steps: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: int = 0


def parse_row(line: bytes | None) -> dict[str, Any] | None:
    """One line's object, or None when it is damaged, too long or lacks a step."""
    if line is None:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] not in _STEPS:
        return None
    return row


def parse_block(block: bytes, max_line: int = MAX_LINE) -> Lines:
    """The rows of whole lines, each ended by a newline."""
    if len(block) >= FAST_BYTES and _is_plain(block, max_line):
        found = _fast(block)
        if found is not None:
            return found
    return _line_by_line(block, max_line)


def parse_ahead(blocks: Iterable[tuple[bytes, T]], threads: int) -> Iterator[tuple[Lines, T]]:
    """Each block's rows with what comes beside it, in order; several blocks are parsed at the same time."""
    if threads < 2:
        yield from ((parse_block(block), beside) for block, beside in blocks)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads, "parse") as pool:
        ahead: deque[tuple[Future[Lines], T]] = deque()
        for block, beside in blocks:
            ahead.append((pool.submit(parse_block, block), beside))
            if len(ahead) > threads:
                first, its = ahead.popleft()
                yield first.result(), its
        yield from ((first.result(), its) for first, its in ahead)


# ---------------------------------------------------------------- line by line
def _line_by_line(block: bytes, max_line: int) -> Lines:
    lines = block.split(b"\n")
    rows, skipped = [], 0
    for line in lines[:-1]:
        row = parse_row(line if len(line) <= max_line else None)
        if row is not None:
            rows.append(row)
        else:
            skipped += bool(line.strip())
    steps = np.fromiter((row["step"] for row in rows), np.int64, len(rows))
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    return Lines(steps, {name: _column(rows, name) for name in names}, skipped)


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.fromiter((_number(row.get(name)) for row in rows), np.float64, len(rows))


def _number(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is not int:
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


# ---------------------------------------------------------------- many lines at once
def _is_plain(block: bytes, max_line: int) -> bool:
    """Whether each line begins and ends with a brace, without lists, escapes or anything beyond ASCII in it.

    Then no two lines can be one object, so as many objects as lines means one in each line.
    """
    if not block or not block.isascii() or any(mark in block for mark in (b"\\", b"[", b"\0")):
        return False
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    starts = np.concatenate(([0], ends[:-1] + 1))
    if int((ends - starts).max()) > max_line:
        return False
    return bool((data[starts] == ord("{")).all() and (data[np.maximum(ends - 1, 0)] == ord("}")).all())


def _fast(block: bytes) -> Lines | None:
    """Plain lines by pyarrow; None where it is missing, or a line would have to be judged by itself."""
    try:
        import pyarrow as pa
        from pyarrow.json import ReadOptions, read_json
    except ImportError:
        return None
    try:
        options = ReadOptions(use_threads=False, block_size=len(block) + 1)
        table = read_json(pa.BufferReader(block), read_options=options)
    except pa.ArrowInvalid:
        return None
    step = table.column("step") if "step" in table.column_names else None
    if step is None or step.type != pa.int64() or step.null_count or len(table) != block.count(b"\n"):
        return None
    values = {name: _floats(table.column(name)) for name in table.column_names if name != "step"}
    return Lines(step.to_numpy(), values)


def _floats(column: Any) -> np.ndarray:
    import pyarrow as pa

    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        found: np.ndarray = column.to_numpy().astype(np.float64, copy=False)
        return found
    return np.full(len(column), np.nan)
