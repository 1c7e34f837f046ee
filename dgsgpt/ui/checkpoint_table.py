"""The table of checkpoints: how its columns are written, and which of its rows are picked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.ui.checkpoint_list import OWN_TAGS as OWN_TAGS
from dgsgpt.ui.checkpoint_list import Entry as Entry
from dgsgpt.ui.checkpoint_list import Verdict as Verdict
from dgsgpt.ui.checkpoint_list import as_figure as as_figure
from dgsgpt.ui.checkpoint_list import by_ref as by_ref
from dgsgpt.ui.checkpoint_list import entries as entries
from dgsgpt.ui.checkpoint_list import state_word as state_word
from dgsgpt.ui.checkpoint_list import told as told
from dgsgpt.ui.checkpoint_list import whole as whole
from dgsgpt.ui.theme import Palette

LETTERS = "ABCD"
MAX_PICKED = len(LETTERS)
FIRST_PICKED = 2  # so many of the newest are side by side when nobody has chosen yet
STAR_CLICK = "ck_star_click"
_SPARK_POINTS = 30

_FORMATS: dict[str, Callable[[Any], str]] = {
    "step": fmt.number,
    "val": fmt.loss,
    "bpb": fmt.loss,
    "ppl": fmt.perplexity,
    "params": fmt.si,
    "size": fmt.size,
    # Drawn from the value, never from its text, which would only be long.
    "curve": lambda _: "",
    "tags": lambda _: "",
}


def frame(shown: Sequence[Entry], known: Mapping[Path, Verdict]) -> pd.DataFrame:
    """One row a checkpoint; numbers stay numbers, so that the table sorts by value."""
    rows = [
        {
            "star": "★" if e.star else "☆",
            "run": e.title,
            "step": e.step,
            "val": e.figure("loss_val"),
            "bpb": e.figure("bpb_val"),
            "ppl": e.figure("ppl_val"),
            "curve": _thinned([v for v in e.series("recent_losses") if math.isfinite(v)]),
            "params": e.figure("params"),
            "size": e.info.bytes or None,
            "saved": e.info.saved_at or None,
            "state": state_word(e, known),
            "tags": e.tags,
        }
        for e in shown
    ]
    table = pd.DataFrame(rows)
    numbers = ["step", "val", "bpb", "ppl", "params", "size", "saved"]
    table[numbers] = table[numbers].astype(float)
    return table


def _thinned(values: list[float]) -> list[float]:
    """At most `_SPARK_POINTS` values, evenly from all, the last among them."""
    every = -(-len(values) // _SPARK_POINTS) or 1
    return values[::-1][::every][::-1]


def _colors(table: pd.DataFrame, palette: Palette) -> pd.DataFrame:
    """CSS of each cell: a damaged row in red, ages and states lighter than figures."""
    css = pd.DataFrame("", index=table.index, columns=table.columns)
    css[["saved", "state"]] = f"color: {palette['ink2']}"
    css.loc[table["star"] == "☆", "star"] = f"color: {palette['ink3']}"
    css.loc[table["state"] == "damaged", :] = f"color: {palette['bad']}"
    return css


def _columns(tags: Sequence[str], on_star: Callable[[], None]) -> dict[str, Any]:
    column = st.column_config
    colors = ["blue", "gray", "violet", "green", "green"] + ["orange"] * len(tags)
    return {
        "star": column.ButtonColumn("★", width=42, type="tertiary", on_click=on_star, key=STAR_CLICK),
        "run": column.TextColumn("Run", width=180),
        "step": column.NumberColumn("Step", width=75),
        "val": column.NumberColumn("Val loss", width=80),
        "bpb": column.NumberColumn("Bits/byte", width=80),
        "ppl": column.NumberColumn("Perplexity", width=85),
        "curve": column.LineChartColumn("Loss", width=120, color="gray"),
        "params": column.NumberColumn("Parameters", width=90),
        "size": column.NumberColumn("Size", width=80),
        "saved": column.NumberColumn("Saved", width=90, alignment="left"),
        "state": column.TextColumn("State", width=80),
        "tags": column.MultiselectColumn("Tags", options=[*OWN_TAGS, *tags], color=colors, width=150),
    }


# ---------------------------------------------------------------- picking
def repick(refs: Sequence[str]) -> None:
    """Pick these, whatever was picked; the table is drawn anew with them."""
    st.session_state["ck_picked"] = list(refs)
    st.session_state.pop("ck_rows_of", None)
    st.session_state["ck_epoch"] = st.session_state.get("ck_epoch", 0) + 1


def pick(
    shown: Sequence[Entry], known: Mapping[Path, Verdict], palette: Palette, now: float, on_star: Callable[[], None]
) -> list[Entry]:
    """Draw the table and return all picked entries, in the order of their picking; at first the newest that are whole.

    Rows are picked by position, so a table of other rows is another widget; what was picked before is picked again.
    """
    refs = [e.ref for e in shown]
    name = hashlib.sha256("\n".join(refs).encode()).hexdigest()[:12]
    st.session_state["ck_shown"] = refs
    if st.session_state.get("ck_rows_of") != name:
        st.session_state["ck_rows_of"] = name
        st.session_state["ck_rows"] = first_rows(shown, st.session_state.get("ck_picked", []))
    table = frame(shown, known)
    styled = table.style.format({**_FORMATS, "saved": partial(fmt.ago, now=now)})
    own_tags = sorted({tag for e in shown for tag in e.tags} - set(OWN_TAGS))
    event = st.dataframe(
        styled.apply(lambda _: _colors(table, palette), axis=None), hide_index=True, width="stretch",
        height=_height(len(shown)), row_height=32, key=f"ck_table_{name}_{st.session_state.get('ck_epoch', 0)}",
        on_select="rerun", selection_mode="multi-row", column_config=_columns(own_tags, on_star),
        placeholder=fmt.MISSING, selection_default={"selection": {"rows": st.session_state["ck_rows"]}},
    )  # fmt: skip
    rows = [refs[row] for row in event["selection"]["rows"] if row < len(shown)]
    picked = in_order(rows, st.session_state.get("ck_picked", []))
    st.session_state["ck_picked"] = picked
    by_name = dict(zip(refs, shown, strict=True))
    return [by_name[ref] for ref in picked]


def in_order(rows: Sequence[str], before: Sequence[str]) -> list[str]:
    """The picked in the order in which they were picked: A stays A when a row above it is added."""
    kept = [ref for ref in before if ref in rows]
    return kept + [ref for ref in rows if ref not in kept]


def first_rows(shown: Sequence[Entry], picked: Sequence[str]) -> list[int]:
    """Rows of those picked before, else of the newest that are whole."""
    named = {entry.ref for ref in picked if (entry := by_ref(shown, ref))}
    kept = [row for row, entry in enumerate(shown) if entry.ref in named]
    return kept or [row for row, entry in enumerate(shown) if entry.info.complete][:FIRST_PICKED]


def _height(rows: int) -> int | Literal["auto"]:
    """All of a short list, and ten and a half rows of a long one, so that it is seen to go on."""
    return "auto" if rows <= 10 else 36 + int(10.5 * 32)


# ---------------------------------------------------------------- the address
def from_address(found: Sequence[Entry]) -> None:
    """Pick what the address names, when it is not what this page wrote there itself."""
    named = st.query_params.get_all("checkpoint")
    if named and named != st.session_state.get("ck_address"):
        st.session_state["ck_address"] = named
        if wanted := [e.ref for ref in named if (e := by_ref(found, ref))]:
            repick(list(dict.fromkeys(wanted)))


def to_address(picked: Sequence[Entry]) -> None:
    """Name the picked in the address, so that a reload or a link shows the same."""
    refs = [entry.ref for entry in picked]
    if refs != st.query_params.get_all("checkpoint"):
        st.query_params["checkpoint"] = refs
    st.session_state["ck_address"] = refs
