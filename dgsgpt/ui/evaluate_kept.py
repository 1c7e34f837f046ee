"""Earlier evaluations of all runs, text by text, the fewest bits per byte first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import groupby

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.errors import DgsgptError
from dgsgpt.evaluation.automatic import saved
from dgsgpt.evaluation.kept import Kept, list_kept
from dgsgpt.runs import Run
from dgsgpt.ui import atoms
from dgsgpt.ui.atoms import Html, markup
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.theme import run_color

COMMAND = "dgsgpt eval --list"
MAX_TEXTS, MAX_ROWS = 6, 12
_HEADER = ("checkpoint", "", "bits/byte", "perplexity", "loss", "context", "stride", "when")
_COLUMNS = "minmax(120px,1fr) 84px 72px 76px 62px 60px 60px 84px"


def section(runs: Sequence[Run], entry: Entry, automatic: Sequence[Kept] = ()) -> None:
    """The table of what was kept, and of `automatic` evaluations of checkpoints, with the picked one marked."""
    with st.container(border=True, gap="xsmall", key="ev_card_kept"):
        atoms.head("Kept results", note="of all runs, by text; the best first")
        try:
            found, damaged = list_kept(runs, more=saved(automatic))
        except DgsgptError as error:
            atoms.para(markup("✕ {}", str(error)), role="bad")
            return
        if not found and not damaged:
            atoms.para("Nothing is kept yet. Each evaluation is kept with its checkpoint's run.")
            return
        tables(found, entry)
        if damaged:
            atoms.note(f"▲ {fmt.plural(damaged, 'damaged line')} left out", role="warn")
        atoms.note(
            "Bits per byte compare across tokenizers on the same text, where context and stride are alike; loss and "
            f"perplexity are per token and do not. “auto” was made by the trainer. All of it: {COMMAND}"
        )


def distinct(found: Iterable[Kept]) -> list[Kept]:
    """The latest of each: evaluating again with the same settings gives the same figures."""
    latest: dict[object, Kept] = {}
    for kept in found:
        say = kept.record.get
        how = (say("context"), say("stride"), say("rope_scaling"), say("weights_sha256"), say("document_separator"),
               kept.automatic)  # fmt: skip
        key = (kept.comparable, kept.run.id, kept.checkpoint, how)
        if key not in latest or kept.time > latest[key].time:
            latest[key] = kept
    return list(latest.values())


def tables(found: Sequence[Kept], entry: Entry) -> None:
    """A table for each of the texts that were evaluated last."""
    texts = [list(group) for _, group in groupby(distinct(found), key=lambda kept: kept.comparable)]
    for group in texts[:MAX_TEXTS]:
        atoms.h(heading(group))
        shown = [kept for i, kept in enumerate(group) if i < MAX_ROWS or is_of(kept, entry)]
        atoms.table([row(kept, entry) for kept in shown], _COLUMNS, _HEADER, align="llrrrrrr")
        if len(shown) < len(group):
            atoms.note(f"{fmt.plural(len(group) - len(shown), 'more', 'more')} of this text")
    if len(texts) > MAX_TEXTS:
        atoms.note(f"{fmt.plural(len(texts) - MAX_TEXTS, 'more text')} evaluated before")


def is_of(kept: Kept, entry: Entry) -> bool:
    """Whether it is of the picked checkpoint."""
    return (kept.run.id, kept.step) == (entry.run.id, entry.step)


def heading(group: Sequence[Kept]) -> Html:
    """The name of a text as it was called last, its hash, and whether only a part was judged."""
    latest = max(group, key=lambda kept: kept.time)
    most = latest.record.get("max_tokens")
    part = f" · at most {fmt.number(most)} tokens, one tokenizer" if isinstance(most, int) else ""
    return markup(
        '<div style="padding-top:8px;line-height:20px;overflow-wrap:anywhere">{} {}</div>',
        atoms.bold(latest.text_name),
        atoms.text(f"sha {latest.record['text']['sha256'][:8]}{part}", "ink3", px=12.5),
    )


def row(kept: Kept, entry: Entry) -> tuple[object, ...]:
    """One line; a checkpoint that is gone or has other weights by now is said to."""
    name = atoms.run_name(f"{kept.run.id}, step {fmt.number(kept.step)}", run_color(kept.run.color_slot), strong=False)
    mark: object = ""
    if is_of(kept, entry):
        mark = atoms.tag("this" if kept.automatic is None else "this, auto", "accent")
    elif kept.automatic is not None:
        mark = markup(
            '<span title="automatic, every {} steps">{}</span>', fmt.number(kept.automatic), atoms.tag("auto")
        )
    if kept.state != "whole":
        mark = atoms.tag(kept.state, "warn")
    counts = (fmt.number(kept.record[key]) for key in ("context", "stride"))
    return (
        name, mark, atoms.bold(fmt.loss(kept.bpb)), fmt.perplexity(kept.result("ppl")), fmt.loss(kept.result("loss")),
        *counts, atoms.text(fmt.ago(kept.time, time.time()), "ink2"),
    )  # fmt: skip


__all__ = ["COMMAND", "distinct", "section"]
