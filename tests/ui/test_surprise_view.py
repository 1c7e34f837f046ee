"""A judged text is shown whole, as text, with the figures of every token."""

from __future__ import annotations

import html
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.inspect.surprise import Piece, Surprise
from dgsgpt.ui import surprise_view as view
from dgsgpt.ui.theme import DARK, LIGHT


def judged(*parts: tuple[str, float | None], whole: int | None = None, stride: int = 8) -> Surprise:
    at, pieces = 0, []
    for text, nats in parts:
        pieces.append(Piece(text, at, at + len(text), (0,), nats, (("<i>", 0.5),)))
        at += len(text)
    costs = [nats for _, nats in parts if nats is not None]
    return Surprise(tuple(pieces), len(costs), at, sum(costs), 8, stride, at, whole or at)


# ---------------------------------------------------------------- the text
@given(st.lists(st.tuples(st.text(min_size=1, max_size=6), st.none() | st.floats(0, 30)), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_the_text_is_whole_and_never_markup(parts: list[tuple[str, float | None]]) -> None:
    shown = view.coloured(judged(("<script>", 9.0), *parts), LIGHT)
    bare = html.unescape(re.sub(r"<[^>]*>", "", shown))
    assert bare == html.unescape(html.escape("<script>" + "".join(text for text, _ in parts)))
    assert re.fullmatch(r'<div style="[^"]*" tabindex="0">(<span[^<>]*>[^<>]*</span>)*</div>', shown)


def test_the_tint_grows_with_the_nats_up_to_the_full_colour() -> None:
    shown = view.coloured(judged(("a", None), ("b", 0.0), ("c", 2.0), ("d", 4.0), ("e", 8.0), ("f", 99.0)), DARK)
    strengths = [float(x) for x in re.findall(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", shown)]
    assert strengths == pytest.approx([0.12, 0.24, 0.48, 0.48])
    assert "nothing comes before it" in shown
    assert f"{math.exp(-8):.2%}"[:-1] in view.legend(DARK)


def test_a_token_says_nats_probability_and_what_was_likelier() -> None:
    piece = Piece("x\n", 0, 2, (1, 2), math.log(4), (("the", 0.5), ("⏎", 0.25)))
    assert view.said(piece) == "1.39 nats, 25.0\u00a0% · 2 tokens · likeliest “the” 50.0\u00a0%, “⏎” 25.0\u00a0%"
    assert "3.4e-4" in view.said(Piece("x", 0, 1, (1,), -math.log(3.4e-6)))
    hardest = view.hardest_html(judged(("<b>", 3.0), ("\x1b[2J", 5.0)))
    assert "<b>" not in hardest
    assert hardest.index(r"\x1b[2J") < hardest.index("&lt;b&gt;")


def test_what_was_not_judged_and_how_windows_overlap_is_said() -> None:
    first, second = view.notes(judged(("ab", 1.0), whole=5000, stride=4))
    assert first == "Of 5\u202f000 characters only the first 2 were judged: 1\u00a0token."
    assert "after at least 5 others" in second
    assert view.notes(judged(("ab", 1.0))) == ["Each token is judged after all those before it."]
