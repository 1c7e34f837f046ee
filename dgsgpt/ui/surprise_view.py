"""The panel for the surprise of a text: any text, coloured token by token by what each costs the model.

The text is shown as text, never as markup. Two checkpoints are shown one at a time or by their difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.ui import atoms, coloured_text, looking
from dgsgpt.ui.atoms import Html, Kpi, join, markup
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.comparison import Side, sides_of
from dgsgpt.ui.playground_view import Shown
from dgsgpt.ui.text_view import visible
from dgsgpt.ui.theme import Palette, palette, rgba

if TYPE_CHECKING:
    from dgsgpt.inspect.surprise import Piece, Surprise

MOST_NATS, STRONGEST = 8.0, 0.48  # from so many nats on a token has the full colour, which is so strong
MOST_CHARACTERS = 200_000  # of a pasted text
PASTED, PROMPT = "Pasted text", "Prompt"
HARDEST, _LONGEST = 10, 22
_FAINTEST = 0.02


# ---------------------------------------------------------------- the text
def coloured(found: Surprise, colors: Palette) -> Html:
    """The judged text, each token on a tint that is stronger the more it surprised; figures on hover."""
    spans = join(_span(piece, colors) for piece in found.pieces)
    return markup(
        '<div style="font-size:15px;line-height:26px;white-space:pre-wrap;overflow-wrap:anywhere;'
        'unicode-bidi:isolate;max-height:560px;overflow-y:auto" tabindex="0">{}</div>',
        spans,
    )  # fmt: skip


def _span(piece: Piece, colors: Palette) -> Html:
    if piece.nats is None:
        return markup('<span title="nothing comes before it" style="color:{}">{}</span>', colors["ink3"], piece.text)
    share = min(1.0, piece.nats / MOST_NATS)
    if share < _FAINTEST:
        return markup('<span title="{}">{}</span>', said(piece), piece.text)
    tint = rgba(colors["accent"], round(STRONGEST * share, 3))
    return markup('<span title="{}" style="background:{};border-radius:3px">{}</span>', said(piece), tint, piece.text)


def said(piece: Piece) -> str:
    """The figures of a token, and what the model would rather have said."""
    rather = ", ".join(f"{_name(name)} {fmt.percent(share)}" for name, share in piece.likeliest)
    cost = f"{fmt.number(piece.nats, 2)} nats, {_percent(piece.probability)}"
    tokens = f" · {len(piece.ids)} tokens" if len(piece.ids) > 1 else ""
    return f"{cost}{tokens} · likeliest {rather}" if rather else f"{cost}{tokens}"


def _name(text: str) -> str:
    line = visible(fmt.printable(text.replace("\n", "⏎").replace("\t", "⇥").strip(" ") or "·" * len(text)))
    return f"“{line if len(line) <= _LONGEST else line[: _LONGEST - 1] + '…'}”"


def _percent(share: float | None) -> str:
    """A probability; a tiny one with the digits that it has."""
    if share is None or share >= 0.0005 or share == 0:
        return fmt.percent(share)
    return f"{fmt.scientific(share * 100)}\u00a0%"


def legend(colors: Palette) -> Html:
    """Steps of colour from expected to surprising, and where the full colour begins."""
    steps = [rgba(colors["accent"], round(STRONGEST * step / 5, 3)) for step in range(6)]
    full = f"surprising, from {MOST_NATS:g} nats ({fmt.percent(math.exp(-MOST_NATS), 2)}) on"
    return looking.scale_html(full, "expected", steps)


def hardest_html(found: Surprise) -> Html:
    """The tokens that surprised most, with what was expected instead."""
    rows = []
    for piece in found.hardest(HARDEST):
        rather = piece.likeliest[0] if piece.likeliest else None
        said_ = f"{_name(rather[0])} {fmt.percent(rather[1], 0)}" if rather else fmt.MISSING
        parts = atoms.text(f" {len(piece.ids)} tokens", "ink3", px=12) if len(piece.ids) > 1 else ""
        rows.append((markup('<span title="character {}">{}{}</span>', piece.start, _name(piece.text), parts),
                     fmt.number(piece.nats, 2), _percent(piece.probability), said_))  # fmt: skip
    columns = "minmax(60px,1.2fr) 44px 66px minmax(70px,1.2fr)"
    return atoms.table_html(rows, columns, ("token", "nats", "p", "likeliest"), align="lrrl", pad=3)


def notes(found: Surprise) -> list[str]:
    """What was judged, and with how much text before it."""
    lines = []
    if found.characters < found.whole:
        lines.append(
            f"Of {fmt.number(found.whole)} characters only the first {fmt.number(found.characters)} were judged: "
            f"{fmt.plural(found.tokens, 'token')}."
        )
    if found.stride < found.context:
        least = found.context - found.stride + 1
        lines.append(
            f"Longer than the context of {fmt.plural(found.context, 'token')}: read in windows that overlap by half, "
            f"so each token is judged after at least {fmt.number(least)} others where there are as many."
        )
    else:
        lines.append("Each token is judged after all those before it.")
    return lines


# ---------------------------------------------------------------- figures
def cards(found: Surprise) -> list[Kpi]:
    """Loss, perplexity, bits per byte and size of what was judged."""
    return [
        Kpi("Loss", fmt.loss(found.loss), "nats", delta=f"{fmt.number(found.nats, 1)} in all"),
        Kpi("Perplexity", fmt.perplexity(found.ppl), delta="equal choices a token"),
        Kpi("Bits per byte", fmt.loss(found.bpb), delta="for any tokenizer"),
        Kpi("Judged", fmt.number(found.tokens), "tokens", delta=f"{fmt.number(found.bytes)} bytes"),
    ]


def both_html(sides: Sequence[Side], both: Sequence[Surprise]) -> Html:
    """The figures of two checkpoints, one a line."""
    rows = [
        (markup('<b style="color:{}">{}</b>', side.color, side.letter), side.entry.label, fmt.loss(found.loss),
         fmt.perplexity(found.ppl), fmt.loss(found.bpb), fmt.number(found.tokens))
        for side, found in zip(sides, both, strict=True)
    ]  # fmt: skip
    header = ("", "checkpoint", "loss", "perplexity", "bits/byte", "tokens")
    return atoms.table_html(rows, "20px minmax(80px,1fr) 70px 80px 80px 70px", header, align="llrrrr")


# ---------------------------------------------------------------- the panel
def panel(shown: Shown) -> None:
    """Choose or paste a text, and see what each of its tokens costs."""
    sides = sides_of(shown.picked)
    texts = _texts(shown, sides)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="pg_text_bar"):
        kept = st.session_state
        if kept.get("pg_text") not in texts:
            kept["pg_text"] = PASTED
        stay: dict[str, Any] = {"label_visibility": "collapsed", "persist_state": "session", "required": True}
        source = st.segmented_control("Text", list(texts), key="pg_text", **stay) or PASTED
        st.space("stretch")
        which = ""
        if len(sides) > 1:
            which = st.segmented_control("Whose", ["A", "B", "Difference"], key="pg_whose", default="A", **stay) or "A"
    text = _pasted() if source == PASTED else texts[source]
    if not text:
        atoms.note("The text appears here coloured by how much each token surprises the model." if source == PASTED
                   else "There is no text yet.")  # fmt: skip
        return
    if which == "Difference":
        looking.attempt(shown.picked[0], lambda: _difference(sides, text))
    else:
        side = sides[1 if which == "B" else 0]
        looking.attempt(side.entry, lambda: _one(side.entry, which, text))


def _texts(shown: Shown, sides: Sequence[Side]) -> dict[str, str]:
    """The texts to choose from, by name: pasted, the prompt, what was written."""
    texts = {PASTED: "", PROMPT: shown.prompt}
    for side in sides:
        output = looking.output_of(shown, side.entry)
        if output and output.text:
            texts["Prompt and what was written" if len(sides) == 1 else f"What {side.letter} wrote"] = (
                output.prompt + output.text
            )
    return texts


def _pasted() -> str:
    with st.container(border=True, key="pg_card_paste", gap="xsmall"):
        text = st.text_area(
            "Text to judge", key="pg_paste", height=110, persist_state="session", label_visibility="collapsed",
            max_chars=MOST_CHARACTERS, placeholder="Paste any text: a page of a book, a letter, some code",
        )  # fmt: skip
        st.button("Colour it", key="pg_colour", icon=":material/format_color_fill:")
    return text or ""


def _judge(entry: Entry, text: str) -> Surprise:
    from dgsgpt.inspect.surprise import surprise

    return looking.look(
        entry, ("surprise", text), lambda opened: surprise(opened.model, opened.tokenizer, text[:MOST_CHARACTERS])
    )


def _one(entry: Entry, letter: str, text: str) -> None:
    found, colors = _judge(entry, text), palette()
    atoms.kpis(cards(found), min_width=130)
    with st.grid(3, min_column_width=300, border=True) as grid:
        with grid.cell(column_span=2), st.container(key="pg_card_surprise", gap="xsmall"):
            atoms.head("Surprise", letter, "−log p of each token; hover for its figures")
            atoms.h(coloured(found, colors))
            atoms.h(legend(colors))
            for line in notes(found):
                atoms.note(line)
        with grid.cell(), st.container(key="pg_card_hardest", gap="xsmall"):
            atoms.head("Hardest", letter, "most nats first")
            atoms.h(hardest_html(found))
    looking.command(entry, text, "surprise")


def _difference(sides: Sequence[Side], text: str) -> None:
    from dgsgpt.inspect.surprise import pair

    both = [_judge(side.entry, text) for side in sides]
    pieces = [coloured_text.Piece(one.text, one.a, one.b) for one in pair(*both)]
    letters, tints = ("A", "B"), (sides[0].color, sides[1].color)
    with st.container(border=True, key="pg_card_both"):
        atoms.h(both_html(sides, both))
    cut = coloured_text.passages(pieces, size=len(text) + 1)
    with st.container(border=True, key="pg_card_difference", gap="xsmall"):
        atoms.head("Difference", "", "colour of who predicts better; hover for both")
        if not cut.all:
            atoms.para("No token was judged by both.")
            return
        atoms.note(coloured_text.headline(cut.all[0], letters))
        atoms.h(coloured_text.coloured(cut.all[0], cut.cap, letters, tints))
        atoms.h(coloured_text.legend(cut.cap, letters, tints))
        for line in notes(min(both, key=lambda found: found.characters)):
            atoms.note(line)
    looking.command(sides[0].entry, text, "surprise", "--against", sides[1].entry.ref)


__all__ = [
    "both_html", "cards", "coloured", "hardest_html", "legend", "notes", "panel", "said",
]  # fmt: skip
