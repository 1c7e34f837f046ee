"""Batch on the playground: many prompts, several texts of each, as a table and as files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.errors import DataError
from dgsgpt.ui import atoms, batch_run, sampling_panel
from dgsgpt.ui.batch_run import Job, Prompts, Record
from dgsgpt.ui.checkpoint_list import Entry

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from dgsgpt.ui.playground_view import Shown

SOURCES = ("Written here", "From a file")
MAX_FILE_MB = 5
_ROW_HEIGHT = 64  # three lines
_WRITTEN = "the prompts"  # what a text without a file is called in messages
_COLUMNS = {
    "prompt": st.column_config.TextColumn("Prompt", width=220),
    "text": st.column_config.TextColumn("Text", width=560),
    "tokens": st.column_config.NumberColumn("Tokens", width=70),
    "seed": st.column_config.NumberColumn("Seed", width=90, format="%d"),
    "ended": st.column_config.TextColumn("Ended", width=130),
}


def panel(shown: Shown) -> None:
    """The form, the run when it was asked for, and what was written last."""
    go = bool(st.session_state.pop("bt_asked", False))
    with st.container(border=True, gap="xsmall", key="bt_card_form"):
        entry = _which(shown)
        data, name = _source(shown)
        samples, batch_size = _numbers()
        rules = sampling_panel.settings()
        prompts, problem = _prompts(data, name, samples)
        slot = _press(go, prompts, samples, rules)
        if problem:
            atoms.para(f"✕ {problem}", role="bad")
        file = "FILE" if name == _WRITTEN else name
        st.code(batch_run.command(entry, file, samples, batch_size, rules), "bash", wrap_lines=True)
    with st.container(border=True, gap="xsmall", key="bt_card_texts"):
        below = st.container(gap="xsmall")
        if go and prompts:
            _run(Job(entry.ref, prompts, samples, batch_size, rules), entry, slot, below)
        with below:
            _result(entry, prompts, samples, rules)


def _which(shown: Shown) -> Entry:
    """The checkpoint that writes: of several, one is chosen."""
    if len(shown.picked) < 2:
        return shown.picked[0]
    letters = "ABCDEFGH"[: len(shown.picked)]
    letter = st.segmented_control(
        "Checkpoint", list(letters), default="A", required=True, key="bt_which", persist_state="session"
    )
    return shown.picked[letters.index(letter or "A")]


# ---------------------------------------------------------------- what is asked
def _source(shown: Shown) -> tuple[bytes | None, str]:
    """The bytes that hold the prompts, if there are any, and the name of their file."""
    kept = st.session_state
    kept.setdefault("bt_source", SOURCES[0])
    kept.setdefault("bt_prompts", shown.prompt)
    stay: dict[str, Any] = {"persist_state": "session", "label_visibility": "collapsed"}
    source = st.segmented_control("Prompts", SOURCES, key="bt_source", required=True, **stay)
    if source == SOURCES[0]:
        written = st.text_area("Prompts, one a line", key="bt_prompts", height=120, placeholder="One prompt a line",
                               **stay)  # fmt: skip
        return (written or "").encode("utf-8", "surrogatepass"), _WRITTEN
    file = st.file_uploader(
        "A .txt with one prompt a line, or a .jsonl with “prompt” in each object", type=["txt", "jsonl"],
        key="bt_file", max_upload_size=MAX_FILE_MB,
    )  # fmt: skip
    return (None, _WRITTEN) if file is None else (file.getvalue(), file.name)


def _numbers() -> tuple[int, int]:
    kept = st.session_state
    kept.setdefault("bt_samples", 1)
    kept.setdefault("bt_batch", 32)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        samples = st.number_input(
            "Samples per prompt", 1, batch_run.MAX_SAMPLES, key="bt_samples", width=160, persist_state="session",
            help="Each text has a seed of its own: that of the sidebar, then the next ones.",
        )  # fmt: skip
        batch_size = st.number_input(
            "Batch size", 1, batch_run.MAX_BATCH, key="bt_batch", width=160, persist_state="session",
            help="Texts written at once. It changes speed and memory, not the texts.",
        )  # fmt: skip
    return int(samples), int(batch_size)


def _prompts(data: bytes | None, name: str, samples: int) -> tuple[Prompts, str]:
    """The prompts, and what is wrong with them."""
    if data is None or (name == _WRITTEN and not data.strip()):
        return [], ""
    try:
        return batch_run.read(data, name, samples), ""
    except DataError as error:
        return [], str(error)


def _ask() -> None:
    st.session_state["bt_asked"] = True


def _press(go: bool, prompts: Prompts, samples: int, rules: dict[str, Any]) -> DeltaGenerator:
    """Run, Stop while it runs, and how much it is; returns where its progress is shown."""
    running = go and bool(prompts)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button(
            "Write all", type="primary", icon=":material/play_arrow:", key="bt_go", on_click=_ask,
            disabled=running or not prompts,
        )  # fmt: skip
        # Its press needs no answer: any press ends the run at the next thing it draws, and texts are in the session.
        st.button("Stop", icon=":material/stop:", key="bt_stop", disabled=not running)
        atoms.h(atoms.text(amount(prompts, samples, rules), "ink3", px=13), width="content")
    return st.empty()


def amount(prompts: Prompts, samples: int, rules: dict[str, Any]) -> str:
    """How many texts that makes, or how many there may be."""
    if not prompts:
        most = f"at most {fmt.number(batch_run.MAX_PROMPTS)} prompts and {fmt.number(batch_run.MAX_TEXTS)} texts"
        return f"One prompt a line; {most} on this page."
    texts = fmt.plural(len(prompts) * samples, "text")
    each = fmt.plural(rules["max_new_tokens"], "token")
    return f"{fmt.plural(len(prompts), 'prompt')}, {texts} of at most {each}, sampled as in the sidebar"


# ---------------------------------------------------------------- the run
def _run(job: Job, entry: Entry, slot: DeltaGenerator, below: DeltaGenerator) -> None:
    """Write, with the finished texts shown as they come, then draw the page again."""
    st.session_state["bt_job"] = job
    with below:
        atoms.head("Texts", note="finished ones appear here; Stop keeps them")
        rows = st.empty()

    def table() -> None:
        rows.dataframe(frame(job.in_order()), hide_index=True, column_config=_COLUMNS, row_height=_ROW_HEIGHT)

    slot.progress(0.0, text="opening the checkpoint…")
    batch_run.run(job, entry, slot, table)
    st.rerun()


# ---------------------------------------------------------------- the result


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """The table of texts: cells are shown as they are, never as markup."""
    rows = [{**record, "ended": batch_run.ENDS.get(record["finish_reason"], "stopped")} for record in records]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _result(entry: Entry, prompts: Prompts, samples: int, rules: dict[str, Any]) -> None:
    job = st.session_state.get("bt_job")
    if not isinstance(job, Job):
        atoms.head("Texts")
        atoms.para("Each text is the one that its prompt and seed give alone. They appear here as they are finished.")
        return
    records = job.in_order()
    took = ""
    if job.tokens:
        speed = fmt.si(job.tokens / max(job.seconds, 1e-9))
        took = f"{fmt.si(job.tokens)} tokens in {fmt.duration(job.seconds)} · {speed} tokens/s"
    atoms.head("Texts", f"{fmt.number(len(records))} of {fmt.number(job.texts)}", took)
    if job.problem:
        atoms.para(f"✕ {job.problem}", role="bad")
    elif not job.done:
        kept = "the texts that were finished are kept" if records else "no text was finished yet"
        atoms.note(f"■ Stopped before the end: {kept}.", role="warn")
    if (job.ref, job.prompts, job.samples, job.rules) != (entry.ref, prompts or job.prompts, samples, rules):
        atoms.note("These were written before, by another checkpoint, prompts or settings.", role="warn")
    if not records:
        return
    st.dataframe(frame(records), hide_index=True, column_config=_COLUMNS, row_height=_ROW_HEIGHT, key="bt_table")
    cropped = sum(record["cropped"] > 0 for record in records)
    if cropped:
        atoms.note(f"{fmt.plural(cropped, 'text')} with a prompt longer than the context: its first tokens were cut.")
    _downloads(records)


def _downloads(records: Sequence[Record]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for label, kind, data in (
            ("JSON lines", "jsonl", batch_run.as_jsonl(records)), ("CSV", "csv", batch_run.as_csv(records)),
        ):  # fmt: skip
            st.download_button(
                label, data.encode("utf-8", "replace"), f"texts.{kind}", key=f"bt_as_{kind}",
                icon=":material/download:", on_click="ignore",
            )  # fmt: skip
        atoms.h(atoms.text(f"all {fmt.plural(len(records), 'text')}", "ink3", px=13), width="content")


__all__ = ["MAX_FILE_MB", "SOURCES", "amount", "frame", "panel"]
