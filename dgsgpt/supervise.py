"""The thin parent of a trainer: who it is while it lives, signals handed on, how it ended.

Started as `[python, -m, dgsgpt.supervise, RUN_DIR, TOKEN]` in a session of its own by the dashboard and
`dgsgpt train --detach`; `dgsgpt train` runs the same function in the foreground.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from dgsgpt import files, process
from dgsgpt.errors import RunError
from dgsgpt.heap import keep_memory

POLL_S = 0.2
# Requests to a trainer, as empty files in its run directory.
STOP_FILE, PAUSE_FILE, SAVE_FILE = "STOP", "PAUSE", "SAVE"
_FORWARDED = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def child_environment() -> dict[str, str]:
    """This process's environment, with the package importable also when it runs from an uninstalled checkout."""
    package_parent = str(Path(__file__).resolve().parent.parent)
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def supervise(run_dir: Path, token: str = "", tick: Callable[[], None] | None = None) -> int:
    """Run the trainer of `run_dir` to its end; returns its exit code (128 + n when signal n killed it).

    SIGTERM, SIGINT and SIGHUP are handed on as SIGTERM, so the trainer finishes its step and saves. `tick` is
    called a few times a second, for a progress bar.

    Raises:
        RunError: another supervisor works on this run.
    """
    lock = FileLock(run_dir / ".supervisor.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = (files.read_json(run_dir / "proc.json") or {}).get("pid", "unknown")
        raise RunError(f"run {run_dir.name!r} is already worked on by process {holder}; stop it first") from None
    with lock:
        for stale in ("exit.json", STOP_FILE, PAUSE_FILE, SAVE_FILE):
            (run_dir / stale).unlink(missing_ok=True)
        environment = {**child_environment(), "DGSGPT_SUPERVISOR": str(os.getpid())}
        keep_memory(environment)
        with (run_dir / "train.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "dgsgpt.train", str(run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        previous = {s: signal.signal(s, _forward_to(child)) for s in _FORWARDED}
        try:
            identity = process.identify(os.getpid(), token)
            files.write_json(
                run_dir / "proc.json", {**identity, "trainer": process.identify(child.pid), "started_at": time.time()}
            )
            code = _wait(child, tick)
            files.write_json(run_dir / "exit.json", {**_describe(code), "time": time.time()})
            (run_dir / "proc.json").unlink(missing_ok=True)
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)
    return code if code >= 0 else 128 - code


def _forward_to(child: subprocess.Popen[bytes]) -> Callable[[int, FrameType | None], None]:
    def handle(signum: int, frame: FrameType | None) -> None:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            if hasattr(signal, "SIGCONT"):  # a trainer that was suspended must wake up to hear it
                child.send_signal(signal.SIGCONT)

    return handle


def _wait(child: subprocess.Popen[bytes], tick: Callable[[], None] | None) -> int:
    while True:
        try:
            return child.wait(POLL_S if tick else None)
        except subprocess.TimeoutExpired:
            if tick:
                tick()


def _describe(code: int) -> dict[str, object]:
    if code >= 0:
        return {"code": code, "signal": None}
    return {"code": None, "signal": signal.Signals(-code).name}


def main() -> int:
    """Command line: RUN_DIR TOKEN."""
    run_dir, token = Path(sys.argv[1]), sys.argv[2]
    try:
        return supervise(run_dir, token)
    except RunError as e:
        print(e, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
