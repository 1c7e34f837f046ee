"""Number formats: what is written for typical, missing, negative and carrying values."""

from __future__ import annotations

import math
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt import format as fmt

NARROW = "\u202f"
SPACE = "\u00a0"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (fmt.loss(2.86834), "2.8683"),
        (fmt.perplexity(18.9374), "18.94"),
        (fmt.number(12480), f"12{NARROW}480"),
        (fmt.number(1234567.891, 2), f"1{NARROW}234{NARROW}567.89"),
        (fmt.number(-0.00001, 2), "0.00"),
        (fmt.number(-1500), f"−1{NARROW}500"),
        (fmt.si(124_400_000), "124.4M"),
        (fmt.si(112_400), "112.4k"),
        (fmt.si(648_000), "648k"),
        (fmt.si(6_500_000_000), "6.5B"),
        (fmt.si(512), "512"),
        (fmt.si(0), "0"),
        (fmt.si(-2500), "−2.5k"),
        (fmt.si(999_960), "1M"),
        (fmt.si(960_000), "960k"),
        (fmt.lr(3e-4), "3e-4"),
        (fmt.lr(2.85e-4), "2.85e-4"),
        (fmt.lr(0.0), "0"),
        (fmt.lr(1.0), "1e0"),
        (fmt.scientific(3.52e17), "3.5e17"),
        (fmt.percent(0.624), f"62.4{SPACE}%"),
        (fmt.gib(9.8 * 2**30), "9.8"),
        (fmt.gib_of(9.8 * 2**30, 24 * 2**30), f"9.8 / 24.0{SPACE}GiB"),
        (fmt.size(1.4 * 2**30), f"1.4{SPACE}GiB"),
        (fmt.size(812 * 2**10), f"812{SPACE}KiB"),
        (fmt.size(12), f"12{SPACE}B"),
        (fmt.signed(0.0121), "+0.0121"),
        (fmt.signed(-0.0184), "−0.0184"),
        (fmt.plural(1, "run"), f"1{SPACE}run"),
        (fmt.plural(137, "run"), f"137{SPACE}runs"),
        (fmt.plural(2, "entry", "entries"), f"2{SPACE}entries"),
    ],
)
def test_number_is_written_as_designed(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (8_040, "2 h 14 m"),
        (10_920, "3 h 02 m"),
        (7_200, "2 h"),
        (2_460, "41 m"),
        (3_599, "1 h"),
        (599, "9 m 59 s"),
        (9, "9 s"),
        (0, "0 s"),
        (0.05, "50 ms"),
        (0.0004, "1 ms"),
        (90_000, "1 d 01 h"),
        (-1, "–"),
    ],
)
def test_duration_uses_its_two_largest_units(seconds: float, expected: str) -> None:
    assert fmt.duration(seconds) == expected.replace(" ", SPACE)


@pytest.mark.parametrize(
    "function",
    [
        fmt.number,
        fmt.loss,
        fmt.perplexity,
        fmt.si,
        fmt.lr,
        fmt.scientific,
        fmt.percent,
        fmt.size,
        fmt.duration,
        fmt.signed,
    ],
)
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_missing_is_an_en_dash(function: object, value: float | None) -> None:
    assert function(value) == "–"  # type: ignore[operator]


def test_age_grows_from_seconds_to_days() -> None:
    now = datetime(2026, 5, 20, 15, 0).timestamp()
    ages = [fmt.ago(now - s, now).replace(SPACE, " ") for s in (2, 30, 240, 7_300, 86_400 - 3_600, 3 * 86_400)]
    assert ages == ["just now", "30 s ago", "4 m ago", "2 h ago", "yesterday", "3 d ago"]
    assert fmt.ago(None, now) == "–"
    assert fmt.ago(now + 60, now) == "just now"


def test_clock_gives_the_date_only_on_another_day() -> None:
    now = datetime(2026, 5, 20, 15, 0).timestamp()
    assert fmt.clock(now, now) == "15:00"
    assert fmt.clock(now + 86_400, now) == "21 May 15:00"
    assert fmt.clock(None) == "–"


def _value_of(text: str) -> float:
    units = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    sign = -1 if text.startswith("−") else 1
    text = text.removeprefix("−")
    return sign * (float(text[:-1]) * units[text[-1]] if text[-1] in units else float(text))


@given(st.floats(min_value=-1e14, max_value=1e14))
def test_short_number_is_within_its_rounding(value: float) -> None:
    # One decimal of the unit, or one of the whole below a thousand.
    assert _value_of(fmt.si(value)) == pytest.approx(value, rel=0.051, abs=0.5)


@given(st.floats(min_value=1, max_value=999_949_999_999))
def test_short_number_never_shows_four_digits_before_its_unit(value: float) -> None:
    text = fmt.si(value)
    assert abs(_value_of(text.rstrip("kMBT"))) < 1000


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_parted_thousands_read_back_equal(value: int) -> None:
    assert int(fmt.number(value).replace(NARROW, "").replace("−", "-")) == value


def test_times_are_local() -> None:
    now = time.time()
    assert fmt.clock(now) == time.strftime("%H:%M", time.localtime(now))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0842, "84.2 ms"),
        (0.00012, "0.120 ms"),
        (0.9999, "1.00 s"),
        (1.64, "1.64 s"),
        (12.34, "12.3 s"),
        (99.99, "100 s"),
        (150.0, "2 m 30 s"),
        (0.0, "0 s"),
        (None, "–"),
    ],
)
def test_the_time_of_a_step_has_three_digits(seconds: float | None, text: str) -> None:
    assert fmt.step_time(seconds).replace("\u00a0", " ") == text
