"""`dgsgpt dry-run`; heavy imports happen inside the command."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option, set_option
from dgsgpt.errors import RunError

if TYPE_CHECKING:
    from dgsgpt.dry_run import DryRun, Pending

_POLL_S = 0.1
_ENDING_S = 10.0


@click.command("dry-run")
@click.argument("config", required=False, type=click.Path(path_type=Path))
@set_option
@click.option("--steps", default=3, show_default=True, type=click.IntRange(1, 1000), help="Steps to make.")
@click.option("--history", "past", is_flag=True, help="List earlier dry runs; try nothing.")
@json_option
@runs_dir_option
def dry_run(root: Path, config: Path | None, overrides: tuple[str, ...], steps: int, past: bool, as_json: bool) -> None:
    """Make a few real steps of CONFIG, leave no run behind, and say what was predicted and what measured."""
    from dgsgpt import console, dry_run, hardware, pace
    from dgsgpt.config import load_config
    from dgsgpt.data.prepare import resolve
    from dgsgpt.runs import list_runs

    if past:
        _list(dry_run.history(root), as_json)
        return
    if config is None:
        raise click.UsageError("give CONFIG, a YAML file, or --history")
    loaded, machine = resolve(load_config(config, overrides)), hardware.detect(root)
    speed = pace.gather(machine, root, list_runs(root)).speed_of(loaded)
    step_s = pace.step_flops(loaded) / speed.flops_per_s if speed else None
    going = None
    try:
        going = dry_run.begin(root, loaded, machine, steps, step_s, speed.source if speed else "")
        with console.progress(quiet=as_json) as report:
            _wait(going, root, report)
    except KeyboardInterrupt:
        _give_up(going, root)
    found = next((run for run in dry_run.history(root) if run.id == going.request.id), None)
    if found is None:
        raise RunError("the dry run was cancelled")
    if as_json:
        print_json(found.to_dict())
    if found.error:
        raise RunError(found.error)
    if not as_json:
        _print(found)


def _wait(going: Pending, root: Path, report: Any) -> None:
    from dgsgpt.dry_run import pending

    while (at_work := pending(root)) is not None and at_work.request.id == going.request.id:
        report(at_work.message, at_work.step / going.request.steps)
        time.sleep(_POLL_S)


def _give_up(going: Pending | None, root: Path) -> NoReturn:
    from dgsgpt.dry_run import pending

    if going is not None:
        going.cancel()
        deadline = time.monotonic() + _ENDING_S
        while pending(root) is not None and time.monotonic() < deadline:  # looking also removes what it leaves
            time.sleep(_POLL_S)
    sys.exit(130)


def _print(found: DryRun) -> None:
    from dgsgpt import console
    from dgsgpt.format import MISSING, duration, size, step_time

    rows = [
        ["memory", size(found.predicted_bytes), size(found.peak_bytes), _error(found.memory_error)],
        ["a step", step_time(found.predicted_step_s), step_time(found.step_s), _error(found.time_error)],
    ]
    total = found.step_s * found.total_steps if found.step_s else None
    planned = found.predicted_step_s * found.total_steps if found.predicted_step_s else None
    rows.append([f"{found.total_steps} steps", duration(planned), duration(total), ""])
    console.print_table(["", "predicted", "measured", "difference"], rows)
    chosen = ", ".join(f"{name} {value}" for name, value in found.settled.items())
    by = f"time predicted by {found.predicted_by}; " if found.predicted_by else "no time predicted: dgsgpt calibrate; "
    click.echo(f"{by}set up in {duration(found.set_up_s)}; {chosen or MISSING}")


def _error(share: float | None) -> str:
    from dgsgpt.format import MISSING, percent

    return MISSING if share is None else f"{'+' if share >= 0 else ''}{percent(share)}"


def _list(past: list[DryRun], as_json: bool) -> None:
    from dgsgpt import console
    from dgsgpt.format import clock, size, step_time

    if as_json:
        print_json([run.to_dict() for run in past])
        return
    if not past:
        click.echo("no dry runs yet; try one with `dgsgpt dry-run configs/demo.yaml`")
        return
    rows = [
        [clock(r.at, time.time()), r.title, size(r.predicted_bytes), size(r.peak_bytes), _error(r.memory_error),
         step_time(r.step_s), _error(r.time_error), r.error[:60]]
        for r in past
    ]  # fmt: skip
    console.print_table(["when", "what", "planned", "peak", "difference", "step", "difference", "error"], rows)
