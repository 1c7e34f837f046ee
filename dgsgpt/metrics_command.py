"""`dgsgpt metrics`; heavy imports happen inside the command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option
from dgsgpt.errors import RunError

if TYPE_CHECKING:
    from dgsgpt.runs import Run

_SHOWN = ("loss/train", "loss/val", "ppl/val", "bpb/val", "lr", "grad_norm", "perf/tokens_per_s", "mem/peak_bytes")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN…]")
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write every logged step of these runs to a new FILE (- for stdout).",
)  # fmt: skip
@json_option
@runs_dir_option
def metrics(root: Path, runs: tuple[str, ...], csv_file: Path | None, as_json: bool) -> None:
    """Say what RUN has logged: the latest value of each metric, its lowest and highest; or all of it as CSV."""
    from dgsgpt.runs import open_run

    found = [open_run(root, run) for run in dict.fromkeys(runs)]
    if csv_file is not None:
        if as_json:
            raise click.UsageError("--csv and --json exclude each other")
        _write(found, csv_file)
        return
    told = [summary(run) for run in found]
    if as_json:
        print_json(told[0] if len(told) == 1 else told)
        return
    for one in told:
        _print(one)


def summary(run: Run) -> dict[str, Any]:
    """How many lines a run has logged, and of each metric the latest value, the lowest and the highest."""
    import numpy as np

    from dgsgpt.metrics import MetricsTail

    tail = MetricsTail(run.path)
    tail.refresh()
    frame, values = tail.frame, {}
    for name in map(str, frame):
        column = np.asarray(frame[name], dtype=float)
        known = column[np.isfinite(column)]
        if len(known):
            row = {"last": known[-1], "min": known.min(), "max": known.max()}
            values[name] = {**{k: float(v) for k, v in row.items()}, "count": len(known)}
    return {"run_id": run.id, "lines": len(tail), "damaged_lines": tail.skipped, "metrics": values}


def _print(one: dict[str, Any]) -> None:
    from dgsgpt import console

    damaged = f", {one['damaged_lines']} damaged ones left out" if one["damaged_lines"] else ""
    click.echo(f"{one['run_id']}: {one['lines']} lines of metrics{damaged}")
    rows = [
        [name, *(f"{one['metrics'][name][k]:.6g}" for k in ("last", "min", "max")), one["metrics"][name]["count"]]
        for name in (*(n for n in _SHOWN if n in one["metrics"]), *sorted(set(one["metrics"]) - {*_SHOWN}))
        if not name.startswith("moe/load/")
    ]
    console.print_table(["metric", "last", "lowest", "highest", "values"], rows)


def _write(found: list[Run], path: Path) -> None:
    """Write the table to a new file, or to stdout for `-`.

    Raises:
        RunError: the file is there already, or cannot be written.
    """
    from dgsgpt.metrics_csv import write_csv

    if str(path) == "-":
        write_csv(found, sys.stdout)
        return
    try:
        with path.open("x", encoding="utf-8", newline="") as out:
            rows = write_csv(found, out)
    except FileExistsError:
        raise RunError(f"--csv {path} exists already; name a new file") from None
    except OSError as e:
        raise RunError(f"--csv {path} cannot be written ({e.strerror}); name a file in a folder of yours") from e
    click.echo(f"written: {path} ({rows} rows)")


COMMANDS = (metrics,)
