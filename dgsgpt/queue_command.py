"""`dgsgpt queue`: runs that start one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option


@click.group("queue", invoke_without_command=True)
@click.pass_context
@json_option
@runs_dir_option
def queue(context: click.Context, root: Path, as_json: bool) -> None:
    """Runs that start one after another, also when the dashboard is closed; without a command, list them."""
    if context.invoked_subcommand is None:
        from dgsgpt.run_queue import ensure_runner

        ensure_runner(root)  # after a reboot
        _tell(root, as_json)


@queue.command("add")
@click.argument("runs", nargs=-1, required=True)
@json_option
@runs_dir_option
def add(root: Path, runs: tuple[str, ...], as_json: bool) -> None:
    """Put RUNS (new ones by `dgsgpt train --queue`, or such as stopped or failed) at the end."""
    from dgsgpt.run_queue import enqueue
    from dgsgpt.runs import open_run

    for found in [open_run(root, run) for run in runs]:
        enqueue(found)
    _tell(root, as_json)


@queue.command("remove")
@click.argument("run")
@json_option
@runs_dir_option
def remove(root: Path, run: str, as_json: bool) -> None:
    """Take RUN off the list; it can still be started by `dgsgpt resume`."""
    from dgsgpt import run_queue

    run_queue.remove(root, run)
    _tell(root, as_json)


@queue.command("move")
@click.argument("run")
@click.argument("place", type=int)
@json_option
@runs_dir_option
def move(root: Path, run: str, place: int, as_json: bool) -> None:
    """Give RUN the PLACE in the list, counted from 1."""
    from dgsgpt import run_queue

    run_queue.move(root, run, place)
    _tell(root, as_json)


@queue.command("hold")
@json_option
@runs_dir_option
def hold(root: Path, as_json: bool) -> None:
    """Start nothing more until `dgsgpt queue release`; what runs goes on."""
    from dgsgpt import run_queue

    run_queue.hold(root)
    _tell(root, as_json)


@queue.command("release")
@json_option
@runs_dir_option
def release(root: Path, as_json: bool) -> None:
    """Go on starting runs."""
    from dgsgpt import run_queue

    run_queue.release(root)
    _tell(root, as_json)


def describe(root: Path) -> dict[str, Any]:
    """The list as plain values: runs in their order, whether it is held, whether a process works it off."""
    from dgsgpt.run_queue import read_queue, runner_lives
    from dgsgpt.runs import list_runs

    found = read_queue(root)
    live = [run.id for run in list_runs(root) if run.status().is_live]
    return {
        "runs": list(found.ids),
        "held": found.held,
        "worked_on": runner_lives(root),
        "live": live,
        "problems": found.problems,
    }


def _tell(root: Path, as_json: bool) -> None:
    told = describe(root)
    if as_json:
        print_json(told)
        return
    if not told["runs"]:
        click.echo("the queue is empty; `dgsgpt train CONFIG --queue` adds a run")
    elif told["held"]:
        click.echo("held: nothing is started until `dgsgpt queue release`")
    elif told["live"]:
        click.echo(f"waits for {', '.join(told['live'])}")
    for place, run in enumerate(told["runs"], 1):
        click.echo(f"{place:3}  {run}")
    for run, why in told["problems"].items():
        click.echo(f"not started: {run}: {why}")


COMMANDS = (queue,)

__all__ = ["COMMANDS", "describe"]
