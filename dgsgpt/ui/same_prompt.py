"""Checkpoints go on from the same prompt with the same seed, and the place where they part is marked.

With the same tokenizer the noise of the draw is shared too: where two models agree on the next token they write the
same one, so what differs is the models' doing and not chance.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.errors import DgsgptError
from dgsgpt.ui import atoms, engines, theme
from dgsgpt.ui.atoms import Html, markup
from dgsgpt.ui.comparison import Side
from dgsgpt.ui.playground_view import MAX_NEW_TOKENS, MAX_SEED, Output, output_html, text_html, write
from dgsgpt.ui.text_view import readable, visible

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from dgsgpt.data.tokenizer import Tokenizer

DEFAULTS: dict[str, Any] = {"ck_prompt": "It was", "ck_temp": 0.8, "ck_seed": 42, "ck_new": 96}
FIXED = {"top_k": None, "top_p": 0.95, "stop": None}
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Mark:
    """Where a text parts from the others: characters from `start` to `end`, and what to say of it."""

    start: int
    end: int
    note: str


@dataclass
class Parted:
    """How what the sides wrote relates: the index of the first token that differs, and each one's probabilities there.

    `index` is None while nothing is known or all is equal; `choices[letter][token]` is a share between 0 and 1.
    """

    index: int | None = None
    tokens: list[int] = field(default_factory=list)
    choices: dict[str, dict[int, float]] = field(default_factory=dict)


# ---------------------------------------------------------------- where texts part
def first_difference(ids: Sequence[Sequence[int]]) -> int | None:
    """The index of the first token that is not the same in all; None when all are equal."""
    if all(list(one) == list(ids[0]) for one in ids):
        return None
    short = min(map(len, ids))
    return next((i for i in range(short) if len({one[i] for one in ids}) > 1), short)


def parting(texts: Sequence[str]) -> int | None:
    """Where texts part: the start of the first word that is not the same in all; None when they are equal."""
    if all(text == texts[0] for text in texts):
        return None
    at = next((i for i, found in enumerate(zip(*texts, strict=False)) if len(set(found)) > 1), min(map(len, texts)))
    while at > 0 and not texts[0][at - 1].isspace():
        at -= 1
    return at


def token_place(tokenizer: Tokenizer, ids: Sequence[int], index: int) -> tuple[int, int]:
    """The characters that token `index` wrote, spaces before its word left out; both ends are equal if it wrote none.

    A token that ends inside a character counts from the last whole one.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    start = len(decoder.decode(b"".join(map(tokenizer.token_bytes, ids[:index]))))
    if index >= len(ids) or ids[index] in tokenizer.ends_of_text:
        return start, start
    written = decoder.decode(tokenizer.token_bytes(ids[index]))
    spaces = len(written) - len(written.lstrip(" ")) if written.strip() else 0
    return start + spaces, start + len(written)


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token in quotes, the space before a word left out, white space by a mark; what ends a text by what it does."""
    if token in tokenizer.ends_of_text:
        return "the end"
    raw = readable(tokenizer.token_bytes(token))
    name = raw.strip(" ").replace("\n", "⏎").replace("\t", "⇥") or visible(raw)
    return f"“{name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + '…'}”"


def marks(outputs: Sequence[Output], parted: Parted, tokenizer: Tokenizer) -> list[Mark | None]:
    """For each side where its text parts from the others, None for all when it does not."""
    if parted.index is None:
        return [None] * len(outputs)
    equal = f"equal for {fmt.plural(parted.index, 'token')}" if parted.index else "different from the first token"
    found: list[Mark | None] = []
    for output in outputs:
        ids = output.stats.ids if output.stats else []
        gave = parted.choices.get(output.letter, {})
        said = ", ".join(f"{token_name(tokenizer, token)} {fmt.percent(gave[token])}" for token in gave)
        note = f"{equal} · at the bar {output.letter} gave {said}" if said else f"{equal}, then different at the bar"
        found.append(Mark(*token_place(tokenizer, ids, parted.index), note))
    return found


def shares_noise(sides: Sequence[Side]) -> bool:
    """Whether all have one tokenizer, without which one token's noise means nothing for the other's."""
    hashes = {side.entry.text("tokenizer_sha256") for side in sides}
    return len(hashes) == 1 and fmt.MISSING not in hashes


# ---------------------------------------------------------------- what is asked
def _ask() -> None:
    st.session_state["ck_asked"] = True


def _settings() -> dict[str, Any]:
    kept = st.session_state
    return {
        **FIXED, "max_new_tokens": int(kept["ck_new"]), "temperature": float(kept["ck_temp"]),
        "seed": int(kept["ck_seed"]),
    }  # fmt: skip


def _bar(sides: Sequence[Side]) -> str:
    for key, value in DEFAULTS.items():
        st.session_state.setdefault(key, value)
    kept: dict[str, Any] = {"persist_state": "session"}
    atoms.section("Same prompt, same seed", "top-p 0.95" + (", shared noise" if shares_noise(sides) else ""))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="xsmall", key="ck_write_bar"):
        prompt = st.text_input("Prompt", key="ck_prompt", width="stretch", **kept)
        st.number_input("Temperature", 0.0, 2.0, step=0.1, format="%.2f", key="ck_temp", width=124, **kept)
        st.number_input("Seed", 0, MAX_SEED, step=1, key="ck_seed", width=124, **kept)
        st.number_input("New tokens", 1, MAX_NEW_TOKENS, step=32, key="ck_new", width=124, **kept)
        label = "Write with both" if len(sides) == 2 else "Write with all"
        st.button(label, icon=":material/play_arrow:", key="ck_write", on_click=_ask)
    if not shares_noise(sides):
        atoms.note("Their tokenizers differ: one seed draws other noise for each, so chance alone can part the texts.")
    return prompt or ""


def draw(sides: Sequence[Side]) -> Callable[[], None] | None:
    """A prompt and a button; below, what all wrote. Returns the writing itself when it was asked for."""
    asked = bool(st.session_state.pop("ck_asked", False))
    with st.container(gap="xsmall"):
        prompt = _bar(sides)
    outputs: dict[str, Output] = st.session_state.setdefault("ck_outputs", {})
    if asked:
        outputs.clear()
        st.session_state["ck_parted"] = Parted()
        settings = _settings()
        for s in sides:
            outputs[s.entry.ref] = Output(s.entry.ref, s.entry.run.id, s.color, prompt, dict(settings))
    if set(outputs) != {side.entry.ref for side in sides}:
        return None
    mine = [outputs[side.entry.ref] for side in sides]
    for side, output in zip(sides, mine, strict=True):
        output.letter, output.color = side.letter, side.color
    drawers = _cards(sides, mine, [None] * len(mine) if asked else _marks(sides, mine))
    return (lambda: _work(sides, mine, drawers)) if asked else None


def _marks(sides: Sequence[Side], outputs: Sequence[Output]) -> Sequence[Mark | None]:
    if any(output.stats is None or output.problem for output in outputs):
        return [None] * len(outputs)
    if not shares_noise(sides):
        at = parting([output.text for output in outputs])
        note = "the bar marks the first word that differs"
        return [None if at is None else Mark(at, at, note)] * len(outputs)
    parted: Parted = st.session_state.get("ck_parted") or Parted()
    if parted.index is None:  # stopped before it was known, or equal
        parted = Parted(first_difference([output.stats.ids for output in outputs if output.stats]))
    try:
        return marks(outputs, parted, engines.tokenizer(sides[0].entry.info.path))
    except DgsgptError:  # deleted since; the texts are shown without the bar
        return [None] * len(outputs)


def _work(sides: Sequence[Side], outputs: Sequence[Output], drawers: Sequence[Callable[[], None]]) -> None:
    """Let one after the other write, then ask each how likely it found what the others chose."""
    for side, output, drawer in zip(sides, outputs, drawers, strict=True):
        write(side.entry, output, drawer)
    if shares_noise(sides) and not any(output.problem or output.stats is None for output in outputs):
        st.session_state["ck_parted"] = _choices(sides, outputs)
    st.rerun()


def _choices(sides: Sequence[Side], outputs: Sequence[Output]) -> Parted:
    """The first difference, and the probability each side gave to each token chosen there."""
    from dgsgpt.generation.together import choices_at

    ids = [output.stats.ids for output in outputs if output.stats]
    index = first_difference(ids)
    if index is None or not all(index < len(one) for one in ids):
        return Parted(index)
    parted = Parted(index, list(dict.fromkeys(one[index] for one in ids)))
    for side, output, own in zip(sides, outputs, ids, strict=True):
        try:
            with engines.opened(side.entry.info.path) as engine, engine.turn(lambda: None):
                opened = engine.checkpoint
                given = choices_at(opened.model, opened.tokenizer, output.prompt, own, index, parted.tokens)
        except DgsgptError:  # deleted or damaged since it wrote: the bar stays, the figure is left out
            continue
        order = sorted(zip(parted.tokens, map(float, given), strict=True), key=lambda pair: pair[0] != own[index])
        parted.choices[side.letter] = dict(order)
    return parted


# ---------------------------------------------------------------- showing
def _cards(sides: Sequence[Side], outputs: Sequence[Output], found: Sequence[Mark | None]) -> list[Callable[[], None]]:
    """Draw all cards, and return what draws each of them again."""
    grid = st.grid(3 if len(sides) == 3 else 2, min_column_width=400, border=True)
    equal = all(mark is None for mark in found) and len({output.text for output in outputs}) == 1
    drawers = []
    for side, output, mark in zip(sides, outputs, found, strict=True):
        with grid.cell(), st.container(key=f"ck_card_text_{side.letter}"):
            drawers.append(_drawer(output, st.empty(), mark, equal))
        drawers[-1]()
    return drawers


def _drawer(output: Output, slot: DeltaGenerator, mark: Mark | None, equal: bool) -> Callable[[], None]:
    def draw_again() -> None:
        slot.html(card_html(output, mark, equal))

    return draw_again


def card_html(output: Output, mark: Mark | None = None, equal: bool = False) -> Html:
    """One side's card: whose it is, how sure it was of its own words, the text with its bar, and a note."""
    rules, stats = output.settings, output.stats
    note = f"{output.name} · seed {rules['seed']}, temperature {rules['temperature']:g}"
    value: object = ""
    if stats and stats.nats:
        mean = sum(stats.nats) / len(stats.nats)
        why = "Mean of −log p of the tokens it wrote, by the model itself at temperature 1"
        value = markup('<span title="{}">{} nats/token</span>', why, fmt.number(mean, 2))
    place = (mark.start, mark.end) if mark else None
    body = text_html(output.prompt, output.text, output.color, *(place or (None,)))
    remark = output.remark() if stats is None or output.busy else f"{output.remark()} · {output.figures()}"
    if mark and not output.busy:
        remark = mark.note
    elif equal and not output.busy and stats and stats.tokens:
        remark = f"the same {fmt.plural(stats.tokens, 'token')} in all"
    heading = markup(
        '<span style="color:{}">{}</span>&nbsp; Generation <span style="font-weight:400;font-size:12.5px;color:{}">'
        "&nbsp;{}</span>",
        output.color, output.letter, theme.c("ink3"), note,
    )  # fmt: skip
    return output_html(heading, value, body, remark, output.problem)


__all__ = [
    "Mark", "Parted", "card_html", "draw", "first_difference", "marks", "parting", "shares_noise", "token_name",
    "token_place",
]  # fmt: skip
