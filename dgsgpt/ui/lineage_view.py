"""Where a checkpoint comes from and what came of it, on one line: scratch or an import, ancestors, itself, children."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.lineage import Link, RunNode, lineage
from dgsgpt.ui import atoms, state
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui.atoms import Html, markup, text
from dgsgpt.ui.checkpoint_list import Entry, by_ref

_BEGUN = {"fork": "forked", "fine-tune": "trained on", "quantize": "quantized", "unknown": "unknown"}
_BECAME = {"fork": "→ fork", "quantize": "→ quantized"}
_MAX_CHILDREN = 6


def line(entry: Entry, found: Sequence[Entry]) -> None:
    """The chain that ends in `entry`, and the runs that began from it; what is on the page can be clicked."""
    known = lineage(state.root())
    chain = known.ancestors(entry.run.id, entry.step)[::-1]
    children = known.children(entry.run.id, entry.step)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="ck_lineage"):
        _say(text("Lineage", "ink3"))
        _say(origin_of(chain[0]))
        for i, link in enumerate(chain):
            _say(text("→" if i == 0 else f"→ {_BEGUN.get(link.kind, link.kind)} →", "ink3"))
            if link is chain[-1]:
                _say(markup("{}{}", atoms.bold("this checkpoint"), _resumed(link)))
            else:
                _ancestor(i, link, found)
        for node in children[:_MAX_CHILDREN]:
            _child(node, found)
        if len(children) > _MAX_CHILDREN:
            _say(text(f"and {len(children) - _MAX_CHILDREN} more", "ink3"))


def origin_of(first: Link) -> Html:
    """What stands at the beginning of a chain."""
    if first.kind == "import":
        return markup("import of {}", first.imported or "another program")
    return atoms.esc("scratch" if first.kind == "scratch" else "an unknown origin")


def _say(content: Html) -> None:
    atoms.h(
        markup('<div style="font-size:13px;line-height:20px;padding-bottom:3px;white-space:nowrap">{}</div>', content),
        width="content",
    )


def _name(run: str, step: int | None) -> str:
    return run if step is None else f"{run}, step {fmt.number(step)}"


def _resumed(link: Link) -> Html:
    if not link.resumed_at:
        return Html("")
    steps = ", ".join(fmt.number(step) for step in link.resumed_at[-3:])
    return text(f" (the run was resumed at step {steps})", "ink3")


def _ancestor(i: int, link: Link, found: Sequence[Entry]) -> None:
    """A checkpoint before this one: a button where it is listed, else its name and where it has gone."""
    entry = by_ref(found, f"{link.run}@{link.step}") if link.place == "here" and link.step is not None else None
    if entry is None:
        gone = "" if link.place == "here" else f" ({link.place})"
        _say(markup("{}{}", _name(link.run, link.step), text(gone, "warn")))
        return
    _go(entry, _name(link.run, link.step), f"ck_up_{i}")


def _child(node: RunNode, found: Sequence[Entry]) -> None:
    """A run that began here."""
    _say(text(_BECAME.get(node.kind, "→ fine-tuned"), "ink3"))
    entry = None if node.trashed else by_ref(found, node.id)
    if entry is None:
        _say(markup("{}{}", node.id, text(" (in the trash)" if node.trashed else " (nothing saved yet)", "ink3")))
        return
    _go(entry, node.id, f"ck_down_{node.id}")


def _go(entry: Entry, label: str, key: str) -> None:
    escaped = label.replace("_", "\\_")  # a run's id has no other character that markdown reads
    st.button(escaped, type="tertiary", key=key, on_click=table.repick, args=([entry.ref],))


# ---------------------------------------------------------------- imports
def import_line(entry: Entry) -> None:
    """What an imported checkpoint was, and what its reader warned of."""
    told = entry.imported
    if told is None:
        return
    facts = [f"{_word(told, 'family')} model", _word(told, "source")]
    digest = told.get("sha256")
    if isinstance(digest, str):
        facts.append(f"sha256 {digest[:12]}…")
    atoms.note(markup("Imported without optimizer state and curve: {}", " · ".join(filter(None, facts))))
    warnings = told.get("warnings")
    for warning in warnings[:20] if isinstance(warnings, list) else []:
        atoms.note(f"▲ {warning}", role="warn")


def _word(told: Any, key: str) -> str:
    value = told.get(key)
    return value if isinstance(value, str) else ""
