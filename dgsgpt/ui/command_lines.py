"""The command that does exactly what a draft would: one that needs no file of one's own, and one with the YAML."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from dgsgpt.config import RunConfig, load_config
from dgsgpt.errors import ConfigError
from dgsgpt.goals import GOALS, recipe_path
from dgsgpt.profiles import profile_path
from dgsgpt.rules import differences, flatten
from dgsgpt.ui.draft import Workbench
from dgsgpt.ui.form import Draft, off_section, section_defaults


def base_file(bench: Workbench, root: Path) -> Path:
    """The file that a draft began with: of a goal, a run or a profile."""
    goal = next((goal for goal in GOALS if bench.source == f"goal:{goal.name}"), None)
    if goal is not None:
        return recipe_path(goal)
    run = root / bench.source / "config.yaml"
    return run if run.is_file() else profile_path(bench.profile)


def with_settings(bench: Workbench, config: RunConfig, name: str, root: Path) -> str:
    """`dgsgpt train FILE --set …` with a line for each difference from the file; empty where that cannot be read."""
    path = base_file(bench, root)
    try:
        known = load_config(path)
    except ConfigError:
        return ""
    sets = [["--set", f"{key}={written(value)}"] for key, value in settings_between(known.to_dict(), config.to_dict())]
    parts = [["dgsgpt", "train", str(_short(path))], *sets, ["--run-id", name]]
    return " \\\n  ".join(shlex.join(part) for part in parts) if sets else shlex.join([*parts[0], *parts[1]])


def settings_between(known: Draft, wanted: Draft) -> list[tuple[str, object]]:
    """What `--set` must change; a section that was off is switched on by `{}`, then what is not default."""
    found: dict[str, object] = {}
    for path, (_, now) in differences(known, wanted).items():
        section, gone = off_section(known, path), off_section(wanted, path)
        if gone is not None:
            found[gone] = None
            continue
        if section is None:
            found[path] = now
            continue
        found.setdefault(section, {})
        defaults = flatten({section: section_defaults(section)})
        if path not in defaults or defaults[path] != now:
            found[path] = now
    return list(found.items())


def written(value: object) -> str:
    """A value as `--set` reads it."""
    return json.dumps(value, ensure_ascii=False)


def _short(path: Path) -> Path:
    """From here, where it lies below; else whole."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
