"""All runs as the Runs page lists them: state, figures, settings, and what people said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgsgpt.annotations import NONE, Annotation
from dgsgpt.annotations import read as read_words
from dgsgpt.config import RunConfig
from dgsgpt.metric_shelf import file_stamp
from dgsgpt.metric_summary import MetricSummary
from dgsgpt.rules import flatten
from dgsgpt.run_queue import QUEUE, Queue
from dgsgpt.runs import Run, Status
from dgsgpt.ui import form, run_cards, state
from dgsgpt.ui.checkpoint_search import same_value

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
WAIT_S = 1.5  # a page waits no longer for figures of runs that were never summed up
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
def entries(runs: Sequence[Run], queue: Queue) -> list[RunEntry]:
    """The runs in the order given, each with all that the list shows of it.

    Figures of long runs that nobody has summed up yet may be missing at first: `state.pending` tells.
    """
    told = state.summaries(runs, WAIT_S)
    return [_entry(run, queue, figures(summary)) for run, summary in zip(runs, told, strict=True)]


def _entry(run: Run, queue: Queue, known: Figures) -> RunEntry:
    config = state.config(run)
    said = read_words(run).run
    return RunEntry(run, run.status(), config, known, said, queue.position(run.id), settings_of(config))


def settings_of(config: RunConfig | None) -> Mapping[str, Any]:
    """The settings of a config by dotted path, without those that only follow from others."""
    if config is None:
        return {}
    return {path: value for path, value in flatten(config.model_dump()).items() if path not in _NO_COLUMN}


def figures(told: MetricSummary | None) -> Figures:
    """The figures that the list shows, of what is known of a run's metrics."""
    if told is None:
        return Figures()
    bpb, every = told.lowest.get("bpb/val"), max(1, len(told.spark) // SPARK_POINTS)
    return Figures(
        told.best_val, told.best_val_step, bpb[0] if bpb else None, told.last.get("loss/train"),
        told.last.get("tokens"), told.last.get("perf/tokens_per_s"), told.spark[::every],
    )  # fmt: skip


def news(runs: Sequence[Run]) -> tuple[object, ...]:
    """What is another value when the list is to be drawn anew: runs, their states, validations, the queue."""
    states = tuple((run.id, run.status().state) for run in runs)
    best = tuple(state.summary(run).best_val for run in runs if run.status().is_live)
    return states, best, state.pending(runs), file_stamp(state.root() / QUEUE)


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
