"""What a run may go on with although its checkpoints were made otherwise: changes that the user has allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgsgpt import files

ACCEPTED = "accepted.json"  # {setting: its new value}
ANY_CHANGE = "*"  # allows whatever has changed, once


def accept(run_dir: Path, changes: Mapping[str, Any]) -> None:
    """Allow these changes."""
    files.write_json(run_dir / ACCEPTED, {**_accepted(run_dir), **changes})


def refused(run_dir: Path, changes: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Those of `changes`, as `{what: (then, now)}`, that the user has not allowed."""
    allowed = _accepted(run_dir)
    if ANY_CHANGE in allowed:
        return {}
    return {name: change for name, change in changes.items() if name not in allowed or allowed[name] != change[1]}


def spend(run_dir: Path, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """After going on with `changes`: the next one must be allowed anew, these not."""
    allowed = _accepted(run_dir)
    if allowed.pop(ANY_CHANGE, None):
        files.write_json(run_dir / ACCEPTED, {**allowed, **{name: now for name, (_, now) in changes.items()}})


def _accepted(run_dir: Path) -> dict[str, Any]:
    return files.read_json(run_dir / ACCEPTED) or {}
