"""The cards of the Train page in their order; pairs stay pairs where the window has room for two columns only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dgsgpt.ui import expert_view, health, run_recipe, train_machine, train_panels, train_runs, train_samples
from dgsgpt.ui.train_shown import Shown


@dataclass(frozen=True)
class Card:
    """One cell of the grid: its name, how many of four columns it takes, and what draws into it."""

    name: str
    columns: int
    draw: Callable[[], None]
    rows: int = 1

    def frame(self) -> Any:
        """The container to draw in."""
        return st.container(key=f"train_card_{self.name}", gap="xsmall" if self.rows > 1 else "xxsmall")


def cards(shown: Shown, kept: int) -> list[Card]:
    """All cards that suit the run; `kept` is how many runs there are."""
    experts = [
        Card("experts", 2, lambda: expert_view.load_card(shown)),
        Card("dropped", 1, lambda: expert_view.dropped_card(shown)),
        Card("entropy", 1, lambda: expert_view.entropy_card(shown)),
    ]
    return [
        Card("loss", 3, lambda: train_panels.loss(shown), rows=2),
        Card("runs", 1, lambda: train_runs.card(shown, kept)),
        Card("health", 1, lambda: health.card(shown.events, shown.metrics.skipped)),
        Card("lr", 1, lambda: train_panels.rate(shown)),
        Card("norm", 1, lambda: train_panels.gradient(shown)),
        Card("speed", 1, lambda: train_panels.throughput(shown)),
        Card("bits", 1, lambda: train_panels.bits(shown)),
        *(experts if shown.config.model.moe else []),
        Card("samples", 2, lambda: train_samples.card(shown)),
        Card("machine", 1, lambda: train_machine.card(shown)),
        Card("saved", 1, lambda: train_panels.saved(shown)),
        Card("recipe", 2, lambda: run_recipe.card(shown.run)),
        Card("groups", 2, lambda: run_recipe.groups(shown.run)),
    ]
