"""The pickers of the Playground: one checkpoint or two, kept in the address as RUN@STEP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import streamlit as st

from dgsgpt.ui import atoms
from dgsgpt.ui.atoms import markup
from dgsgpt.ui.checkpoint_table import Entry, by_ref


def title(found: Sequence[Entry]) -> list[Entry]:
    """The page's name, the pickers and Compare; returns the one or two picked. `found` must not be empty."""
    entries = {entry.ref: entry for entry in found}
    unknown = restore(found, st.query_params.get_all("checkpoint"))
    letters = ("A", "B") if st.session_state["pg_two"] else ("A",)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="pg_title"):
        atoms.title_row("Playground", width="content")
        st.space("stretch")
        for letter in letters:
            st.selectbox(
                f"Checkpoint {letter}", list(entries), key=f"pg_{letter.lower()}", on_change=_to_address, width=290,
                label_visibility="collapsed", persist_state="session",
                format_func=_labels(entries, f"{letter}  " if len(letters) > 1 else ""),
            )  # fmt: skip
        st.toggle("Compare", key="pg_two", on_change=_to_address, persist_state="session", disabled=len(found) < 2)
    if unknown:
        atoms.note(markup("There is no whole checkpoint {}; this is another.", unknown[:80]), role="warn")
    return [entries[st.session_state[f"pg_{letter.lower()}"]] for letter in letters]


def _labels(entries: Mapping[str, Entry], before: str) -> Callable[[str], str]:
    return lambda ref: before + entries[ref].label


def _to_address() -> None:
    kept = st.session_state
    refs = [kept["pg_a"], kept.get("pg_b")] if kept["pg_two"] else [kept["pg_a"]]
    st.query_params["checkpoint"] = [ref for ref in refs if ref]


def restore(found: Sequence[Entry], named: Sequence[str]) -> str | None:
    """Set the pickers from the address, else keep them, else take the newest; returns a name that is not there.

    A checkpoint that was deleted since it was picked gives way to the newest.
    """
    kept = st.session_state
    wanted = [entry.ref if (entry := by_ref(found, ref)) else None for ref in named[:2]]
    for key, ref in zip(("pg_a", "pg_b"), wanted, strict=False):
        if ref:
            kept[key] = ref
    kept.setdefault("pg_two", False)
    if len(wanted) == 2 and wanted[1]:
        kept["pg_two"] = True
    refs = [entry.ref for entry in found]
    if kept.get("pg_a") not in refs:
        kept["pg_a"] = refs[0]
    if kept.get("pg_b") not in refs:
        kept["pg_b"] = next((ref for ref in refs if ref != kept["pg_a"]), refs[0])
    kept["pg_two"] = kept["pg_two"] and len(refs) > 1
    return next((name for name, ref in zip(named, wanted, strict=False) if ref is None), None)
