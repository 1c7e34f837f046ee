"""What pages read again and again, kept between refreshes: runs, their metrics, the machine.

Everything durable is a file of a run; what is kept here can be lost at any time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import streamlit as st

from dgsgpt.config import RunConfig
from dgsgpt.errors import ConfigError, DgsgptError
from dgsgpt.hardware import Hardware, detect
from dgsgpt.metric_shelf import CurvePoints, MetricShelf, file_stamp
from dgsgpt.metric_shelf import Reading as Metrics
from dgsgpt.metric_summary import MetricSummary
from dgsgpt.metrics import EVENTS, METRICS, read_events
from dgsgpt.planner import Plan, plan
from dgsgpt.runs import Run, list_runs, runs_root
from dgsgpt.supervise import PAUSE_FILE, SAVE_FILE

__all__ = ["Metrics"]
REFRESH_S = 2.0
HISTORY = 60
MAX_DRAWINGS = 96
T = TypeVar("T")


@st.cache_resource(show_spinner=False)
def _shelf() -> MetricShelf:
    return MetricShelf()


@st.cache_resource(max_entries=256, show_spinner=False)
def _events(path: Path, stamp: tuple[int, ...]) -> list[dict[str, Any]]:
    return read_events(path)


class Memory:
    """What was made last, by key and at most `limit` of it; thread-safe, and faster than streamlit's own caches."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._held: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], T]) -> T:
        """What is held under `key`, else what `build` gives."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                known: T = self._held[key]
                return known
        made = build()
        with self._lock:
            self._held[key] = made
            while len(self._held) > self._limit:
                self._held.popitem(last=False)
        return made


@st.cache_resource(show_spinner=False)
def _memories() -> dict[str, Memory]:
    return {"configs": Memory(4096), "plans": Memory(4096), "drawings": Memory(MAX_DRAWINGS)}


def _open_config(run: Run) -> RunConfig | None:
    try:
        return run.config
    except ConfigError:  # one damaged file must not take the list of runs away
        return None


def _plan(known: RunConfig | None) -> Plan | None:
    try:
        return plan(known) if known else None
    except DgsgptError:  # a run that cannot be planned is shown all the same
        return None


# ---------------------------------------------------------------- runs
def root() -> Path:
    """Where runs live."""
    return runs_root()


def runs() -> list[Run]:
    """All runs, the newest first; opening the config of one may fail."""
    return list_runs(root())


def config(run: Run) -> RunConfig | None:
    """The run's config, or None when its file is damaged or of another version."""
    return _memories()["configs"].get((run.path, run.created_at), lambda: _open_config(run))


def config_problem(run: Run) -> str | None:
    """Why the run's config cannot be opened; None when it can."""
    if config(run) is not None:
        return None
    try:
        run.config  # noqa: B018 - asked again for the reason
    except ConfigError as error:
        return str(error)
    return None


def metrics(run: Run) -> Metrics:
    """The run's metrics now; costs only what was written since the last call."""
    return _shelf().read(run.path)


def prefetch(runs: Iterable[Run]) -> None:
    """Read the metrics of several runs side by side, before many are drawn: `metrics` and `curve` then do not wait."""
    _shelf().prefetch([run.path for run in runs])


def curve(run: Run, key: str, axis: str = "step", weight: float = 0.0, points: int = 2000) -> CurvePoints:
    """Metric `key` over the metric `axis`, smoothed with EMA weight on all points, then thinned out to `points`.

    Extremes are kept; `total` says of how many. It is made anew only when the run has written more, and the run's
    columns need not stay in memory for it: the way to draw many runs.
    """
    return _shelf().curve(run.path, key, axis, weight, points)


def summary(run: Run) -> MetricSummary:
    """Last and lowest figures and a small curve: all that a card or a row shows of a run, without its columns."""
    return _shelf().summary(run.path)


def summaries(runs: Sequence[Run], within_s: float | None = None) -> list[MetricSummary | None]:
    """`summary` of many runs, read side by side; of a run that is over it costs one look at its directory.

    With `within_s` a page never waits longer: what is not known by then is None, or as it was before, and goes on
    being read. Let `polling.poll` with `pending` in a stamp draw the list again.
    """
    return _shelf().summaries([run.path for run in runs], within_s)


def pending(runs: Iterable[Run]) -> int:
    """How many of these runs `summaries` does not know yet, or is reading anew."""
    return _shelf().pending([run.path for run in runs])


def sparkline(run: Run) -> tuple[float, ...]:
    """The smoothed training loss in at most 120 values with extremes kept; empty when there are less than two."""
    return summary(run).spark


def stamp(run: Run) -> tuple[object, ...]:
    """What is another tuple whenever there is something new to draw of a run: metrics, events, its state, requests.

    It reads no metrics: for `polling`, and as a key of what is kept. How far a live run is between two lines of
    metrics, and how long ago things were, is not in it.
    """
    status = run.status()
    asked = tuple((run.path / name).exists() for name in (PAUSE_FILE, SAVE_FILE))
    written = (file_stamp(run.path / METRICS), file_stamp(run.path / EVENTS))
    return str(run.path), run.created_at, *written, status.state, status.paused, *asked


def events(run: Run) -> list[dict[str, Any]]:
    """The run's events now, not to be changed; read again only when the file changed."""
    now = file_stamp(run.path / EVENTS)
    return _events(run.path, now) if now else []


def planned(run: Run) -> Plan | None:
    """Parameters, FLOPs and memory by the planner; None when the planner refuses the config."""
    return _memories()["plans"].get((run.path, run.created_at), lambda: _plan(config(run)))


def live_runs(available: list[Run]) -> list[Run]:
    """Those a process works on now."""
    return [run for run in available if run.status().is_live]


def pick_run(available: list[Run], wanted: str | None) -> Run:
    """The run named in the address, else the newest live one, else the newest. `available` must not be empty."""
    named = next((run for run in available if run.id == wanted), None)
    return named or next((run for run in available if run.status().is_live), available[0])


# ---------------------------------------------------------------- drawings
def drawn(name: str, key: Hashable, build: Callable[[], T]) -> T:
    """What `build` gives, made once for all sessions as long as `key` is the same; the last few hundred are held.

    For figures and markup that take milliseconds to make. `key` has to hold all that they depend on: `stamp` of the
    runs, the options, `theme.mode()`; what it gives must not be changed.
    """
    return _memories()["drawings"].get((name, key), build)


# ---------------------------------------------------------------- machine
@st.cache_resource(ttl=REFRESH_S * 0.75, max_entries=4, show_spinner=False)
def _machine(path: Path) -> Hardware:
    return detect(path)


@st.cache_resource(show_spinner=False)
def _history() -> deque[tuple[float, Hardware]]:
    return deque(maxlen=HISTORY)


def machine() -> Hardware:
    """The machine now (read at most every other second)."""
    found = _machine(root())
    history = _history()
    if not history or history[-1][1] is not found:
        history.append((time.time(), found))
    return found


def machine_history() -> list[Hardware]:
    """The last readings of the machine while pages were looking, oldest first."""
    return [reading for _, reading in list(_history())]


# ---------------------------------------------------------------- acting
def attempt(action: Any, *arguments: Any) -> bool:
    """Do what a button says; a user's error becomes a message on the page (and stays out of markdown)."""
    try:
        action(*arguments)
    except DgsgptError as error:
        flash_error(str(error))
        return False
    return True


def flash_error(message: str) -> None:
    """Show an error on this page's next drawing."""
    st.session_state["flash_error"] = message


def take_flash() -> str | None:
    """The error to show now, once."""
    message = st.session_state.pop("flash_error", None)
    return str(message) if message else None
