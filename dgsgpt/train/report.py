"""What a trainer tells the world: status.json, metrics, events, and whether it was asked to stop.

A disk that is full for a while costs lines of metrics, not the run: what could not be written is counted, and told
once there is room again. Only a checkpoint that cannot be written ends a run.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from dgsgpt import files
from dgsgpt.errors import RunError
from dgsgpt.metrics import MetricsWriter
from dgsgpt.supervise import PAUSE_FILE, SAVE_FILE, STOP_FILE
from dgsgpt.train.trackers import NoTracker, Tracker

STATUS_INTERVAL_S = 0.5
FULL = frozenset({errno.ENOSPC, errno.EDQUOT}) if hasattr(errno, "EDQUOT") else frozenset({errno.ENOSPC})
STEP_FIGURES = frozenset({"loss/train", "grad_norm", "moe/entropy"})  # not finite: told by the session


def say(line: str) -> None:
    """A line of the log; lost where the disk is full."""
    try:
        print(line, flush=True)
    except OSError as e:
        if e.errno not in FULL:
            raise


class StopRequest:
    """What a run is asked to do while it trains.

    A stop comes by SIGTERM or SIGINT, by a file STOP in the run directory, or when the supervisor has gone.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / STOP_FILE
        self._pause, self._save = run_dir / PAUSE_FILE, run_dir / SAVE_FILE
        supervisor = os.environ.get("DGSGPT_SUPERVISOR", "")
        self._parent = int(supervisor) if supervisor.isdigit() else None
        self.reason: str | None = None

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler; a second signal changes nothing, so that a save in progress completes."""
        self.reason = self.reason or "asked to stop"

    def check(self) -> bool:
        """Whether to end after the step in hand."""
        if self.reason is None and self._file.exists():
            self.reason = "asked to stop"
        if self.reason is None and self._parent is not None and os.getppid() != self._parent:
            self.reason = "its supervisor is gone"
        return self.reason is not None

    def paused(self) -> bool:
        """Whether to wait before the next step, by a file PAUSE in the run directory."""
        return self._pause.exists()

    def save_asked(self) -> bool:
        """Whether a checkpoint has been asked for since the last call, by a file SAVE in the run directory."""
        if not self._save.exists():
            return False
        self._save.unlink(missing_ok=True)
        return True


class Reporter:
    """Writes status, metrics and events of one run."""

    def __init__(self, run_dir: Path, max_steps: int) -> None:
        self.writer = MetricsWriter(run_dir)
        self._tracker: Tracker = NoTracker()
        self._lost = 0  # lines that could not be written since the last that could
        self._path = run_dir / "status.json"
        self._written = 0.0
        self._fields: dict[str, Any] = {
            "state": "starting",
            "step": 0,
            "max_steps": max_steps,
            "started_at": time.time(),
            "elapsed_s": 0.0,
            "eta_s": None,
            "step_s": None,
            "message": "starting",
            "error": None,
        }

    def status(self, *, now: bool = True, **fields: Any) -> None:
        """Update the status and its heartbeat; with `now=False` at most twice a second."""
        self._fields.update(fields)
        if not now and time.monotonic() - self._written < STATUS_INTERVAL_S:
            return
        self._written = time.monotonic()
        written = {**self._fields, "heartbeat_at": time.time(), "pid": os.getpid()}
        self._try(lambda: files.write_json(self._path, written, durable=False))

    def progress(self, message: str, share: float | None = None) -> None:
        """Say what goes on beside the steps, e.g. `preparing data, 40 %`."""
        self.status(now=False, message=message if share is None else f"{message}, {share:.0%}")

    def log(self, step: int, values: dict[str, float | int | None]) -> None:
        """One line of metrics; values that are not finite also become a health event."""
        bad: list[str] = []
        if not self._try(lambda: bad.extend(self.writer.log(step, values))):
            self._lost += 1
        elif self._lost:
            lost, self._lost = self._lost, 0
            message = f"the disk was full: {lost} lines of metrics or events could not be written"
            self.event("health", step, name="disk", severity="warning", message=message)
        for name in set(bad) - STEP_FIGURES:
            self.event("health", step, name="nonfinite", severity="error", message=f"{name} is not finite")
        self._track(step, {name: float(v) for name, v in values.items() if v is not None and name not in bad})

    def track(self, tracker: Tracker) -> None:
        """Hand metrics to a tracker of others as well."""
        self._tracker = tracker

    def _track(self, step: int, values: dict[str, float]) -> None:
        try:
            self._tracker.log(step, values)
        except Exception as e:  # noqa: BLE001 - code of others, which may raise anything: it must not end the run
            self._tracker = NoTracker()
            message = f"the tracker failed and gets no more metrics: {type(e).__name__}: {e}"[:500]
            self.event("health", step, name="tracker", severity="warning", message=message)

    def close(self) -> None:
        """Let the tracker write what it still holds back."""
        try:
            self._tracker.close()
        except Exception as e:  # noqa: BLE001 - as above
            say(f"the tracker did not close: {type(e).__name__}: {e}")
        self._tracker = NoTracker()

    def event(self, kind: str, step: int, **details: Any) -> None:
        """One event, also as a line of the log."""
        if not self._try(lambda: self.writer.event(kind, step, **details)):
            self._lost += 1
        shown = "  ".join(
            f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in details.items() if k != "text"
        )
        say(f"{time.strftime('%H:%M:%S')} step {step}  {kind}  {shown}".rstrip())

    def _try(self, write: Callable[[], object]) -> bool:
        """Whether `write` had room.

        Raises:
            RunError: the run directory cannot be written for another reason.
        """
        try:
            write()
        except OSError as e:
            if e.errno in FULL:
                return False
            raise RunError(
                f"{self._path.parent}: cannot be written: {e.strerror or e}; make it writable, then resume the run"
            ) from e
        return True
