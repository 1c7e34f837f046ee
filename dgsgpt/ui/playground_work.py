"""From what was asked to what is written: which outputs there are, which of them grow, and the writing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from dgsgpt.errors import DgsgptError
from dgsgpt.ui import engines, playground_view, sampling_panel
from dgsgpt.ui.checkpoint_table import Entry, by_ref
from dgsgpt.ui.playground_prompt import Asked, remember
from dgsgpt.ui.playground_view import Output
from dgsgpt.ui.theme import run_color

_GONE = "its checkpoint is not there any more; choose another one above"


def begin(asked: Asked, picked: Sequence[Entry], found: Sequence[Entry], prompt: str) -> list[int]:
    """Put the outputs that were asked for into the session; the indices of those that are to be written."""
    outputs: list[Output] = st.session_state.get("pg_outputs", [])
    if asked.what == "new":
        remember(prompt)
        st.session_state["pg_outputs"] = fresh(picked, prompt)
        return list(range(len(st.session_state["pg_outputs"])))
    if asked.index >= len(outputs) or not outputs[asked.index].stats:
        return []
    old = outputs[asked.index]
    if asked.what == "continue":
        outputs[asked.index] = playground_view.continued(old, sampling_panel.settings())
        return [asked.index]
    return _branch(asked, outputs, by_ref(found, old.ref))


def fresh(picked: Sequence[Entry], prompt: str) -> list[Output]:
    """Nothing written yet: one output for each of two checkpoints, or one for each seed of a single one."""
    settings = sampling_panel.settings()
    if len(picked) > 1:
        pairs = zip(picked, "AB", strict=False)
        return [
            Output(e.ref, e.label, run_color(e.run.color_slot), prompt, dict(settings), letter) for e, letter in pairs
        ]
    entry, samples = picked[0], int(st.session_state["pg_samples"])
    color = run_color(entry.run.color_slot)
    seeds = [sampling_panel.next_seed(settings["seed"], i) for i in range(samples)]
    letters = [str(i + 1) for i in range(samples)] if samples > 1 else [""]
    return [
        Output(entry.ref, entry.label, color, prompt, {**settings, "seed": seed}, letter)
        for seed, letter in zip(seeds, letters, strict=True)
    ]


def _branch(asked: Asked, outputs: list[Output], entry: Entry | None) -> list[int]:
    from dgsgpt.generation.text import whole_text

    old = outputs[asked.index]
    if entry is None or old.stats is None:
        return []
    try:
        tokenizer = engines.tokenizer(entry.info.path)
    except DgsgptError:  # deleted or damaged since it wrote; the card says so
        return []
    if not 0 <= asked.token < tokenizer.vocab_size:
        return []
    ids = [*old.stats.ids[: asked.at], asked.token]
    text = whole_text(b"".join(map(tokenizer.token_bytes, ids)))
    branched = playground_view.branched(old, asked.at, asked.token, text, sampling_panel.settings())
    if branched is None:
        return []
    outputs[asked.index] = branched
    if asked.token in tokenizer.ends_of_text:
        assert branched.stats is not None
        branched.stats.finish_reason = "end_of_text"
        return []
    return [asked.index]


def work(
    outputs: Sequence[Output], found: Sequence[Entry], writing: Sequence[int], drawers: Sequence[Callable[[], None]]
) -> bool:
    """Write those in `writing`, one after the other, then read missing alternatives; whether there was any work."""
    done = bool(writing)
    for i in writing:
        if (entry := by_ref(found, outputs[i].ref)) is None:
            outputs[i].problem = _GONE
        else:
            playground_view.write(entry, outputs[i], drawers[i])
    for output, draw in zip(outputs, drawers, strict=True):
        if playground_view.unread(output):
            done = True
            if (entry := by_ref(found, output.ref)) is None:
                output.choices = []
            else:
                playground_view.look(entry, output, draw)
    return done


__all__ = ["begin", "fresh", "work"]
