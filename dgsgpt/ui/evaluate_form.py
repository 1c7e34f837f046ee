"""The upper part of the Evaluate page: the checkpoint, the text and the windows, what that costs, and the button."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.data.uploads import save_upload
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.ui import atoms
from dgsgpt.ui import evaluate_run as running
from dgsgpt.ui.atoms import markup
from dgsgpt.ui.checkpoint_list import Entry, by_ref, told
from dgsgpt.ui.corpus_view import MAX_UPLOAD_MB
from dgsgpt.ui.evaluate_run import PASTED, STOPPED, UPLOAD, Asked, Done
from dgsgpt.ui.paired_run import MAX_PASTED, TOKENS

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from dgsgpt.config import RunConfig

WHOLE = 0  # among the numbers of tokens: all of the text
EXACT = 0  # among the parts of the context: a stride of one token
PARTS = (1, 2, 4, 8, EXACT)
# Rotary and other positions without a last one can be read beyond the trained context, at a price in memory.
_BEYOND = 8
_STAY: dict[str, Any] = {"persist_state": "session"}


# ---------------------------------------------------------------- which checkpoint
def title(found: Sequence[Entry]) -> Entry:
    """The page's name and the picker, in step with the address; `found` must not be empty."""
    entries = {entry.ref: entry for entry in found}
    unknown = restore(found, st.query_params.get("checkpoint"))
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="ev_title"):
        atoms.title_row("Evaluate", "how well a checkpoint predicts a text", width="content")
        st.space("stretch")
        st.selectbox(
            "Checkpoint", list(entries), key="ev_checkpoint", on_change=_to_address, width=290,
            label_visibility="collapsed", format_func=lambda ref: entries[ref].label, **_STAY,
        )  # fmt: skip
    if unknown:
        atoms.note(markup("There is no whole checkpoint {}; this is another.", unknown[:80]), role="warn")
    else:
        _to_address()
    return entries[st.session_state["ev_checkpoint"]]


def _to_address() -> None:
    ref = st.session_state["ev_checkpoint"]
    if st.query_params.get_all("checkpoint") != [ref]:
        st.query_params["checkpoint"] = ref


def restore(found: Sequence[Entry], named: str | None) -> str | None:
    """Pick what the address names, else keep the picked, else take the newest; returns a name that is not there."""
    kept = st.session_state
    wanted = by_ref(found, named) if named else None
    if wanted:
        kept["ev_checkpoint"] = wanted.ref
    if kept.get("ev_checkpoint") not in [entry.ref for entry in found]:
        kept["ev_checkpoint"] = found[0].ref
    return named if named and wanted is None else None


# ---------------------------------------------------------------- what is asked
def choose(entry: Entry, config: RunConfig | None) -> Asked:
    """The fields: text, context, stride, how much of it."""
    kept = st.session_state
    texts = {text.name: text for text in running.texts(entry, config)}
    if kept.get("ev_text") not in texts:
        kept["ev_text"] = next(iter(texts))
    trained = config.model.block_size if config else 1
    if kept.get("ev_context_of") != (entry.ref, trained):  # another checkpoint has another context
        kept["ev_context_of"], kept["ev_context"] = (entry.ref, trained), trained
    learned = config is not None and config.model.rope is None and config.model.positions == "learned"
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        name = st.selectbox("Text", list(texts), key="ev_text", format_func=lambda n: texts[n].label, width="stretch",
                            **_STAY)  # fmt: skip
        context = st.number_input(
            "Context", 1, trained if learned else trained * _BEYOND, key="ev_context", width=130,
            help=f"Tokens in a window; trained on {fmt.number(trained)}.", **_STAY,
        )  # fmt: skip
        part = st.selectbox(
            "Stride", PARTS, key="ev_part", width=170, format_func=lambda p: _stride_label(p, int(context or 1)),
            help="A window begins every so many tokens. A shorter stride gives each token more text before it, which "
            "is nearer to what the model can do, at context / stride times the work.", **_STAY,
        )  # fmt: skip
        most = st.selectbox(
            "At most", (WHOLE, *TOKENS), key="ev_most", width=140,
            format_func=lambda n: f"{fmt.si(n)} tokens" if n else "the whole text",
            help="Tokens to judge, in windows spread evenly over the text.", **_STAY,
        )  # fmt: skip
    pasted = ""
    if name == UPLOAD:
        _uploader()
    if name == PASTED:
        pasted = st.text_area(
            "Text to judge on", key="ev_pasted", height=110, max_chars=MAX_PASTED, **_STAY,
            placeholder="A text that the model has not seen, a few thousand characters or more",
        ) or ""  # fmt: skip
    window = int(context or 1)
    return Asked(texts[name], window, stride_of(int(part or EXACT), window), int(most or 0) or None, pasted)


def _uploader() -> None:
    """The field for a file; a text that was taken is picked, and judged whole."""
    st.file_uploader(
        "A UTF-8 text file, judged from beginning to end", key="ev_upload", max_upload_size=MAX_UPLOAD_MB,
        on_change=_keep_upload,
    )  # fmt: skip
    problem = st.session_state.pop("ev_upload_problem", None)
    if problem:
        atoms.field_error(problem)


def _keep_upload() -> None:
    kept = st.session_state
    file = kept.get("ev_upload")
    if file is None:
        return
    try:
        if file.size > MAX_UPLOAD_MB << 20:  # the browser's own limit can be passed by
            limit = f"{fmt.size(file.size)} is more than {MAX_UPLOAD_MB} MiB"
            raise DataError(f"{file.name}: {limit}; use the command with its path")
        kept["ev_text"] = str(save_upload(file.name, file.getvalue()))
    except DataError as error:
        kept["ev_upload_problem"] = str(error)


def stride_of(part: int, context: int) -> int:
    """The stride in tokens that is one `part`-th of the context, or 1."""
    return 1 if part == EXACT else max(1, context // part)


def _stride_label(part: int, context: int) -> str:
    remark = {1: "no overlap", EXACT: "exact"}.get(part, f"1/{part}")
    return f"{fmt.number(stride_of(part, context))} ({remark})"


# ---------------------------------------------------------------- the card
def card(entry: Entry, config: RunConfig | None, asked_for: bool) -> tuple[Callable[[], None] | None, Done | None]:
    """The form; returns the work to do when it was asked for, and what is known already."""
    with st.container(border=True, gap="xsmall", key="ev_card_form"):
        if config is None:
            atoms.para("✕ its config.yaml is missing or damaged; choose another checkpoint", role="bad")
            return None, None
        asked = choose(entry, config)
        try:
            found = running.results().get(running.key_of(entry, asked))
        except DgsgptError as error:
            atoms.para(f"✕ {told(error, entry)}", role="bad")
            return None, None
        done = found if isinstance(found, Done) else None
        go = asked_for and not done and not asked.missing
        slot = _press(entry, asked, go, done)
        work = running.work(entry, config, asked, slot) if go else None
        if not go:
            _outcome(found)
        st.code(running.shell(running.command(entry, config, asked)), "bash", wrap_lines=True)
    return work, done


def _press(entry: Entry, asked: Asked, go: bool, done: Done | None) -> DeltaGenerator:
    """Evaluate, Stop while it runs, and what it costs; returns where its progress is shown."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        why = asked.missing or ("Evaluated already: the figures are below." if done else None)
        st.button(
            "Evaluate", type="primary", icon=":material/play_arrow:", key="ev_go", on_click=running.ask,
            disabled=bool(why) or go, help=why,
        )  # fmt: skip
        # Its press needs no answer: any press ends the run at the next thing it draws.
        st.button("Stop", icon=":material/stop:", key="ev_stop", disabled=not go)
        if not asked.missing and not done:
            _cost(entry, asked)
    return st.empty()


def _cost(entry: Entry, asked: Asked) -> None:
    try:
        cost = running.cost(entry, asked)
    except DgsgptError as error:
        atoms.h(atoms.text(f"✕ {told(error, entry)}", "bad", px=13), width="content")
        return
    said = f"about {fmt.si(cost.forward)} forward tokens for {fmt.si(cost.tokens)} judged"
    if cost.seconds is not None:
        said += f", {fmt.duration(cost.seconds)} at the speed of the last evaluation"
    atoms.h(atoms.text(said, "ink3", px=13), width="content")


def _outcome(found: Done | str | None) -> None:
    if isinstance(found, Done):
        atoms.note(
            f"{found.text}: evaluated in {fmt.duration(found.seconds)}" + (f", {found.kept}" if found.kept else "")
        )
        if found.warning:
            atoms.note(f"▲ {found.warning}", role="warn")
    elif found == STOPPED:
        atoms.note(STOPPED, role="warn")
    elif found:
        atoms.para(f"✕ {found}", role="bad")


__all__ = ["card", "choose", "restore", "stride_of", "title"]
