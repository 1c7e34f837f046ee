"""Deleting checkpoints on the page: what goes, the line with Undo, and the trash itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.errors import DgsgptError
from dgsgpt.runs import Run
from dgsgpt.trash import TrashItem, empty, list_trash, move_to_trash, restore
from dgsgpt.ui import atoms, dialogs, state
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui.atoms import markup, text
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.theme import c

_UNDO = "ck_deleted"
_SURE = "sure"
_SHOWN = 8  # names in a sentence before "and N more"


# ---------------------------------------------------------------- deleting
def whole_runs(doomed: Sequence[Entry], found: Sequence[Entry]) -> list[str]:
    """Ids of the ended runs that would be left without any checkpoint."""
    ids = dict.fromkeys(entry.run.id for entry in doomed)
    left = {entry.run.id for entry in found if entry not in doomed}
    live = {entry.run.id for entry in doomed if entry.run.status().is_live}
    return [run_id for run_id in ids if run_id not in left | live]


def delete(doomed: Sequence[Entry], with_runs: Sequence[str]) -> list[TrashItem]:
    """Move these into the trash, and the runs named along with all that is theirs; returns what went.

    Raises:
        DgsgptError: one of them cannot go; those before it have gone, and can be undone on the page.
    """
    root = state.root()
    gone: list[TrashItem] = []
    st.session_state[_UNDO] = gone
    for run in dict.fromkeys(entry.run for entry in doomed if entry.run.id in with_runs):
        gone.append(move_to_trash(root, run))
    for entry in doomed:
        if entry.run.id not in with_runs:
            gone.append(move_to_trash(root, entry.run, entry.info.path.name))
    return gone


@st.dialog("Delete", width="medium", on_dismiss=dialogs.close)
def delete_dialog(doomed: Sequence[Entry], found: Sequence[Entry]) -> None:
    """What goes and how large it is; it goes to the trash, from where it can be restored."""
    if not doomed:
        atoms.para("It is not there any more.")
        return
    size = fmt.size(sum(entry.info.bytes for entry in doomed))
    rows = [(e.label, text(e.title if e.title != e.run.id else "", "ink3"), fmt.size(e.info.bytes)) for e in doomed]
    with st.container(height=260 if len(rows) > 8 else "content", border=False):
        atoms.table(rows, "minmax(0,1fr) minmax(0,1fr) 80px", align="llr")
    last_of = whole_runs(doomed, found)
    with_runs: list[str] = []
    if last_of:
        label = "Delete the run too: its curves, log and config" if len(last_of) == 1 else "Delete the runs too"
        imported = all(e.imported is not None for e in doomed if e.run.id in last_of)
        if st.toggle(label, value=imported, key="ck_delete_runs", help="No other checkpoint of it is left."):
            with_runs = last_of
    atoms.para(f"{fmt.plural(len(doomed), 'checkpoint')}, {size}, to the trash; it can be restored from there.")
    refs = [ref for ref in last_of if ref in with_runs] + [e.ref for e in doomed if e.run.id not in with_runs]
    st.code("\n".join(f"dgsgpt delete {ref}" for ref in refs), language="bash")
    if "delete" in dialogs.problems():
        atoms.error_card(dialogs.problems()["delete"], "What was moved before it can be undone on the page.")
    with st.container(horizontal=True, gap="xsmall"):
        if st.button("Move to the trash", type="primary", icon=":material/delete:", key="ck_delete_go"):
            try:
                delete(doomed, with_runs)
            except DgsgptError as error:
                dialogs.problem("delete", error)
            else:
                dialogs.close()
            st.rerun()
        if st.button("Cancel", key="ck_delete_no"):
            dialogs.close()
            st.rerun()


def delete_runs(runs: Sequence[Run]) -> None:
    """Move whole runs into the trash; one that cannot go is said, and those before it can be undone.

    Raises:
        DgsgptError: a process works on one of them, or the disk refuses.
    """
    gone: list[TrashItem] = []
    st.session_state[_UNDO] = gone
    for run in runs:
        gone.append(move_to_trash(state.root(), run))


# ---------------------------------------------------------------- undo
def undo_line() -> None:
    """What was deleted last, and the button that brings it back."""
    gone: list[TrashItem] = st.session_state.get(_UNDO, [])
    if not gone:
        return
    names = ", ".join(item.label for item in gone[:_SHOWN])
    more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="ck_undo_line"):
        said = markup("In the trash: {}{}, {}.", atoms.bold(names), more, fmt.size(sum(item.bytes for item in gone)))
        atoms.h(markup('<div style="font-size:13.5px">{}</div>', said), width="content")
        st.button("Undo", icon=":material/undo:", key="ck_undo", on_click=_undo)
        st.button("Dismiss", type="tertiary", key="ck_undo_gone", on_click=_forget)


def _forget() -> None:
    st.session_state.pop(_UNDO, None)


def _undo() -> None:
    """Bring back what was deleted last, and pick it; what cannot come back is said."""
    back: list[str] = []
    for item in st.session_state.pop(_UNDO, []):
        if state.attempt(restore, state.root(), item):
            back += _refs_of(item)
    if back:
        table.repick(back[: table.MAX_PICKED])


def _refs_of(item: TrashItem) -> list[str]:
    """What is picked after an item came back: the checkpoint, or the newest of the run."""
    return [item.run_id] if item.step is None else [f"{item.run_id}@{item.step}"]


# ---------------------------------------------------------------- the trash
def trash_button(root: Path) -> None:
    """How many things lie in the trash; opens it. Nothing is drawn when it is empty."""
    count = len(list_trash(root))
    if count:
        st.button(
            f"Trash {count}", type="tertiary", icon=":material/delete:", key="ck_trash", on_click=dialogs.ask,
            args=("trash",),
        )  # fmt: skip


@st.dialog("Trash", width="large", on_dismiss=dialogs.close)
def trash_dialog() -> None:
    """What was deleted: back to its place, or away for good after a second press."""
    items = list_trash(state.root())
    if not items:
        atoms.para("The trash is empty.")
        return
    if "trash" in dialogs.problems():
        atoms.error_card(dialogs.problems()["trash"])
    now = time.time()
    with st.container(height=420 if len(items) > 9 else "content", border=False, gap="xsmall"):
        for i, item in enumerate(items):
            _trash_row(i, item, now)
    _empty_all(items)
    st.code("dgsgpt trash\ndgsgpt restore ITEM\ndgsgpt trash --empty", language="bash")


_ITEM = (
    '<div style="min-width:0;line-height:19px"><div style="font-weight:600;overflow:hidden;text-overflow:ellipsis;'
    'white-space:nowrap">{}</div><div style="font-size:12.5px;color:{}">{}</div></div>'
)


def _trash_row(i: int, item: TrashItem, now: float) -> None:
    what = "the whole run" if item.checkpoint_name is None else "checkpoint"
    told = item.problem or f"{what} · {fmt.size(item.bytes)} · deleted {fmt.ago(item.trashed_at or None, now)}"
    color = c("bad" if item.problem else "ink3")
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key=f"ck_trash_row_{i}"):
        atoms.h(markup(_ITEM, _name(item), color, told))
        st.button(
            "Restore", key=f"ck_restore_{item.id}", on_click=_restore, args=(item,), disabled=bool(item.problem)
        )  # fmt: skip
        _for_good(item.id, [item], "Delete for good")


def _name(item: TrashItem) -> str:
    label = item.run_id or item.id
    step = "" if item.step is None else f", step {fmt.number(item.step)}"
    return f"{item.said.name} ({label}{step})" if item.said.name else f"{label}{step}"


def _empty_all(items: Sequence[TrashItem]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        atoms.note(f"{fmt.plural(len(items), 'item')}, {fmt.size(sum(item.bytes for item in items))} in all.")
        st.space("stretch")
        _for_good("all", items, "Empty the trash")


def _for_good(name: str, items: Sequence[TrashItem], label: str) -> None:
    """A button that asks once more before anything is gone."""
    if dialogs.kept().get(_SURE) != name:
        st.button(label, type="tertiary", key=f"ck_gone_{name}", on_click=_be_sure, args=(name,))
        return
    size = fmt.size(sum(item.bytes for item in items))
    st.button(f"Yes, free {size}", type="primary", key=f"ck_gone_yes_{name}", on_click=_empty, args=(list(items),))
    st.button("No", key=f"ck_gone_no_{name}", on_click=_be_sure, args=(None,))


def _be_sure(name: str | None) -> None:
    dialogs.kept()[_SURE] = name


def _empty(items: list[TrashItem]) -> None:
    _be_sure(None)
    _forget()
    _attempt(lambda: empty(state.root(), items))


def _restore(item: TrashItem) -> None:
    if _attempt(lambda: restore(state.root(), item)):
        table.repick(_refs_of(item))


def _attempt(action: Callable[[], object]) -> bool:
    try:
        action()
    except DgsgptError as error:
        dialogs.problem("trash", error)
        return False
    dialogs.problem("trash", None)
    return True
