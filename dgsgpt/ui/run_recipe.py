"""How a run is trained, as the Train page shows it: what `auto` chose and why, and the groups of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dgsgpt import format as fmt
from dgsgpt.config import RunConfig, TrainConfig
from dgsgpt.runs import Run
from dgsgpt.ui import atoms
from dgsgpt.ui.atoms import join, text
from dgsgpt.ui.groups import groups_table
from dgsgpt.ui.labels import name_of


def settled(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the run settled for `auto` when it began (`run.json`); empty before that."""
    found = facts.get("settled")
    return found if isinstance(found, dict) else {}


def reasons(facts: Mapping[str, Any]) -> list[str]:
    """Why it was settled so, a sentence each."""
    why = settled(facts).get("why")
    return [str(sentence) for sentence in why] if isinstance(why, list) else []


def rows(config: RunConfig, facts: Mapping[str, Any]) -> list[Sequence[object]]:
    """The recipe as label and value; what `auto` chose says so."""
    train, found = config.train, settled(facts)
    micro = found.get("micro_batch_size", train.micro_batch_size)
    times = found.get("grad_accum_steps", train.grad_accum_steps)
    batch = f"{fmt.number(micro)} × {fmt.number(times)} sequences, {fmt.number(config.tokens_per_step)} tokens a step"
    weights = "" if train.weight_precision == "fp32" else f", weights stored as {train.weight_precision}"
    drawn: list[Sequence[object]] = [
        ("Optimizer", _rule(train)),
        ("Batch", _chosen(batch, train.fit_micro_batch and bool(found), "fitted")),
        ("Precision", _auto(train.precision, found.get("precision"), weights)),
        ("Compile", _auto(train.compile, found.get("compile"))),
        ("On NaN", name_of(train.on_nonfinite)),
        ("Ends", _end(train)),
    ]
    return [(text(label, "ink2"), value) for label, value in drawn]


def _rule(train: TrainConfig) -> str:
    rule = name_of(train.optimizer) + (" for matrices, AdamW for the rest" if train.optimizer == "muon" else "")
    return rule + (", in the backward pass" if train.optimizer_in_backward else "")


def _auto(asked: str, found: object, more: str = "") -> object:
    if asked == "auto" and found is None:
        return text("auto: settled when the run begins", "ink3")
    return _chosen(f"{found if asked == 'auto' else asked}{more}", asked == "auto", "chosen by auto")


def _chosen(value: str, chosen: bool, word: str) -> object:
    return join((value, " ", atoms.tag(word, "accent"))) if chosen else value


def _end(train: TrainConfig) -> str:
    ends = [f"after {fmt.plural(train.steps, 'step')}"]
    if train.early_stop_evals:
        ends.append(f"after {fmt.plural(train.early_stop_evals, 'validation')} without gain")
    if train.target_loss:
        ends.append(f"at a validation loss of {train.target_loss:g}")
    return ", or ".join(ends)


# ---------------------------------------------------------------- drawn
def card(run: Run) -> None:
    """The recipe, and in small print why `auto` chose so."""
    atoms.head("Recipe")
    atoms.table(rows(run.config, run.facts), "84px minmax(0,1fr)", pad=3)
    for sentence in reasons(run.facts):
        atoms.note(sentence)


def groups(run: Run) -> None:
    """Which rule moves which weights."""
    atoms.head("Update groups", note="rule and decay by kind of weight")
    groups_table(run.config)
