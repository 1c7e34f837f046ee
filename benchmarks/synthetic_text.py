"""Columns of figures as lines of metrics.jsonl, exactly as `json.dumps` would write them, but many at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

LINES_AT_ONCE = 20_000


def lines_of(columns: Mapping[str, np.ndarray], rare: Mapping[int, Mapping[str, Any]]) -> bytes:
    """One object a line; `rare` has by index what a line has besides its columns, or instead."""
    form = "{" + ", ".join(f"{json.dumps(name)}: %r" for name in columns) + "}"
    rows = list(zip(*(column.tolist() for column in columns.values()), strict=True))
    lines = [form % row for row in rows]
    for at, more in rare.items():
        lines[at] = json.dumps(dict(zip(columns, rows[at], strict=True)) | dict(more))
    return ("\n".join(lines) + "\n").encode() if lines else b""
