"""Which rule moves which weights, at which rate and decay: a small table for a config."""

from __future__ import annotations

from collections.abc import Sequence

from dgsgpt.config import RunConfig
from dgsgpt.format import lr, si
from dgsgpt.ui.atoms import note, table, text
from dgsgpt.ui.labels import name_of
from dgsgpt.update_groups import update_groups

HEADER = ("weights", "rule", "peak rate", "decay", "numbers")


def group_rows(config: RunConfig) -> list[Sequence[object]]:
    """A row for each group: which weights, rule, peak rate, weight decay, how many numbers; the largest first."""
    return [
        (group.name.capitalize(), name_of(group.rule), lr(group.lr), _decay(group.weight_decay), si(group.numbers))
        for group in sorted(update_groups(config), key=lambda group: -group.numbers)
    ]


def _decay(value: float) -> object:
    return f"{value:g}" if value else text("none", "ink3")


def groups_table(config: RunConfig) -> None:
    """Show the groups, and what the names mean."""
    table(group_rows(config), "minmax(0,1fr) minmax(0,1fr) 70px 54px 64px", HEADER, align="llrrr")
    note("Vectors are norms, biases and learned shares: they never decay.")
