"""What the Train page shows now: its runs, what the toolbar says, and figures that are kept while nothing is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import streamlit as st

from dgsgpt.config import RunConfig
from dgsgpt.rules import flatten
from dgsgpt.runs import Run
from dgsgpt.ui import state, theme
from dgsgpt.ui.loss_data import Curve, LossOptions, default_smoothing, group_names
from dgsgpt.ui.state import Metrics
from dgsgpt.ui.theme import run_color

T = TypeVar("T")
AXIS, SMOOTH, RAW, LOG_X, LOG_Y, LIVE = (
    "train_axis", "train_smooth", "train_raw", "train_logx", "train_logy", "train_live",
)  # fmt: skip
OTHERS, GROUP = "train_others", "train_group"


@dataclass(frozen=True)
class Shown:
    """The selected run, those laid over it, and what was read of the first."""

    run: Run
    others: Sequence[Run]
    config: RunConfig
    metrics: Metrics
    events: list[dict[str, Any]]

    @property
    def color(self) -> str:
        """The selected run's colour."""
        return run_color(self.run.color_slot)

    @property
    def runs(self) -> list[Run]:
        """All of them, the selected one first."""
        return [self.run, *self.others]

    @property
    def stamp(self) -> tuple[object, ...]:
        """What changes as soon as there is anything new to draw of the selected run."""
        last = self.events[-1].get("time") if self.events else None
        return self.run.path, self.run.created_at, self.metrics.revision, len(self.events), last, theme.mode()


def keep(name: str, key: object, build: Callable[[], T]) -> T:
    """What `build` gives, kept for all sessions by `name` and `key`: a refresh with nothing new costs a comparison.

    `key` has to hold all that it depends on.
    """
    return state.drawn(f"train {name}", repr(key), build)  # repr: what events tell need not be hashable


# ---------------------------------------------------------------- the toolbar
def options(config: RunConfig) -> LossOptions:
    """What the toolbar says, also before it is drawn."""
    kept = st.session_state
    return LossOptions(
        str(kept.get(AXIS) or "Step"), smoothing(config), bool(kept.get(RAW, True)), bool(kept.get(LOG_Y, False)),
        bool(kept.get(LOG_X, False)),
    )  # fmt: skip


def smoothing(config: RunConfig) -> float:
    """The EMA weight the toolbar holds, also before it is drawn; at first one that suits the run's length."""
    if SMOOTH not in st.session_state:
        st.session_state[SMOOTH] = default_smoothing(config)
    return float(st.session_state[SMOOTH])


def follows() -> bool:
    """Whether Live is on."""
    return bool(st.session_state.get(LIVE, True))


# ---------------------------------------------------------------- curves
def settings(run: Run) -> dict[str, Any]:
    """A run's settings by path; empty when its config cannot be read."""
    config = state.config(run)
    return flatten(config.to_dict()) if config else {}


def curves(shown: Shown) -> list[Curve]:
    """The runs' losses with their groups, the selected one first."""
    by = str(st.session_state.get(GROUP) or "")
    groups = group_names([settings(run) for run in shown.runs], by) if by else [""] * len(shown.runs)
    return [
        Curve(
            run.id,
            run.color_slot,
            state.metrics(run).columns,
            run == shown.run,
            status.is_live,
            status.max_steps,
            group,
        )
        for run, status, group in ((run, run.status(), group) for run, group in zip(shown.runs, groups, strict=True))
    ]


def curves_stamp(shown: Shown) -> tuple[object, ...]:
    """What changes as soon as the loss chart has anything new to draw."""
    others = tuple(
        (run.path, run.created_at, state.metrics(run).revision, run.status().is_live) for run in shown.others
    )
    live = shown.run.status().is_live
    return *shown.stamp, live, others, options(shown.config), st.session_state.get(GROUP)
