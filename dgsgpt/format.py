"""How numbers, sizes and times are written on every page.

A missing or non-finite value is an en dash. Thousands are parted by a narrow no-break space,
negative numbers have a true minus sign, and units stand behind a no-break space.
"""

from __future__ import annotations

import math
from datetime import datetime

MISSING = "–"
MINUS = "−"
_THIN = "\u202f"  # narrow no-break space, between groups of three digits
_NBSP = "\u00a0"
_SI = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def number(value: float | None, digits: int = 0) -> str:
    """A plain number with fixed decimals and parted thousands, e.g. `12 480`."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{digits}f}".replace(",", _THIN)
    if text.startswith("-"):
        text = text[1:] if float(f"{value:.{digits}f}") == 0 else MINUS + text[1:]
    return text


def loss(value: float | None) -> str:
    """A loss in nats per token or bits per byte, four decimals."""
    return number(value, 4)


def perplexity(value: float | None) -> str:
    """A perplexity, two decimals."""
    return number(value, 2)


def signed(value: float | None, digits: int = 4) -> str:
    """A difference with its sign, e.g. `+0.0121` or `−0.0184`."""
    text = number(value, digits)
    return text if text == MISSING or text.startswith(MINUS) else "+" + text


def si(value: float | None, digits: int = 1) -> str:
    """A large number in short, e.g. `124.4M`, `112.4k`, `512`; whole values drop the `.0`."""
    if value is None or not math.isfinite(value):
        return MISSING
    sign, size = (MINUS if value < 0 else ""), abs(value)
    for limit, unit in _SI:
        # Rounding may carry into the next unit: 999 960 is 1M, not 1000k.
        if round(size / limit * 1000, digits) >= 1000:
            return f"{sign}{_short(size / limit, digits)}{unit}"
    return f"{sign}{_short(size, digits if size < 10 else 0)}"


def _short(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def lr(value: float | None) -> str:
    """A learning rate, e.g. `3e-4` or `2.85e-4`."""
    return scientific(value, 2)


def scientific(value: float | None, digits: int = 1) -> str:
    """A number as `3.5e17`: at most `digits` decimals, no padding in the exponent."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{abs(value):.{digits}e}".split("e")
    return f"{MINUS if value < 0 else ''}{_short(float(mantissa), digits)}e{int(exponent)}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share between 0 and 1 as `62.4 %`."""
    return MISSING if share is None or not math.isfinite(share) else number(share * 100, digits) + _NBSP + "%"


def gib(size_bytes: float | None, digits: int = 1) -> str:
    """A memory size in GiB, without the unit."""
    return MISSING if size_bytes is None else number(size_bytes / (1 << 30), digits)


def gib_of(used_bytes: float | None, total_bytes: float | None) -> str:
    """Memory used of a total, e.g. `9.8 / 24.0 GiB`."""
    return f"{gib(used_bytes)} / {gib(total_bytes)}{_NBSP}GiB"


def size(size_bytes: float | None) -> str:
    """A file or memory size in its own binary unit, e.g. `1.4 GiB`, `812 KiB`."""
    if size_bytes is None or not math.isfinite(size_bytes):
        return MISSING
    for limit, unit in _BINARY:
        if abs(size_bytes) >= limit:
            value = size_bytes / limit
            return number(value, 1 if abs(value) < 100 else 0) + _NBSP + unit
    return number(size_bytes) + _NBSP + "B"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units, e.g. `2 h 14 m`, `41 m`, `9 s`."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return MISSING
    if 0 < seconds < 1:
        return f"{max(1, round(seconds * 1000))}{_NBSP}ms"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{_NBSP}s"
    if whole < 600:
        return _pair(whole, 60, "m", 1, "s")
    if whole < 3600:
        return f"{round(whole / 60)}{_NBSP}m" if round(whole / 60) < 60 else f"1{_NBSP}h"
    if whole < 86_400:
        return _pair(whole, 3600, "h", 60, "m")
    return _pair(whole, 86_400, "d", 3600, "h")


def step_time(seconds: float | None) -> str:
    """The time of one step in three digits, e.g. `84.2 ms`, `1.64 s`; longer ones as `duration`."""
    if seconds is None or not math.isfinite(seconds) or seconds >= 100 or seconds <= 0:
        return duration(seconds)
    seconds = float(f"{seconds:.3g}")  # first, as rounding may carry into the next unit
    value, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    return f"{number(value, max(0, 2 - math.floor(math.log10(value))))}{_NBSP}{unit}"


def _pair(seconds: int, big: int, big_unit: str, small: int, small_unit: str) -> str:
    whole, rest = divmod(seconds, big)
    part = rest // small
    first = f"{whole}{_NBSP}{big_unit}"
    return f"{first}{_NBSP}{part:02d}{_NBSP}{small_unit}" if part else first


def ago(then: float | None, now: float) -> str:
    """How long before `now` (both Unix seconds), e.g. `just now`, `4 m ago`, `yesterday`, `3 d ago`."""
    if then is None or not math.isfinite(then):
        return MISSING
    past = max(0.0, now - then)
    if past < 5:
        return "just now"
    days = (datetime.fromtimestamp(now).date() - datetime.fromtimestamp(then).date()).days
    if past >= 43_200 and days == 1:
        return "yesterday"
    for limit, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if past >= limit:
            return f"{int(past // limit)}{_NBSP}{unit} ago"
    return f"{int(past)}{_NBSP}s ago"


def clock(moment: float | None, now: float | None = None) -> str:
    """A local time of day, e.g. `19:42`; with a date when it is on another day than `now`."""
    if moment is None or not math.isfinite(moment):
        return MISSING
    when = datetime.fromtimestamp(moment)
    other_day = now is not None and datetime.fromtimestamp(now).date() != when.date()
    return when.strftime("%d %b %H:%M" if other_day else "%H:%M")


def plural(count: int, noun: str, many: str | None = None) -> str:
    """A counted noun, e.g. `1 run`, `137 runs`."""
    return f"{number(count)}{_NBSP}{noun if count == 1 else many or noun + 's'}"


def printable(text: str) -> str:
    """A message for a terminal: what is no character to be seen (an escape code, a line end) is written as code."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
