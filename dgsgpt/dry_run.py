"""A few real steps of a config, by a process of its own, that leave no run behind: predicted against measured.

While one is at work its folder lies in `.dryruns/` beside the runs; what it found is a line of `.dryruns.jsonl`. The
process writes that itself and removes its folder, so that the result is there also when nobody waits for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dgsgpt import files, process
from dgsgpt.config import RunConfig
from dgsgpt.costs import settled_device
from dgsgpt.errors import RunError
from dgsgpt.hardware import Hardware
from dgsgpt.heap import keep_memory
from dgsgpt.planner import plan
from dgsgpt.runs import name_for
from dgsgpt.supervise import child_environment
from dgsgpt.threads import wait_politely

FOLDER, HISTORY = ".dryruns", ".dryruns.jsonl"
STEPS, MOST_STEPS = 3, 1000
REQUEST, CANCELLED = "request.json", "CANCELLED"
_LAUNCH_GRACE_S = 20.0
# Settings on which neither the time of a step nor its memory depends.
_INDIFFERENT = frozenset(
    {
        "corpus", "val_fraction", "steps", "lr", "muon_lr", "beta1", "beta2", "weight_decay", "muon_momentum", "seed",
        "schedule", "eval_every", "eval_tokens", "checkpoint_every", "keep_last", "sample_every", "sample_prompt",
        "sample_tokens", "log_every", "early_stop_evals", "target_loss", "on_nonfinite", "background_save", "tracker",
    }
)  # fmt: skip


@dataclass(frozen=True)
class DryRun:
    """What a dry run predicted and measured; times in seconds. `error` says why it measured nothing."""

    id: str
    at: float
    title: str
    fingerprint: str
    device: str  # cpu or cuda
    name: str  # of the device
    steps: int
    total_steps: int  # of the run that was tried
    predicted_bytes: int
    predicted_step_s: float | None = None
    predicted_by: str = ""
    step_times: tuple[float, ...] = ()
    step_s: float | None = None  # the median after the first
    set_up_s: float | None = None  # data, model, and finding out what `auto` means
    tokens_per_step: int = 0
    peak_bytes: int | None = None
    settled: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def memory_error(self) -> float | None:
        """By what share more was measured than predicted."""
        return None if self.peak_bytes is None else self.peak_bytes / self.predicted_bytes - 1

    @property
    def time_error(self) -> float | None:
        """By what share a step took longer than predicted; None where nothing was predicted."""
        return None if not self.step_s or not self.predicted_step_s else self.step_s / self.predicted_step_s - 1

    @property
    def timed(self) -> tuple[float, ...]:
        """The times that count: all but the first, which warms up, unless there is no other."""
        return self.step_times[1:] or self.step_times

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the errors."""
        shares = {"memory_error": self.memory_error, "time_error": self.time_error}
        return {**asdict(self), "step_times": list(self.step_times), **shares}


def fingerprint(config: RunConfig) -> str:
    """What two configs share exactly if a step of one takes the time and memory of a step of the other."""
    values = config.to_dict()
    values["train"] = {k: v for k, v in values["train"].items() if k not in _INDIFFERENT}
    values["data"] = {k: v for k, v in values["data"].items() if k not in _INDIFFERENT}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- history
def history(root: Path) -> list[DryRun]:
    """All dry runs, the newest first; damaged lines are left out."""
    try:
        lines = [line for line, _ in files.read_lines(root / HISTORY) if line]
    except OSError:  # none yet
        return []
    return [run for line in reversed(lines) if (run := _from_line(line)) is not None]


def _from_line(line: bytes) -> DryRun | None:
    try:
        values = json.loads(line)
        known = {f.name for f in fields(DryRun)}
        found = DryRun(**{k: v for k, v in values.items() if k in known})
        return replace(found, step_times=tuple(float(t) for t in found.step_times))
    except (ValueError, TypeError, AttributeError):
        return None


def keep(root: Path, run: DryRun) -> None:
    """Add a line to the history.

    Raises:
        OSError: the disk refuses.
    """
    files.append_line(root / HISTORY, run.to_dict())


# ---------------------------------------------------------------- one at work
@dataclass(frozen=True)
class Pending:
    """A dry run at work."""

    path: Path
    request: DryRun

    @property
    def message(self) -> str:
        """What it does now."""
        return str((files.read_json(self.path / "status.json") or {}).get("message") or "starting")

    @property
    def step(self) -> int:
        """Steps it has made."""
        value = (files.read_json(self.path / "status.json") or {}).get("step")
        return value if isinstance(value, int) else 0

    def cancel(self) -> None:
        """End its process; nothing is kept of it."""
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            (self.path / CANCELLED).touch()
        process.wake_and_terminate(files.read_json(self.path / "proc.json"))


def pending(root: Path) -> Pending | None:
    """The dry run at work, if there is one. What a process left that was killed becomes a line of the history."""
    folder = root / FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        request = read_request(path)
        if request is not None and _at_work(path, request):
            return Pending(path, request)
        _bury(root, path, request)
    return None


def read_request(path: Path) -> DryRun | None:
    """What the dry run in a folder is to try; None when the file is missing or damaged."""
    try:
        return _from_line((path / REQUEST).read_bytes())
    except OSError:
        return None


def _at_work(path: Path, request: DryRun) -> bool:
    identity = files.read_json(path / "proc.json")
    if identity is None:  # just being started
        return time.time() - request.at < _LAUNCH_GRACE_S
    return process.is_alive(identity)


def _bury(root: Path, path: Path, request: DryRun | None) -> None:
    """Remove what is left of a dry run whose process is gone."""
    known = request is None or (path / CANCELLED).exists() or any(run.id == request.id for run in history(root))
    if not known and request is not None:
        error = "its process ended without a result; the system may have run out of memory"
        keep(root, replace(request, error=error))
    shutil.rmtree(path, ignore_errors=True)


def begin(
    root: Path, config: RunConfig, machine: Hardware, steps: int = STEPS, step_s: float | None = None, by: str = ""
) -> Pending:
    """Start a dry run of `config`; `step_s` is what a step is predicted to take, and `by` from what.

    Raises:
        RunError: one is at work already, or the disk refuses.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise RunError(f"--steps {steps} must be 1 to {MOST_STEPS}; {STEPS} are enough")
    if (other := pending(root)) is not None:
        raise RunError(f"a dry run of {other.request.title} is at work; wait for it or cancel it")
    device = settled_device(config, machine.device)
    request = DryRun(
        id=secrets.token_hex(8),
        at=time.time(),
        title=name_for(config),
        fingerprint=fingerprint(config),
        device=device,
        name=machine.name if device == machine.device else machine.cpu_name,
        steps=steps,
        total_steps=config.train.steps,
        predicted_bytes=plan(config, device).total_bytes,
        predicted_step_s=step_s,
        predicted_by=by,
        tokens_per_step=config.tokens_per_step,
    )
    path = root / FOLDER / request.id
    try:
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        (path / REQUEST).write_text(json.dumps(request.to_dict()), encoding="utf-8")
        _start(path, request.id)
    except OSError as e:
        shutil.rmtree(path, ignore_errors=True)
        raise RunError(f"{path}: cannot be written: {e.strerror or e}; choose another --runs-dir") from e
    return Pending(path, request)


def _start(path: Path, token: str) -> None:
    environment = child_environment()
    keep_memory(environment)  # this and the next as a run of the dashboard has it
    wait_politely(environment)
    with (path / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "dgsgpt.train.dry_run", str(path), token],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
        )  # fmt: skip
    files.write_json(path / "proc.json", process.identify(child.pid, token), durable=False)
