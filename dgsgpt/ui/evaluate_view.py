"""What an evaluation found, as the Evaluate page shows it: figures, where they come from, and passages as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.ui import atoms, charts, theme
from dgsgpt.ui.atoms import Html, Kpi, markup
from dgsgpt.ui.theme import Palette

if TYPE_CHECKING:
    from dgsgpt.evaluation.breakdown import Bin, Group, Passage
    from dgsgpt.evaluation.report import Report

_HEIGHT = 216
_MARGIN = {"l": 44, "r": 12, "t": 8, "b": 40}
_INTERVAL = 1.96  # standard errors in half of a 95 % interval
_MARKS = {"\n": "⏎ ", "\t": "⇥ ", "\x7f": "␡"}
# Where two columns are left the third card takes a row of its own, so that no place beside it is empty.
_FULL_ROW = """<style>
@media (max-width: 1180px) { .stGridCell:has(.st-key-ev_card_calibration) { grid-column: 1 / -1; } }
</style>"""
_PASSAGE = (
    '<div style="padding:6px 0 7px;border-top:1px solid {}"><div style="font-size:12.5px;line-height:18px;'
    'color:{};display:flex;justify-content:space-between;gap:8px"><span>byte {}</span><span>{} bits/byte</span></div>'
    '<div style="font-size:13.5px;line-height:20px;white-space:pre-wrap;overflow-wrap:anywhere;'
    'unicode-bidi:isolate">{}</div></div>'
)


# ---------------------------------------------------------------- figures
def kpis(report: Report) -> None:
    """The figures, with context and stride."""
    found = report.evaluation
    times = report.forward_tokens / found.tokens
    read = "no overlap" if report.stride == report.context else f"read {fmt.number(times, 1)} times"
    atoms.kpis([
        Kpi("Bits per byte", fmt.loss(found.bpb), delta="compares across tokenizers"),
        Kpi("Loss", fmt.loss(found.loss), "nats/token"),
        Kpi("Perplexity", fmt.perplexity(found.ppl), delta="per token"),
        Kpi("Likeliest is right", fmt.percent(report.accuracy)),
        Kpi("Judged", fmt.si(found.tokens), "tokens", delta=f"{fmt.number(found.bytes)} bytes"),
        Kpi("Context", fmt.number(report.context), "tokens",
            delta=f"stride {fmt.number(report.stride)}, {read}"),
    ], min_width=210)  # fmt: skip


def caption(report: Report) -> str:
    """Which text by its hash, and by what rule it was judged."""
    least = report.context - report.stride + 1
    part = "" if report.max_tokens is None else f"at most {fmt.number(report.max_tokens)} tokens spread over it; "
    windows = (
        "windows do not overlap: each token is judged once, with what its window has before it"
        if report.stride == report.context
        else f"windows begin every {fmt.plural(report.stride, 'token')}: each token is judged once, with at least "
        f"{fmt.number(least)} before it where the text has as many"
    )
    return f"sha256 {report.text_sha256} of the whole text, {fmt.number(report.text_bytes)} bytes · {part}{windows}"


# ---------------------------------------------------------------- groups of tokens
def uses_context(report: Report) -> str:
    """One sentence: whether tokens with the most text before them are shown to be cheaper, and than which others."""
    *earlier, last = report.by_position
    gains = [_gain(group, last) for group in earlier]
    if last.standard_error is None or not any(gains):
        better = " A stride as long as the context judges all lengths alike." if report.stride < report.context else ""
        return f"Too little of the text has much or little before it to tell whether long context is used.{better}"
    shown = [gain is not None and abs(gain[0]) > gain[1] for gain in gains]
    worse = [i for i, gain in enumerate(gains) if gain and shown[i] and gain[0] < 0]
    costs = f"with {_range(last)} tokens before, a token costs"
    if worse:
        i = min(worse, key=lambda i: earlier[i].loss)
        return f"Long context does harm: {costs} {_told(gains[i])} nats more than with {_range(earlier[i])}."
    if not any(shown):
        return "No use of context is shown: tokens with more text before them are not cheaper beyond chance."
    i = max(i for i, is_shown in enumerate(shown) if is_shown)
    if i == len(earlier) - 1:
        return f"It uses its long context: {costs} {_told(gains[i])} nats less than with {_range(earlier[i])}."
    least = fmt.number(earlier[i + 1].low)
    return (
        f"It uses context: {costs} {_told(gains[i])} nats less than with {_range(earlier[i])}; against {least} or "
        "more before, no gain is shown."
    )


def _told(gain: tuple[float, float] | None) -> str:
    return fmt.MISSING if gain is None else f"{fmt.number(abs(gain[0]), 3)} ± {fmt.number(gain[1], 3)}"


def _gain(before: Group, after: Group) -> tuple[float, float] | None:
    """By how much the loss is lower in the later group, and half of its 95 % interval; None where that is not known."""
    if before.standard_error is None or after.standard_error is None:
        return None
    return before.loss - after.loss, _INTERVAL * math.hypot(before.standard_error, after.standard_error)


def _range(group: Group) -> str:
    low, high = fmt.number(group.low), fmt.number(group.high)
    return low if low == high else f"{low} to {high}"


def groups_chart(palette: Palette, groups: Sequence[Group], color: str, axis: str, never: str = "") -> go.Figure:
    """The loss of each group with one standard error; `never` names a group of tokens that never occur."""
    figure = charts.fig(palette, _HEIGHT, margin=_MARGIN, hovermode="closest")
    place = list(range(len(groups)))
    names = [never if never and group.high == 0 else _range(group) for group in groups]
    told = ["" if g.standard_error is None else f" ± {fmt.number(g.standard_error, 4)}" for g in groups]
    figure.add_scatter(
        x=place, y=[group.loss for group in groups], mode="lines+markers",
        line={"color": color, "width": 1.5}, marker={"size": 6.5, "color": color},
        error_y={"type": "data", "array": [g.standard_error or 0.0 for g in groups], "thickness": 1.5, "width": 3,
                 "color": color},
        customdata=[[name, fmt.loss(g.loss) + error, fmt.number(g.tokens)]
                    for name, g, error in zip(names, groups, told, strict=True)],
        hovertemplate="%{customdata[0]}: %{customdata[1]} nats<br>%{customdata[2]} tokens<extra></extra>",
    )  # fmt: skip
    ticks = [never if never and group.high == 0 else fmt.si(group.high) for group in groups]
    figure.update_xaxes(
        tickvals=place, ticktext=ticks, tickangle=0, range=[-0.5, len(groups) - 0.5], title={"text": axis}
    )
    figure.update_yaxes(title={"text": ""}, tickformat=".3~r")
    return figure


def calibration_chart(palette: Palette, bins: Sequence[Bin], color: str) -> go.Figure:
    """How often the likeliest token is right beside how probable it was said to be; the dotted line is honest."""
    figure = charts.fig(palette, _HEIGHT, margin=_MARGIN, hovermode="closest")
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", hoverinfo="skip", line={"color": palette["ink3"], "width": 1, "dash": "dot"}
    )
    most = max((b.tokens for b in bins), default=1)
    figure.add_scatter(
        x=[b.confidence for b in bins], y=[b.accuracy for b in bins], mode="markers",
        marker={"size": [5 + 9 * math.sqrt(b.tokens / most) for b in bins], "color": color, "opacity": 1},
        customdata=[[fmt.percent(b.confidence), fmt.percent(b.accuracy), fmt.number(b.tokens)] for b in bins],
        hovertemplate="said %{customdata[0]}, right %{customdata[1]}<br>%{customdata[2]} tokens<extra></extra>",
    )  # fmt: skip
    ticks = [0, 0.25, 0.5, 0.75, 1]
    shown = [f"{tick:.0%}" for tick in ticks]
    figure.update_xaxes(
        range=[-0.02, 1.04], tickvals=ticks, ticktext=shown, title={"text": "probability of the likeliest token"}
    )
    figure.update_yaxes(range=[-0.02, 1.04], tickvals=ticks, ticktext=shown)
    return figure


# ---------------------------------------------------------------- passages
def visible(text: str) -> str:
    """A text in which every control character is seen: line ends and tabs by marks, others by picture or number."""
    return "".join(ch if ch.isprintable() else _mark(ch) for ch in text)


def _mark(ch: str) -> str:
    code = ord(ch)
    if ch in _MARKS:
        return _MARKS[ch]
    return chr(0x2400 + code) if code < 32 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def passages_html(passages: Sequence[Passage]) -> Html:
    """Stretches of the text with their cost; text only, never read as markup."""
    line, grey = theme.c("grid"), theme.c("ink3")
    return atoms.join(
        markup(_PASSAGE, line, grey, fmt.number(p.begin_byte), fmt.number(p.bpb, 2), visible(p.text)) for p in passages
    )


# ---------------------------------------------------------------- the whole report
def draw(report: Report, color: str) -> None:
    """Figures, then where they come from, then passages."""
    palette = theme.palette()
    st.html(_FULL_ROW)
    kpis(report)
    grid = st.grid(3, min_column_width=360, border=True)
    with grid.cell(), st.container(gap="xsmall", key="ev_card_place"):
        atoms.head("Loss by place in the context", note="nats per token")
        figure = groups_chart(palette, report.by_position, color, "tokens before, up to")
        charts.show(figure, "ev_place", "Loss by the number of tokens before, with standard errors")
        atoms.para(uses_context(report))
        atoms.note("Bars are one standard error, over blocks of the text.")
    with grid.cell(), st.container(gap="xsmall", key="ev_card_frequency"):
        atoms.head("Loss by token frequency", note="nats per token")
        figure = groups_chart(palette, report.by_frequency, color, "occurrences, up to", "never")
        charts.show(figure, "ev_frequency", "Loss by how often a token occurs, with standard errors")
        atoms.note(f"Rare tokens left, frequent right; counted in {report.frequency_rule}, a tenth of it each.")
    with grid.cell(), st.container(gap="xsmall", key="ev_card_calibration"):
        atoms.head("Calibration", f"error {fmt.percent(report.calibration_error)}")
        charts.show(calibration_chart(palette, report.calibration, color), "ev_calibration",
                    "How often the likeliest token is right, by its probability")  # fmt: skip
        atoms.note("Above the dotted line it is right more often than it says; larger dots are more tokens.")
    grid = st.grid(2, min_column_width=400, border=True)
    for word, passages in (("Hardest", report.hardest), ("Easiest", report.easiest)):
        with grid.cell(), st.container(gap="xsmall", key=f"ev_card_{word.lower()}"):
            atoms.head(f"{word} passages", note="about 200 bytes each, as they stand in the text")
            if passages:
                atoms.h(passages_html(passages))
            else:
                atoms.para("The text is too short for passages of both kinds.")
    atoms.note(caption(report))


__all__ = ["calibration_chart", "caption", "draw", "groups_chart", "passages_html", "uses_context", "visible"]
