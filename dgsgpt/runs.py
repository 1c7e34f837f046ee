"""The run directory: creating, listing and reading runs, and what state a run is in.

The trainer writes `status.json`, its supervisor `proc.json` and `exit.json`; only here are the three combined.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from dgsgpt import files, process
from dgsgpt.config import RunConfig, load_config
from dgsgpt.errors import ConfigError, RunError

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
ENDED = frozenset({"stopped", "finished", "failed", "lost"})
LAUNCH_GRACE_S = 20.0
STALL_AFTER_S = 60.0
N_COLORS = 8


@dataclass(frozen=True)
class Status:
    """What a run is doing, from all that was written about it. Times are Unix seconds."""

    state: str
    step: int = 0
    max_steps: int = 0
    started_at: float | None = None
    heartbeat_at: float | None = None
    elapsed_s: float = 0.0
    eta_s: float | None = None
    message: str = ""
    error: str | None = None
    paused: bool = False  # its process waits

    @property
    def is_live(self) -> bool:
        """A process works on it, or is about to."""
        return self.state in ("starting", "running", "stopping", "stalled")

    @property
    def has_ended(self) -> bool:
        """Nothing works on it any more."""
        return self.state in ENDED


class Run:
    """One run directory. Reading never fails on a file that is missing or half written; opening a config may."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    @cached_property
    def config(self) -> RunConfig:
        """The resolved config.

        Raises:
            ConfigError: `config.yaml` is missing or damaged.
        """
        return load_config(self.path / "config.yaml")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`run.json`; empty when it is missing or damaged."""
        return files.read_json(self.path / "run.json") or {}

    @property
    def created_at(self) -> float:
        """When the run was created, in Unix seconds."""
        value = self.facts.get("created_at")
        return float(value) if isinstance(value, int | float) else 0.0

    @property
    def color_slot(self) -> int:
        """Index of the run's colour, the same for ever."""
        slot = self.facts.get("color_slot")
        return slot if isinstance(slot, int) else _preferred_slot(self.id)

    @property
    def is_demo(self) -> bool:
        """Whether the dashboard started it by itself because there were no runs."""
        return bool(self.facts.get("demo"))

    def checkpoints(self) -> list[Path]:
        """Directories of its checkpoints, oldest step first; complete or not."""
        folder = self.path / "checkpoints"
        return sorted(p for p in folder.glob("step_*") if p.is_dir()) if folder.is_dir() else []

    def log_tail(self, lines: int = 200) -> list[str]:
        """The last lines the trainer printed."""
        return files.tail_text(self.path / "train.log", lines)

    def status(self) -> Status:
        """The state now. A run whose process is gone without a word is `lost`, one without heartbeat `stalled`."""
        raw = files.read_json(self.path / "status.json") or {}
        status = Status(
            state=str(raw.get("state", "queued")),
            step=_number(raw.get("step"), int),
            max_steps=_number(raw.get("max_steps"), int),
            started_at=raw.get("started_at"),
            heartbeat_at=raw.get("heartbeat_at"),
            elapsed_s=_number(raw.get("elapsed_s"), float),
            eta_s=raw.get("eta_s"),
            message=str(raw.get("message") or ""),
            error=raw.get("error"),
            paused=raw.get("paused") is True,
        )
        if status.state in ("finished", "stopped", "failed", "queued"):
            return status
        ended = files.read_json(self.path / "exit.json")
        if ended is not None and ended.get("signal") == "SIGTERM":  # asked to stop before it could listen
            return _with(status, state="stopped")
        if ended is not None:
            return _with(status, state="failed", error=status.error or describe_exit(ended))
        now = time.time()
        if process.is_alive(files.read_json(self.path / "proc.json")):
            beat = status.heartbeat_at or status.started_at or now
            limit = max(STALL_AFTER_S, 10 * _number(raw.get("step_s"), float))
            # A clock set back makes the beat lie in the future: that is not silence.
            return _with(status, state="stalled") if now - beat > limit else status
        if status.state == "starting" and abs(now - (status.started_at or 0)) < LAUNCH_GRACE_S:
            return status
        return _with(
            status, state="lost", error="the process is gone without a word (power cut, kill -9, out of memory?)"
        )


def _with(status: Status, **changes: Any) -> Status:
    return Status(**{**status.__dict__, **changes})


def _number(value: Any, kind: type) -> Any:
    return kind(value) if isinstance(value, int | float) and not isinstance(value, bool) else kind(0)


def describe_exit(ended: dict[str, Any]) -> str:
    """How the trainer ended, in words."""
    if ended.get("signal"):
        hint = "; the system may have run out of memory" if ended["signal"] == "SIGKILL" else ""
        return f"the trainer was killed by {ended['signal']}{hint}"
    return f"the trainer ended with exit code {ended.get('code')}; see train.log"


# ---------------------------------------------------------------- names and places
def runs_root(override: str | Path | None = None) -> Path:
    """Where runs live: `override`, else $DGSGPT_RUNS, else ./runs."""
    return Path(override or os.environ.get("DGSGPT_RUNS") or "runs").absolute()


def check_run_id(text: str) -> str:
    """`text` if it may name a run.

    Raises:
        RunError: it is empty, too long, or has characters that are not safe in a file name.
    """
    if not RUN_ID.fullmatch(text) or _RESERVED.fullmatch(text):
        raise RunError(
            f"run id {text[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-', begin with a letter or digit "
            "and not be a reserved name such as CON"
        )
    return text


def suggest_run_id(root: Path, stem: str = "run") -> str:
    """A free id: `stem` itself, else `stem-2`, `stem-3` and so on."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:54] or "run"
    stem = f"run-{stem}" if _RESERVED.fullmatch(stem) else stem
    taken = {p.name for p in root.iterdir()} if root.is_dir() else set()
    if stem not in taken:
        return stem
    return next(f"{stem}-{n}" for n in range(2, 1_000_000) if f"{stem}-{n}" not in taken)


def name_for(config: RunConfig) -> str:
    """A telling stem for a run's id, e.g. `austen-4x256-moe8`."""
    m = config.model
    corpus = Path(config.data.corpus).stem if "/" in config.data.corpus else config.data.corpus
    parts = [corpus[:24], f"{m.n_layer}x{m.n_embd}"]
    if m.moe:
        parts.append(f"moe{m.moe.n_expert}")
    if m.window:
        parts.append(f"win{m.window.size}")
    return "-".join(parts)


# ---------------------------------------------------------------- creating and finding
def create_run(
    root: Path,
    config: RunConfig,
    run_id: str | None = None,
    command: Sequence[str] = (),
    parent: dict[str, Any] | None = None,
    demo: bool = False,
) -> Run:
    """Make a run directory in state `queued`; nothing is started.

    Raises:
        RunError: the id is bad or taken, or the directory cannot be made.
    """
    check_run_id(run_id) if run_id is not None else None
    path: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = _claim(root, run_id, config)
        (path / "checkpoints").mkdir()
        facts = {
            "id": path.name,
            "created_at": time.time(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": list(command),
            "seed": config.train.seed,
            "color_slot": _free_slot(root, path.name),
            "demo": demo,
            "parent": parent,
            **_environment(path),
        }
        files.write_json(path / "run.json", facts)
        files.write_atomic(path / "config.yaml", config.to_yaml().encode())
        files.write_json(path / "status.json", {"state": "queued", "step": 0, "max_steps": config.train.steps})
    except OSError as e:
        if path is not None:  # half a run would keep its name taken
            shutil.rmtree(path, ignore_errors=True)
        raise RunError(
            f"{root}: cannot create a run: {e.strerror or e}; choose another --runs-dir or free some space"
        ) from e
    return Run(path)


def _claim(root: Path, run_id: str | None, config: RunConfig) -> Path:
    """Make the directory itself; whoever comes second gets another name, or an error if they insist on this one."""
    while True:
        path = root / (run_id or suggest_run_id(root, name_for(config)))
        try:
            path.mkdir()
            return path
        except FileExistsError:
            if run_id is not None:
                raise RunError(
                    f"run {run_id!r} exists already in {root}; try {suggest_run_id(root, run_id)!r}"
                ) from None


def open_run(root: Path, run_id: str) -> Run:
    """An existing run by its id, or by the path of its directory when `run_id` is one.

    Raises:
        RunError: there is no such run.
    """
    as_path = Path(run_id)
    if as_path.name != run_id and (as_path / "config.yaml").is_file():
        return Run(as_path.absolute())
    check_run_id(run_id)
    path = root / run_id
    if not (path / "config.yaml").is_file():
        known = [r.id for r in list_runs(root)[:5]]
        raise RunError(
            f"no run {run_id!r} in {root}" + (f"; there are {', '.join(known)}" if known else "; there are none yet")
        )
    return Run(path)


def list_runs(root: Path) -> list[Run]:
    """All runs, the newest first. Directories that are no runs are left out."""
    if not root.is_dir():
        return []
    found = [Run(p) for p in root.iterdir() if RUN_ID.fullmatch(p.name) and (p / "config.yaml").is_file()]
    return sorted(found, key=lambda r: (r.created_at, r.id), reverse=True)


def readable_runs(runs: Iterable[Run]) -> list[Run]:
    """Those whose config can be opened by this version."""
    return [run for run in runs if _opens(run)]


def _opens(run: Run) -> bool:
    try:
        return run.config is not None
    except ConfigError:
        return False


def _preferred_slot(run_id: str) -> int:
    return hashlib.sha256(run_id.encode()).digest()[0] % N_COLORS


def _free_slot(root: Path, run_id: str) -> int:
    """The hash's colour, or the next one not worn by the most recent runs: colours collide as late as possible."""
    recent = [r.color_slot for r in list_runs(root)[: N_COLORS - 1]]
    first = _preferred_slot(run_id)
    return next((s % N_COLORS for s in range(first, first + N_COLORS) if s % N_COLORS not in recent), first)


def _environment(path: Path) -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import dgsgpt
    from dgsgpt.hardware import detect

    versions = {"dgsgpt": dgsgpt.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "tokenizers", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    machine = detect(path)
    return {
        "versions": versions,
        "hardware": {
            "device": machine.device,
            "name": machine.name,
            "cpu": machine.cpu_name,
            "cpu_cores": machine.cpu_cores,
            "memory_bytes": machine.total_bytes,
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "git": _git_state(),
        "argv": sys.argv[:1],
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the source tree this package runs from, and whether it has changes; None outside a checkout."""
    import subprocess

    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(dirty)}
