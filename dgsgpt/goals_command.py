"""`dgsgpt goals`; heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option
from dgsgpt.errors import ConfigError

if TYPE_CHECKING:
    from dgsgpt.goals import Goal, SpeedOf
    from dgsgpt.hardware import Hardware


@click.command()
@click.argument("name", required=False)
@click.option(
    "--write", "path", type=click.Path(path_type=Path), metavar="FILE", help="Write the goal's config to a new FILE."
)
@json_option
@runs_dir_option
def goals(root: Path, name: str | None, path: Path | None, as_json: bool) -> None:
    """List what people come for, as configs fitted to this machine; with NAME and --write, take one."""
    from dgsgpt import console, hardware
    from dgsgpt.format import duration, si
    from dgsgpt.goals import GOALS, find_goal, suggest
    from dgsgpt.pace import gather
    from dgsgpt.runs import list_runs

    machine = hardware.detect(root)
    speed_of = gather(machine, root, list_runs(root)).speed_of
    if path is not None:
        if name is None:
            raise click.UsageError("--write needs the NAME of a goal")
        _write(suggest(find_goal(name), machine, speed_of).config.to_yaml(), path)
        click.echo(f"written: {path}; start it with `dgsgpt train {path}`", err=True)
        return
    rows = [_row(goal, machine, speed_of) for goal in ([find_goal(name)] if name else GOALS)]
    if as_json:
        print_json(rows)
        return
    table = [
        [r["name"], r["title"], si(r["params"]), duration(r["seconds"]), r["problem"] or r["expected"]] for r in rows
    ]
    console.print_table(["goal", "", "params", "time", "expect"], table)


def _row(goal: Goal, machine: Hardware, speed_of: SpeedOf) -> dict[str, Any]:
    from dgsgpt.goals import suggest
    from dgsgpt.pace import duration_of
    from dgsgpt.planner import plan

    row: dict[str, Any] = {"name": goal.name, "title": goal.title, "params": None, "seconds": None, "problem": ""}
    try:
        found = suggest(goal, machine, speed_of)
    except ConfigError as e:
        return {**row, "problem": str(e), "expected": "", "changes": []}
    speed = speed_of(found.config)
    return {
        **row,
        "params": plan(found.config).params,
        "seconds": duration_of(found.config, speed).seconds if speed else None,
        "time_from": speed.source if speed else None,
        "expected": found.expected,
        "changes": list(found.changes),
    }


def _write(text: str, path: Path) -> None:
    from dgsgpt.files import write_atomic

    if path.exists():
        raise ConfigError(f"--write {path} exists already; name a new file")
    try:
        write_atomic(path, text.encode())
    except OSError as e:
        raise ConfigError(f"--write {path} cannot be written ({e.strerror}); name a file in a folder of yours") from e
