"""Where texts from one prompt part, and how the cards say it."""

from __future__ import annotations

import html
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.generation import Stats
from dgsgpt.ui import same_prompt
from dgsgpt.ui.playground_view import Output
from dgsgpt.ui.same_prompt import Mark, Parted

BYTES = ByteTokenizer()
IDS = st.lists(st.integers(0, 255), max_size=12)


def output(letter: str, text: str, **stats: Any) -> Output:
    made = Output(f"run@{letter}", "run", "#112233", "It was", {"seed": 42, "temperature": 0.8}, letter, text)
    made.stats = Stats(2, 0, 42, tokens=len(text), finish_reason="length", ids=list(text.encode()), **stats)
    return made


# ---------------------------------------------------------------- where they part
@given(st.lists(IDS, min_size=2, max_size=4))
def test_all_are_equal_before_the_first_difference_and_not_at_it(ids: list[list[int]]) -> None:
    at = same_prompt.first_difference(ids)
    if at is None:
        assert all(one == ids[0] for one in ids)
    else:
        assert all(one[:at] == ids[0][:at] for one in ids)
        assert len({tuple(one[at : at + 1]) for one in ids}) > 1


@given(st.lists(st.text(alphabet="ab ", max_size=30), min_size=2, max_size=4))
def test_texts_are_equal_before_they_part_and_part_at_a_word(texts: list[str]) -> None:
    at = same_prompt.parting(texts)
    if at is None:
        assert all(text == texts[0] for text in texts)
    else:
        assert all(text[:at] == texts[0][:at] for text in texts)
        assert at == 0 or texts[0][at - 1].isspace()
        assert len({text[at:] for text in texts}) > 1


@given(st.text(min_size=1, max_size=12), st.data())
def test_a_token_is_found_in_the_text_though_it_may_end_inside_a_character(text: str, data: st.DataObject) -> None:
    raw = text.encode("utf-8", "replace")
    text = raw.decode()
    index = data.draw(st.integers(0, len(raw)))
    start, end = same_prompt.token_place(BYTES, list(raw), index)
    assert text[:start] == raw[:index].decode("utf-8", "ignore") or raw[index : index + 1] == b" "
    assert start <= end <= len(text)


def test_the_bar_stands_before_the_word_and_not_before_its_space() -> None:
    class Words(ByteTokenizer):
        def token_bytes(self, token: int) -> bytes:
            return [b"had", b" the", b"\n", b" "][token]

    assert same_prompt.token_place(Words(), [0, 1], 1) == (4, 7)
    assert same_prompt.token_place(Words(), [0, 2], 1) == (3, 4)
    assert same_prompt.token_place(Words(), [0, 3], 1) == (3, 4)
    assert same_prompt.token_place(Words(), [0], 1) == (3, 3)
    assert [same_prompt.token_name(Words(), i) for i in range(4)] == ["“had”", "“the”", "“⏎”", "“·”"]


# ---------------------------------------------------------------- what the cards say
def test_each_card_tells_what_its_model_gave_to_what_was_chosen() -> None:
    outputs = [output("A", "abc"), output("B", "axc")]
    parted = Parted(1, [98, 120], {"A": {98: 0.5, 120: 0.21}, "B": {120: 0.6, 98: 0.09}})
    a, b = same_prompt.marks(outputs, parted, BYTES)
    assert a == Mark(1, 2, "equal for 1\u00a0token · at the bar A gave “b” 50.0\u00a0%, “x” 21.0\u00a0%")
    assert b is not None
    assert "B gave “x” 60.0\u00a0%, “b” 9.0\u00a0%" in b.note


def test_without_probabilities_the_bar_still_stands() -> None:
    marks = same_prompt.marks([output("A", "ab"), output("B", "a"), output("C", "ab")], Parted(1), BYTES)
    assert [mark and (mark.start, mark.end) for mark in marks] == [(1, 2), (1, 1), (1, 2)]
    assert all(mark and mark.note == "equal for 1\u00a0token, then different at the bar" for mark in marks)
    assert same_prompt.marks([output("A", "ab")] * 2, Parted(None), BYTES) == [None, None]


def test_the_head_has_the_mean_of_the_nats() -> None:
    shown = same_prompt.card_html(output("A", "ab", nats=[2.0, 3.0]))
    assert "2.50 nats/token" in shown
    assert "nats/token" not in same_prompt.card_html(output("A", ""))


@given(st.text(max_size=30), st.integers(0, 30), st.integers(0, 8))
def test_what_models_write_is_never_markup(text: str, start: int, length: int) -> None:
    shown = same_prompt.card_html(output("A", "<b>" + text), Mark(start, start + length, "<i>note"))
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert html.escape("<b>" + text) in re.sub(r"<[^>]*>", "", shown)
