"""HTML atoms of the design: small pieces of markup that every page is put together from.

Safe by type (see `markup`): names, paths and messages from files can be passed as they are, a plain `str` is
escaped wherever it lands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import streamlit as st

from dgsgpt.format import MINUS
from dgsgpt.ui.drawings import bar as bar
from dgsgpt.ui.drawings import spark as spark
from dgsgpt.ui.drawings import svg_img as svg_img
from dgsgpt.ui.markup import Html as Html
from dgsgpt.ui.markup import esc as esc
from dgsgpt.ui.markup import join as join
from dgsgpt.ui.markup import markup as markup
from dgsgpt.ui.theme import c

Role = Literal["accent", "good", "warn", "bad", "idle"]

# state -> (label, role, glyph): never colour alone
STATES: dict[str, tuple[str, Role, str]] = {
    "queued": ("Queued", "idle", "◷"),
    "starting": ("Starting", "accent", "○"),
    "running": ("Running", "accent", "●"),
    "stopping": ("Stopping", "accent", "■"),
    "paused": ("Paused", "idle", "❚❚"),
    "stopped": ("Stopped", "idle", "■"),
    "finished": ("Finished", "good", "✓"),
    "failed": ("Failed", "bad", "✕"),
    "stalled": ("Stalled", "warn", "◌"),
    "lost": ("Lost", "warn", "?"),
}


def h(content: object, *, width: Any = "stretch") -> None:
    """Show a piece of markup (plain text is escaped)."""
    st.html(esc(content), width=width)


# ---------------------------------------------------------------- inline pieces
def text(content: object, role: str = "ink", *, px: float | None = None, bold: bool = False) -> Html:
    """A run of text in a role's colour, e.g. `text("saved 2 m ago", "ink3")`."""
    style = f"color:{c(role)}" + (f";font-size:{px}px" if px else "") + (";font-weight:600" if bold else "")
    return markup('<span style="{}">{}</span>', style, content)


def bold(content: object) -> Html:
    """A value that stands out in a line of labels."""
    return text(content, bold=True)


def pill(state: str) -> Html:
    """The state of a run: glyph, word and tint."""
    label, role, glyph = STATES.get(state, (state.capitalize(), "idle", "?"))
    return markup(
        '<span style="display:inline-flex;align-items:center;gap:6px;padding:2px 9px;border-radius:99px;'
        'background:{};color:{};font-size:12.5px;font-weight:600;line-height:18px;white-space:nowrap">'
        '<span style="font-size:9px" aria-hidden="true">{}</span>{}</span>',
        c(role + "bg"), c("tintink" if role == "accent" else role), glyph, label,
    )  # fmt: skip


def tag(content: object, role: Role = "idle") -> Html:
    """A short remark on a tint, e.g. `tag("best", "good")`."""
    return markup(
        '<span style="display:inline-block;padding:0 7px;border-radius:4px;background:{};color:{};'
        'font-size:12px;font-weight:600;line-height:18px;white-space:nowrap">{}</span>',
        c(role + "bg"), c("tintink" if role == "accent" else role), content,
    )  # fmt: skip


def dot(color: str, size: int = 9) -> Html:
    """A run's colour as a filled circle."""
    return markup(
        '<span style="display:inline-block;width:{0}px;height:{0}px;border-radius:50%;'
        'background:{1};flex:none"></span>',
        size, color,
    )  # fmt: skip


def run_name(name: str, color: str, *, strong: bool = True) -> Html:
    """A run's colour and name on one line."""
    return markup(
        '<span style="display:flex;align-items:center;gap:8px;min-width:0">{}'
        '<span style="font-weight:{};overflow:hidden;text-overflow:ellipsis;white-space:nowrap" title="{}">'
        "{}</span></span>",
        dot(color), 600 if strong else 400, name, name,
    )  # fmt: skip


def delta(content: str, good: bool | None, unit: object = "") -> Html:
    """A difference: sign, arrow and colour together; `good=None` is neutral and has no arrow."""
    role = "ink3" if good is None else "good" if good else "bad"
    arrow = "" if good is None or content[:1] not in ("+", MINUS) else "▲ " if content.startswith("+") else "▼ "
    return markup(
        '<span style="color:{};font-weight:600"><span style="font-size:9px">{}</span>{}</span>'
        '<span style="color:{}"> {}</span>',
        c(role), arrow, content, c("ink3"), unit,
    )  # fmt: skip


# ---------------------------------------------------------------- lines and blocks
def title_row(title: object, aside: object = "", *, width: Any = "stretch") -> None:
    """The first line of a page: its name, and one grey sentence."""
    h(
        markup(
            '<div role="heading" aria-level="1" style="font-size:20px;font-weight:600;line-height:28px">{} '
            '<span style="font-size:14px;font-weight:400;color:{};padding-left:6px">{}</span></div>',
            title, c("ink3"), aside,
        ),
        width=width,
    )  # fmt: skip


def section(title: object, aside: object = "", *, width: Any = "stretch") -> None:
    """The heading above a group of cards."""
    h(
        markup(
            '<div role="heading" aria-level="2" style="font-size:15px;font-weight:600;padding-top:2px">{} '
            '<span style="font-size:13px;font-weight:400;color:{};padding-left:4px">{}</span></div>',
            title, c("ink3"), aside,
        ),
        width=width,
    )  # fmt: skip


def head(title: object, value: object = "", note: object = "", *, gap: int = 0) -> None:
    """Card heading: title and grey note left, current value right, on one baseline."""
    h(
        markup(
            '<div style="display:flex;align-items:baseline;gap:8px;line-height:20px;margin-bottom:{}px">'
            '<span role="heading" aria-level="3" style="font-weight:600;font-size:14px;color:{};'
            'white-space:nowrap">{}</span><span style="font-size:12.5px;color:{};white-space:nowrap;overflow:hidden;'
            'text-overflow:ellipsis">{}</span>'
            '<span style="margin-left:auto;font-size:14px;font-weight:600;color:{};white-space:nowrap">{}</span></div>',
            gap, c("ink"), title, c("ink3"), note, c("ink"), value,
        )
    )  # fmt: skip


def note(content: object, *, role: str = "ink3", top: int = 0) -> None:
    """One small line that says what is hidden or assumed."""
    h(markup('<div style="font-size:12.5px;line-height:17px;color:{};margin-top:{}px">{}</div>', c(role), top, content))


def _para(content: object, role: str = "ink2") -> Html:
    return markup('<div style="font-size:13.5px;line-height:19px;color:{}">{}</div>', c(role), content)


def para(content: object, *, role: str = "ink2") -> None:
    """A sentence or two inside a card."""
    h(_para(content, role))


def card_text(title: object, description: object) -> None:
    """A card's name and one or two lines under it; the height of two is kept, so that buttons below stand in a row."""
    name = markup('<div style="font-weight:600;line-height:20px;padding-bottom:3px">{}</div>', title)
    h(markup('{}<div style="min-height:38px">{}</div>', name, _para(description)))


def field_error(message: object, role: str = "bad") -> None:
    """An error (or with role `warn` a warning) right below its field."""
    glyph = {"bad": "✕ ", "warn": "▲ "}.get(role, "")
    h(markup('<div role="alert" style="color:{};font-size:13px;margin-top:-8px">{}{}</div>', c(role), glyph, message))


_NOTHING = Html("")


@dataclass(frozen=True)
class Kpi:
    """One figure: label and aside, value with unit and curve, one line of difference."""

    label: str
    value: object
    unit: object = ""
    aside: object = ""
    spark: Html = _NOTHING
    delta: object = "\u00a0"


_KPI = (
    '<div style="border:1px solid {line};border-radius:6px;padding:9px 12px 8px;min-width:0;'
    'display:flex;flex-direction:column;gap:1px">'
    '<div style="display:flex;justify-content:space-between;gap:6px;font-size:12.5px;line-height:18px;color:{ink2}">'
    '<span style="white-space:nowrap">{label}</span><span style="color:{ink3};white-space:nowrap">{aside}</span></div>'
    '<div style="display:flex;align-items:flex-end;justify-content:space-between;gap:8px">'
    '<span style="font-size:23px;font-weight:600;line-height:30px;letter-spacing:-.01em;white-space:nowrap">{value}'
    '<span style="font-size:13px;font-weight:400;color:{ink3};letter-spacing:0"> {unit}</span></span>'
    '<span style="width:42%;min-width:0;max-width:110px">{spark}</span></div>'
    '<div style="font-size:12.5px;line-height:18px;color:{ink3};white-space:nowrap;overflow:hidden;'
    'text-overflow:ellipsis">{delta}</div></div>'
)


def kpis(cards: Sequence[Kpi], min_width: int = 170) -> None:
    """Figures in one grid: equal heights by construction, wrapping, one element a refresh."""
    colors = {role: c(role) for role in ("line", "ink2", "ink3")}
    cells = [
        markup(_KPI, label=k.label, aside=k.aside, value=k.value, unit=k.unit, spark=k.spark, delta=k.delta, **colors)
        for k in cards
    ]
    h(
        markup(
            '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax({}px,1fr));gap:12px">{}</div>',
            min_width, join(cells),
        )
    )  # fmt: skip


def table_html(
    rows: Iterable[Sequence[object]], columns: str, header: Sequence[object] = (), *, pad: int = 4, align: str = ""
) -> Html:
    """A small read-only table; `columns` are CSS grid tracks, `align` one letter a column, l or r."""

    def cells(row: Sequence[object], style: str) -> Html:
        return join(
            markup(
                '<div style="{}text-align:{};min-width:0;overflow:hidden;text-overflow:ellipsis;'
                'white-space:nowrap">{}</div>',
                style, "right" if align[i : i + 1] == "r" else "left", cell,
            )
            for i, cell in enumerate(row)
        )  # fmt: skip

    line = (
        '<div style="display:grid;grid-template-columns:{};column-gap:12px;align-items:center;padding:{}px 0;'
        'border-top:1px solid {};font-size:13.5px;line-height:18px">{}</div>'
    )
    body = join(markup(line, columns, pad, c("grid"), cells(row, "")) for row in rows)
    top = markup(
        '<div style="display:grid;grid-template-columns:{};column-gap:12px;padding:0 0 {}px">{}</div>',
        columns, pad, cells(header, f"color:{c('ink3')};font-size:12.5px;"),
    )  # fmt: skip
    return markup("<div>{}{}</div>", top if header else "", body)


def table(
    rows: Iterable[Sequence[object]], columns: str, header: Sequence[object] = (), *, pad: int = 4, align: str = ""
) -> None:
    """Show `table_html`."""
    h(table_html(rows, columns, header, pad=pad, align=align))


# ---------------------------------------------------------------- states
_CENTRED = '<div style="padding:22px 0 2px;text-align:center;color:{};line-height:21px">{}</div>'


def empty_state(sentence: object, button: str, command: str, *, key: str, disabled: bool = False) -> bool:
    """Nothing here yet: one sentence, one primary button, one command. True when the button was pressed."""
    h(
        markup(
            '<div style="padding:22px 0 2px;text-align:center;color:{};line-height:21px">{}</div>', c("ink2"), sentence
        )
    )
    with st.container(horizontal=True, horizontal_alignment="center"):
        pressed = st.button(button, type="primary", key=key, disabled=disabled)
    with st.container(horizontal=True, horizontal_alignment="center"):
        st.code(command, language="bash", width="content")
    return bool(pressed)


def error_card(cause: object, detail: object = "", trace: str = "") -> None:
    """What failed: a red rule, the cause in one bold sentence, what was lost and the next step, the trace below."""
    h(
        markup(
            '<div role="alert" style="border-left:3px solid {};padding:2px 0 2px 12px;line-height:21px;'
            'overflow-wrap:anywhere">'
            '<b style="font-weight:600">{}</b><br><span style="color:{}">{}</span></div>',
            c("bad"), cause, c("ink2"), detail,
        )
    )  # fmt: skip
    if trace:
        st.code(trace, language=None)
