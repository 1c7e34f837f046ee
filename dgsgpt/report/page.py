"""The report's one HTML file, from a template that escapes whatever it is given."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly
from markupsafe import Markup

import dgsgpt
from dgsgpt.errors import RunError
from dgsgpt.palette import DARK, LIGHT
from dgsgpt.report import figures
from dgsgpt.report.gather import Told, gather
from dgsgpt.runs import Run

MAX_RUNS = 20
_SMALL = {
    "bpb/val": "bits per byte", "lr": "learning rate", "grad_norm": "gradient norm", "perf/tokens_per_s": "tokens/s",
}  # fmt: skip


def build_report(runs: Sequence[Run]) -> str:
    """The report of one run, or of several side by side, as one HTML text that loads nothing from anywhere.

    Raises:
        RunError: there is no run, or more than `MAX_RUNS`.
    """
    if not 1 <= len(runs) <= MAX_RUNS:
        raise RunError(f"a report of {len(runs)} runs cannot be made; give 1 to {MAX_RUNS}")
    told = [gather(run) for run in runs]
    chart, caption = figures.losses(told)
    small = [
        (name.capitalize(), Markup(made)) for key, name in _SMALL.items() if (made := figures.small(told, key, name))
    ]
    return _template().render(
        title=told[0].title if len(told) == 1 else f"{len(told)} runs compared",
        told=told,
        chart=Markup(chart),
        caption=caption,
        small=small,
        settings=differing(told),
        colors={mode: _colors(mode) for mode in ("light", "dark")},
        slots={one.run.id: one.run.color_slot % len(LIGHT.runs) for one in told},
        palettes=Markup(json.dumps({"light": list(LIGHT.runs), "dark": list(DARK.runs)})),
        plotly=Markup(_plotly()),
        version=dgsgpt.__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )


def differing(told: Sequence[Told]) -> list[tuple[str, ...]]:
    """Settings in which the runs differ, with each run's value."""
    readable = [one.settings for one in told if one.settings]
    if len(readable) < 2:
        return []
    paths = sorted({path for settings in readable for path in settings})
    return [
        (path, *(_shown(one.settings.get(path)) for one in told))
        for path in paths
        if any(settings.get(path) != readable[0].get(path) for settings in readable)
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return (
        ("on" if value else "off")
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _colors(mode: str) -> dict[str, str]:
    return (DARK if mode == "dark" else LIGHT).roles


def _plotly() -> str:
    """plotly.js, which is within the installed package; `</script>` does not occur in it."""
    return (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "page.html.j2"
    )
