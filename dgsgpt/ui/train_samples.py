"""What the model wrote on the way: three moments side by side, any of them by a slider, as text or as changes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.ui import atoms
from dgsgpt.ui.atoms import Html, join, markup, text
from dgsgpt.ui.loss_data import columns
from dgsgpt.ui.theme import c
from dgsgpt.ui.train_shown import Shown, keep

Sample = dict[str, Any]
BESIDE = 3
MAX_WORDS = 1500  # compared of a text
_STEP, _LAST = "train_sample", "train_sample_last"

_SAMPLE = (
    '<div style="position:relative;padding:16px 0 0;border-top:2px solid {line};min-width:0">'
    '<span style="position:absolute;top:-6px;left:0;width:10px;height:10px;border-radius:50%;background:{fill};'
    'border:2px solid {color};box-sizing:border-box"></span>'
    '<div style="font-size:12.5px;color:{ink3};margin-bottom:4px">{where}</div>'
    '<div style="font-size:14.5px;line-height:21px;white-space:pre-wrap;overflow-wrap:anywhere">{prompt}{said}'
    "</div></div>"
)
_SAMPLES = (
    '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));column-gap:18px;row-gap:18px;'
    'padding-top:6px">{}</div>'
)


# ---------------------------------------------------------------- which ones
def series(events: Sequence[Sample]) -> dict[tuple[str, Any], list[Sample]]:
    """Samples by prompt and seed, each in the order of steps; of a step written twice, the later one."""
    found: dict[tuple[str, Any], dict[int, Sample]] = {}
    for event in events:
        step = event.get("step")
        if event.get("kind") == "sample" and isinstance(step, int):
            found.setdefault((str(event.get("prompt") or ""), event.get("seed")), {})[step] = event
    return {key: [by_step[step] for step in sorted(by_step)] for key, by_step in found.items()}


def beside(count: int, chosen: int) -> list[int]:
    """The first, one halfway and the chosen one of `count` samples."""
    return sorted({round(i * chosen / (BESIDE - 1)) for i in range(BESIDE)}) if count else []


def changes(before: str, after: str) -> list[tuple[str, str]]:
    """`after` as pieces `same`, `new` and what is gone of `before` as `gone`, word by word."""
    old, new = (re.findall(r"\S+\s*|\s+", said)[:MAX_WORDS] for said in (before, after))
    pieces: list[tuple[str, str]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(("same", "".join(new[k:m])))
        else:
            pieces += [
                (word, joined) for word, joined in (("gone", "".join(old[i:j])), ("new", "".join(new[k:m]))) if joined
            ]
    return pieces


# ---------------------------------------------------------------- drawn
def said_html(before: Sample | None, sample: Sample) -> Html:
    """What a sample says, with what is new against the one before it on a tint and what is gone struck through."""
    now = str(sample.get("text") or "")
    if before is None:
        return markup("{}", now)
    looks = {
        "same": markup("{}", "{}"),
        "new": Html(f'<span style="background:{c("tint")};color:{c("tintink")}">{{}}</span>'),
        "gone": Html(f'<span style="color:{c("ink3")};text-decoration:line-through">{{}}</span>'),
    }
    return join(markup(looks[kind], piece) for kind, piece in changes(str(before.get("text") or ""), now))


def samples_html(samples: Sequence[Sample], chosen: int, metrics: Any, color: str, compare: bool = False) -> Html:
    """The first, a middle and the chosen sample; what the model wrote is text, never markup."""
    steps, losses = columns(metrics.columns, "loss/val")
    cells = []
    for index in beside(len(samples), chosen):
        event = samples[index]
        step = int(event["step"])
        at = int(np.searchsorted(steps, step, "right")) - 1
        val = f" · val {fmt.loss(float(losses[at]))}" if at >= 0 else ""
        before = samples[index - 1] if compare and index else None
        cells.append(
            markup(
                _SAMPLE, line=c("line"), fill=color if index == chosen else c("bg"), color=color, ink3=c("ink3"),
                where=join((atoms.bold(f"step {fmt.number(step)}"), val)), said=said_html(before, event),
                prompt=text(event.get("prompt") or "", "ink3"),
            )
        )  # fmt: skip
    return markup(_SAMPLES, join(cells))


def card(shown: Shown) -> None:
    """The samples with their controls."""
    found = series(shown.events)
    if not found:
        atoms.head("Samples")
        every = shown.config.train.sample_every
        atoms.para(f"The first is written at step {fmt.number(every)}." if every else "None: train.sample_every is 0.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        atoms.h(markup('<div style="font-weight:600;line-height:20px">Samples</div>'), width="content")
        names = list(found)
        key = names[-1]
        if len(names) > 1:
            key = st.selectbox(
                "Prompt", names, index=len(names) - 1, key="train_prompt", label_visibility="collapsed", width=260,
                format_func=lambda one: f"“{one[0]}”, seed {one[1]}",
            )  # fmt: skip
        st.space("stretch")
        atoms.h(text(f"seed {key[1]}" if key[1] is not None else "", "ink3", px=13), width="content")
        how = st.segmented_control(
            "Shown as", ["Text", "Changes"], default="Text", required=True, label_visibility="collapsed",
            key="train_sample_how", persist_state="session",
        )  # fmt: skip
    samples = found[key]
    chosen = _scrub(samples)
    compare = how == "Changes"
    stamp = (*shown.stamp, key, chosen, compare)
    atoms.h(keep("samples", stamp, lambda: samples_html(samples, chosen, shown.metrics, shown.color, compare)))
    if compare:
        atoms.note(
            "New against the sample before it on a tint, what is gone struck through; the prompt stays the same."
        )


def _scrub(samples: Sequence[Sample]) -> int:
    """The slider through all samples, which follows the newest until another is chosen."""
    steps = [int(sample["step"]) for sample in samples]
    if len(steps) < 3:
        return len(steps) - 1
    kept = st.session_state
    if kept.get(_STEP) not in steps or kept.get(_STEP) == kept.get(_LAST):
        kept[_STEP] = steps[-1]
    kept[_LAST] = steps[-1]
    step = st.select_slider(
        "Sample", steps, key=_STEP, format_func=lambda s: f"step {fmt.number(s)}", label_visibility="collapsed"
    )
    return steps.index(int(step))
