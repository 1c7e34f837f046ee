"""The dialog for what people say of a checkpoint or its run: name, tags, note; saved at once, errors by the field."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import streamlit as st

from dgsgpt.annotations import MAX_NAME, MAX_NOTE, MAX_TAGS, Annotation, annotate
from dgsgpt.annotations import read as read_words
from dgsgpt.errors import RunError
from dgsgpt.runs import Run
from dgsgpt.ui import atoms, dialogs
from dgsgpt.ui.checkpoint_list import OWN_TAGS, Entry
from dgsgpt.ui.checkpoint_table import LETTERS

_ABOUT = {"checkpoint": "This checkpoint", "run": "The whole run"}


@st.dialog("Name, tags and note", width="medium", on_dismiss=dialogs.close)
def words_dialog(picked: Sequence[Entry], found: Sequence[Entry]) -> None:
    """Edit what is said of one of the picked."""
    if not picked:
        atoms.para("It is not there any more.")
        return
    with st.container(horizontal=True, gap="small"):
        entry = _which(picked)
        about = st.segmented_control(
            "About", list(_ABOUT), default="checkpoint", required=True, format_func=_ABOUT.__getitem__,
            key="ck_say_about", label_visibility="collapsed",
        )  # fmt: skip
    name = entry.info.path.name if about != "run" else None
    atoms.note(entry.label if name else f"Run {entry.run.id}, shown for each of its checkpoints.")
    said = read_words(entry.run)
    if said.problem:
        atoms.error_card(said.problem)
        return
    known = sorted({tag for e in found for tag in (*e.said.tags, *e.run_said.tags)} - set(OWN_TAGS))
    fields(entry.run, name, said.of(name), known)
    ref = entry.ref if name else entry.run.id
    st.code(command(ref, read_words(entry.run).of(name)), language="bash", wrap_lines=True)


def _which(picked: Sequence[Entry]) -> Entry:
    if len(picked) == 1:
        return picked[0]
    letters = list(LETTERS[: len(picked)])
    letter = st.segmented_control(
        "Checkpoint", letters, default="A", required=True, key="ck_say_which", label_visibility="collapsed"
    )
    return picked[letters.index(letter or "A")]


def fields(run: Run, name: str | None, said: Annotation, known: Sequence[str]) -> None:
    """Name, tags and note of a checkpoint, or of the run itself (None), saved as they change."""
    place = f"{run.id}_{name or 'run'}"  # another target has fields of its own
    keys = {field: f"ck_say_{field}_{place}" for field in ("name", "tags", "note")}
    change = {"on_change": _save, "args": (run, name, keys)}
    st.text_input(
        "Name", said.name, key=keys["name"], placeholder=run.id, **change,
        help=f"Shown in place of the run's id, up to {MAX_NAME} characters.",
    )  # type: ignore[call-overload]  # fmt: skip
    _told("name")
    st.multiselect(
        "Tags", list(dict.fromkeys((*said.tags, *known))), list(said.tags), key=keys["tags"], accept_new_options=True,
        max_selections=MAX_TAGS, placeholder="Choose, or write a new one", **change,
    )  # type: ignore[call-overload]  # fmt: skip
    _told("tags")
    st.text_area(
        "Note", said.note, key=keys["note"], height=120, max_chars=MAX_NOTE,
        placeholder="What is it for, what was tried, what came out?", **change,
    )  # type: ignore[call-overload]  # fmt: skip
    _told("note")


def _told(field: str) -> None:
    """The error of a field below it, or that it is saved."""
    error = dialogs.problems().get(field)
    if error:
        atoms.field_error(error)
    elif dialogs.kept().get("saved") == field:
        atoms.note("✓ saved", role="good", top=-8)


def _save(run: Run, name: str | None, keys: dict[str, str]) -> None:
    """Write what differs from what is kept; one field that breaks a rule does not hold up the others."""
    now = {field: st.session_state.get(key) for field, key in keys.items()}
    before = read_words(run).of(name)
    tags = list(now["tags"] or [])
    changes: dict[str, dict[str, object]] = {
        "name": {"name": now["name"] or ""} if (now["name"] or "").strip() != before.name else {},
        "tags": tag_changes(before.tags, tags),
        "note": {"note": now["note"] or ""} if (now["note"] or "").strip() != before.note else {},
    }
    for field, change in changes.items():
        dialogs.problem(field, None)
        if not change:
            continue
        try:
            annotate(run, name, **change)  # type: ignore[arg-type]
        except RunError as error:
            dialogs.problem(field, error)
        else:
            dialogs.kept()["saved"] = field


def tag_changes(before: Sequence[str], after: Sequence[str]) -> dict[str, object]:
    """What `annotate` is told to come from these tags to those; empty when they are the same."""
    add = [tag for tag in after if tag not in before]
    remove = [tag for tag in before if tag not in after]
    return {"add_tags": add, "remove_tags": remove} if add or remove else {}


def command(ref: str, said: Annotation) -> str:
    """The command that says the same of `ref`; a pattern of one when nothing is said."""
    if not said:
        return f"dgsgpt annotate {ref} --name NAME --tag TAG --note TEXT"
    words = ["dgsgpt", "annotate", ref]
    words += ["--star"] if said.star else []
    words += ["--name", said.name] if said.name else []
    for tag in said.tags:
        words += ["--tag", tag]
    words += ["--note", said.note] if said.note else []
    return shlex.join(words)
