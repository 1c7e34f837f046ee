"""What pages read again and again, kept between refreshes: runs, their metrics, the machine.

Everything durable is a file of a run; what is kept here can be lost at any time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dgsgpt.config import RunConfig
from dgsgpt.errors import ConfigError, DgsgptError
from dgsgpt.hardware import Hardware, detect
from dgsgpt.metrics import EVENTS, MetricsTail, read_events
from dgsgpt.planner import Plan, plan
from dgsgpt.runs import Run, list_runs, runs_root

REFRESH_S = 2.0
HISTORY = 60


@dataclass(frozen=True)
class Metrics:
    """A run's metrics now: the frame, how many damaged lines were left out, and a number that grows with it."""

    frame: pd.DataFrame
    skipped: int
    revision: int

    def last(self, key: str) -> float | None:
        """The latest known value of a metric, or None."""
        values = self.column(key)
        return float(values[-1]) if len(values) else None

    def column(self, key: str) -> Any:
        """All known values of a metric as an array, in the order of steps; empty when it was never written."""
        return (
            self.frame[key].dropna().to_numpy(dtype=float) if key in self.frame else pd.Series(dtype=float).to_numpy()
        )


class _Reader:
    """One tail of a run's metrics, shared by all sessions."""

    def __init__(self, path: Path) -> None:
        self._tail = MetricsTail(path)
        self._lock = threading.Lock()
        self._revision = 0

    def read(self) -> Metrics:
        with self._lock:
            if self._tail.refresh():
                self._revision += 1
            return Metrics(self._tail.frame, self._tail.skipped, self._revision)


@st.cache_resource(max_entries=64, show_spinner=False)
def _reader(path: Path, created_at: float) -> _Reader:
    return _Reader(path)


@st.cache_data(max_entries=64, show_spinner=False)
def _events(path: Path, stamp: tuple[int, int]) -> list[dict[str, Any]]:
    return read_events(path)


@st.cache_resource(max_entries=256, show_spinner=False)
def _config(path: Path, created_at: float, _run: Run) -> RunConfig | None:
    try:
        return _run.config
    except ConfigError:  # one damaged file must not take the list of runs away
        return None


@st.cache_resource(max_entries=256, show_spinner=False)
def _plan(path: Path, created_at: float, _run: Run) -> Plan | None:
    known = _config(path, created_at, _run)
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
    return _config(run.path, run.created_at, run)


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
    return _reader(run.path, run.created_at).read()


def events(run: Run) -> list[dict[str, Any]]:
    """The run's events now; read again only when the file changed."""
    try:
        stat = (run.path / EVENTS).stat()
    except OSError:
        return []
    return _events(run.path, (stat.st_mtime_ns, stat.st_size))


def planned(run: Run) -> Plan | None:
    """Parameters, FLOPs and memory by the planner; None when the planner refuses the config."""
    return _plan(run.path, run.created_at, run)


def live_runs(available: list[Run]) -> list[Run]:
    """Those a process works on now."""
    return [run for run in available if run.status().is_live]


def pick_run(available: list[Run], wanted: str | None) -> Run:
    """The run named in the address, else the newest live one, else the newest. `available` must not be empty."""
    named = next((run for run in available if run.id == wanted), None)
    return named or next((run for run in available if run.status().is_live), available[0])


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
