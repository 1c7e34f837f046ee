"""Every setting of the schema, by section: nothing is typed again, so nothing can be missing."""

from __future__ import annotations

import streamlit as st

from dgsgpt.format import plural
from dgsgpt.rules import Setting
from dgsgpt.ui import form
from dgsgpt.ui.atoms import head, para, text
from dgsgpt.ui.fields import Form
from dgsgpt.ui.markup import markup


def all_settings(f: Form, query: str, only_changed: bool = False) -> None:
    """Every setting of the schema by section, or those the query finds, or those that differ from the base."""
    f.beside = False
    found = [s for s in form.find_settings(query) if not only_changed or form.differs_within(f.changed, s.path)]
    if not found and only_changed:
        para(f"No setting that differs has “{query}” in its name or description.")
        return
    if not found:
        para(f"No setting has “{query}” in its name or description.")
        return
    by_section: dict[str, list[Setting]] = {}
    for setting in found:
        by_section.setdefault(setting.path.rpartition(".")[0] if not setting.section else setting.path, []).append(
            setting
        )
    for name, settings in by_section.items():
        with st.container(border=True, key=f"card_s_{name}"):
            head(name, note=plural(len(settings), "setting"))
            with st.grid(3, min_column_width=230, gap="small") as grid:
                for setting in settings:
                    with grid.cell(), st.container(gap="xsmall"):
                        if form.is_shown(f.values, setting.path):
                            f.setting(setting)
                        else:
                            _off(setting.path)


def _off(path: str) -> None:
    """A setting whose section is off: said, with the way to turn it on."""
    parent = path.rsplit(".", 1)[0]
    para(markup("{}<br>{}", form.label_of(path), text(f"Off because {form.label_of(parent)} is off.", "ink3")))
