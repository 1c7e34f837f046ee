"""The command that does exactly what a draft would: one that needs no file of one's own, and one with the YAML."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from dgsgpt.config import RunConfig, load_config
from dgsgpt.errors import ConfigError
from dgsgpt.goals import GOALS, recipe_path
from dgsgpt.profiles import profile_path
from dgsgpt.rules import differences
from dgsgpt.ui.draft import Workbench


def base_file(bench: Workbench, root: Path) -> Path:
    """The file that a draft began with: of a goal, a run or a profile."""
    goal = next((goal for goal in GOALS if bench.source == f"goal:{goal.name}"), None)
    if goal is not None:
        return recipe_path(goal)
    run = root / bench.source / "config.yaml"
    return run if run.is_file() else profile_path(bench.profile)


def with_settings(bench: Workbench, config: RunConfig, name: str, root: Path) -> str:
    """`dgsgpt train FILE --set …` with all that differs from the file; empty where the file cannot be read."""
    path = base_file(bench, root)
    try:
        known = load_config(path)
    except ConfigError:
        return ""
    changed = differences(known.to_dict(), config.to_dict())
    sets = [word for key, (_, now) in changed.items() for word in ("--set", f"{key}={written(now)}")]
    return shlex.join(["dgsgpt", "train", str(_short(path)), *sets, "--run-id", name])


def written(value: object) -> str:
    """A value as `--set` reads it."""
    return json.dumps(value, ensure_ascii=False)


def _short(path: Path) -> Path:
    """From here, where it lies below; else whole."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
