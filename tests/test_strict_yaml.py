from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt import strict_yaml
from dgsgpt.errors import ConfigError

scalars = st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False)
plain_text = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True), scalars | plain_text | st.lists(scalars, max_size=3), max_size=6
    )
)
def test_parse_reads_back_what_dump_writes(values: dict) -> None:
    assert strict_yaml.parse(strict_yaml.dump(values), "x") == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1_000", 1000),
        ("010", 10),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("1.5", 1.5),
        ("-2", -2),
        ("~", None),
        (".5", 0.5),
    ],
)
def test_scalars_are_what_people_mean(text: str, value: object) -> None:
    parsed = strict_yaml.parse(text, "x")
    assert parsed == value
    assert type(parsed) is type(value)


def test_infinity_and_nan_are_numbers_for_the_schema_to_refuse() -> None:
    assert math.isnan(strict_yaml.parse(".nan", "x"))
    assert strict_yaml.parse("-.inf", "x") == -math.inf


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", "f.yaml:2: aliases"),
        ("train:\n lr: 1\n lr: 2", "f.yaml:3: 'lr' is given twice"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("[" * 3000, "nested deeper"),
        ("{a: " * 2000, "nested deeper"),
        ("a: [1", "expected"),
        ("? [a, b]\n: 1", "a key must be plain text"),
        ("a: " + "9" * 6000, "over 300 digits"),
        ("a: b: c", "mapping values"),
        ("x" * 1_000_001, "too large"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_hostile_or_broken_text_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as e:
        strict_yaml.parse(text, "f.yaml")
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.timeout(60)
def test_alias_bomb_is_refused_at_once() -> None:
    bomb = "a: &a [x]\n" + "".join(
        f"b{i}: &b{i} [*{'a' if i == 0 else f'b{i - 1}'}, *{'a' if i == 0 else f'b{i - 1}'}]\n" for i in range(60)
    )
    with pytest.raises(ConfigError, match="aliases"):
        strict_yaml.parse(bomb, "bomb.yaml")


@given(st.text(max_size=200))
def test_any_text_parses_or_is_one_line(text: str) -> None:
    message = ""
    try:
        strict_yaml.parse(text, "x")
    except ConfigError as e:
        message = str(e)
    assert "\n" not in message
