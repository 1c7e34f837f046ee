"""Who a process is. A pid alone is not enough: it is given to a stranger after the process ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil


@cache
def boot_id() -> str:
    """Changes with every boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def start_ticks(pid: int) -> int | None:
    """When the process began, in the kernel's own clock, which no change of the time of day moves; None when gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None


def identify(pid: int, token: str = "") -> dict[str, Any]:
    """What identifies a process later: pid, start, boot and the run's token (in its command line, if given)."""
    return {"pid": pid, "start_ticks": start_ticks(pid), "boot_id": boot_id(), "token": token}


def is_alive(identity: Mapping[str, Any] | None) -> bool:
    """Whether exactly this process still runs; a zombie, a reused pid or another boot does not count."""
    if not identity or not isinstance(identity.get("pid"), int) or identity.get("boot_id") != boot_id():
        return False
    pid = identity["pid"]
    ticks = start_ticks(pid)
    if ticks is None or ticks != identity.get("start_ticks"):
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        token = identity.get("token")
        return not token or token in process.cmdline()
    except psutil.Error:
        return False


def send(identity: Mapping[str, Any] | None, signum: int) -> bool:
    """Signal the process if it is still the one identified; False when it is gone."""
    if not is_alive(identity):
        return False
    assert identity is not None
    try:
        os.kill(identity["pid"], signum)
    except ProcessLookupError:
        return False
    return True


def wake_and_terminate(identity: Mapping[str, Any] | None) -> bool:
    """Ask to end: SIGTERM, then SIGCONT, because a stopped process does not see the first alone."""
    told = send(identity, signal.SIGTERM)
    if told and hasattr(signal, "SIGCONT"):
        send(identity, signal.SIGCONT)
    return told
