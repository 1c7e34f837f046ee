"""How much of a draft the Configure page shows: a goal, the essentials, or every setting; and what each leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import streamlit as st

from dgsgpt.format import plural
from dgsgpt.ui import draft, form
from dgsgpt.ui.atoms import note
from dgsgpt.ui.fields import DOT, Form
from dgsgpt.ui.playground_view import plain_label

KEY, ONLY_CHANGED = "tier", "only_changed"
GOAL, ESSENTIALS, ALL = "Goal", "Essentials", f"All {len(form.SETTINGS)} settings"


def choose() -> str:
    """The control in the page's head; gives the tier to show."""
    chosen = st.segmented_control(
        "Settings shown", [GOAL, ESSENTIALS, ALL], default=ESSENTIALS, required=True, label_visibility="collapsed",
        key=KEY, persist_state="session",
    )  # fmt: skip
    return str(chosen or ESSENTIALS)


def go_to(tier: str, only_changed: bool = False) -> None:
    """Show another tier; in a callback."""
    st.session_state[KEY], st.session_state[ONLY_CHANGED] = tier, only_changed


def hidden(f: Form, changed: list[str]) -> list[str]:
    """What differs from the base and has had no field on the page so far."""
    return [path for path in changed if path not in f.drawn]


def tell_hidden(f: Form, changed: list[str], base_title: str) -> None:
    """How many changed settings this tier does not show, by name, with a button that does."""
    left_out = hidden(f, changed)
    if not left_out:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="hidden_changes"):
        names = ", ".join(form.label_of(path) for path in left_out[:6]) + (" …" if len(left_out) > 6 else "")
        note(f"{plural(len(left_out), 'setting')} not shown here {_differ(len(left_out))} from {base_title}: {names}")
        st.button(":blue[Show]", key="show_hidden", type="tertiary", on_click=go_to, args=(ALL, True))


def _differ(count: int) -> str:
    return "differs" if count == 1 else "differ"


def only_changed(f: Form) -> bool:
    """The switch that leaves out what is as in the base; gives whether it is on."""
    if not f.changes:
        return False
    if ONLY_CHANGED not in st.session_state:
        st.session_state[ONLY_CHANGED] = False
    return bool(st.toggle(f"Only the {plural(f.changes, 'change')}", key=ONLY_CHANGED))


def folded(title: str, says: str, f: Form, paths: Sequence[str]) -> AbstractContextManager[Any]:
    """A closed box of further settings: what they are now in a few words, and how many of them differ."""
    count = sum(form.differs_within(f.changed, path) for path in paths)
    differ = f" · {DOT} {count} {_differ(count)}" if count else ""
    return st.expander(f"**{title}** :gray[{plain_label(says, 90)}{differ}]", key=f"fold_{title.split()[0].lower()}")


def bench_goal() -> str:
    """The name of the goal that the draft began with; empty when it began otherwise."""
    source = draft.opened().source
    return source.removeprefix("goal:") if source.startswith("goal:") else ""
