"""The card of the prompt: the field, the buttons, its history, and how much of it a checkpoint reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.ui import atoms, engines, sampling_panel
from dgsgpt.ui.atoms import Html, text
from dgsgpt.ui.checkpoint_cards import config_of
from dgsgpt.ui.checkpoint_table import Entry, told
from dgsgpt.ui.playground_view import Output, give_up, plain_label

FIRST_PROMPT = "The letter had been lying on the table since morning, and"
HISTORY = 12
COUNTED = 50_000  # characters of a prompt whose tokens are counted while it is typed; of a longer one its end


@dataclass(frozen=True)
class Asked:
    """What is to be written: a new text, or how the text `index` goes on, with `token` at place `at` if it branches."""

    what: Literal["new", "continue", "branch"] = "new"
    index: int = 0
    at: int = 0
    token: int = 0


def ask(asked: Asked) -> None:
    """Have it written by the next run of the page."""
    st.session_state["pg_asked"] = asked


def _again() -> None:
    seeds = st.session_state["pg_samples"] if not st.session_state.get("pg_two") else 1
    st.session_state["pg_seed"] = sampling_panel.next_seed(st.session_state["pg_seed"], seeds)
    ask(Asked())


def _recall() -> None:
    st.session_state["pg_prompt"] = st.session_state["pg_history_menu"]


def _stop() -> None:
    # Any press ends the stream, and the text so far is in the session; this one also ends what would follow.
    give_up(st.session_state.get("pg_outputs", []))


def remember(prompt: str) -> None:
    """Put a prompt first in the history."""
    history: list[str] = st.session_state["pg_history"]
    if prompt.strip():
        st.session_state["pg_history"] = [prompt, *(old for old in history if old != prompt)][:HISTORY]


def edit(output: Output) -> None:
    """Take a text with its prompt as the next prompt."""
    st.session_state["pg_prompt"] = output.prompt + output.text


def card(entry: Entry, writing: bool) -> str:
    """Prompt, buttons and the prompt's length; returns the prompt."""
    kept = st.session_state
    kept.setdefault("pg_prompt", FIRST_PROMPT)
    history: list[str] = kept.setdefault("pg_history", [])
    with st.container(border=True, key="pg_card_prompt", gap="xsmall"):
        prompt = st.text_area(
            "Prompt", key="pg_prompt", height=78, label_visibility="collapsed", persist_state="session",
            placeholder="The beginning of a text",
        )  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            st.button(
                "Generate", type="primary", icon=":material/play_arrow:", key="pg_go", on_click=ask, args=(Asked(),),
                shortcut="Ctrl+Enter",
            )  # fmt: skip
            st.button("Stop", icon=":material/stop:", key="pg_stop", on_click=_stop, disabled=not writing)
            st.button("Again, next seed", icon=":material/refresh:", key="pg_again", on_click=_again)
            st.menu_button(
                "History", history or ["nothing yet"], key="pg_history_menu", on_click=_recall, disabled=not history,
                format_func=plain_label,
            )  # fmt: skip
            st.space("stretch")
            config = config_of(entry)
            note, _ = prompt_note(entry, prompt or "", config.model.block_size if config else None)
            atoms.h(note, width="content")
    return prompt or ""


# ---------------------------------------------------------------- what is said of the prompt
def prompt_note(entry: Entry, prompt: str, block_size: int | None) -> tuple[Html, bool]:
    """How long a prompt is and what of it is read, or why it cannot be used; and whether it can.

    Of a very long prompt the end alone is counted, so that the page stays quick whatever is pasted.
    """
    try:
        tokenizer = engines.tokenizer(entry.info.path)
        if not prompt:
            note, usable = _empty(tokenizer)
            return text(note, "ink3" if usable else "bad", px=13), usable
        tokens = _count(tokenizer.sha256, prompt[-COUNTED:], tokenizer)
    except DgsgptError as error:
        return text(f"✕ {told(error, entry)}", "bad", px=13), False
    return _length(tokens, len(prompt) > COUNTED, block_size, room(tokenizer, block_size)), True


@st.cache_data(max_entries=64, show_spinner=False)
def _count(sha256: str, prompt: str, _tokenizer: Tokenizer) -> int:
    return len(_tokenizer.encode_array(prompt))


def _empty(tokenizer: Tokenizer) -> tuple[str, bool]:
    if tokenizer.begin_of_text is not None or tokenizer.end_of_text is not None:
        return "an empty prompt: the model begins a text", True
    return f"✕ the {tokenizer.kind} tokenizer cannot start from nothing; give a character", False


def room(tokenizer: Tokenizer, block_size: int | None) -> int | None:
    """How many tokens of a prompt a model reads; the rule is that of `dgsgpt.generation.context.prepare_prompt`."""
    if block_size is None:
        return None
    lead = 1 if tokenizer.begin_of_text is not None and block_size > 2 else 0
    return max(1, block_size - 1 - lead)


def _length(tokens: int, more: bool, block_size: int | None, most: int | None) -> Html:
    said = ("more than " if more else "") + fmt.plural(tokens, "token")
    if block_size is not None:
        said += f" of {fmt.number(block_size)}"
    if most is None or (tokens <= most and not more):
        return text(said, "ink3", px=13)
    first = "all before is" if more else f"the first {fmt.number(tokens - most)} are"
    return text(f"{said}: the last {fmt.number(min(most, tokens))} are read, {first} not", "warn", px=13)


__all__ = [
    "COUNTED", "FIRST_PROMPT", "HISTORY", "Asked", "ask", "card", "edit", "prompt_note", "remember", "room",
]  # fmt: skip
