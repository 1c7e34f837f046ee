"""A generation that goes on after tokens that are there is the one that wrote them itself."""

from __future__ import annotations

from typing import Any

import pytest

from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.generation import stream
from tests.generation.test_engine import tiny

LETTERS = CharTokenizer("abcdefgh")


@pytest.mark.parametrize("rules", [{"temperature": 1.0}, {"temperature": 0.0}, {"repetition_penalty": 1.7}])
@pytest.mark.parametrize("block_size", [64, 8, 1])
def test_going_on_equals_never_having_stopped(block_size: int, rules: dict[str, Any]) -> None:
    gpt = tiny(block_size=block_size)
    whole = stream(gpt, LETTERS, "abc", max_new_tokens=30, seed=5, **rules)
    text = "".join(whole)
    for at in (0, 1, 13, 29):
        rest = stream(gpt, LETTERS, "abc", written=whole.stats.ids[:at], max_new_tokens=30 - at, seed=5, **rules)
        assert "".join(rest) == text
        assert rest.stats.ids == whole.stats.ids[at:]
        assert rest.stats.nats == pytest.approx(whole.stats.nats[at:], rel=1e-4)
        assert rest.stats.tokens == 30 - at


def test_another_token_changes_what_follows_and_not_the_noise() -> None:
    gpt = tiny()
    first = stream(gpt, LETTERS, "ab", max_new_tokens=12, temperature=1.0, seed=5)
    list(first)
    other = (first.stats.ids[3] + 1) % 8
    branched = stream(
        gpt, LETTERS, "ab", written=[*first.stats.ids[:3], other], max_new_tokens=8, temperature=1.0, seed=5
    )
    assert next(branched) == LETTERS.decode([*first.stats.ids[:3], other])
    list(branched)
    assert branched.stats.ids != first.stats.ids[4:]


def test_half_a_character_is_joined_with_what_follows_and_no_stop_text_is_missed() -> None:
    from dgsgpt.generation.text import TextBuffer

    raw, stops = "naïve 日本\n\nend".encode(), ("\n\n",)
    for at in range(len(raw) + 1):
        before, after = TextBuffer(stops), TextBuffer(stops)
        out = before.add(raw[:at])
        again = after.resume(raw[:at])
        if before.stopped:  # who goes on after a stop text wants it
            assert again + after.add(raw[at:]) + after.rest() == raw.decode()
        else:
            assert again == out
            assert again + after.add(raw[at:]) == "naïve 日本"
            assert after.stopped


def test_bytes_of_the_tokens_that_are_there_come_first() -> None:
    pieces = stream(tiny(), ByteTokenizer(), "go", written=list("é".encode()), max_new_tokens=1, seed=1)
    assert next(pieces) == "é"
