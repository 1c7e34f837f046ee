"""Which runs the Train page shows: the popover that chooses them, and the card that lists and compares them."""

from __future__ import annotations

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.runs import Run
from dgsgpt.ui import atoms, run_cards, state
from dgsgpt.ui.atoms import Html, dot, markup, text
from dgsgpt.ui.labels import label_of
from dgsgpt.ui.loss_data import BY_SEED, SEED, LossOptions, group_fields
from dgsgpt.ui.read_out import place, read_out
from dgsgpt.ui.theme import run_color
from dgsgpt.ui.train_address import RUN
from dgsgpt.ui.train_shown import GROUP, OTHERS, Shown, curves_stamp, keep, options, settings

MAX_OVERLAYS = 19
HEIGHT_PX = 330  # of the list; a longer one scrolls
EQUAL = {"Step": "steps", "Tokens": "tokens", "FLOPs": "FLOPs", "Time": "time"}


# ---------------------------------------------------------------- choosing
def choose(runs: list[Run], main: Run) -> list[Run]:
    """The popover with the selected run (kept in the address) and those laid over it."""
    ids = [run.id for run in runs]
    rest = [run_id for run_id in ids if run_id != main.id]
    st.session_state["train_run"] = main.id
    st.session_state[OTHERS] = [i for i in st.session_state.get(OTHERS, []) if i in rest][:MAX_OVERLAYS]

    def selected() -> None:
        st.query_params[RUN] = st.session_state["train_run"]

    with st.popover("Choose runs", icon=":material/tune:", width="content"):
        st.selectbox("Run", ids, key="train_run", on_change=selected)
        st.multiselect(
            "Lay over it", rest, key=OTHERS, max_selections=MAX_OVERLAYS, persist_state="session",
            placeholder="other runs",
        )  # fmt: skip
        by_id = {run.id: run for run in runs}
        others = [by_id[run_id] for run_id in st.session_state[OTHERS]]
        _add_seeds(runs, main, others)
        _group_by([main, *others])
    return [run for run in runs if run.id in st.session_state[OTHERS]]


def _add_seeds(runs: list[Run], main: Run, others: list[Run]) -> None:
    """A button that lays over the runs which differ from the selected one in the seed alone."""
    if len(runs) < 2:
        return
    own = {k: v for k, v in settings(main).items() if k != SEED}
    same = [r.id for r in runs if r != main and {k: v for k, v in settings(r).items() if k != SEED} == own]
    new = [run_id for run_id in same if run_id not in {run.id for run in others}]

    def add() -> None:
        st.session_state[OTHERS] = [*st.session_state.get(OTHERS, []), *new][:MAX_OVERLAYS]
        st.session_state[GROUP] = BY_SEED

    label = f"Add its {fmt.plural(len(new), 'other seed')}" if new else "No other seed of it"
    st.button(label, key="train_seeds", icon=":material/add:", on_click=add, disabled=not new)


def _group_by(runs: list[Run]) -> None:
    """Draw several runs as one line with a band."""
    fields = group_fields([settings(run) for run in runs])
    choices = ["", BY_SEED, *fields] if len(runs) > 1 else [""]
    if st.session_state.get(GROUP) not in choices:
        st.session_state[GROUP] = ""
    names = {"": "each run by itself", BY_SEED: "runs that differ in the seed only"}
    st.selectbox(
        "Group", choices, key=GROUP, persist_state="session", disabled=len(runs) < 2,
        format_func=lambda path: names.get(path) or f"{label_of(path)} ({path})",
        help="A group is drawn as its mean, with a band from its lowest to its highest run.",
    )  # fmt: skip


# ---------------------------------------------------------------- the card
def card(shown: Shown, kept: int) -> None:
    """Which runs the chart shows, with their validation losses, and how they stand at an equal place of the axis."""
    atoms.head("Runs shown", note=f"{len(shown.runs)} of {fmt.number(kept)}")
    listed, note = keep("runs", curves_stamp(shown), lambda: _listed(shown))
    atoms.h(listed)
    if note:
        atoms.note(note)


def _listed(shown: Shown) -> tuple[Html, str]:
    """The list, and where the differences in it were read off."""
    said = options(shown.config)
    places: list[str] = []
    rows = []
    for run in shown.runs:
        name = text(run.id, bold=run == shown.run)
        about = text(run_cards.words(state.config(run)), "ink3", px=12.5)
        value = markup("{}<br>{}", fmt.loss(state.metrics(run).last("loss/val")), _against(shown, run, said, places))
        rows.append((dot(run_color(run.color_slot)), markup("{}<br>{}", name, about), value))
    listed = atoms.table_html(rows, "9px minmax(0,1fr) auto", ("", "run", "val loss"), pad=5, align="llr")
    box = markup('<div style="max-height:{}px;overflow-y:auto">{}</div>', HEIGHT_PX, listed)
    where = places[0] if len(set(places)) == 1 else "the last both have"
    return box, f"▲▼ against {shown.run.id} at equal {EQUAL[said.axis]}: {where}" if places else ""


def _against(shown: Shown, run: Run, said: LossOptions, places: list[str]) -> object:
    """The difference to the selected run where both have come as far; the place is added to `places`."""
    if run == shown.run:
        return "\u00a0"
    found = read_out(shown.metrics.columns, state.metrics(run).columns, said.axis, said.weight)
    if found is None:
        return text(fmt.MISSING, "ink3")
    where = place(found.at, said.axis)
    places.append(where if found.validation else f"{where} (train)")
    return atoms.delta(fmt.signed(found.difference), found.difference < 0)
