"""Where one checkpoint predicts better than another: passages of the text both were judged on, coloured by difference.

Pure functions cut and colour; `card` draws one passage at a time. The text is shown as text, never as markup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.ui import atoms, theme
from dgsgpt.ui.atoms import Html, join, markup
from dgsgpt.ui.comparison import Side
from dgsgpt.ui.theme import rgba

PASSAGE_BYTES = 1100
ORDERS = {"different": "Most different first", "place": "By place"}
_STRONGEST = 0.62
_FAINTEST = 0.04  # of the strongest; below it nothing is coloured, which keeps the page light
_CAP_SHARE = 0.98
_LEAST_CAP = 0.25
_LEFT_OUT, _LEAD = 160, 70  # characters that nobody was asked to predict: longer stretches keep only their end


class SpanLike(Protocol):
    """A stretch of bytes and what each of two models paid for it, in nats."""

    @property
    def start_byte(self) -> int: ...
    @property
    def end_byte(self) -> int: ...
    @property
    def nats_a(self) -> float: ...
    @property
    def nats_b(self) -> float: ...


@dataclass(frozen=True)
class Piece:
    """Whole characters of the text; `a` and `b` are nats, None where nothing was predicted."""

    text: str
    a: float | None = None
    b: float | None = None

    @property
    def gap(self) -> float:
        """Nats that the first paid more than the second; positive where the second is better."""
        return 0.0 if self.a is None or self.b is None else self.a - self.b


@dataclass(frozen=True)
class Passage:
    """A stretch of text: its pieces, where it begins as a share of the text, and the sum of its differences."""

    pieces: tuple[Piece, ...]
    place: float
    gap: float


@dataclass(frozen=True)
class Passages:
    """A text cut into passages in their order, and the difference in nats that gets the full colour."""

    all: tuple[Passage, ...]
    cap: float

    def order(self, by: str) -> list[int]:
        """Indices by place, or with the largest difference first."""
        indices = range(len(self.all))
        return sorted(indices, key=lambda i: -abs(self.all[i].gap)) if by == "different" else list(indices)


# ---------------------------------------------------------------- cutting
def pieces(raw: bytes, spans: Sequence[SpanLike]) -> list[Piece]:
    """The text in pieces of whole characters: spans that end inside a character are joined with the next.

    `spans` are in order and do not overlap; bytes that none covers are pieces without figures.
    """
    found: list[Piece] = []
    start, a, b = 0, 0.0, 0.0
    open_ = False
    for span in spans:
        if not open_ and span.start_byte > start:
            found.append(Piece(_text(raw[start : span.start_byte])))
            start = span.start_byte
        a, b = a + span.nats_a, b + span.nats_b
        open_ = _inside_character(raw, span.end_byte)
        if not open_:
            found.append(Piece(_text(raw[start : span.end_byte]), a, b))
            start, a, b = span.end_byte, 0.0, 0.0
    if start < len(raw):
        found.append(Piece(_text(raw[start:]), *((a, b) if open_ else (None, None))))
    return found


def _inside_character(raw: bytes, place: int) -> bool:
    return place < len(raw) and raw[place] & 0xC0 == 0x80


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def passages(parts: Sequence[Piece], size: int = PASSAGE_BYTES) -> Passages:
    """Pieces in passages of about `size` characters that begin at a word, a new line where there is one near."""
    total, at, begun, made, group = max(1, sum(len(p.text) for p in parts)), 0, 0, list[Passage](), list[Piece]()
    length = 0
    for piece in [*parts, None]:
        if piece is None or (group and _begins_anew(piece, group, length, size)):
            if any(p.a is not None for p in group):
                made.append(Passage(tuple(group), begun / total, sum(p.gap for p in group)))
            group, length, begun = [], 0, at
        if piece is not None:
            at += len(piece.text)
            group.append(_lead(piece))
            length += len(group[-1].text)
    gaps = np.abs([piece.gap for piece in parts if piece.a is not None])
    cap = float(np.quantile(gaps, _CAP_SHARE)) if len(gaps) else 0.0
    return Passages(tuple(made), max(_LEAST_CAP, cap))


def _begins_anew(piece: Piece, group: Sequence[Piece], length: int, size: int) -> bool:
    line = piece.a is None or piece.text[:1] == "\n" or group[-1].text[-1:] == "\n"
    return (length >= 0.8 * size and line) or (length >= size and piece.text[:1].isspace()) or length >= 1.5 * size


def _lead(piece: Piece) -> Piece:
    """A long stretch that nobody was asked to predict, cut to the words before what was."""
    if piece.a is not None or len(piece.text) <= _LEFT_OUT:
        return piece
    _, space, words = piece.text[-_LEAD:].partition(" ")
    return Piece(f" … {words if space else piece.text[-_LEAD:]}")


# ---------------------------------------------------------------- colouring
def coloured(passage: Passage, cap: float, letters: tuple[str, str], colors: tuple[str, str]) -> Html:
    """A passage with each piece tinted in the colour of who predicts it better, stronger the more, up to `cap` nats."""
    return markup(
        '<div style="font-size:14.5px;line-height:25px;white-space:pre-wrap;overflow-wrap:anywhere;'
        'unicode-bidi:isolate;max-width:110ch">{}</div>',
        join(_piece(piece, cap, letters, colors) for piece in passage.pieces),
    )  # fmt: skip


def _piece(piece: Piece, cap: float, letters: tuple[str, str], colors: tuple[str, str]) -> Html:
    if piece.a is None or piece.b is None:
        return markup('<span style="color:{}">{}</span>', theme.c("ink3"), piece.text)
    better = int(piece.gap > 0)
    share = min(1.0, abs(piece.gap) / cap)
    told = f"{letters[0]} {fmt.number(piece.a, 2)}, {letters[1]} {fmt.number(piece.b, 2)} nats"
    if share < _FAINTEST:
        return markup('<span title="{}: about equal">{}</span>', told, piece.text)
    return markup(
        '<span title="{}: {} better by {}" style="background:{};border-radius:2px">{}</span>',
        told, letters[better], fmt.number(abs(piece.gap), 2), rgba(colors[better], round(_STRONGEST * share, 3)),
        piece.text,
    )  # fmt: skip


def legend(cap: float, letters: tuple[str, str], colors: tuple[str, str]) -> Html:
    """Five steps of colour from the first better to the second better, and what the full colour means."""
    steps = [(0, 1.0), (0, 0.5), (0, 0.0), (1, 0.5), (1, 1.0)]
    boxes = join(
        markup('<span style="display:inline-block;width:18px;height:12px;background:{}"></span>',
               rgba(colors[side], _STRONGEST * share))
        for side, share in steps
    )  # fmt: skip
    return markup(
        '<div style="display:flex;flex-wrap:wrap;align-items:center;gap:2px 8px;font-size:12.5px;line-height:18px;'
        'color:{}"><span>{} better</span><span style="display:inline-flex;border:1px solid {}">{}</span>'
        "<span>{} better · full colour from {} nats · hover for both</span></div>",
        theme.c("ink2"), letters[0], theme.c("line"), boxes, letters[1], fmt.number(cap, 2),
    )  # fmt: skip


def headline(passage: Passage, letters: tuple[str, str]) -> str:
    """Who is better on a passage and by how much."""
    if abs(passage.gap) < 0.005:
        return "no difference here"
    return f"{letters[int(passage.gap > 0)]} better by {fmt.number(abs(passage.gap), 2)} nats in all"


# ---------------------------------------------------------------- the card
def _turn(by: int) -> None:
    st.session_state["ck_passage"] = int(st.session_state.get("ck_passage", 0)) + by


def _first() -> None:
    st.session_state["ck_passage"] = 0


def card(sides: Sequence[Side], cut: Callable[[int], Passages]) -> None:
    """One passage at a time; `cut(i)` gives the text coloured by A against side `i`."""
    kept: dict[str, Any] = {"persist_state": "session"}
    with st.container(border=True, key="ck_card_coloured", gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            atoms.section("Where one is better", width="content")
            other = 1
            if len(sides) > 2:
                chosen = st.segmented_control(
                    "Against A", [side.letter for side in sides[1:]], default="B", required=True, key="ck_against",
                    label_visibility="collapsed", on_change=_first, format_func="A and {}".format, **kept,
                )  # fmt: skip
                other = next((i for i, side in enumerate(sides) if side.letter == chosen), 1)
            st.space("stretch")
            order = st.segmented_control(
                "Order", list(ORDERS), default="different", required=True, label_visibility="collapsed",
                format_func=lambda key: ORDERS[key], key="ck_order", on_change=_first, **kept,
            )  # fmt: skip
            slot = st.container(horizontal=True, vertical_alignment="center", gap="xsmall", width="content")
        found = cut(other)
        shown = found.order(order or "different")
        at = min(max(0, int(st.session_state.get("ck_passage", 0))), len(shown) - 1)
        st.session_state["ck_passage"] = at
        with slot:
            st.button("Previous", key="ck_before", on_click=_turn, args=(-1,), disabled=at == 0)
            atoms.h(f"{fmt.number(at + 1)} of {fmt.number(len(shown))}", width="content")
            st.button("Next", key="ck_after", on_click=_turn, args=(1,), disabled=at == len(shown) - 1)
        passage = found.all[shown[at]]
        letters, colors = ("A", sides[other].letter), (sides[0].color, sides[other].color)
        atoms.note(f"{headline(passage, letters)} · {fmt.percent(passage.place, 0)} into the text")
        atoms.h(coloured(passage, found.cap, letters, colors))
        atoms.h(legend(found.cap, letters, colors))


__all__ = ["Passage", "Passages", "Piece", "card", "coloured", "headline", "legend", "passages", "pieces"]
