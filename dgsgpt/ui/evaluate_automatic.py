"""What trainers found by themselves every few steps, run beside run on one validation text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.evaluation import automatic
from dgsgpt.evaluation.kept import Kept
from dgsgpt.metrics import EVENTS
from dgsgpt.runs import Run
from dgsgpt.ui import atoms, charts, theme
from dgsgpt.ui.atoms import markup
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.theme import Palette, run_color

MAX_RUNS = 12
_HEIGHT = 232
_HEADER = ("run", "", "every", "tokens", "last", "at step", "best", "at step", "whole text", "at step")
_COLUMNS = "minmax(110px,1fr) 44px 56px 58px 60px 60px 60px 60px 76px 60px"


@dataclass(frozen=True)
class Course:
    """The evaluations of one run on one text: of a part of it by step, and of the whole, which comes at the end."""

    run: Run
    parts: tuple[Kept, ...]
    whole: Kept | None
    every: int

    @property
    def all(self) -> tuple[Kept, ...]:
        """What the line goes through: the parts, else the whole."""
        return self.parts or ((self.whole,) if self.whole else ())

    @property
    def best(self) -> Kept:
        """The fewest bits per byte."""
        return min(self.all, key=lambda kept: kept.bpb or 0.0)


@st.cache_resource(max_entries=512, show_spinner=False)
def _read(path: Path, changed: tuple[int, int], _run: Run) -> list[Kept]:
    return automatic.of_run(_run)


def read(runs: Sequence[Run]) -> list[Kept]:
    """The automatic evaluations of runs; of each run read again only when something was added."""
    found: list[Kept] = []
    for run in runs:
        try:
            stat = (run.path / EVENTS).stat()
        except OSError:
            continue
        found += _read(run.path, (stat.st_mtime_ns, stat.st_size), run)
    return found


def courses(found: Sequence[Kept], entry: Entry) -> list[Course]:
    """Those on the validation text of the picked checkpoint's run, its own run first."""
    own = next((kept.record["text"]["sha256"] for kept in found if kept.run.id == entry.run.id), None)
    by_run: dict[str, list[Kept]] = {}
    for kept in found:
        if kept.record["text"]["sha256"] == own:
            by_run.setdefault(kept.run.id, []).append(kept)
    made = [
        Course(
            some[0].run,
            tuple(kept for kept in some if kept.record["max_tokens"] is not None),
            next((kept for kept in reversed(some) if kept.record["max_tokens"] is None), None),
            some[-1].automatic or 0,
        )
        for some in by_run.values()
    ]
    return sorted(made, key=lambda course: course.run.id != entry.run.id)


def section(found: Sequence[Kept], entry: Entry) -> None:
    """The card; without automatic evaluations it says how to switch them on."""
    with st.container(border=True, gap="xsmall", key="ev_card_automatic"):
        shown = courses(found, entry)
        if not shown:
            atoms.head("While training", note="evaluated automatically")
            atoms.para("This run was not evaluated while it trained.")
            atoms.note("Every n steps: Configure, training, “Evaluate every”; or --set train.eval_every=100.")
            return
        name = shown[0].all[0].text_name
        atoms.head("While training", note=f"bits per byte by step on {name}, evaluated automatically")
        figure = chart(theme.palette(), shown[:MAX_RUNS])
        charts.show(figure, "ev_automatic", "Bits per byte on the validation text by step, a line for each run")
        atoms.table([row(course, entry) for course in shown[:MAX_RUNS]], _COLUMNS, _HEADER, align="llrrrrrrrr")
        if len(shown) > MAX_RUNS:
            atoms.note(f"{fmt.number(MAX_RUNS)} of {fmt.plural(len(shown), 'run')} on this text")
        atoms.note(
            "Every n steps a part of the text, always the same for a run (train.eval_every, train.eval_tokens), in the "
            "precision of training; at the end the whole, ringed. Wholes compare across tokenizers, parts nearly."
        )


def row(course: Course, entry: Entry) -> tuple[object, ...]:
    """One run's line of the table, which is also the legend of the chart."""
    name = atoms.run_name(course.run.id, run_color(course.run.color_slot), strong=False)
    mark = atoms.tag("this", "accent") if course.run.id == entry.run.id else ""
    last, best, whole = course.all[-1], course.best, course.whole
    tokens = course.all[-1].result("tokens")
    return (
        name, mark, fmt.number(course.every) if course.every else fmt.MISSING, fmt.si(tokens),
        fmt.loss(last.bpb), fmt.number(last.step), atoms.bold(fmt.loss(best.bpb)), fmt.number(best.step),
        fmt.loss(whole.bpb if whole else None), fmt.number(whole.step if whole else None),
    )  # fmt: skip


def chart(palette: Palette, shown: Sequence[Course]) -> go.Figure:
    """A line for each run through its automatic evaluations, and a ring for the whole text at the end."""
    figure = charts.fig(palette, _HEIGHT, margin={"l": 44, "r": 12, "t": 8, "b": 24}, hovermode="closest")
    for course in reversed(shown):  # the picked run on top
        color = palette.run(course.run.color_slot)
        dash = palette.dash(course.run.color_slot)
        kept = list(course.all)
        told = [
            [fmt.loss(one.bpb), fmt.loss(one.result("loss")), fmt.number(one.result("tokens")), one.step]
            for one in kept
        ]
        hover = "step %{customdata[3]}: %{customdata[0]} bits/byte<br>loss %{customdata[1]}, %{customdata[2]} tokens"
        figure.add_trace(
            charts.line(
                [one.step for one in kept], [one.bpb or 0.0 for one in kept], color, course.run.id, dash=dash,
                customdata=told, hovertemplate=f"{markup('{}', course.run.id)}<br>{hover}<extra></extra>",
            )
        )  # fmt: skip
        figure.data[-1].update(mode="lines+markers", marker={"size": 4, "color": color})
        if course.whole:
            figure.add_scatter(
                x=[course.whole.step], y=[course.whole.bpb], mode="markers", name=markup("{}", course.run.id),
                marker={"size": 11, "color": "rgba(0,0,0,0)", "line": {"color": color, "width": 1.8}},
                customdata=[[fmt.loss(course.whole.bpb), course.whole.step]],
                hovertemplate="the whole text at step %{customdata[1]}: %{customdata[0]} bits/byte<extra></extra>",
            )  # fmt: skip
    charts.set_steps(figure, max(one.step for course in shown for one in course.all) or 1)
    figure.update_xaxes(range=[0, 1.02 * max(one.step for course in shown for one in course.all)])
    figure.update_yaxes(tickformat=".3~r")
    return figure


__all__ = ["MAX_RUNS", "Course", "chart", "courses", "read", "row", "section"]
