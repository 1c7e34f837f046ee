"""All runs as the Runs page lists them: state, figures, settings, and what people said of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dgsgpt.annotations import NONE, Annotation
from dgsgpt.annotations import read as read_words
from dgsgpt.config import RunConfig
from dgsgpt.metrics import decimate, ema
from dgsgpt.rules import flatten
from dgsgpt.run_queue import Queue
from dgsgpt.runs import Run, Status
from dgsgpt.ui import form, run_cards, state
from dgsgpt.ui.checkpoint_search import same_value
from dgsgpt.ui.loss_chart import columns, default_smoothing

FILTERS = {
    "all": "All",
    "live": "Live",
    "queued": "Queued",
    "finished": "Finished",
    "trouble": "Trouble",
    "starred": "Starred",
    "archived": "Archived",
}
SPARK_POINTS = 40
_TROUBLE = frozenset({"failed", "lost", "stalled"})
# Not settings of an experiment, but what follows from where and how it was run.
_NO_COLUMN = frozenset({"schema_version", "model.vocab_size"})


@dataclass(frozen=True)
class Figures:
    """What the metrics of a run come to; None and empty where nothing was measured."""

    best_val: float | None = None
    best_step: int | None = None
    bpb: float | None = None
    train_loss: float | None = None
    tokens: float | None = None
    tokens_per_s: float | None = None
    curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunEntry:
    """One run of the list."""

    run: Run
    status: Status
    config: RunConfig | None
    figures: Figures
    said: Annotation = NONE
    place: int | None = None  # in the queue, from 1
    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted path; empty without a config

    @property
    def id(self) -> str:
        """The run's id."""
        return self.run.id

    @property
    def title(self) -> str:
        """The name people gave it, else its id."""
        return self.said.name or self.run.id

    @property
    def state(self) -> str:
        """The state as its pill says it."""
        return run_cards.shown_state(self.status)

    @property
    def ended_at(self) -> float | None:
        """When it was last heard of, in Unix seconds."""
        return self.status.heartbeat_at or self.run.created_at or None

    @property
    def words(self) -> list[str]:
        """What a search looks through."""
        said = (self.said.name, self.said.note)
        own = ["demo"] if self.run.is_demo else []
        return [self.run.id, self.state, *self.said.tags, *own, *filter(None, said)]


# ---------------------------------------------------------------- listing
def entries(runs: Iterable[Run], queue: Queue) -> list[RunEntry]:
    """The runs in the order given, each with all that the list shows of it."""
    return [_entry(run, queue) for run in runs]


def _entry(run: Run, queue: Queue) -> RunEntry:
    config = state.config(run)
    return RunEntry(
        run, run.status(), config, figures(run), read_words(run).run, queue.position(run.id), settings_of(config)
    )


def settings_of(config: RunConfig | None) -> Mapping[str, Any]:
    """The settings of a config by dotted path, without those that only follow from others."""
    if config is None:
        return {}
    return {path: value for path, value in flatten(config.model_dump()).items() if path not in _NO_COLUMN}


def figures(run: Run) -> Figures:
    """The figures of a run's metrics as they are now."""
    known = state.metrics(run)
    frame = known.frame
    if not len(frame):
        return Figures()
    best_val = best_step = None
    steps, losses = columns(frame, "loss/val")
    if len(losses):
        at = int(losses.argmin())
        best_val, best_step = float(losses[at]), int(steps[at])
    return Figures(
        best_val, best_step, _least(known.column("bpb/val")), known.last("loss/train"), known.last("tokens"),
        known.last("perf/tokens_per_s"), _curve(run),
    )  # fmt: skip


def _curve(run: Run) -> tuple[float, ...]:
    """The smoothed training loss in a few points."""
    smooth = ema(state.metrics(run).column("loss/train"), default_smoothing(state.config(run)))
    _, shown = decimate(np.arange(len(smooth)), smooth, SPARK_POINTS)
    return tuple(float(value) for value in shown if np.isfinite(value))


def _least(values: Any) -> float | None:
    return float(values.min()) if len(values) else None


# ---------------------------------------------------------------- filter and search
def kept_by(entry: RunEntry, which: str) -> bool:
    """Whether a filter of `FILTERS` keeps an entry; only `archived` shows archived ones."""
    if which == "archived" or entry.said.archived:
        return which == "archived" and entry.said.archived
    return {
        "all": True,
        "live": entry.status.is_live,
        "queued": entry.place is not None,
        "finished": entry.state == "finished",
        "trouble": entry.state in _TROUBLE,
        "starred": entry.said.star,
    }[which]


def filters(found: Sequence[RunEntry]) -> list[str]:
    """`all`, then the filters that keep some of the runs but not all of them."""
    counts = {which: sum(kept_by(entry, which) for entry in found) for which in FILTERS}
    return [
        which for which, n in counts.items() if which == "all" or 0 < n < counts["all"] or (n and which == "archived")
    ]


def choose(found: Sequence[RunEntry], which: str, query: str) -> list[RunEntry]:
    """The runs that the filter leaves and every word of the query fits: a word of it, or a setting as `n_layer=12`."""
    words = query.lower().split()
    return [e for e in found if kept_by(e, which) and all(_fits(e, word) for word in words)]


def _fits(entry: RunEntry, word: str) -> bool:
    if any(word in said.lower() for said in entry.words):
        return True
    name, eq, value = word.partition("=")
    if not eq:
        return False
    if value in ("on", "true", "yes") and any(f".{name}." in path for path in entry.settings):
        return True
    return any(same_value(v, value) for path, v in entry.settings.items() if path == name or path.endswith(f".{name}"))


# ---------------------------------------------------------------- settings that differ
def differing(found: Sequence[RunEntry]) -> list[str]:
    """Paths of the settings that are not the same in all runs: those of the first tier first, then by name."""
    configured = [entry.settings for entry in found if entry.settings]
    if len(configured) < 2:
        return []
    paths = dict.fromkeys(path for settings in configured for path in settings)
    differ = [p for p in paths if any(s.get(p) != configured[0].get(p) for s in configured)]
    # A section that is off in one run and on in another differs by each setting in it: the telling ones are kept.
    telling = [p for p in differ if not _inside_switched(p, configured) or _tier(p) == 0]
    return sorted(telling, key=lambda path: (_tier(path), path))


def _tier(path: str) -> int:
    known = form.SETTINGS.get(path)
    return ("basic", "advanced", "expert").index(known.tier) if known else 1


def _inside_switched(path: str, configured: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a setting lies in a section that some runs have off."""
    return any(path not in settings for settings in configured)
