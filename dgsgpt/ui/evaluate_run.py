"""Judging a checkpoint from the Evaluate page: which text and windows, what that costs, the run with its Stop.

Results live in the session by the checkpoint's stamp and what was asked, so that drawing again costs nothing; they are
also kept with the checkpoint, as `dgsgpt eval` does. torch is imported by the first evaluation, not before.
"""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from dgsgpt.config import DataConfig
from dgsgpt.data.corpora import list_corpora, read_text
from dgsgpt.data.dataset import Dataset, list_datasets
from dgsgpt.data.prepare import list_uploads
from dgsgpt.data.text import read_file, split_text
from dgsgpt.errors import DgsgptError, RunError
from dgsgpt.ui import engines
from dgsgpt.ui.checkpoint_list import Entry, told
from dgsgpt.ui.corpus_view import name_of
from dgsgpt.ui.paired_run import PASTED, STOPPED, Progress

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from dgsgpt.checkpoint import Checkpoint
    from dgsgpt.config import RunConfig
    from dgsgpt.data.tokenizer import Tokenizer
    from dgsgpt.evaluation.report import Report

UPLOAD = "(upload)"  # among the texts: one that is still to come
# Enough characters to tell how many bytes a token has; counting all of a long text takes a while.
_COUNTED, _COUNTED_TOKENS = 20_000, 8_000
_REMEMBERED = 8


# ---------------------------------------------------------------- what is asked
@dataclass(frozen=True)
class Text:
    """A text that can be chosen: the name that the command knows it by, what people read, and which part it is.

    `whole` is a file judged from beginning to end; of the others it is the validation part, the last `val_fraction`.
    """

    name: str
    label: str
    val_fraction: float
    whole: bool = False

    @property
    def said(self) -> str:
        """What it is called where results are kept."""
        if self.name == PASTED:
            return "pasted text"
        return self.name if self.whole else f"{self.name}, validation split"


def texts(entry: Entry, config: RunConfig | None) -> list[Text]:
    """The texts that can be chosen: the checkpoint's own first, then embedded, prepared and uploaded ones, pasted."""
    data = config.data if config else DataConfig()
    own = data.corpus if config and entry.imported is None else ""
    share = data.val_fraction
    found = [Text(own, f"Validation text of {name_of(own)}, its own", share)] if own else []
    found += [Text(c.name, f"Validation text of {c.name}", share) for c in list_corpora() if c.name != own]
    known = {text.name for text in found}
    for dataset in list_datasets():
        part = float(dataset.meta["val_fraction"])
        if dataset.corpus not in known or part != share:  # else it is one of the texts above
            found.append(Text(dataset.id, f"Validation text of {dataset.id}, prepared", part))
    found += [Text(str(p), f"{p.name}, uploaded", share, True) for p in list_uploads() if str(p) != own]
    return [*found, Text(UPLOAD, "Upload a file…", share, True), Text(PASTED, "Pasted text", share, True)]


@dataclass(frozen=True)
class Asked:
    """What a checkpoint is to be judged on and how; `context`, `stride` and `max_tokens` in tokens."""

    text: Text
    context: int
    stride: int
    max_tokens: int | None = None
    pasted: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What tells one evaluation of a checkpoint from another."""
        return self.text, self.context, self.stride, self.max_tokens, hashlib.sha256(self.pasted.encode()).hexdigest()

    @property
    def missing(self) -> str:
        """What is to be done before there is a text; empty when there is one."""
        if self.text.name == UPLOAD:
            return "Upload a file first."
        return "Paste a text first." if self.text.name == PASTED and not self.pasted.strip() else ""

    def read(self) -> str:
        """The text itself.

        Raises:
            DataError: it is not there any more, or cannot be read.
        """
        from dgsgpt.evaluation import validation_text

        if self.text.name == PASTED:
            return self.pasted
        return read_file(self.text.name) if self.text.whole else validation_text(self.text.name, self.text.val_fraction)


def command(entry: Entry, config: RunConfig | None, asked: Asked) -> list[str]:
    """The words of the command that gives the same figures."""
    own = entry.imported is None and config is not None and asked.text.name == config.data.corpus
    words = ["dgsgpt", "eval", entry.ref]
    if asked.text.whole:
        words += ["--text", "FILE" if asked.text.name in (PASTED, UPLOAD) else asked.text.name]
    elif not own:
        words += ["--corpus", asked.text.name]
    if config is None or asked.context != config.model.block_size:
        words += ["--context", str(asked.context)]
    if asked.stride != asked.context:
        words += ["--stride", str(asked.stride)]
    return words if asked.max_tokens is None else [*words, "--max-tokens", str(asked.max_tokens)]


# ---------------------------------------------------------------- what it costs
@dataclass(frozen=True)
class Cost:
    """About how many tokens are judged, how many the model reads for that, and seconds where its speed is known."""

    tokens: int
    forward: int
    seconds: float | None


def cost(entry: Entry, asked: Asked) -> Cost:
    """What an evaluation will take, from a part of the text and without the model.

    Raises:
        DgsgptError: the text or the tokenizer cannot be used.
    """
    path = entry.info.path
    if asked.text.name == PASTED:
        tokens = _scaled(engines.tokenizer(path), asked.pasted, len(asked.pasted.encode()))
    else:
        tokens = _tokens(asked.text, path, engines.stamp(path, "tokenizer.json"))
    judged = max(0, tokens - 1 if asked.max_tokens is None else min(tokens - 1, asked.max_tokens))
    speed = _speeds().get(_speed_key(entry, asked))
    forward = about_forward(judged, asked.context, asked.stride)
    return Cost(judged, forward, forward / speed if speed else None)


def about_forward(tokens: int, context: int, stride: int) -> int:
    """Tokens read to judge `tokens` of them: a whole context for each `stride` after the first window."""
    return round(min(tokens, context) + max(0, tokens - context) * context / stride)


@st.cache_data(max_entries=32, show_spinner=False)
def _tokens(text: Text, path: Path, changed: engines.Stamp) -> int:
    """About how many tokens a text has for the tokenizer of the checkpoint at `path`."""
    tokenizer = engines.tokenizer(path)
    for dataset in list_datasets():
        if dataset.id == text.name:
            return _tokens_of(dataset, tokenizer)
    content = read_file(text.name) if text.whole else split_text(read_text(text.name), text.val_fraction)[1]
    return _scaled(tokenizer, content, len(content.encode()))


def _tokens_of(dataset: Dataset, tokenizer: Tokenizer) -> int:
    if dataset.meta["tokenizer_sha256"] == tokenizer.sha256:
        return dataset.val_tokens
    begin = dataset.tokenizer.decode(dataset.tokens("val")[:_COUNTED_TOKENS].tolist())
    return _scaled(tokenizer, begin, dataset.val_bytes)


def _scaled(tokenizer: Tokenizer, content: str, size: int) -> int:
    """The tokens of `size` bytes, as many a byte as the beginning of `content` has."""
    begin = content[:_COUNTED]
    return round(len(tokenizer.encode(begin)) * size / len(begin.encode())) if begin else 0


@st.cache_resource(show_spinner=False)
def _speeds() -> dict[object, float]:
    """Tokens read a second, as last measured of a checkpoint at a context, by any session."""
    return {}


def _speed_key(entry: Entry, asked: Asked) -> object:
    return entry.info.path, engines.stamp(entry.info.path), asked.context


# ---------------------------------------------------------------- the run
@dataclass(frozen=True)
class Done:
    """A finished evaluation: what it found, how long it took, and whether it was kept (else why not)."""

    report: Report
    text: str
    seconds: float
    kept: str
    warning: str = ""


def ask() -> None:
    """Begin at the next drawing."""
    st.session_state["ev_asked"] = True


def results() -> dict[object, Done | str]:
    """What this session evaluated, by checkpoint and what was asked; a text is what went wrong."""
    found: dict[object, Done | str] = st.session_state.setdefault("ev_results", {})
    return found


def key_of(entry: Entry, asked: Asked) -> object:
    """What a result is remembered by.

    Raises:
        CheckpointError: the checkpoint is gone.
    """
    return entry.ref, engines.stamp(entry.info.path), asked.key


def measure(entry: Entry, config: RunConfig | None, asked: Asked, progress: Progress) -> Done:
    """Judge the checkpoint, and keep the result with it.

    Raises:
        DgsgptError: the text or the checkpoint cannot be used.
    """
    import torch

    from dgsgpt.evaluation.report import evaluate_fully, training_frequencies

    progress.say("opening the checkpoint…")
    with engines.opened(entry.info.path) as engine, engine.turn(lambda: progress.say("waiting for another user…")):
        opened = engine.checkpoint
        progress.say("reading the text…")
        content = asked.read()
        frequencies = training_frequencies(opened.metadata, opened.tokenizer)
        begun = time.monotonic()
        try:
            report = evaluate_fully(
                opened.model, opened.tokenizer, content, context=asked.context, stride=asked.stride,
                max_tokens=asked.max_tokens, frequencies=frequencies,
                document_separator=opened.config.data.document_separator, on_batch=progress.tell,
            )  # fmt: skip
        except (MemoryError, torch.OutOfMemoryError) as e:
            raise DgsgptError("not enough memory; take a shorter context or fewer tokens, or stop a run") from e
        seconds = time.monotonic() - begun
        _speeds()[_speed_key(entry, asked)] = report.forward_tokens / max(seconds, 1e-6)
        return _keep(opened, report, asked, seconds, command(entry, config, asked))


def _keep(opened: Checkpoint, report: Report, asked: Asked, seconds: float, words: Sequence[str]) -> Done:
    """Keep a result; one that cannot be kept is still shown."""
    from dgsgpt.evaluation import kept

    try:
        path = kept.keep(
            opened.path, report, text_name=asked.text.said, tokenizer_sha256=opened.tokenizer.sha256, command=words,
            document_separator=opened.config.data.document_separator,
        )  # fmt: skip
    except RunError as error:
        return Done(report, asked.text.said, seconds, "", str(error))
    return Done(report, asked.text.said, seconds, f"kept with its run, in {kept.FILE}" if path else "not kept")


def work(entry: Entry, config: RunConfig | None, asked: Asked, slot: DeltaGenerator) -> Callable[[], None]:
    """What evaluates and then draws the page again; a press of Stop ends it and keeps nothing."""
    key = key_of(entry, asked)
    results()[key] = STOPPED  # what stands there if a press of Stop ends the run

    def run() -> None:
        found = results()
        try:
            made: Done | str = measure(entry, config, asked, Progress(slot))
        except DgsgptError as error:
            made = told(error, entry)
        found[key] = made
        while len(found) > _REMEMBERED:
            del found[next(iter(found))]
        st.rerun()

    return run


def shell(words: Sequence[str]) -> str:
    """A command as it is typed."""
    return shlex.join(words)


__all__ = [
    "PASTED", "STOPPED", "UPLOAD", "Asked", "Cost", "Done", "Text", "about_forward", "ask", "command", "cost", "key_of",
    "measure", "results", "shell", "texts", "work",
]  # fmt: skip
