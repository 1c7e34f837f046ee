"""The table of runs: how its columns are written, which of its rows are picked, and what the address says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pandas as pd
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.ui import atoms
from dgsgpt.ui.comparison import shown as shown_value
from dgsgpt.ui.labels import label_of, name_of
from dgsgpt.ui.runs_list import RunEntry
from dgsgpt.ui.theme import Palette

STAR_CLICK = "rn_star_click"
MAX_COMPARED = 20
SETTING_COLUMNS = 6  # so many are shown until a person chooses
_FORMATS: dict[str, Callable[[Any], str]] = {
    "val": fmt.loss, "bpb": fmt.loss, "train": fmt.loss, "params": fmt.si, "speed": fmt.si, "took": fmt.duration,
    "done": partial(fmt.percent, digits=0), "curve": lambda _: "", "tags": lambda _: "",
}  # fmt: skip


def frame(shown: Sequence[RunEntry], paths: Sequence[str], params: Mapping[str, int]) -> pd.DataFrame:
    """One row a run; numbers stay numbers, so that the table sorts by value. `params` by run id."""
    rows = []
    for e in shown:
        figures, status = e.figures, e.status
        row: dict[str, Any] = {
            "star": "★" if e.said.star else "☆",
            "dot": "●",
            "run": e.title,
            "state": state_words(e),
            "done": status.step / status.max_steps if status.max_steps else None,
            "val": figures.best_val,
            "bpb": figures.bpb,
            "train": figures.train_loss,
            "curve": list(figures.curve),
            "params": params.get(e.id),
            "speed": figures.tokens_per_s,
            "took": status.elapsed_s or None,
            "seen": e.ended_at,
            "tags": list(e.said.tags),
            "note": " ".join(e.said.note.split()),
        }
        rows.append(row | {path: cell(e.settings, path) for path in paths})
    table = pd.DataFrame(rows)
    numbers = ["done", "val", "bpb", "train", "params", "speed", "took", "seen"]
    table[numbers] = table[numbers].astype(float)
    return table


def state_words(entry: RunEntry) -> str:
    """Glyph and word of the state, with the place of a run that waits in the queue."""
    label, _, glyph = atoms.STATES.get(entry.state, (entry.state.capitalize(), "idle", "?"))
    return f"{glyph} {label}" + (f" {entry.place}" if entry.place else "")


def cell(settings: Mapping[str, Any], path: str) -> str:
    """A setting in a few characters; a dash where its section is off."""
    value = settings.get(path)
    return name_of(value) if isinstance(value, str) and "/" not in value else shown_value(value)


def _colors(table: pd.DataFrame, shown: Sequence[RunEntry], palette: Palette) -> pd.DataFrame:
    """CSS of each cell: a run's colour on its dot, the role of its state, the best losses bold."""
    css = pd.DataFrame("", index=table.index, columns=table.columns)
    css["dot"] = [f"color: {palette.run(e.run.color_slot)}" for e in shown]
    roles = [atoms.STATES.get(e.state, ("", "idle", ""))[1] for e in shown]
    css["state"] = [f"color: {palette[role]}" for role in roles]
    css[["seen", "note", "took"]] = f"color: {palette['ink2']}"
    css.loc[table["star"] == "☆", "star"] = f"color: {palette['ink3']}"
    return css


def columns(paths: Sequence[str], tags: Sequence[str], on_star: Callable[[], None]) -> dict[str, Any]:
    """How streamlit draws each column."""
    column = st.column_config
    made: dict[str, Any] = {
        "star": column.ButtonColumn("★", width=38, type="tertiary", on_click=on_star, key=STAR_CLICK),
        "dot": column.TextColumn("", width=30),
        "run": column.TextColumn("Run", width=190),
        "state": column.TextColumn("State", width=95),
        "done": column.NumberColumn("Done", width=60),
        "val": column.NumberColumn("Best val loss", width=100),
        "bpb": column.NumberColumn("Best bits/byte", width=105),
        "train": column.NumberColumn("Train loss", width=85),
        "curve": column.LineChartColumn("Loss", width=110, color="gray"),
        "params": column.NumberColumn("Parameters", width=90),
        "speed": column.NumberColumn("Tok/s", width=70),
        "took": column.NumberColumn("Trained", width=80, alignment="left"),
        "seen": column.NumberColumn("Last seen", width=95, alignment="left"),
        "tags": column.MultiselectColumn("Tags", options=list(tags), color=["orange"] * len(tags) or None, width=120),
        "note": column.TextColumn("Note", width=180),
    }
    return made | {path: column.TextColumn(label_of(path), width=95, help=path) for path in paths}


# ---------------------------------------------------------------- picking
def pick(
    shown: Sequence[RunEntry], paths: Sequence[str], params: Mapping[str, int], palette: Palette, now: float,
    on_star: Callable[[], None],
) -> list[RunEntry]:  # fmt: skip
    """Draw the table and return the picked runs, in the order of their picking.

    Rows are picked by position, so a table of other rows is another widget; what was picked before is picked again.
    """
    ids = [e.id for e in shown]
    name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]
    st.session_state["rn_shown"] = ids
    if st.session_state.get("rn_rows_of") != name:
        st.session_state["rn_rows_of"] = name
        before = st.session_state.get("rn_picked", [])
        st.session_state["rn_rows"] = [row for row, run_id in enumerate(ids) if run_id in before]
    table = frame(shown, paths, params)
    order = ["star", "dot", "run", "state", "done", "val", "bpb", "train", "curve", *paths]
    order += ["params", "speed", "took", "seen", "tags", "note"]
    styled = table[order].style.format({**_FORMATS, "seen": partial(fmt.ago, now=now)}, na_rep=fmt.MISSING)
    tags = sorted({tag for e in shown for tag in e.said.tags})
    event = st.dataframe(
        styled.apply(lambda _: _colors(table[order], shown, palette), axis=None), hide_index=True, width="stretch",
        height=_height(len(shown)), row_height=32, key=f"rn_table_{name}_{st.session_state.get('rn_epoch', 0)}",
        on_select="rerun", selection_mode="multi-row", column_config=columns(paths, tags, on_star),
        placeholder=fmt.MISSING, selection_default={"selection": {"rows": st.session_state["rn_rows"]}},
    )  # fmt: skip
    chosen = [ids[row] for row in event["selection"]["rows"] if row < len(ids)]
    before = st.session_state.get("rn_picked", [])
    picked = [run_id for run_id in before if run_id in chosen]
    picked += [run_id for run_id in chosen if run_id not in picked]
    st.session_state["rn_picked"] = picked
    by_id = {e.id: e for e in shown}
    return [by_id[run_id] for run_id in picked]


def repick(ids: Sequence[str]) -> None:
    """Pick these, whatever was picked; the table is drawn anew with them."""
    st.session_state["rn_picked"] = list(ids)
    st.session_state.pop("rn_rows_of", None)
    st.session_state["rn_epoch"] = st.session_state.get("rn_epoch", 0) + 1


def _height(rows: int) -> int | Literal["auto"]:
    """All of a short list, and twelve and a half rows of a long one, so that it is seen to go on."""
    return "auto" if rows <= 12 else 36 + int(12.5 * 32)


# ---------------------------------------------------------------- the address
def from_address(found: Sequence[RunEntry]) -> None:
    """Pick what the address names, when it is not what this page wrote there itself."""
    named = st.query_params.get_all("run")
    if named and named != st.session_state.get("rn_address"):
        st.session_state["rn_address"] = named
        known = {e.id for e in found}
        if wanted := [run_id for run_id in dict.fromkeys(named) if run_id in known]:
            repick(wanted)


def to_address(picked: Sequence[RunEntry]) -> None:
    """Name the picked in the address, so that a reload or a link shows the same."""
    ids = [e.id for e in picked][:MAX_COMPARED]
    if ids != st.query_params.get_all("run"):
        st.query_params["run"] = ids
    st.session_state["rn_address"] = ids
