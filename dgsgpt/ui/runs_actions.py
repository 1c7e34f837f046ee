"""What can be done with the runs that are picked: the bar below the table, and the dialogs it opens."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.annotations import annotate
from dgsgpt.annotations import read as read_words
from dgsgpt.errors import DgsgptError
from dgsgpt.files import directory_bytes
from dgsgpt.report import build_report
from dgsgpt.report.page import MAX_RUNS
from dgsgpt.run_queue import enqueue
from dgsgpt.ui import atoms, dialogs, run_cards, state
from dgsgpt.ui import runs_table as table
from dgsgpt.ui.app import page_file
from dgsgpt.ui.atoms import join, markup, text
from dgsgpt.ui.runs_list import RunEntry
from dgsgpt.ui.theme import run_color
from dgsgpt.ui.trash_view import delete_runs, trash_dialog
from dgsgpt.ui.words_view import command, fields

_WORDS, _CLONE, _QUEUE = "Name, tags, note", "Clone into Configure", "Add to the queue"
_ARCHIVE, _UNARCHIVE, _DELETE = "Archive", "Bring back from the archive", "Delete"
MAX_WATCHED = 8
_NAMED = 6


# ---------------------------------------------------------------- the bar
def bar(picked: Sequence[RunEntry]) -> None:
    """Who is picked, and what can be done with them."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="rn_actions"):
        names = join(
            markup(
                '<span style="display:inline-flex;gap:8px;align-items:center">{}{}</span>',
                atoms.run_name(e.title, run_color(e.run.color_slot)), atoms.pill(e.state),
            )
            for e in picked[:_NAMED]
        )  # fmt: skip
        more = text(f"and {len(picked) - _NAMED} more", "ink3") if len(picked) > _NAMED else ""
        atoms.h(markup('<div style="display:flex;flex-wrap:wrap;gap:6px 20px">{}{}</div>', names, more))
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False, width="content"):
            _control(picked)
            on = not all(e.said.star for e in picked)
            label = "Star" if on else "Remove star"
            st.button(label, icon=":material/star:", key="rn_star", on_click=set_star, args=(list(picked), on))
            _report(picked)
            st.menu_button("More", _options(picked), key="rn_more", on_click=_chosen, args=(list(picked),))
            _watch(picked)


def _control(picked: Sequence[RunEntry]) -> None:
    """Stop or go on, where one is picked alone."""
    if len(picked) != 1:
        return
    (one,) = picked
    if one.status.is_live:
        run_cards.stop_button(one.run, one.status, "rn_stop")
    elif one.state != "finished" and one.place is None:
        run_cards.resume_button(one.run, "rn_resume", "Start" if one.state == "queued" else "")


def _report(picked: Sequence[RunEntry]) -> None:
    """One HTML file of the picked; made when it is asked for."""
    chosen = [e.run for e in picked][:MAX_RUNS]
    named = chosen[0].id + ("-and-others" if len(chosen) > 1 else "")
    st.download_button(
        "Report", lambda: build_report(chosen), f"{named}.html", "text/html", key="rn_report", on_click="ignore",
        icon=":material/description:", help="Config, curves, samples and environment in one file that opens offline.",
    )  # fmt: skip


def _watch(picked: Sequence[RunEntry]) -> None:
    label = "Watch" if len(picked) == 1 else "Overlay on Train"
    said = None if len(picked) <= MAX_WATCHED else f"The first {MAX_WATCHED} of them."
    if st.button(label, type="primary", icon=":material/monitoring:", key="rn_watch", help=said):
        ids = [e.id for e in picked][:MAX_WATCHED]
        query = {"run": ids[0]} | ({"with": ",".join(ids[1:])} if len(ids) > 1 else {})
        st.switch_page(page_file("train"), query_params=query)


def _options(picked: Sequence[RunEntry]) -> list[str]:
    options = [_WORDS, _CLONE] if len(picked) == 1 else []
    if all(e.place is None and not e.status.is_live and e.state != "finished" for e in picked):
        options.append(_QUEUE)
    options.append(_UNARCHIVE if all(e.said.archived for e in picked) else _ARCHIVE)
    return [*options, _DELETE if len(picked) == 1 else f"{_DELETE} {len(picked)}"]


def _chosen(picked: list[RunEntry]) -> None:
    choice = str(st.session_state.get("rn_more") or "")
    ids = [e.id for e in picked]
    if choice == _WORDS:
        dialogs.ask("run_words", ids)
    elif choice.startswith(_DELETE):
        dialogs.ask("run_delete", ids)
    elif choice == _CLONE:
        st.session_state["rn_clone"] = ids[0]
    elif choice == _QUEUE:
        for entry in picked:
            state.attempt(enqueue, entry.run)
    elif choice in (_ARCHIVE, _UNARCHIVE):
        for entry in picked:
            state.attempt(lambda e=entry: annotate(e.run, archived=choice == _ARCHIVE))
        st.session_state["rn_archived"] = (choice == _ARCHIVE, ids)


def leave_for_configure() -> None:
    """Go to Configure if More asked for it (a callback cannot change the page)."""
    if "rn_clone" in st.session_state:
        st.switch_page(page_file("configure"), query_params={"clone": st.session_state.pop("rn_clone")})


# ---------------------------------------------------------------- stars and the archive
def set_star(chosen: Sequence[RunEntry], on: bool) -> None:
    """Star these runs, or take their stars away."""
    for entry in chosen:
        if entry.said.star != on:
            state.attempt(lambda e=entry: annotate(e.run, star=on))


def star_clicked() -> None:
    """A star in the table was pressed: the row is of the table as it was drawn last."""
    click, shown = st.session_state.get(table.STAR_CLICK), st.session_state.get("rn_shown", [])
    if click and 0 <= click["row"] < len(shown):
        run = next((run for run in state.runs() if run.id == shown[click["row"]]), None)
        if run is not None:
            state.attempt(lambda: annotate(run, star=not read_words(run).run.star))


def archive_line() -> None:
    """What went into the archive last, and the button that takes it back."""
    archived, ids = st.session_state.get("rn_archived", (False, []))
    if not archived or not ids:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="rn_archive_line"):
        said = markup("In the archive: {}.", atoms.bold(", ".join(ids[:_NAMED]) + (" …" if len(ids) > _NAMED else "")))
        atoms.h(markup('<div style="font-size:13.5px">{}</div>', said), width="content")
        st.button("Undo", icon=":material/undo:", key="rn_unarchive", on_click=_unarchive, args=(tuple(ids),))
        st.button("Dismiss", type="tertiary", key="rn_archive_gone", on_click=_forget)


def _unarchive(ids: Sequence[str]) -> None:
    _forget()
    for run in state.runs():
        if run.id in ids:
            state.attempt(lambda r=run: annotate(r, archived=False))


def _forget() -> None:
    st.session_state.pop("rn_archived", None)


# ---------------------------------------------------------------- dialogs
def open_dialog(found: Sequence[RunEntry]) -> None:
    """Draw the dialog that is open, if one is."""
    name, ids = dialogs.asked()
    chosen = [e for e in found if e.id in ids]
    if name == "run_words":
        words_dialog(chosen, found)
    elif name == "run_delete":
        delete_dialog(chosen)
    elif name == "trash":
        trash_dialog()


@st.dialog("Name, tags and note", width="medium", on_dismiss=dialogs.close)
def words_dialog(picked: Sequence[RunEntry], found: Sequence[RunEntry]) -> None:
    """Edit what is said of a run."""
    if not picked:
        atoms.para("It is not there any more.")
        return
    run = picked[0].run
    atoms.note(f"Run {run.id}: the id stays, the name is what lists show.")
    said = read_words(run)
    if said.problem:
        atoms.error_card(said.problem)
        return
    fields(run, None, said.run, sorted({tag for e in found for tag in e.said.tags}))
    st.code(command(run.id, read_words(run).run), language="bash", wrap_lines=True)


@st.dialog("Delete", width="medium", on_dismiss=dialogs.close)
def delete_dialog(doomed: Sequence[RunEntry]) -> None:
    """What goes and how large it is; it goes to the trash, from where it can be restored."""
    if not doomed:
        atoms.para("It is not there any more.")
        return
    sizes = {e.id: directory_bytes(e.run.path) for e in doomed}
    rows = [(e.title, fmt.plural(len(e.run.checkpoints()), "checkpoint"), fmt.size(sizes[e.id])) for e in doomed]
    with st.container(height=260 if len(rows) > 8 else "content", border=False):
        atoms.table(rows, "minmax(0,1fr) 120px 80px", align="llr")
    total = fmt.size(sum(sizes.values()))
    atoms.para(f"{fmt.plural(len(doomed), 'run')}, {total}, to the trash; from there they can be restored.")
    st.code("\n".join(f"dgsgpt delete {e.id}" for e in doomed), language="bash")
    if "delete" in dialogs.problems():
        atoms.error_card(dialogs.problems()["delete"], "What was moved before it can be undone on the page.")
    with st.container(horizontal=True, gap="xsmall"):
        if st.button("Move to the trash", type="primary", icon=":material/delete:", key="rn_delete_go"):
            try:
                delete_runs([e.run for e in doomed])
            except DgsgptError as error:
                dialogs.problem("delete", error)
            else:
                dialogs.close()
                table.repick([])
            st.rerun()
        if st.button("Cancel", key="rn_delete_no"):
            dialogs.close()
            st.rerun()


# ---------------------------------------------------------------- commands
def commands(picked: Sequence[RunEntry]) -> None:
    """The same on the command line."""
    lines = []
    for e in picked[:_NAMED]:
        if e.status.is_live:
            lines += [f"dgsgpt {verb} {e.id}" for verb in ("pause", "save", "stop")]
        elif e.state != "finished":
            lines += [f"dgsgpt resume {e.id}", f"dgsgpt queue add {e.id}"]
        lines += [f"dgsgpt annotate {e.id} {'--no-star' if e.said.star else '--star'} --tag TAG"]
        lines += [f"dgsgpt annotate {e.id} {'--no-archive' if e.said.archived else '--archive'}"]
        lines += [f"dgsgpt delete {e.id}"]
    lines += [f"dgsgpt report {' '.join(e.id for e in picked[:MAX_RUNS])}"]
    with st.expander("The same on the command line"):
        st.code("\n".join(lines), language="bash")
