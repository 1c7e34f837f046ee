"""`dgsgpt report`: runs as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to write it (default: RUN.html, here)."
)
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@json_option
@runs_dir_option
def report(root: Path, runs: tuple[str, ...], out: Path | None, force: bool, as_json: bool) -> None:
    """Write config, curves, samples and environment of RUNS, several of them compared, into one HTML file.

    It opens in any browser, without a network and without dgsgpt.
    """
    from dgsgpt.errors import RunError
    from dgsgpt.files import write_atomic
    from dgsgpt.report import build_report
    from dgsgpt.runs import open_run

    found = [open_run(root, run) for run in dict.fromkeys(runs)]
    path = out or Path(f"{found[0].id}{'-and-others' if len(found) > 1 else ''}.html")
    if path.exists() and not force:
        raise RunError(f"{path} exists already; choose another --out, or replace it by --force")
    try:
        write_atomic(path, build_report(found).encode())
    except OSError as e:
        raise RunError(f"{path}: cannot be written: {e.strerror or e}; name a file in a folder of yours") from e
    size = path.stat().st_size
    told = {"path": str(path.absolute()), "runs": [run.id for run in found], "bytes": size}
    print_json(told) if as_json else click.echo(f"written: {path}, {size / 1e6:.1f} MB")
