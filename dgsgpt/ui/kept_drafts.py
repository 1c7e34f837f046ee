"""Drafts that survive the browser: each is a small file beside the runs, named in the page's address.

A reload brings back the draft of its tab; a new tab is offered the newest one that another left behind.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from dgsgpt import files
from dgsgpt.errors import CheckpointError, DgsgptError
from dgsgpt.format import ago, plural
from dgsgpt.rules import Setting, flatten
from dgsgpt.ui import draft, form, origin, state
from dgsgpt.ui.draft import Workbench

FOLDER, PARAMETER = ".drafts", "draft"
MOST = 5
_LAST = "kept_draft"  # in the session: what was written last
OFFERED_S = 7 * 86_400.0
_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Kept:
    """A draft in its file."""

    id: str
    saved_at: float
    values: dict[str, Any]

    @property
    def changes(self) -> int:
        """Settings in which it differs from its base."""
        return len(form.changes(self.values["draft"], self.values["base"]))


def _path(draft_id: str) -> Path:
    return state.root() / FOLDER / f"{draft_id}.json"


# ---------------------------------------------------------------- written
def keep(bench: Workbench) -> None:
    """Write a draft that somebody has touched, and name it in the address; where the disk refuses, it is not kept."""
    if bench.draft == bench.base and not bench.undo:
        return
    values = _values(bench)
    if st.session_state.get(_LAST) != values:
        try:
            _path(bench.id).parent.mkdir(parents=True, exist_ok=True)
            files.write_json(_path(bench.id), {**values, "saved_at": time.time()}, durable=False)
        except OSError:  # the draft lives in the session all the same
            return
        st.session_state[_LAST] = values
        for old in _all()[MOST:]:
            _path(old.id).unlink(missing_ok=True)
    if st.query_params.get(PARAMETER) != bench.id:
        st.query_params[PARAMETER] = bench.id


def _values(bench: Workbench) -> dict[str, Any]:
    begun = bench.origin
    return {
        "draft": bench.draft, "base": bench.base, "base_title": bench.base_title, "profile": bench.profile,
        "source": bench.source, "name": bench.name, "origin": begun and {"ref": begun.ref, "how": begun.how},
    }  # fmt: skip


def forget(bench: Workbench) -> None:
    """Its run has begun: until it is changed again, it is no draft."""
    _path(bench.id).unlink(missing_ok=True)
    st.session_state[_LAST] = _values(bench)


# ---------------------------------------------------------------- read
def _read(draft_id: str) -> Kept | None:
    values = files.read_json(_path(draft_id)) if _ID.fullmatch(draft_id) else None
    if values is None or not all(_is_draft(values.get(name)) for name in ("draft", "base")):
        return None
    texts = all(isinstance(values.get(name), str) for name in ("base_title", "profile", "source", "name"))
    saved_at = values.get("saved_at")
    return Kept(draft_id, float(saved_at), values) if texts and isinstance(saved_at, int | float) else None


def _is_draft(value: Any) -> bool:
    """Whether it has exactly the settings of this version's schema, each with a value that its field can show."""
    if not isinstance(value, Mapping) or not all(isinstance(value.get(s), Mapping) for s in ("data", "model", "train")):
        return False
    values = dict(value)
    shown = {p: s for p, s in form.SETTINGS.items() if form.is_shown(values, p)}
    wanted = {p for p, s in shown.items() if not (s.section and form.get(values, p) is not None)}
    return set(flatten(values)) - {"schema_version"} == wanted and all(
        _fits(shown[p], form.get(values, p)) for p in wanted
    )


def _fits(setting: Setting, value: Any) -> bool:
    if value is None:
        return setting.optional
    if setting.section:
        return False
    kinds: tuple[type, ...] = (int, float) if setting.type is float else (setting.type,)
    return isinstance(value, kinds) and (setting.type is bool or not isinstance(value, bool))


def _all() -> list[Kept]:
    """All that can be read, the newest first."""
    folder = state.root() / FOLDER
    found = [_read(path.stem) for path in folder.glob("*.json")] if folder.is_dir() else []
    return sorted((kept for kept in found if kept is not None), key=lambda kept: -kept.saved_at)


# ---------------------------------------------------------------- brought back
def reopen(bench: Workbench, fresh: bool) -> None:
    """Bring back the draft that the address names, when this tab has none yet."""
    wanted = st.query_params.get(PARAMETER)
    kept = _read(wanted) if fresh and wanted else None
    if kept is not None:
        _take(bench, kept)


def _take(bench: Workbench, kept: Kept) -> None:
    values, begun = kept.values, kept.values.get("origin")
    try:
        found = origin.find(begun["ref"], begun["how"]) if begun else None
    except (CheckpointError, DgsgptError, KeyError, TypeError):  # gone since: the draft is not what it was
        return
    bench.begin(values["base"], values["base_title"], values["profile"], values["source"], origin=found)
    bench.draft, bench.name, bench.id = values["draft"], values["name"], kept.id
    bench.undo = []


def offer(bench: Workbench) -> None:
    """A button for the newest draft of another tab, while nothing has been done in this one."""
    if bench.undo or bench.draft != bench.base:
        return
    now = time.time()
    kept = next((k for k in _all() if k.id != bench.id and k.changes and now - k.saved_at < OFFERED_S), None)
    if kept is not None:
        label = f":blue[Restore the draft from {ago(kept.saved_at, now)}: {plural(kept.changes, 'change')}]"
        st.button(
            label, key="restore_draft", icon=":material/history:", type="tertiary", on_click=_restore, args=(kept,)
        )


def _restore(kept: Kept) -> None:
    _take(draft.opened(), kept)
