"""Bounds, steps and sensible values of a setting's field; nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dgsgpt.format import number
from dgsgpt.rules import Setting

_SAFE_INT = 2**53 - 1  # a browser's numbers are doubles


def facts(setting: Setting) -> str:
    """Bounds and unit of a setting in a few words, e.g. `1 to 512, tokens`."""
    low, high = setting.minimum, setting.maximum

    def write(value: float) -> str:
        return number(value) if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"

    span = (
        f"{write(low)} to {write(high)}"
        if low is not None and high is not None
        else f"{write(low)} and up"
        if low is not None
        else ""
    )
    return ", ".join(
        part
        for part in (span, setting.unit, "null allowed" if setting.optional and not setting.section else "")
        if part
    )


def with_value(options: Sequence[Any], value: Any) -> list[Any]:
    """The options and, in its place among them, the value."""
    if value is None or value in options:
        return list(options)
    return sorted([*options, value])


def bounds(setting: Setting) -> tuple[Any, Any]:
    """Lowest and highest number that a field takes, of the setting's own type."""
    low = -_SAFE_INT if setting.minimum is None else max(setting.minimum, -_SAFE_INT)
    high = _SAFE_INT if setting.maximum is None else min(setting.maximum, _SAFE_INT)
    return setting.type(low), setting.type(high)


def is_wide(setting: Setting) -> bool:
    """Whether a setting's numbers span a thousandfold or have no end: then steps are not equal but proportional."""
    low, high = setting.minimum or 0, setting.maximum
    if high is None:
        return setting.type is int or low > 0
    if low > 0 or setting.type is int:
        return high >= 1000 * max(low, 1)
    default = setting.default if isinstance(setting.default, int | float) else 0
    return default > 0 and high >= 1000 * default


def step(setting: Setting, value: Any = None) -> Any:
    """How far a press on + goes: one, but of a large number in a wide range about a tenth to a half of it."""
    if setting.type is int:
        large = isinstance(value, int) and not isinstance(value, bool) and value >= 20 and is_wide(setting)
        return 10 ** math.floor(math.log10(value) - 0.35) if large else 1
    # A tenth of the default's own order: 1e-4 for a learning rate of 1e-3.
    default = setting.default if isinstance(setting.default, int | float) and setting.default else 1.0
    return 10.0 ** (math.floor(math.log10(abs(default))) - 1)


def log_rungs(setting: Setting) -> list[Any]:
    """Values spread evenly by their logarithm over a wide range, 1, 2, 5, 10 …, for a slider; empty for narrow ones."""
    if not is_wide(setting) or setting.optional or setting.type not in (int, float):
        return []
    low, high = setting.minimum, setting.maximum
    whole = setting.type is int
    default = float(setting.default) if isinstance(setting.default, int | float) and setting.default else 1.0
    # As far as is sensible around the default where the range itself has no end.
    smallest = max(low or 0.0, 1.0 if whole else default / 1e3)
    largest = min(high if high is not None else math.inf, max(default * 1e3, smallest * 1e3))
    powers = range(math.floor(math.log10(smallest)), math.ceil(math.log10(largest)) + 1)
    rungs = [setting.type(float(f"{d}e{p}")) for p in powers for d in (1, 2, 5)]
    found = [r for r in rungs if smallest <= r <= largest]
    return ([setting.type(0)] if low == 0 else []) + found


def one_line(text: str) -> str:
    """A text with its line breaks and tabs written as \\n and \\t, for a field of one line."""
    return text.replace("\n", "\\n").replace("\t", "\\t")


def from_one_line(typed: str) -> str:
    """What `one_line` was made from."""
    return typed.replace("\\n", "\n").replace("\\t", "\t")
