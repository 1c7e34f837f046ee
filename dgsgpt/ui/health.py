"""What went wrong in a run, as the Train page shows it: a line while it matters, and a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dgsgpt import format as fmt
from dgsgpt.runs import Status
from dgsgpt.ui import atoms
from dgsgpt.ui.atoms import Role, markup, text
from dgsgpt.ui.theme import c

Event = dict[str, Any]
SHOWN = 6
RECENT_SHARE = 0.05  # of the run: how long a severe finding stays on top of the page
RECENT_STEPS = 100
# severity -> glyph, role; never colour alone
LOOKS: dict[str, tuple[str, Role]] = {"info": ("✓", "good"), "warning": ("▲", "warn"), "error": ("✕", "bad")}


def findings(events: Sequence[Event]) -> list[Event]:
    """The health events, the newest first."""
    return [event for event in reversed(events) if event.get("kind") == "health"]


def look_of(event: Event) -> tuple[str, Role]:
    """Glyph and role of a finding; one that says nothing of its severity is a warning."""
    return LOOKS.get(str(event.get("severity")), LOOKS["warning"])


def said(event: Event) -> str:
    """A finding as a sentence: its message, else its name."""
    message = str(event.get("message") or str(event.get("name") or "health event").replace("_", " "))
    named = "/" in message.split(" ", 1)[0]  # begins with the name of a metric, which has no capitals
    return message if named else message[:1].upper() + message[1:]


def recent_error(events: Sequence[Event], status: Status) -> Event | None:
    """The newest severe finding of a live run while it is about what happens now."""
    if not status.is_live:
        return None
    newest = next((event for event in findings(events) if look_of(event)[1] == "bad"), None)
    step = newest.get("step") if newest else None
    age = status.step - step if isinstance(step, int | float) else 0
    return newest if age <= max(RECENT_STEPS, RECENT_SHARE * status.max_steps) else None


def rows(events: Sequence[Event], skipped: int) -> list[Sequence[object]]:
    """The last findings, or that there are none; damaged lines of metrics are counted."""
    drawn: list[Sequence[object]] = []
    for event in findings(events)[:SHOWN]:
        glyph, role = look_of(event)
        where = text(f"step {fmt.number(event.get('step'))}", "ink3", px=12.5)
        message = markup('<span style="white-space:normal">{}</span>', said(event))
        drawn.append((text(glyph, role), markup("{}<br>{}", message, where)))
    if not drawn:
        none = markup("No health event<br>{}", text("every step's loss and gradient are checked", "ink3", px=12.5))
        drawn.append((text("✓", "good"), none))
    if skipped:
        counted = fmt.plural(skipped, "damaged line")
        left_out = markup("{} left out<br>{}", counted, text("in metrics.jsonl; the others are shown", "ink3", px=12.5))
        drawn.append((text("▲", "warn"), left_out))
    return drawn


# ---------------------------------------------------------------- drawn
def alert(events: Sequence[Event], status: Status) -> None:
    """One line on top of the page while something severe is going on."""
    found = recent_error(events, status)
    if found is not None:
        step = text(f"step {fmt.number(found.get('step'))}", "ink3")
        atoms.h(
            markup(
                '<div role="alert" style="border-left:3px solid {};padding:1px 0 1px 12px;line-height:20px;'
                'overflow-wrap:anywhere">{} <b style="font-weight:600">{}</b> {}</div>',
                c("bad"), text("✕", "bad"), said(found), step,
            )
        )  # fmt: skip


def card(events: Sequence[Event], skipped: int) -> None:
    """Findings and damaged lines."""
    found = findings(events)
    roles = [look_of(event)[1] for event in found]
    worst: Role = "bad" if "bad" in roles else "warn" if "warn" in roles else "good"
    atoms.head("Health", atoms.tag(fmt.plural(len(found), "event"), worst) if found else "")
    atoms.table(rows(events, skipped), "12px 1fr", pad=5)
    if len(found) > SHOWN:
        atoms.note(f"and {fmt.number(len(found) - SHOWN)} earlier")
