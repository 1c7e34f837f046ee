"""Two checkpoints go on from the same prompt with the same seed, and the place where they part is marked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

from dgsgpt.ui import atoms
from dgsgpt.ui.checkpoint_table import Entry
from dgsgpt.ui.comparison import parting
from dgsgpt.ui.playground_view import Output, show, write
from dgsgpt.ui.theme import run_color

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

SETTINGS = {"max_new_tokens": 96, "temperature": 0.8, "top_k": None, "top_p": 0.95, "seed": 42, "stop": None}
_FIRST_PROMPT = "It was"


def _ask() -> None:
    st.session_state["ck_asked"] = True


def draw(a: Entry, b: Entry) -> None:
    """A prompt and a button; below, what both wrote."""
    asked = bool(st.session_state.pop("ck_asked", False))
    st.session_state.setdefault("ck_prompt", _FIRST_PROMPT)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="ck_write_bar"):
        atoms.section("Same prompt, same seed", "temperature 0.8, top-p 0.95, seed 42", width="content")
        prompt = st.text_input(
            "Prompt", key="ck_prompt", label_visibility="collapsed", persist_state="session", width="stretch"
        )
        st.button("Write with both", icon=":material/play_arrow:", key="ck_write", on_click=_ask)
    outputs: dict[str, Output] = st.session_state.setdefault("ck_outputs", {})
    if asked:
        outputs.clear()
        outputs.update({entry.ref: _output(entry, prompt or "") for entry in (a, b)})
    if not all(entry.ref in outputs for entry in (a, b)):
        return
    shared = None if asked else parting(outputs[a.ref].text, outputs[b.ref].text)
    drawers = _cards([(letter, entry, outputs[entry.ref]) for letter, entry in (("A", a), ("B", b))], shared)
    if shared is not None:
        atoms.note("The bar marks the first word that differs." if shared else "They differ from the first word.")
    if asked:
        for entry, drawer in zip((a, b), drawers, strict=True):
            write(entry, outputs[entry.ref], drawer)
        st.rerun()


def _output(entry: Entry, prompt: str) -> Output:
    return Output(entry.ref, entry.run.id, run_color(entry.run.color_slot), prompt, dict(SETTINGS))


def _cards(sides: list[tuple[str, Entry, Output]], shared: int | None) -> list[Callable[[], None]]:
    """Draw both cards, and return what draws each of them again."""
    grid = st.grid(2, min_column_width=430, border=True)
    drawers = []
    for letter, entry, output in sides:
        output.letter = letter
        with grid.cell(), st.container(key=f"ck_card_text_{letter}"):
            drawer = _drawer(output, st.empty(), f"Generation, {entry.label}", shared)
        drawer()
        drawers.append(drawer)
    return drawers


def _drawer(output: Output, slot: DeltaGenerator, title: str, shared: int | None) -> Callable[[], None]:
    return lambda: show(output, slot, title=title, split_at=shared)
