"""A text in pieces that are real tokens and whole characters, and what a click may ask for."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

import pytest
import streamlit
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.data.bpe import BpeTokenizer
from dgsgpt.generation.text import TextBuffer
from dgsgpt.inspect.tokens import Choice
from dgsgpt.ui import token_script, token_view

BYTES = ByteTokenizer()


@given(st.binary(max_size=40))
def test_pieces_join_to_the_text_and_cover_its_tokens_once(raw: bytes) -> None:
    buffer = TextBuffer(())
    text = buffer.add(raw) + buffer.rest()
    found = token_view.pieces(BYTES, list(raw))
    assert "".join(piece.text for piece in found) == text
    covered = [index for piece in found for index in range(piece.start, piece.end)]
    assert covered == list(range(len(covered)))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    cut = next((n for n in range(4) if not decoder.decode(raw[len(raw) - n :])), 0)
    assert len(raw) - len(covered) <= max(cut, 3)  # only bytes of a character that never was complete


@given(st.text(max_size=20), st.integers(0, 25))
def test_of_a_text_that_was_cut_only_what_is_there_is_shown(text: str, length: int) -> None:
    raw = text.encode("utf-8", "replace")
    found = token_view.pieces(BYTES, list(raw), length)
    assert "".join(piece.text for piece in found) == raw.decode()[:length]
    assert all(piece.text for piece in found)


def test_a_character_of_several_tokens_is_one_piece_and_the_end_is_one_without_text() -> None:
    tokenizer = BpeTokenizer([])
    assert tokenizer.end_of_text is not None
    ids = [*tokenizer.encode("a日b"), tokenizer.end_of_text]
    found = token_view.pieces(tokenizer, ids)
    assert [(piece.text, piece.end - piece.start) for piece in found] == [("a", 1), ("日", 3), ("b", 1), ("", 1)]
    assert token_view.name_of(tokenizer, tokenizer.end_of_text) == ""
    assert token_view.name_of(BYTES, 0xE6) == "\\xe6"


def test_what_is_told_names_every_token_that_is_offered() -> None:
    choices = [Choice(0.5, ((98, 0.6), (10, 0.3))), Choice(1.5, ((0xE6, 0.7), (97, 0.1)))]
    told = token_view.tell(BYTES, list(b"ab"), [0.5, 1.5], choices, None)
    assert told["names"] == {"98": "b", "10": "\n", "230": "\\xe6", "97": "a"}
    assert told["own"] == [[97, 0.5], [98, 1.5]]
    assert told["alternatives"] == [[[98, 0.6], [10, 0.3]], [[0xE6, 0.7], [97, 0.1]]]
    assert json.loads(json.dumps(told))["nats"] == [0.5, 1.5]
    assert token_view.tell(BYTES, list(b"ab"), [0.5, 1.5], [], None)["alternatives"] == [[], []]  # not read


def test_a_long_text_is_told_in_a_bounded_size() -> None:
    choice = Choice(1.0, tuple((token, 0.123456789) for token in range(8)))
    told = token_view.tell(BYTES, [97] * 4096, [1.0] * 4096, [choice] * 4096, None)
    assert len(json.dumps(told)) < 1_500_000


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        ({"branch": {"at": 3, "token": 7}}, (3, 7)),
        ({"branch": {"at": True, "token": 7}}, None),
        ({"branch": {"at": "3", "token": 7}}, None),
        ({"branch": {"at": 3}}, None),
        ({"branch": [3, 7]}, None),
        ({"branch": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_only_two_whole_numbers_are_a_branch(state: Any, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamlit, "session_state", {"key": state} if state is not None else {})
    assert token_view.branch_asked("key") == asked


def test_the_script_puts_text_on_the_page_and_never_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|eval\(", token_script.JS)
    assert "textContent" in token_script.JS
