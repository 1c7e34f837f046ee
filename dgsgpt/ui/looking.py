"""What the panels that look into a model share: which checkpoint, which text, and results that are kept.

A look needs the model, so nothing is computed before something was written or a person asks for it. What was computed
is kept in the session by checkpoint, text and question: a press of another button costs nothing.
"""

from __future__ import annotations

import shlex
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import MODEL
from dgsgpt.errors import DgsgptError
from dgsgpt.ui import atoms, engines
from dgsgpt.ui.checkpoint_list import Entry, told
from dgsgpt.ui.markup import Html, join, markup
from dgsgpt.ui.playground_view import Output, Shown
from dgsgpt.ui.theme import Palette, c, palette

if TYPE_CHECKING:
    from dgsgpt.checkpoint import Checkpoint

MOST_KEPT = 24
_SHORT_COMMAND = 60
Found = TypeVar("Found")


@dataclass(frozen=True)
class Subject:
    """A checkpoint, its letter where two are compared, and the tokens to look at: a prompt, or what followed it too."""

    entry: Entry
    letter: str
    ids: tuple[int, ...]
    prompt: str
    written: bool


def side(shown: Shown, key: str) -> tuple[Entry, str]:
    """The checkpoint to look at, and its letter; where two are picked a choice is drawn."""
    letters = "AB"[: len(shown.picked)]
    if len(letters) == 1:
        return shown.picked[0], ""
    st.session_state.setdefault(key, "A")
    letter = st.segmented_control(
        "Checkpoint to look at", list(letters), key=key, required=True, label_visibility="collapsed",
        persist_state="session",
    ) or "A"  # fmt: skip
    return shown.picked[letters.index(letter)], letter


def output_of(shown: Shown, entry: Entry) -> Output | None:
    """What this checkpoint wrote last; None if it wrote nothing."""
    mine = [o for o in shown.outputs if o.ref == entry.ref and not o.problem and o.stats is not None and o.stats.ids]
    return mine[0] if mine else None


def subject(shown: Shown, entry: Entry, letter: str) -> Subject:
    """What there is to look at: the prompt and what was written after it, else the prompt as it stands.

    Raises:
        DgsgptError: the tokenizer is damaged or does not know the prompt's characters.
    """
    output = output_of(shown, entry)
    tokenizer = engines.tokenizer(entry.info.path)
    prompt = output.prompt if output else shown.prompt
    ids = tokenizer.encode(prompt)
    if not ids and tokenizer.begin_of_text is None and tokenizer.end_of_text is not None:
        ids = [tokenizer.end_of_text]  # what a generation from nothing begins with
    new = output.stats.ids if output and output.stats else []
    return Subject(entry, letter, (*ids, *new), prompt, output is not None)


# ---------------------------------------------------------------- results
def look(entry: Entry, question: Hashable, find: Callable[[Checkpoint], Found]) -> Found:
    """What `find` finds in the opened checkpoint, or what it has found before for this question.

    Raises:
        DgsgptError: the checkpoint cannot be opened, or `find` refuses.
    """
    kept: OrderedDict[Hashable, Any] = st.session_state.setdefault("pg_looks", OrderedDict())
    key = (entry.info.path, engines.stamp(entry.info.path, MODEL), question)
    if key in kept:
        kept.move_to_end(key)
        known: Found = kept[key]
        return known
    slot = st.empty()

    def say(what: str) -> None:
        slot.html(markup('<div style="font-size:12.5px;color:{}">{}</div>', c("ink3"), what))

    try:
        say("opening the checkpoint…")
        wait = "waiting for another generation with this model…"
        with engines.opened(entry.info.path) as engine, engine.turn(lambda: say(wait)):
            say("reading the text…")
            found = find(engine.checkpoint)
    finally:
        slot.empty()
    kept[key] = found
    while len(kept) > MOST_KEPT:
        kept.popitem(last=False)
    return found


def attempt(entry: Entry, draw: Callable[[], None]) -> None:
    """Draw, or say in one line what is wrong with the checkpoint or the text."""
    try:
        draw()
    except DgsgptError as error:
        atoms.error_card(told(error, entry))


def was_asked(key: str) -> bool:
    """Whether a person has asked, in this session, for a look at something that nobody has run yet."""
    return bool(st.session_state.get(key))


def ask(sentence: str, button: str, key: str) -> None:
    """A sentence, and the button after which `was_asked(key)`."""
    with st.container(border=True, gap="xsmall", key=f"{key}_card"):
        atoms.para(sentence)
        st.button(button, key=f"{key}_button", on_click=_agree, args=(key,))


def _agree(key: str) -> None:
    st.session_state[key] = True


# ---------------------------------------------------------------- pieces of pages
def cut_note(shown: int, read: int, cut: int, of: str) -> str:
    """Which tokens are shown, e.g. `the last 24 of 108 tokens of the prompt`, and how many did not fit."""
    which = f"all {fmt.plural(read, 'token')}" if shown == read else f"the last {shown} of {fmt.plural(read, 'token')}"
    return f"{which} of {of}" + (f"; {fmt.number(cut)} before these did not fit the context" if cut else "")


def scale_html(high: str, low: str = "0\u00a0%", colors: Sequence[str] = ()) -> Html:
    """A colour scale from nothing to the full colour, with both ends named."""
    steps = join(
        markup('<span style="display:inline-block;width:18px;height:10px;background:{}"></span>', color)
        for color in (colors or ramp(palette()))
    )
    return markup(
        '<span style="display:inline-flex;align-items:center;gap:6px;font-size:12.5px;color:{};white-space:nowrap">'
        '{}<span style="display:inline-flex;border:1px solid {};border-radius:2px">{}</span>{}</span>',
        c("ink3"), low, c("line"), steps, high,
    )  # fmt: skip


def ramp(colors: Palette) -> list[str]:
    """The sequential ramp from the page's ground on."""
    return [colors["bg"], *colors.sequential[1:]]


def colorscale(colors: Palette) -> list[tuple[float, str]]:
    """`ramp` for plotly."""
    steps = ramp(colors)
    return [(i / (len(steps) - 1), color) for i, color in enumerate(steps)]


def tick(label: str) -> str:
    """A token as text of a figure: plotly reads tags and named entities in labels, quotes it would show as written."""
    return label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def command(entry: Entry, text: str, what: str, *options: object) -> None:
    """The command that says the same; a long text stands in a file."""
    given = ["--text", text] if text and len(text) <= _SHORT_COMMAND and text.isprintable() else ["--file", "FILE"]
    words = ["dgsgpt", "inspect", entry.ref, "--what", what, *map(str, options), *given]
    st.code(shlex.join(words), "bash", wrap_lines=True)


__all__ = [
    "MOST_KEPT", "Subject", "ask", "attempt", "colorscale", "command", "cut_note", "look", "output_of", "ramp",
    "scale_html", "side", "subject", "tick", "was_asked",
]  # fmt: skip
