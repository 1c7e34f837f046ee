"""`dgsgpt plan`; heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option, set_option
from dgsgpt.errors import ConfigError

if TYPE_CHECKING:
    from dgsgpt.config import RunConfig
    from dgsgpt.fitting import Fitted
    from dgsgpt.hardware import Hardware


@click.command()
@click.argument("config")
@set_option
@click.option(
    "--fit",
    "fit_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the config, changed so that it fits what is free, to a new FILE.",
)
@json_option
@runs_dir_option
def plan(root: Path, config: str, overrides: tuple[str, ...], fit_file: Path | None, as_json: bool) -> None:
    """Say what CONFIG, a file or profile cpu, low, medium, high or auto, costs, and whether it fits what is free."""
    from dgsgpt import console, hardware, pace, planner
    from dgsgpt.runs import list_runs

    machine = hardware.detect()
    loaded, source = _config_or_profile(config, overrides, machine)
    report = planner.report(loaded, machine)
    report["time"] = pace.report(loaded, pace.gather(machine, root, list_runs(root)).speed_of(loaded))
    if as_json:
        print_json(report)
    else:
        console.print_plan(loaded, report, machine, source)
        click.echo(_time(report["time"]))
    if fit_file is not None:
        _write_fitted(planner.fit_to(loaded, machine), fit_file)
        click.echo(f"written: {fit_file}", err=True)


def _time(found: dict[str, Any] | None) -> str:
    from dgsgpt.format import duration

    if found is None:
        return "time          not known: nothing like it was measured here; run `dgsgpt calibrate`"
    band = f"{duration(found['low_s'])} to {duration(found['high_s'])}"
    return f"time          about {duration(found['seconds'])} ({band}), by {found['source']}"


def _write_fitted(fitted: Fitted | None, path: Path) -> None:
    from dgsgpt.files import write_atomic

    if fitted is None:
        raise ConfigError(f"--fit {path}: nothing makes this model fit what is free; choose a smaller one")
    if path.exists():
        raise ConfigError(f"--fit {path} exists already; name a new file")
    try:
        write_atomic(path, fitted.config.to_yaml().encode())
    except OSError as e:
        raise ConfigError(f"--fit {path} cannot be written ({e.strerror}); name a file in a folder of yours") from e


def _config_or_profile(name: str, overrides: tuple[str, ...], machine: Hardware) -> tuple[RunConfig, str]:
    """The config of a file or, where there is no such file, of a profile; and the path it came from."""
    from dgsgpt import profiles
    from dgsgpt.config import load_config

    path = Path(name)
    if not path.exists() and name in (*profiles.PROFILE_NAMES, "auto"):
        path = profiles.profile_path(profiles.choose_profile(machine) if name == "auto" else name)
    return load_config(path, overrides), str(path)
