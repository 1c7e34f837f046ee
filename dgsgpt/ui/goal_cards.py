"""What people come for, a card each: what it is, how large and long it will be here, and what to expect."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from dgsgpt.errors import ConfigError
from dgsgpt.format import duration, number, si
from dgsgpt.goals import GOALS, Goal, Suggestion, suggest
from dgsgpt.hardware import Hardware
from dgsgpt.pace import Evidence, duration_of
from dgsgpt.planner import plan
from dgsgpt.ui import draft
from dgsgpt.ui.atoms import h, note
from dgsgpt.ui.markup import Html, markup
from dgsgpt.ui.theme import c

_BITS = "bits per byte"
_LONG_S = 30 * 86_400.0


@dataclass(frozen=True)
class _Card:
    goal: Goal
    found: Suggestion | None
    problem: str
    seconds: float | None


def cards(chosen: str, machine: Hardware, known: Evidence) -> None:
    """A card for each goal; `chosen` is the one that the draft began with."""
    grid = st.grid(5, min_column_width=150, gap="xsmall")
    for goal in GOALS:
        on, card = goal.name == chosen, _card(goal, machine, known)
        with (
            grid.cell(),
            st.container(
                border=True, height="stretch", gap="xsmall", key=f"{'sel' if on else 'card'}_goal_{goal.name}"
            ),
        ):
            h(_figures(card, machine))
            st.button(
                "Selected" if on else "Use",
                key=f"goal_{goal.name}",
                width="stretch",
                disabled=on or card.found is None,
                help=card.problem or None,
                icon=":material/check:" if on else None,
                on_click=draft.use_goal,
                args=(card.found,),
            )
    picked = next((goal for goal in GOALS if goal.name == chosen), None)
    if picked is not None:
        _more(_card(picked, machine, known))


def _card(goal: Goal, machine: Hardware, known: Evidence) -> _Card:
    try:
        found = suggest(goal, machine, known.speed_of)
    except ConfigError as e:
        return _Card(goal, None, str(e).partition(": ")[2] or str(e), None)
    speed = known.speed_of(found.config)
    return _Card(goal, found, "", duration_of(found.config, speed).seconds if speed else None)


def _figures(card: _Card, machine: Hardware) -> Html:
    shape, expects = Html(""), Html("")
    if card.found is not None:
        model = card.found.config.model
        cost = plan(card.found.config, machine.device)
        shape = markup(
            "{} × {} · ctx {}<br>{} · {} tokens",
            number(model.n_layer), model.n_embd, number(model.block_size), si(cost.params), si(cost.total_tokens),
        )  # fmt: skip
        expects = _expects(card)
    return markup(
        '<b style="font-weight:600;font-size:15px;line-height:20px;display:block">{}</b>'
        '<div style="font-size:13px;line-height:18px;min-height:63px;color:{};padding:3px 0 6px">{}</div>'
        '<div style="font-size:13px;line-height:19px;color:{}">{}</div>'
        '<div style="font-size:12.5px;line-height:18px;min-height:36px;margin-top:5px">{}</div>',
        card.goal.title, c("ink3"), card.goal.says, c("ink2"), shape, expects or _why_not(card),
    )  # fmt: skip


def _why_not(card: _Card) -> Html:
    return markup('<span style="color:{}">{}</span>', c("warn"), card.problem[:1].upper() + card.problem[1:])


def _expects(card: _Card) -> Html:
    """How long here, or that this is not known yet; and what was reached elsewhere."""
    assert card.found is not None
    role = "warn" if (card.seconds or 0) > _LONG_S else "good"
    time_here = "time not measured yet" if card.seconds is None else f"about {duration(card.seconds)} here"
    glyph = "◷" if card.seconds is None else "▲" if role == "warn" else "✓"
    bits, _, _ = card.found.expected.partition(f" {_BITS}")
    reached = markup('<br><span style="color:{}">{} {}</span>', c("ink3"), bits, _BITS) if bits else Html("")
    return markup(
        '<span style="color:{}">{} {}</span>{}', c("ink3" if card.seconds is None else role), glyph, time_here, reached
    )


def _more(card: _Card) -> None:
    """Under the cards, of the chosen one: what its recipe measured and what was fitted to this machine."""
    if card.found is None:
        return
    if card.found.expected:
        note(f"Expect {card.found.expected}.")
    if card.goal.name == "hour" and card.found.config.train.early_stop_evals:
        count = card.found.config.train.early_stop_evals
        note(f"It stops early once {count} validations in a row bring no gain: then the text is too short for more.")
    for change in card.found.changes:
        note(change)
