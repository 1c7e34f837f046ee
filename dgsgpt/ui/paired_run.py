"""Judging checkpoints on one text from the page: which text, the run with its Stop, and what is kept of it.

Results live in the session by the checkpoints' stamps, the text and its length, so that drawing again costs nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.config import DataConfig
from dgsgpt.data.corpora import list_corpora
from dgsgpt.errors import DgsgptError
from dgsgpt.ui import atoms, coloured_text, engines, paired_view
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.comparison import Side, shown
from dgsgpt.ui.paired_view import Judged
from dgsgpt.ui.side_by_side import named

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from dgsgpt.config import RunConfig
    from dgsgpt.model import GPT

PASTED = "(pasted)"
STOPPED = "Stopped before the end: nothing is kept of it."
DEFAULT_TOKENS = 20_000
TOKENS = (5_000, 20_000, 100_000, 500_000)
MAX_PASTED = 2_000_000
_KEPT = 6
_FRAME_S = 0.1


@dataclass(frozen=True)
class Text:
    """What to judge on: the name of a text or `PASTED`, its content if it was pasted, and how many tokens of it."""

    name: str
    val_fraction: float
    tokens: int
    pasted: str = ""

    @property
    def key(self) -> tuple[str, float, int, str]:
        """What tells one text from another."""
        return self.name, self.val_fraction, self.tokens, hashlib.sha256(self.pasted.encode()).hexdigest()

    def read(self) -> str:
        """The text itself.

        Raises:
            DataError: it is not there any more, or cannot be read.
        """
        from dgsgpt.evaluation import validation_text

        return self.pasted if self.name == PASTED else validation_text(self.name, self.val_fraction)


def texts(a: Entry, config: RunConfig | None) -> dict[str, str]:
    """The texts that can be chosen, by name, with what they are: the one A was validated on comes first."""
    own = config.data.corpus if config and a.imported is None else ""
    found = {own: f"Validation text of {shown(own)}, A's own"} if own else {}
    for corpus in list_corpora():
        found.setdefault(corpus.name, f"Validation text of {corpus.name}")
    return {**found, PASTED: "Pasted text"}


@dataclass(frozen=True)
class Kept:
    """A finished comparison, and what cuts its text into passages coloured by A against side `i`."""

    shown: Judged
    cut: Callable[[int], coloured_text.Passages]


# ---------------------------------------------------------------- what is asked
def _ask() -> None:
    st.session_state["ck_compare_asked"] = True


def choose(sides: Sequence[Side], configs: Sequence[RunConfig | None]) -> Text:
    """The pickers of the text and its length."""
    kept = st.session_state
    names = texts(sides[0].entry, configs[0])
    if kept.get("ck_text") not in names:
        kept["ck_text"] = next(iter(names))
    kept.setdefault("ck_text_tokens", DEFAULT_TOKENS)
    stay: dict[str, Any] = {"persist_state": "session", "label_visibility": "collapsed"}
    with st.container(horizontal=True, gap="xsmall"):
        name = st.selectbox("Text", list(names), key="ck_text", format_func=lambda n: names[n], width="stretch", **stay)
        tokens = st.selectbox(
            "Tokens", TOKENS, key="ck_text_tokens", format_func=lambda n: f"{fmt.si(n)} tokens", width=128, **stay
        )
    pasted = ""
    if name == PASTED:
        pasted = st.text_area(
            "Text to judge on", key="ck_pasted", height=110, max_chars=MAX_PASTED, **stay,
            placeholder="A text none of them has seen, a few thousand characters or more",
        ) or ""  # fmt: skip
    return Text(name, _unseen(name, configs), tokens, pasted)


def _unseen(name: str, configs: Sequence[RunConfig | None]) -> float:
    from dgsgpt.unseen import unseen_fraction

    given = [config.data for config in configs if config]
    return unseen_fraction(name, given) if given else DataConfig().val_fraction


def _state_of(sides: Sequence[Side]) -> tuple[object, ...]:
    """What tells these checkpoints from others, and from themselves before they were saved anew."""
    return tuple((side.entry.ref, engines.stamp(side.entry.info.path)) for side in sides)


# ---------------------------------------------------------------- the card
def card(sides: Sequence[Side], configs: Sequence[RunConfig | None]) -> tuple[Callable[[], None] | None, Kept | None]:
    """The card of the paired comparison; returns the work to do when it was asked for, and what is known already."""
    kept = st.session_state
    asked = bool(kept.pop("ck_compare_asked", False))
    results: dict[object, Kept | str] = kept.setdefault("ck_compared", {})
    heading, body = st.container(gap="xsmall"), st.container(gap="xsmall")
    text = choose(sides, configs)
    try:
        key = (_state_of(sides), text.key)
    except DgsgptError as error:
        with heading:
            paired_view.head(None)
            atoms.para(named(error, sides), role="bad")
        return None, None
    found = results.get(key)
    done = found if isinstance(found, Kept) else None
    if asked and not done:
        found, results[key] = None, STOPPED  # what stands there if a press of Stop ends the run
    with heading:
        paired_view.head(done.shown if done else None)
    with body:
        if done:
            paired_view.draw(done.shown, sides)
        else:
            _before(found if isinstance(found, str) else None)
    slot = _press(text, bool(asked), done)
    st.code(paired_view.command(sides, _corpus(text, configs[0]), text.name == PASTED, text.tokens), "bash",
            wrap_lines=True)  # fmt: skip
    return (lambda: _work(sides, configs, text, key, slot)) if asked and not done else None, done


def _before(problem: str | None) -> None:
    atoms.para("Each predicts the very same text. The difference has an interval, which tells whether one is better.")
    if problem == STOPPED:
        atoms.note(STOPPED, role="warn")
    elif problem:
        atoms.field_error(problem)


def _corpus(text: Text, config: RunConfig | None) -> str | None:
    """What the command must be told, if it is not its default."""
    return None if config and text.name == config.data.corpus else text.name


def _press(text: Text, running: bool, done: Kept | None) -> DeltaGenerator:
    """Compare, or Stop while it runs; returns where its progress is shown."""
    slot = st.empty()
    if running and not done:
        # Its press needs no answer: any press ends the run at the next thing it draws.
        st.button("Stop", icon=":material/stop:", key="ck_compare_stop")
    elif not done:
        empty = text.name == PASTED and not text.pasted.strip()
        st.button(
            "Compare on the same text", icon=":material/balance:", key="ck_compare", on_click=_ask,
            disabled=empty, help="Paste a text first." if empty else None,
        )  # fmt: skip
    return slot


# ---------------------------------------------------------------- the run
class Progress:
    """A bar that is drawn at most ten times a second; drawing is where a press of Stop ends the run."""

    def __init__(self, slot: DeltaGenerator) -> None:
        self._slot = slot
        self._share = 0.0
        self._drawn = 0.0

    def tell(self, done: int, total: int) -> None:
        """`done` of `total` tokens are predicted, those of all models together."""
        self._share, now = min(1.0, done / max(1, total)), time.monotonic()
        if now - self._drawn >= _FRAME_S or done == total:
            self._drawn = now
            self._slot.progress(self._share, text=f"{fmt.si(done)} of {fmt.si(total)} tokens")

    def say(self, what: str) -> None:
        """What it waits for."""
        self._slot.progress(self._share, text=what)


@contextmanager
def _open(side: Side, progress: Progress) -> Iterator[GPT]:
    """The model of a side for as long as it is needed, so that two at most are in memory."""
    progress.say(f"{side.letter}: opening the checkpoint…")
    waiting = f"{side.letter}: waiting for another who uses this model…"
    with engines.opened(side.entry.info.path) as engine, engine.turn(lambda: progress.say(waiting)):
        yield engine.checkpoint.model


def measure(sides: Sequence[Side], configs: Sequence[RunConfig | None], text: Text, progress: Progress) -> Kept:
    """Judge all sides on a text, one opened after the other.

    Raises:
        DgsgptError: the text or one of the checkpoints cannot be used.
    """
    from dgsgpt.evaluation.paired import Subject, compare, spans
    from dgsgpt.unseen import training_notes

    subjects, known = [], []
    for side, config in zip(sides, configs, strict=True):
        if config is None:
            raise DgsgptError(f"{side.entry.label}: its config.yaml is missing or damaged; choose another checkpoint")
        known.append(config)
        tokenizer = engines.tokenizer(side.entry.info.path)
        subjects.append(Subject(side.entry.label, tokenizer, config.model.block_size, partial(_open, side, progress)))
    separator = known[0].data.document_separator
    progress.say("reading the text…")
    found = compare(subjects, text.read(), max_tokens=text.tokens, document_separator=separator, on_batch=progress.tell)

    @cache
    def cut(other: int) -> coloured_text.Passages:
        return coloured_text.passages(coloured_text.pieces(found.data, spans(found, 0, other)))

    notes = training_notes(text.name, known) if text.name != PASTED else []
    return Kept(paired_view.judged(found, notes), cut)


def _work(
    sides: Sequence[Side], configs: Sequence[RunConfig | None], text: Text, key: object, slot: DeltaGenerator
) -> None:
    """Measure and keep the result; a press of Stop ends it and keeps nothing."""
    results: dict[object, Kept | str] = st.session_state["ck_compared"]
    try:
        made: Kept | str = measure(sides, configs, text, Progress(slot))
    except DgsgptError as error:
        made = named(error, sides)
    results[key] = made
    while len(results) > _KEPT:
        del results[next(iter(results))]
    st.session_state["ck_passage"] = 0
    st.rerun()
