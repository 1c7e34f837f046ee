"""The sampling settings of the playground: presets, sliders, and what they mean for a generation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import streamlit as st

from dgsgpt.generation.presets import PRESETS, preset
from dgsgpt.ui import atoms
from dgsgpt.ui.atoms import markup

MAX_NEW_TOKENS, MAX_SEED, MAX_SAMPLES = 4096, 2**31 - 1, 4
OFF = "off"
TOP_K = (OFF, 1, 2, 5, 10, 20, 50, 100, 200, 500)
FIRST = "balanced"
# How a rule that is off stands on its slider.
_KEYS = {
    "temperature": ("pg_temp", 1.0), "top_k": ("pg_top_k", OFF), "top_p": ("pg_top_p", 1.0),
    "min_p": ("pg_min_p", 0.0), "repetition_penalty": ("pg_penalty", 1.0),
}  # fmt: skip
_OTHERS: dict[str, Any] = {"pg_new": 128, "pg_seed": 42, "pg_samples": 1, "pg_stop_at": ""}


def sliders_of(name: str) -> dict[str, Any]:
    """What the sliders show with a preset, by their keys."""
    given = preset(name)
    return {key: off if given[rule] is None else given[rule] for rule, (key, off) in _KEYS.items()}


def preset_of(values: Mapping[str, Any]) -> str | None:
    """The preset that these settings are, if they are one."""
    return next((name for name in PRESETS if sliders_of(name).items() <= values.items()), None)


def seed_state() -> None:
    """Give the sampling settings their defaults where the session has none yet."""
    for key, value in {**sliders_of(FIRST), **_OTHERS}.items():
        st.session_state.setdefault(key, value)


def _apply_preset() -> None:
    chosen = st.session_state["pg_preset"]
    if chosen in PRESETS:
        st.session_state.update(sliders_of(chosen))


def draw(comparing: bool) -> None:
    """The settings of the sidebar; they live in the session under `pg_…`. One sample each where two are compared."""
    seed_state()
    state = st.session_state
    state["pg_preset"] = preset_of({key: state[key] for key, _ in _KEYS.values()})
    atoms.h(markup('<div role="heading" aria-level="2" style="font-weight:600;font-size:15px">Sampling</div>'))
    st.selectbox(
        "Preset", list(PRESETS), key="pg_preset", on_change=_apply_preset, format_func=str.capitalize,
        placeholder="Own settings", label_visibility="collapsed",
    )  # fmt: skip
    _rules()
    kept: dict[str, Any] = {"persist_state": "session"}
    left, right = st.columns(2, gap="xsmall")
    left.number_input("New tokens", 1, MAX_NEW_TOKENS, step=32, key="pg_new", **kept)
    right.number_input("Seed", 0, MAX_SEED, step=1, key="pg_seed", help="The same seed gives the same text.", **kept)
    left.number_input(
        "Samples", 1, MAX_SAMPLES, step=1, key="pg_samples", disabled=comparing, **kept,
        help="Texts side by side, each with the next seed. A comparison has one of each checkpoint.",
    )  # fmt: skip
    right.text_input("Stop at", placeholder="e.g. \\n\\n", key="pg_stop_at", **kept)
    greedy = state["pg_temp"] == 0
    likeliest = "At temperature 0 the likeliest token is taken: only the penalty matters."
    atoms.note(likeliest if greedy else "Order: penalty, temperature, top-k, top-p, min-p.")


def _rules() -> None:
    kept: dict[str, Any] = {"persist_state": "session"}
    st.slider(
        "Temperature", 0.0, 2.0, step=0.05, key="pg_temp", **kept,
        help="Below 1 the likely becomes likelier, above 1 the unlikely. 0 always takes the likeliest token.",
    )  # fmt: skip
    st.slider(
        "Top-p", 0.05, 1.0, step=0.01, key="pg_top_p", **kept,
        help="Only the likeliest tokens that together have this probability. 1 keeps all.",
    )  # fmt: skip
    st.select_slider("Top-k", TOP_K, key="pg_top_k", **kept, help="Only this many of the likeliest tokens.")
    st.slider(
        "Min-p", 0.0, 0.5, step=0.01, key="pg_min_p", **kept,
        help="Only tokens at least this share as likely as the likeliest. 0 keeps all.",
    )  # fmt: skip
    st.slider(
        "Repetition penalty", 1.0, 2.0, step=0.05, key="pg_penalty", **kept,
        help="Makes tokens less likely that the prompt or the text has already. 1 changes nothing.",
    )  # fmt: skip


def settings() -> dict[str, Any]:
    """The settings as `dgsgpt.generation.stream` takes them."""
    state = st.session_state
    top_k, stop = state["pg_top_k"], unescape(state["pg_stop_at"] or "")
    return {
        "max_new_tokens": int(state["pg_new"]),
        "temperature": float(state["pg_temp"]),
        "top_k": None if top_k == OFF else int(top_k),
        "top_p": float(state["pg_top_p"]) if state["pg_top_p"] < 1 else None,
        "min_p": float(state["pg_min_p"]) or None,
        "repetition_penalty": float(state["pg_penalty"]),
        "seed": int(state["pg_seed"]),
        "stop": stop or None,
    }


def next_seed(seed: int, by: int = 1) -> int:
    """The seed `by` further on; after the last comes the first."""
    return (seed + by) % (MAX_SEED + 1)


def unescape(written: str) -> str:
    r"""`\n`, `\t` and `\\` as a person types them into one line, as the characters they mean."""
    means = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda found: means[found[0]], written)


__all__ = [
    "MAX_NEW_TOKENS", "MAX_SAMPLES", "MAX_SEED", "TOP_K", "draw", "next_seed", "preset_of", "seed_state", "settings",
    "sliders_of", "unescape",
]  # fmt: skip
