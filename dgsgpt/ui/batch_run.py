"""Writing to many prompts from the playground: what is asked, the run with its Stop, and what is kept of it.

Texts are in the session as soon as they are done, so that Stop and errors keep them. torch is imported by the first
run, not before.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dgsgpt import format as fmt
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.generation.prompts import parse_prompts, to_record
from dgsgpt.ui import engines
from dgsgpt.ui.checkpoint_list import Entry, told

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from dgsgpt.checkpoint import Checkpoint
    from dgsgpt.generation import Result

MAX_PROMPTS, MAX_TEXTS, MAX_SAMPLES, MAX_BATCH = 1_000, 2_000, 100, 256
_FRAME_S, _TABLE_S = 0.1, 1.5
ENDS = {"length": "at the limit", "end_of_text": "the model ended it", "stop": "the stop text came"}

Prompts = list[tuple[int, str]]  # each with the number of its line
Record = dict[str, Any]


# ---------------------------------------------------------------- what is asked
def read(data: bytes, name: str, samples: int) -> Prompts:
    """The prompts in a file, as many as the page takes.

    Raises:
        DataError: they cannot be read, or are too many for the page.
    """
    found = parse_prompts(data, name)
    if len(found) > MAX_PROMPTS:
        raise DataError(
            f"{name}: has {len(found):,} prompts; this page takes at most {MAX_PROMPTS:,}, and the command below any "
            "number"
        )
    if len(found) * samples > MAX_TEXTS:
        raise DataError(
            f"{len(found):,} prompts with {samples:,} samples each are {len(found) * samples:,} texts; this page "
            f"writes at most {MAX_TEXTS:,}, and the command below any number"
        )
    return found


def command(entry: Entry, file: str, samples: int, batch_size: int, rules: dict[str, Any]) -> str:
    """The command that writes the same texts."""
    words = ["dgsgpt", "sample", entry.ref, "--prompts", file, "--out", "texts.jsonl"]
    words += ["--samples", str(samples), "--batch-size", str(batch_size)]
    for name, value in rules.items():
        if (name, value) == ("repetition_penalty", 1.0):  # changes nothing
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None:
                words += [f"--{name.replace('_', '-')}", f"{one:g}" if isinstance(one, float) else str(one)]
    return shlex.join(words)


# ---------------------------------------------------------------- the run
@dataclass
class Job:
    """Texts that are asked for, and those written so far by their row."""

    ref: str
    prompts: Prompts
    samples: int
    batch_size: int
    rules: dict[str, Any]
    records: dict[int, Record] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False
    problem: str | None = None

    @property
    def texts(self) -> int:
        """How many are asked for."""
        return len(self.prompts) * self.samples

    def in_order(self) -> list[Record]:
        """What was written, in the order of prompts and samples."""
        return [self.records[row] for row in sorted(self.records)]


def run(job: Job, entry: Entry, slot: DeltaGenerator, table: Callable[[], None]) -> None:
    """Write the texts of a job into it; a press of Stop ends it and keeps those that are done."""
    try:
        with engines.opened(entry.info.path) as engine, engine.turn(lambda: _say(slot, "waiting for another user…")):
            opened = engine.checkpoint
            _check(job, opened)
            _write(job, opened, slot, table)
        job.done = True
    except DgsgptError as error:
        job.problem = told(error, entry)


def _say(slot: DeltaGenerator, what: str) -> None:
    slot.progress(0.0, text=what)


def _check(job: Job, opened: Checkpoint) -> None:
    """Refuse a prompt that cannot be used, by its line."""
    from dgsgpt.generation import prepare_prompt

    for line, prompt in job.prompts:
        try:
            prepare_prompt(opened.tokenizer, prompt, opened.config.model.block_size)
        except DgsgptError as error:
            raise type(error)(f"line {line:,}: {error}") from None


def _write(job: Job, opened: Checkpoint, slot: DeltaGenerator, table: Callable[[], None]) -> None:
    import torch

    from dgsgpt.generation import write_batch

    begun, drawn = time.monotonic(), [0.0, time.monotonic()]

    def report(share: float, tokens: int) -> None:
        now = time.monotonic()
        job.tokens, job.seconds = tokens, now - begun
        if now - drawn[0] >= _FRAME_S or share >= 1:
            drawn[0] = now
            slot.progress(min(1.0, share), text=progress_text(job, share))

    prompts = [prompt for _, prompt in job.prompts]
    texts = write_batch(
        opened.model, opened.tokenizer, prompts, samples=job.samples, batch_size=job.batch_size, on_progress=report,
        **job.rules,
    )  # fmt: skip
    try:
        with closing(texts):  # type: ignore[type-var]
            for result in texts:
                _keep(job, result)
                if time.monotonic() - drawn[1] >= _TABLE_S:
                    table()
                    drawn[1] = time.monotonic()
    except (MemoryError, torch.OutOfMemoryError) as e:
        raise DgsgptError("not enough memory; take a smaller batch or fewer new tokens, or stop a run") from e


def _keep(job: Job, result: Result) -> None:
    line, prompt = job.prompts[result.prompt]
    job.records[result.row] = {"line": line, **to_record(result, prompt)}


def progress_text(job: Job, share: float) -> str:
    """Tokens, share, finished texts, and the time left, guessed from the time so far."""
    left = f" · about {fmt.duration(job.seconds / share * (1 - share))} left" if share > 0.02 else ""
    return (
        f"{fmt.si(job.tokens)} tokens · {fmt.percent(share, 0)} · {fmt.number(len(job.records))} of "
        f"{fmt.plural(job.texts, 'text')} done{left}"
    )


# ---------------------------------------------------------------- files
def as_jsonl(records: Sequence[Record]) -> str:
    """The lines that `dgsgpt sample --prompts` writes."""
    kept = ({name: value for name, value in record.items() if name != "line"} for record in records)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)


def as_csv(records: Sequence[Record]) -> str:
    """The same as a table, with the line of each prompt."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]) if records else [])
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


__all__ = [
    "ENDS", "MAX_BATCH", "MAX_PROMPTS", "MAX_SAMPLES", "MAX_TEXTS", "Job", "Prompts", "Record", "as_csv", "as_jsonl",
    "command", "progress_text", "read", "run",
]  # fmt: skip
