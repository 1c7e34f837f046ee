"""`dgsgpt calibrate`; heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option


@click.command()
@click.option(
    "--seconds", default=2.0, show_default=True, type=click.FloatRange(0.01, 600), help="Of steps, for each model."
)
@click.option("--show", is_flag=True, help="Show what was measured before; measure nothing.")
@json_option
@runs_dir_option
def calibrate(root: Path, seconds: float, show: bool, as_json: bool) -> None:
    """Measure how fast this machine trains, so that times can be estimated before a run: about fifteen seconds."""
    from dgsgpt import console, hardware
    from dgsgpt.calibrate import FILE, measure, read_calibration
    from dgsgpt.errors import RunError
    from dgsgpt.format import clock, percent, scientific, si

    machine = hardware.detect(root)
    if not show:
        with console.progress(quiet=as_json) as report:
            for message, share in measure(root, machine, seconds):
                report(message, share)
    found = read_calibration(root, machine)
    if found is None:
        raise RunError(f"{root / FILE}: there is no calibration of {machine.name}; run `dgsgpt calibrate`")
    if as_json:
        print_json(found.to_dict())
        return
    click.echo(f"{found.name}, {found.threads} threads, torch {found.torch}, {clock(found.measured_at)}")
    rows = [
        [f"{r.model}, {si(r.params)}", r.precision, *(scientific(n) for n in (r.flops_per_s, r.slow, r.fast))]
        for r in found.rates
    ]
    console.print_table(["model", "precision", "FLOP/s", "slow steps", "fast steps"], rows)
    if found.load > 0.3:
        click.echo(f"the machine was {percent(found.load, 0)} busy before; measure again when it is idle")
