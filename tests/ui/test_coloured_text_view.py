"""Cutting a text at whole characters and words, and tinting it without ever reading it as markup."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.ui import coloured_text
from dgsgpt.ui.coloured_text import Piece

LETTERS, COLORS = ("A", "C"), ("#112233", "#445566")


@dataclass(frozen=True)
class Span:
    start_byte: int
    end_byte: int
    nats_a: float
    nats_b: float


def spans_of(raw: bytes, every: int = 1, skip: int = 0) -> list[Span]:
    return [Span(i, min(i + every, len(raw)), 1.0, 0.5) for i in range(skip, len(raw), every)]


# ---------------------------------------------------------------- cutting
@given(st.text(max_size=60), st.integers(1, 7), st.integers(0, 9))
def test_pieces_are_the_text_and_keep_every_nat(text: str, every: int, skip: int) -> None:
    raw = text.encode("utf-8", "ignore")
    while skip < len(raw) and raw[skip] & 0xC0 == 0x80:
        skip += 1
    spans = spans_of(raw, every, min(skip, len(raw)))
    found = coloured_text.pieces(raw, spans)
    assert "".join(piece.text for piece in found) == raw.decode()
    assert sum(piece.a or 0 for piece in found) == pytest.approx(sum(span.nats_a for span in spans))
    assert sum(piece.gap for piece in found) == pytest.approx(0.5 * len(spans))


def test_a_token_that_ends_inside_a_character_is_joined_with_the_next() -> None:
    found = coloured_text.pieces("aßb".encode(), [Span(0, 2, 1, 2), Span(2, 3, 3, 4), Span(3, 4, 5, 6)])
    assert found == [Piece("aß", 4, 6), Piece("b", 5, 6)]


@given(st.lists(st.sampled_from([" the", " cat", "\n", "s", " a,"]), min_size=1, max_size=300), st.integers(5, 200))
def test_passages_are_the_text_and_begin_at_words(words: list[str], size: int) -> None:
    parts = [Piece(word, 1.0, 0.0) for word in words]
    found = coloured_text.passages(parts, size)
    assert [piece for passage in found.all for piece in passage.pieces] == parts
    assert all(sum(len(p.text) for p in passage.pieces) <= 1.5 * size + 4 for passage in found.all)
    assert all(0 <= passage.place < 1 for passage in found.all)
    assert [passage.place for passage in found.all] == sorted(passage.place for passage in found.all)
    assert sum(passage.gap for passage in found.all) == pytest.approx(len(words))


def test_what_nobody_predicted_is_left_out_but_for_the_words_before() -> None:
    parts = [Piece("x" * 500 + " so it was"), Piece(" then", 1.0, 2.0), Piece("y" * 400 + " end")]
    (only,) = coloured_text.passages(parts).all
    assert [piece.text for piece in only.pieces] == [" … so it was", " then", " … end"]
    assert (only.place, only.gap) == (0.0, -1.0)
    _first, second = coloured_text.passages([*parts, Piece(" of it", 1.0, 0.0)], 14).all
    assert second.pieces[0].text == " … end"
    assert 0.5 < second.place < 0.6


def test_the_most_different_passage_comes_first_whoever_is_better() -> None:
    parts = [Piece(f"word{i}\n", 1.0, 1.0 - gap) for i, gap in enumerate((0.1, -3.0, 2.0))]
    found = coloured_text.passages(parts, 1)
    assert found.order("different") == [1, 2, 0]
    assert found.order("place") == [0, 1, 2]
    assert [coloured_text.headline(p, LETTERS)[:8] for p in found.all] == ["C better", "A better", "C better"]


def test_a_text_nobody_was_asked_about_has_no_passage() -> None:
    assert coloured_text.passages([Piece("only")]).all == ()
    assert coloured_text.passages([]).all == ()


# ---------------------------------------------------------------- colouring
def test_the_better_has_the_colour_and_more_difference_has_more_of_it() -> None:
    parts = [Piece("a", 1.0, 2.0), Piece("b", 2.0, 1.9), Piece("c", 9.0, 1.0), Piece("d", 1.0, 1.0), Piece("e")]
    passage = coloured_text.passages(parts).all[0]
    shown = coloured_text.coloured(passage, 2.0, LETTERS, COLORS)
    alphas = {text: (r, float(a)) for r, a, text in re.findall(r"rgba\((\d+),\d+,\d+,([\d.]+)\)[^>]*>(.)<", shown)}
    assert {text: red for text, (red, _) in alphas.items()} == {"a": "17", "b": "68", "c": "68"}
    assert alphas["b"][1] < alphas["a"][1] < alphas["c"][1]
    assert "A 9.00, C 1.00 nats: C better by 8.00" in shown
    assert "A 1.00, C 1.00 nats: about equal" in shown


@given(st.text(max_size=40), st.floats(-50, 50))
def test_the_text_is_never_markup(text: str, gap: float) -> None:
    passage = coloured_text.passages([Piece("<b>" + text, gap, 0.0)]).all[0]
    shown = coloured_text.coloured(passage, 1.0, LETTERS, COLORS)
    tags = re.findall(r"<[^>]*>", shown)
    assert all(re.fullmatch(r'</?(div|span)( title="[^"<>]*")?( style="[^"<>]*")?>', tag) for tag in tags)
    assert html.unescape(re.sub(r"<[^>]*>", "", shown)) == html.unescape(html.escape("<b>" + text))
