"""What can be done with the checkpoints that are picked: the bar below the table, and the dialogs it opens."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.annotations import annotate
from dgsgpt.annotations import read as read_words
from dgsgpt.ui import atoms, comparison, dialogs, state
from dgsgpt.ui import checkpoint_cards as cards
from dgsgpt.ui import checkpoint_list as listing
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui.app import page_file
from dgsgpt.ui.atoms import markup, text
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.export_view import export_dialog
from dgsgpt.ui.import_view import import_dialog
from dgsgpt.ui.quantize_view import quantize_dialog
from dgsgpt.ui.trash_view import delete_dialog, trash_dialog
from dgsgpt.ui.words_view import words_dialog

_WORDS = "Name, tags, note"
_FORK = "Go on from here"
_TUNE = "Train from these weights"
_EXPORT = "Export for Hugging Face"
_QUANTIZE = "Quantize"
_DELETE = "Delete"
IN_PLAYGROUND = 2


# ---------------------------------------------------------------- the bar
def bar(picked: Sequence[Entry], selected: Sequence[Entry]) -> None:
    """Who was picked, and what can be done with them; `selected` may be more than the `picked`, for deleting."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="ck_actions"):
        _who(picked)
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False, width="content"):
            if len(picked) == 2:
                st.button("Swap", icon=":material/swap_horiz:", key="ck_swap", on_click=_swap)
            _star(selected)
            _verify(picked)
            _more(picked, selected)
            _open(picked)


def _who(picked: Sequence[Entry]) -> None:
    now, known = time.time(), listing.verdicts()
    named = []
    for side in comparison.sides_of(picked):
        entry = side.entry
        said = cards.who(side.letter, entry, listing.verdict_of(entry, known), now, side.color)
        name = text(entry.title, "ink2") if entry.title != entry.run.id else ""
        named.append(markup('<div style="display:flex;gap:10px;align-items:center;min-width:0">{}{}</div>', said, name))
    atoms.h(markup('<div style="display:flex;flex-wrap:wrap;gap:6px 26px">{}</div>', atoms.join(named)))


def _swap() -> None:
    st.session_state["ck_picked"] = st.session_state["ck_picked"][::-1]


def _star(selected: Sequence[Entry]) -> None:
    on = not all(entry.star for entry in selected)
    label = "Star" if on else "Remove star"
    said = "A starred checkpoint is never discarded by `train.keep_last`."
    st.button(label, icon=":material/star:", key="ck_star", on_click=set_star, args=(list(selected), on), help=said)


def set_star(chosen: Sequence[Entry], on: bool) -> None:
    """Star these, or take their stars away."""
    for entry in chosen:
        if entry.star != on:
            state.attempt(lambda e=entry: annotate(e.run, e.info.path.name, star=on))


def star_clicked() -> None:
    """A star in the table was pressed: the row is of the table as it was drawn last."""
    click, shown = st.session_state.get(table.STAR_CLICK), st.session_state.get("ck_shown", [])
    if click and 0 <= click["row"] < len(shown):
        entry = listing.by_ref(listing.entries(state.runs()), shown[click["row"]])
        if entry:
            set_star([entry], not entry.star)


def _verify(picked: Sequence[Entry]) -> None:
    if st.button("Verify", icon=":material/verified:", key="ck_verify", help="Compares every byte's hash."):
        known = listing.verdicts()
        with st.spinner(f"Hashing {fmt.size(sum(e.info.bytes for e in picked))}…"):
            known.update({e.info.path: listing.check(e) for e in picked})
        st.rerun()


def _more(picked: Sequence[Entry], selected: Sequence[Entry]) -> None:
    options = [_WORDS]
    if len(picked) == 1 and picked[0].quantized is None and not listing.problem_of(picked[0], listing.verdicts()):
        goes_on = picked[0].imported is None  # nobody imports the state of an optimizer
        options += [_FORK] * goes_on + [_TUNE, _EXPORT, _QUANTIZE]
    options += [_DELETE if len(selected) == 1 else f"{_DELETE} {len(selected)}"]
    said = None if len(picked) == 1 else "Pick one alone to train from it, export or quantize it."
    st.menu_button("More", options, key="ck_more", on_click=_chosen, args=(picked, selected), help=said)


def _chosen(picked: Sequence[Entry], selected: Sequence[Entry]) -> None:
    choice = str(st.session_state.get("ck_more") or "")
    refs = [entry.ref for entry in picked]
    if choice == _WORDS:
        dialogs.ask("words", refs)
    elif choice in (_EXPORT, _QUANTIZE):
        dialogs.ask("export" if choice == _EXPORT else "quantize", refs)
    elif choice.startswith(_DELETE):
        dialogs.ask("delete", [entry.ref for entry in selected])
    elif choice in (_FORK, _TUNE):
        st.session_state["ck_base"] = refs[0], "fork" if choice == _FORK else "fine-tune"


def open_dialog(found: Sequence[Entry]) -> None:
    """Draw the dialog that is open, if one is."""
    name, refs = dialogs.asked()
    chosen = [entry for ref in refs if (entry := listing.by_ref(found, ref))]
    if name == "words":
        words_dialog(chosen, found)
    elif name == "delete":
        delete_dialog(chosen, found)
    elif name == "export":
        export_dialog(chosen)
    elif name == "quantize":
        quantize_dialog(chosen)
    elif name == "import":
        import_dialog()
    elif name == "trash":
        trash_dialog()


def leave_for_configure() -> None:
    """Go to Configure if More asked for it (a callback cannot change the page)."""
    if "ck_base" in st.session_state:
        ref, how = st.session_state.pop("ck_base")
        st.switch_page(page_file("configure"), query_params={"base": ref, "how": how})


def _open(picked: Sequence[Entry]) -> None:
    known = listing.verdicts()
    usable = not any(listing.problem_of(e, known) for e in picked[:IN_PLAYGROUND])
    label = {1: "Open in Playground", 2: "Open both in Playground"}.get(len(picked), "Open A and B in Playground")
    said = None if usable else "A damaged checkpoint cannot be opened."
    if st.button(label, type="primary", icon=":material/edit_note:", key="ck_play", disabled=not usable, help=said):
        refs = [e.ref for e in picked[:IN_PLAYGROUND]]
        st.switch_page(page_file("playground"), query_params={"checkpoint": refs})


# ---------------------------------------------------------------- what is wrong
def troubles(picked: Sequence[Entry], found: Sequence[Entry]) -> None:
    """What is damaged and which checkpoint to open instead; what is wrong with people's words."""
    known = listing.verdicts()
    for entry in picked:
        problem = listing.problem_of(entry, known)
        if problem:
            _damaged(entry, problem, listing.earlier_whole(found, entry, known))
    for run in dict.fromkeys(entry.run for entry in picked):
        if words := read_words(run).problem:
            atoms.note(f"▲ {words}", role="warn")


def _damaged(entry: Entry, problem: str, instead: Entry | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"ck_damaged_{entry.ref}"):
        if instead is None:
            atoms.error_card(f"{entry.label} is damaged: {problem}", "No other whole checkpoint of this run is here.")
            return
        said = f"Step {fmt.number(instead.step)} of the same run is whole."
        atoms.error_card(f"{entry.label} is damaged: {problem}", said)
        label = f"Open step {fmt.number(instead.step)} instead"
        st.button(label, key=f"ck_instead_{entry.ref}", on_click=_instead, args=(entry.ref, instead.ref))


def _instead(damaged: str, whole: str) -> None:
    refs = [whole if ref == damaged else ref for ref in st.session_state["ck_picked"]]
    table.repick(list(dict.fromkeys(refs)))


# ---------------------------------------------------------------- commands
def commands(picked: Sequence[Entry]) -> None:
    """The same on the command line."""
    refs = [entry.ref for entry in picked]
    lines = [f"dgsgpt sample {ref} --prompt 'It was'" for ref in refs]
    lines += [f"dgsgpt compare {' '.join(refs)}"] if len(refs) > 1 else []
    lines += [f"dgsgpt verify {ref}" for ref in refs]
    lines += [f"dgsgpt annotate {e.ref} {'--no-star' if e.star else '--star'}" for e in picked]
    if len(picked) == 1:
        lines += [f"dgsgpt lineage {refs[0]}"]
        lines += _further(picked[0])
    lines += [f"dgsgpt delete {ref}" for ref in refs]
    with st.expander("The same on the command line"):
        st.code("\n".join(lines), language="bash")


def _further(entry: Entry) -> list[str]:
    """What a checkpoint can become; a quantized one is only used."""
    if entry.quantized is not None:
        return []
    fork = [f"dgsgpt fork {entry.ref} --set train.steps=N"] if entry.imported is None else []
    others = (f"train CONFIG --from {entry.ref}", f"export {entry.ref} FOLDER", f"quantize {entry.ref} NAME --bits 8")
    return [*fork, *(f"dgsgpt {words}" for words in others)]
