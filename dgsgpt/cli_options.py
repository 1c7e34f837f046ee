"""Options that several commands share, and how they print JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def print_json(value: Any) -> None:
    """One line of JSON on stdout; numbers that are not finite, which JSON does not have, are null."""
    click.echo(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def runs_dir_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--runs-dir`; the command is given the resolved folder as `root`."""

    @click.option(
        "--runs-dir", type=click.Path(path_type=Path), help="Where runs live (default: $DGSGPT_RUNS, else ./runs)."
    )
    @wraps(command)
    def with_root(*args: Any, runs_dir: Path | None, **kwargs: Any) -> Any:
        from dgsgpt.runs import runs_root

        return command(*args, root=runs_root(runs_dir), **kwargs)

    return with_root


set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, e.g. model.n_layer=6."
)
