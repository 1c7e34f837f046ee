"""Runs that start one after another: an ordered list in a file, and the process that works it off.

`queue.json` beside the runs holds their order. The runner (`[python, -m, dgsgpt.run_queue, ROOT, TOKEN]`, in a session
of its own) starts the first run whenever no run is live, and ends when the list is empty or held. It outlives the
dashboard; after a reboot the dashboard and the command line start it again (`ensure_runner`). A run that fails does
not stop those behind it.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dgsgpt import files, launch, process
from dgsgpt.errors import DgsgptError, RunError
from dgsgpt.runs import Run, list_runs, open_run
from dgsgpt.supervise import child_environment

QUEUE, RUNNER, LOG = "queue.json", ".queue-runner.json", "queue.log"
POLL_S = 0.5
_LOCK_TIMEOUT_S = 10.0
_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Queue:
    """The list as it stands: ids in their order, whether it is held, and why runs could not be started.

    `starting` is the run being started, with when that began: until it is off the list, whoever comes after a power
    cut must know whether it was.
    """

    ids: tuple[str, ...] = ()
    held: bool = False
    problems: dict[str, str] = field(default_factory=dict)
    starting: tuple[str, float] | None = None

    def position(self, run_id: str) -> int | None:
        """Place in the list, from 1; None when it is not there."""
        return self.ids.index(run_id) + 1 if run_id in self.ids else None


# ---------------------------------------------------------------- the list
def read_queue(root: Path) -> Queue:
    """The list now; an empty one when there is no file, or a damaged one."""
    raw = files.read_json(root / QUEUE) or {}
    ids, problems, starting = raw.get("runs"), raw.get("problems"), raw.get("starting")
    return Queue(
        tuple(dict.fromkeys(i for i in ids if isinstance(i, str))) if isinstance(ids, list) else (),
        raw.get("held") is True,
        {str(k): str(v) for k, v in problems.items()} if isinstance(problems, dict) else {},
        _start_of(starting),
    )


def _start_of(value: Any) -> tuple[str, float] | None:
    if not isinstance(value, dict) or not isinstance(value.get("run"), str):
        return None
    return (value["run"], float(value["at"])) if isinstance(value.get("at"), int | float) else None


@contextmanager
def _changing(root: Path) -> Iterator[Callable[[Queue], None]]:
    """One change of the list at a time; the block is given what writes it.

    Raises:
        RunError: somebody else holds it, or the disk refuses.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".queue.lock")
        lock.acquire(timeout=_LOCK_TIMEOUT_S)
    except Timeout:
        raise RunError(f"{root / QUEUE}: is being changed by another process; try again in a moment") from None
    except OSError as e:
        raise RunError(f"{root / QUEUE}: cannot be written: {e.strerror or e}; check who may write there") from e
    with lock:
        yield lambda queue: _write(root, queue)


def _write(root: Path, queue: Queue) -> None:
    starting = {"run": queue.starting[0], "at": queue.starting[1]} if queue.starting else None
    value = {"format_version": 1, "runs": list(queue.ids), "held": queue.held, "problems": queue.problems}
    try:
        files.write_json(root / QUEUE, {**value, "starting": starting})
    except OSError as e:
        raise RunError(f"{root / QUEUE}: cannot be written: {e.strerror or e}; free some space") from e


def enqueue(run: Run) -> int:
    """Put a run at the end of its folder's list and see to it that the list is worked off; returns its place, from 1.

    Raises:
        RunError: it is live, has finished, or is in the list already.
    """
    root = run.path.parent
    launch.check_startable(run)
    with _changing(root) as write:
        queue = read_queue(root)
        if (place := queue.position(run.id)) is not None:
            raise RunError(f"run {run.id!r} is in the queue already, at place {place}")
        problems = {known: why for known, why in queue.problems.items() if known != run.id}
        write(replace(queue, ids=(*queue.ids, run.id), problems=problems))
    ensure_runner(root)
    return len(queue.ids) + 1


def remove(root: Path, run_id: str) -> None:
    """Take a run off the list; the run itself stays as it is.

    Raises:
        RunError: it is not in the list.
    """
    with _changing(root) as write:
        queue = read_queue(root)
        _check_listed(root, queue, run_id)
        write(replace(queue, ids=tuple(i for i in queue.ids if i != run_id)))


def move(root: Path, run_id: str, place: int) -> None:
    """Give a run another place in the list, counted from 1.

    Raises:
        RunError: it is not in the list, or there is no such place.
    """
    with _changing(root) as write:
        queue = read_queue(root)
        _check_listed(root, queue, run_id)
        if not 1 <= place <= len(queue.ids):
            raise RunError(f"place {place} is not in the queue of {len(queue.ids)}; give 1 to {len(queue.ids)}")
        rest = [i for i in queue.ids if i != run_id]
        write(replace(queue, ids=(*rest[: place - 1], run_id, *rest[place - 1 :])))


def hold(root: Path) -> None:
    """Start nothing more until `release`; what runs goes on."""
    with _changing(root) as write:
        write(replace(read_queue(root), held=True))


def release(root: Path) -> None:
    """Go on starting runs."""
    with _changing(root) as write:
        write(replace(read_queue(root), held=False))
    ensure_runner(root)


def forget_problems(root: Path) -> None:
    """Forget why runs could not be started."""
    with _changing(root) as write:
        write(replace(read_queue(root), problems={}))


def _check_listed(root: Path, queue: Queue, run_id: str) -> None:
    if run_id not in queue.ids:
        known = f"it holds {', '.join(queue.ids[:5])}" if queue.ids else "it is empty"
        raise RunError(f"run {run_id!r} is not in the queue of {root}; {known}")


# ---------------------------------------------------------------- the runner
def runner_lives(root: Path) -> bool:
    """Whether a process works the list off."""
    return process.is_alive(files.read_json(root / RUNNER))


def ensure_runner(root: Path) -> bool:
    """Start the runner where there is something for it to do and none works; True when one was started."""
    queue = read_queue(root)
    if not queue.ids or queue.held or runner_lives(root):
        return False
    try:
        with (root / LOG).open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "dgsgpt.run_queue", str(root), secrets.token_hex(8)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=child_environment(),
            )  # fmt: skip
    except OSError as e:
        raise RunError(f"{root / LOG}: the queue cannot be started: {e.strerror or e}; free some space") from e
    return True


def work_off(root: Path, token: str = "", poll_s: float = POLL_S) -> int:
    """Start the runs of the list one after another; returns 0 when it is empty or held, 2 when another works on it."""
    lock = FileLock(root / ".queue-runner.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return 2
    files.write_json(root / RUNNER, process.identify(os.getpid(), token))
    try:
        while _turn(root, lock):
            time.sleep(poll_s)
    finally:
        lock.release()
    return 0


def _turn(root: Path, runner: FileLock) -> bool:
    """Start the next run if none is live; False when there is nothing more to do.

    The end is decided, and the runner's own lock let go, under the lock of the list: whoever adds a run afterwards
    finds no runner and starts one.
    """
    with _changing(root) as write:
        queue = _settle(root, read_queue(root))
        if not queue.ids or queue.held:
            write(queue)
            (root / RUNNER).unlink(missing_ok=True)
            runner.release()
            return False
        if any(run.status().is_live for run in list_runs(root)):
            return True
        chosen = queue.ids[0]
        queue = replace(queue, starting=(chosen, time.time()))
        write(queue)
        write(replace(_start(root, queue, chosen), starting=None))
    return True


def _settle(root: Path, queue: Queue) -> Queue:
    """The list after a runner that was killed: a run that it did start is off it."""
    if queue.starting is None:
        return queue
    run_id, at = queue.starting
    began = Run(root / run_id).status().started_at
    started = isinstance(began, int | float) and began >= at
    return replace(queue, starting=None, ids=tuple(i for i in queue.ids if not (started and i == run_id)))


def _start(root: Path, queue: Queue, run_id: str) -> Queue:
    """Start a run; the list without it, and with the reason when it could not be started."""
    problems = dict(queue.problems)
    try:
        launch.start_run(open_run(root, run_id))
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} started {run_id}", flush=True)
    except (DgsgptError, OSError) as e:
        problems[run_id] = str(e)
        problems = dict(list(problems.items())[-_MOST_PROBLEMS:])
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} not started: {e}", flush=True)
    return replace(queue, ids=tuple(i for i in queue.ids if i != run_id), problems=problems)


def main() -> int:
    """Command line: ROOT TOKEN."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it outlives the terminal
    try:
        return work_off(Path(sys.argv[1]), sys.argv[2])
    except RunError as e:
        print(e, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
