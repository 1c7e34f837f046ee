"""The table of checkpoints: what is listed, how it is searched, and how its columns are written."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import CheckpointInfo, best_of, list_checkpoints, verify
from dgsgpt.config import RunConfig
from dgsgpt.errors import CheckpointError
from dgsgpt.rules import flatten, known_paths, nearest
from dgsgpt.runs import Run
from dgsgpt.ui import engines
from dgsgpt.ui.theme import Palette

FILTERS = {"all": "All", "best": "Best of run", "whole": "Whole only"}
MAX_PICKED = 2
_ON = frozenset({"on", "true", "yes"})
_OFF = frozenset({"off", "none", "null", "false", "no", ""})
_SPARK_POINTS = 60


@dataclass(frozen=True)
class Entry:
    """One checkpoint of the list, with its run."""

    info: CheckpointInfo
    run: Run
    best: bool = False

    @property
    def step(self) -> int:
        """The step in the directory's name, which is unique within a run; metadata may lie."""
        name = self.info.path.name.removeprefix("step_")
        return int(name) if name.isascii() and name.isdigit() else self.info.step

    @property
    def ref(self) -> str:
        """`RUN@STEP`: its name in addresses and commands."""
        return f"{self.run.id}@{self.step}"

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.run.id}, step {fmt.number(self.step)}"

    @property
    def tags(self) -> list[str]:
        """Short remarks: the best of its run, of the demo."""
        return ["best"] * self.best + ["demo"] * self.run.is_demo

    def figure(self, key: str) -> float | None:
        """A number of its metadata; None when it is missing, not a number or not finite."""
        return as_figure(self.info.metadata.get(key))

    def series(self, key: str) -> list[float]:
        """A list of numbers of its metadata; NaN for entries that are none, empty when there is no list."""
        values = self.info.metadata.get(key)
        if not isinstance(values, list):
            return []
        return [math.nan if (number := as_figure(value)) is None else number for value in values]

    def text(self, key: str) -> str:
        """A text of its metadata, a dash when it is missing."""
        value = self.info.metadata.get(key)
        return value if isinstance(value, str) and value else fmt.MISSING


def as_figure(value: object) -> float | None:
    """A finite number as float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def entries(runs: Iterable[Run]) -> list[Entry]:
    """The checkpoints of all runs, the newest first; damaged ones are listed too."""
    found: list[Entry] = []
    for run in runs:
        infos = list_checkpoints(run)
        best = best_of(infos)
        found += [Entry(info, run, best is not None and info.path == best.path) for info in infos]
    return sorted(found, key=lambda e: (e.info.saved_at, e.step), reverse=True)


def whole(found: Sequence[Entry]) -> list[Entry]:
    """Those that can be opened, as far as names and sizes tell."""
    return [entry for entry in found if entry.info.complete]


def by_ref(found: Sequence[Entry], ref: str | None) -> Entry | None:
    """The entry named `RUN@STEP`, or the newest of `RUN`; None when there is none."""
    return next((e for e in found if ref in (e.ref, e.run.id)), None)


# ---------------------------------------------------------------- filter and search
def matches(entry: Entry, query: str, config: RunConfig | None) -> bool:
    """Whether every word of the query fits: part of the run's name, a tag, or a setting such as `n_layer=12`."""
    settings = flatten(config.model_dump()) if config and "=" in query else {}
    return all(_word_matches(entry, word.lower(), settings) for word in query.split())


def _word_matches(entry: Entry, word: str, settings: Mapping[str, Any]) -> bool:
    name, eq, value = word.partition("=")
    if not eq:
        return word in entry.run.id.lower() or word in entry.tags
    if value in _ON and any(f".{name}." in path for path in settings):  # a section that is on, e.g. moe=on
        return True
    return any(same_value(v, value) for path, v in settings.items() if path == name or path.endswith("." + name))


def same_value(actual: Any, written: str) -> bool:
    """Whether a setting has the value a person wrote: `6e-4` is 0.0006, `off` is None or False."""
    if actual is None or actual is False:
        return written in _OFF
    if actual is True:
        return written in _ON
    if isinstance(actual, int | float):
        try:
            return float(written) == float(actual)
        except ValueError:
            return False
    return str(actual).lower() == written


def unknown_setting(query: str) -> str | None:
    """What is wrong with a query's `name=value` when there is no such setting; None when they all exist."""
    known = {part for path in known_paths(RunConfig) for part in (path, path.rpartition(".")[2])}
    for word in query.lower().split():
        name, eq, _ = word.partition("=")
        if eq and name not in known:
            guess = nearest(name, RunConfig)
            return f"{name} is not a setting" + (f"; did you mean {guess}?" if guess else "")
    return None


def choose(found: Sequence[Entry], which: str, query: str, configs: Mapping[str, RunConfig | None]) -> list[Entry]:
    """The entries that the filter and the query leave; `configs` by run id."""
    kept = [e for e in found if (which != "best" or e.best) and (which != "whole" or e.info.complete)]
    return [e for e in kept if matches(e, query, configs.get(e.run.id))]


# ---------------------------------------------------------------- verification
@dataclass(frozen=True)
class Verdict:
    """What comparing every byte with the manifest gave, and for which state of the manifest that holds."""

    stamp: engines.Stamp | None
    problem: str | None


def check(entry: Entry) -> Verdict:
    """Hash every file of a checkpoint (this reads it whole)."""
    try:
        changed = engines.stamp(entry.info.path)
        verify(entry.info.path)
    except CheckpointError as e:
        return Verdict(None, told(e, entry))
    except OSError as e:
        return Verdict(None, f"cannot be read: {e.strerror or e}")
    return Verdict(changed, None)


def told(error: Exception, entry: Entry) -> str:
    """An error about a checkpoint, by the name people know instead of its path."""
    return str(error).replace(f"{entry.info.path}: ", "").replace(str(entry.info.path), entry.label)


def state_word(entry: Entry, verdict: Verdict | None) -> str:
    """`whole` by names and sizes, `verified` by hashes, else what is damaged."""
    problem = entry.info.problem or (verdict.problem if verdict else None)
    if problem:
        return f"damaged: {problem}"
    if verdict is None:
        return "whole"
    try:
        return "verified" if verdict.stamp == engines.stamp(entry.info.path) else "whole"
    except CheckpointError:
        return "damaged: it was deleted"


# ---------------------------------------------------------------- the table
_FORMATS: dict[str, Any] = {
    "step": fmt.number,
    "val": fmt.loss,
    "bpb": fmt.loss,
    "ppl": fmt.perplexity,
    "params": fmt.si,
    "size": fmt.size,
}


def frame(shown: Sequence[Entry], verdicts: Mapping[str, Verdict]) -> pd.DataFrame:
    """One row a checkpoint; numbers stay numbers, so that the table sorts by value."""
    rows = [
        {
            "run": e.run.id,
            "step": e.step,
            "val": e.figure("loss_val"),
            "bpb": e.figure("bpb_val"),
            "ppl": e.figure("ppl_val"),
            "curve": [v for v in e.series("recent_losses") if math.isfinite(v)][-_SPARK_POINTS:],
            "params": e.figure("params"),
            "size": e.info.bytes or None,
            "saved": e.info.saved_at or None,
            "tags": e.tags,
            "state": state_word(e, verdicts.get(e.ref)),
        }
        for e in shown
    ]
    table = pd.DataFrame(rows)
    numbers = ["step", "val", "bpb", "ppl", "params", "size", "saved"]
    table[numbers] = table[numbers].astype(float)
    return table


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "run": column.TextColumn("Run", width=180),
        "step": column.NumberColumn("Step", width=70),
        "val": column.NumberColumn("Val loss", width=85),
        "bpb": column.NumberColumn("Bits/byte", width=85),
        "ppl": column.NumberColumn("Perplexity", width=95),
        "curve": column.LineChartColumn("Loss", width=130, color="gray"),
        "params": column.NumberColumn("Parameters", width=100),
        "size": column.NumberColumn("Size", width=85),
        "saved": column.NumberColumn("Saved", width=90, alignment="left"),
        "tags": column.MultiselectColumn("Tags", options=["best", "demo"], color=["blue", "gray"], width=80),
        "state": column.TextColumn("State", width="medium"),
    }


def pick(shown: Sequence[Entry], verdicts: Mapping[str, Verdict], palette: Palette, now: float) -> list[Entry]:
    """Draw the table and return the picked entries, at most `MAX_PICKED`; at first the newest that are whole.

    Rows are picked by position, so a table of other rows is another widget; what was picked before is picked again.
    """
    name = hashlib.sha256("\n".join(e.ref for e in shown).encode()).hexdigest()[:12]
    if st.session_state.get("ck_rows_of") != name:
        st.session_state["ck_rows_of"] = name
        st.session_state["ck_rows"] = _first_rows(shown, st.session_state.get("ck_picked", []))
    styled = (
        frame(shown, verdicts)
        .style.format({**_FORMATS, "saved": partial(fmt.ago, now=now)})
        .map(lambda word: f"color: {palette['bad' if word.startswith('damaged') else 'ink2']}", subset=["state"])
        .map(lambda _: f"color: {palette['ink2']}", subset=["saved"])
    )
    event = st.dataframe(
        styled, hide_index=True, width="stretch", height=_height(len(shown)), row_height=32, key=f"ck_table_{name}",
        on_select="rerun", selection_mode="multi-row", column_config=_columns(), placeholder=fmt.MISSING,
        selection_default={"selection": {"rows": st.session_state["ck_rows"]}},
    )  # fmt: skip
    rows = [row for row in event["selection"]["rows"] if row < len(shown)]
    st.session_state["ck_picked"] = [shown[row].ref for row in rows]
    return [shown[row] for row in rows]


def _first_rows(shown: Sequence[Entry], picked: Sequence[str]) -> list[int]:
    kept = [row for row, entry in enumerate(shown) if entry.ref in picked]
    fresh = [row for row, entry in enumerate(shown) if entry.info.complete]
    return (kept or fresh)[:MAX_PICKED]


def _height(rows: int) -> int | Literal["auto"]:
    """All of a short list, and ten and a half rows of a long one, so that it is seen to go on."""
    return "auto" if rows <= 10 else 36 + int(10.5 * 32)
