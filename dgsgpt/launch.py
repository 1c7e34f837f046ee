"""Starting, stopping and resuming runs: processes that outlive the browser tab and the dashboard."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dgsgpt import files, process
from dgsgpt.config import load_config
from dgsgpt.errors import RunError
from dgsgpt.profiles import configs_dir
from dgsgpt.recipe import ANY_CHANGE, accept
from dgsgpt.rules import differences
from dgsgpt.runs import Run, create_run, suggest_run_id
from dgsgpt.supervise import PAUSE_FILE, SAVE_FILE, STOP_FILE, child_environment
from dgsgpt.threads import wait_politely


def check_startable(run: Run) -> None:
    """Raise RunError unless the run is queued or has ended and may go on."""
    status = run.status()
    if status.is_live:
        raise RunError(f"run {run.id!r} is already {status.state}; stop it first")
    parent = run.facts.get("parent")
    if isinstance(parent, dict) and parent.get("kind") == "quantize":
        origin = f"{parent.get('run')}@{parent.get('step')}"
        raise RunError(f"run {run.id!r} is a quantized model and cannot be trained; train from {origin}, its origin")
    if status.state == "finished" and run.config.train.steps <= status.step:
        raise RunError(
            f"run {run.id!r} has finished all {status.max_steps} steps; "
            f"`dgsgpt resume {run.id} --set train.steps=N` makes more, or start a new run"
        )


def mark_starting(run: Run) -> None:
    """Say that a process is on its way, so that the moment before it reports does not look like a loss."""
    status = run.status()
    # What an earlier process left must not be taken for this one's end.
    (run.path / "exit.json").unlink(missing_ok=True)
    for request in (STOP_FILE, PAUSE_FILE, SAVE_FILE):
        (run.path / request).unlink(missing_ok=True)
    now = time.time()
    files.write_json(
        run.path / "status.json",
        {
            "state": "starting",
            "step": status.step,
            "max_steps": status.max_steps or run.config.train.steps,
            "started_at": now,
            "heartbeat_at": now,
            "message": "starting",
        },
    )


def start_run(run: Run) -> None:
    """Start (or resume: the trainer goes on from the newest valid checkpoint) as a detached process.

    Raises:
        RunError: it is live already, or has finished.
    """
    check_startable(run)
    mark_starting(run)
    environment = child_environment()
    wait_politely(environment)
    with (run.path / "train.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "dgsgpt.supervise", str(run.path), secrets.token_hex(8)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )


def change_recipe(run: Run, overrides: Sequence[str] = (), force: bool = False) -> Run:
    """The run with `overrides` in its config, allowed to go on from checkpoints made without them.

    `force` allows whatever else has changed since, once: config, data, tokenizer.

    Raises:
        RunError: it is live.
        ConfigError: an override breaks a rule.
    """
    if not overrides and not force:
        return run
    if run.status().is_live:
        raise RunError(f"run {run.id!r} is {run.status().state}; stop it before its recipe is changed")
    changed = Run(run.path)
    if overrides:
        config = load_config(run.path / "config.yaml", overrides)
        changes = differences(run.config.to_dict(), config.to_dict())
        # Allowed before it is written: a crash in between leaves the old recipe.
        accept(run.path, {name: now for name, (_, now) in changes.items()})
        files.write_atomic(run.path / "config.yaml", config.to_yaml().encode())
    if force:
        accept(run.path, {ANY_CHANGE: True})
    return changed


def resume_run(run: Run) -> None:
    """Go on with a run that stopped, failed or was lost, from its newest valid checkpoint, else from the start."""
    start_run(run)


def stop_run(run: Run) -> None:
    """Ask a run to finish its step, save and end; returns at once.

    Raises:
        RunError: no process works on it.
    """
    _check_live(run, "stop")
    (run.path / STOP_FILE).touch()
    proc = files.read_json(run.path / "proc.json")
    process.wake_and_terminate(proc)
    # A suspended process group hears nothing until it is woken, the trainer separately from its supervisor.
    trainer = (proc or {}).get("trainer")
    if hasattr(signal, "SIGCONT"):
        process.send(trainer, signal.SIGCONT)


def pause_run(run: Run) -> None:
    """Ask a run to save after its step and wait, keeping its process and memory.

    Raises:
        RunError: no process works on it, or it is paused already.
    """
    _check_live(run, "pause")
    if (run.path / PAUSE_FILE).exists():
        raise RunError(f"run {run.id!r} is paused already; `dgsgpt resume {run.id}` lets it go on")
    (run.path / PAUSE_FILE).touch()


def continue_run(run: Run) -> None:
    """Let a paused run go on.

    Raises:
        RunError: it is not paused.
    """
    if not run.status().is_live or not (run.path / PAUSE_FILE).exists():
        raise RunError(f"run {run.id!r} is not paused")
    (run.path / PAUSE_FILE).unlink(missing_ok=True)


def save_now(run: Run) -> None:
    """Ask a run to save a checkpoint after its step and go on.

    Raises:
        RunError: no process works on it.
    """
    _check_live(run, "save")
    (run.path / SAVE_FILE).touch()


def _check_live(run: Run, verb: str) -> None:
    status = run.status()
    if not status.is_live:
        raise RunError(f"run {run.id!r} is {status.state}, nothing to {verb}")


def kill_run(run: Run) -> None:
    """End the processes of a run at once; what was not saved is lost."""
    proc = files.read_json(run.path / "proc.json") or {}
    hard = getattr(signal, "SIGKILL", signal.SIGTERM)
    process.send(proc.get("trainer"), hard)
    deadline = time.monotonic() + 2
    while process.is_alive(proc) and time.monotonic() < deadline:
        time.sleep(0.05)  # the supervisor notes how it ended
    process.send(proc, hard)


def wait_run(run: Run, timeout_s: float | None = None) -> bool:
    """Wait until nothing works on the run; False when the time is up first."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while run.status().is_live or process.is_alive(files.read_json(run.path / "proc.json")):
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def start_demo(root: Path, automatic: bool = False) -> Run:
    """Create and start the demo (`configs/demo.yaml`): about a minute of training on Jane Austen."""
    config = load_config(configs_dir() / "demo.yaml")
    run = create_run(
        root,
        config,
        suggest_run_id(root, "austen-demo"),
        command=["dgsgpt", "train", "configs/demo.yaml"],
        demo=automatic,
    )
    start_run(run)
    return run
