"""`dgsgpt bench`; heavy imports happen inside the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from dgsgpt.cli_options import json_option, print_json
from dgsgpt.errors import DgsgptError


@click.command()
@click.argument("name", required=False)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option(
    "--seconds", type=click.FloatRange(0, 3600), help="Measuring time of each pair (default: 20; 0.05 with --quick)."
)
@click.option("--quick", is_flag=True, help="Tiny shapes: shows that it runs, the figures mean nothing.")
@click.option("--record/--no-record", default=False, show_default=True, help="Add the result to benchmarks/results.")
@click.option("--text", type=click.Path(path_type=Path), help="speedrun: train on the characters of this file.")
@click.option("--target", type=float, metavar="LOSS", help="speedrun: train to this loss, without the baseline.")
@click.option("--repeats", type=click.IntRange(1, 100), help="speedrun: how often each side is run (default: 2).")
@json_option
def bench(
    name: str | None, device: str, seconds: float | None, quick: bool, record: bool, text: Path | None,
    target: float | None, repeats: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure benchmark NAME, its sides in turn in one run; without NAME, list the benchmarks."""
    find_benchmarks()
    from benchmarks.catalog import BENCHMARKS, check_name

    if name is None:
        lines = [f"{known:12}{sentence}" for known, sentence in BENCHMARKS.items()]
        print_json(BENCHMARKS) if as_json else click.echo("\n".join(lines))
        return
    check_name(name)  # before torch is loaded
    own: dict[str, object] = {"--text": text, "--target": target, "--repeats": repeats}
    foreign = [option for option, value in own.items() if value is not None and name != "speedrun"]
    if foreign:
        raise click.UsageError(f"{foreign[0]} is for the benchmark speedrun only, not for {name}")
    if name == "speedrun" and text is None:
        raise DgsgptError("bench speedrun: --text FILE is missing: give the text file whose characters are learned")
    if target is not None and not 0 < target < 100:
        raise DgsgptError(f"--target {target:g} must be a loss above 0 and below 100 nats per character")
    from benchmarks.command import run_benchmark, run_speedrun
    from benchmarks.record import record as record_report

    given = ["--device", device, *(["--seconds", f"{seconds:g}"] if seconds is not None else [])]
    own["--text"] = text and text.name  # the rest of the path is nobody's business in a record
    given = [word for option, value in own.items() if value is not None for word in (option, str(value))] or given
    command = ["dgsgpt", "bench", name, *given, *(["--quick"] if quick else [])]
    show: Callable[[str], None] = (lambda line: None) if as_json else click.echo
    if text is not None:
        report, printed = run_speedrun(
            text, target=target, repeats=repeats or 2, quick=quick, command=command, show=show
        )
    else:
        report = printed = run_benchmark(
            name, device=device, seconds=(0.05 if quick else 20.0) if seconds is None else seconds, quick=quick,
            command=command, show=show,
        )  # fmt: skip
    if as_json:
        print_json(printed)
    if record:
        click.echo(f"recorded in {record_report(report)}", err=True)


def find_benchmarks() -> None:
    """Make the package `benchmarks` importable, which only a checkout of the sources has."""
    root = Path(__file__).parent.parent
    if not (root / "pyproject.toml").is_file() or not (root / "benchmarks" / "catalog.py").is_file():
        raise DgsgptError("this installation has no benchmarks; run `dgsgpt bench` from a checkout of the sources")
    if sys.path[0] != str(root):  # first, before a package of that name elsewhere
        sys.path.insert(0, str(root))
