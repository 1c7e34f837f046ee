"""Evaluations kept with the checkpoint they are of: `runs/<id>/evaluations.jsonl`, one line each.

They compare across tokenizers in bits per byte, as long as the text is the same (by its sha256), all of it was judged,
and windows are alike. Lines are only added, each with a single write, so that processes may keep theirs at once.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dgsgpt
from dgsgpt import files
from dgsgpt.annotations import CHECKPOINT_NAME
from dgsgpt.errors import CheckpointError, RunError
from dgsgpt.manifest import MODEL, listed_files
from dgsgpt.runs import Run

if TYPE_CHECKING:
    from dgsgpt.evaluation.report import Report

FILE = "evaluations.jsonl"
FORMAT_VERSION = 1
MAX_NAME = 200
_TEXTS = ("checkpoint", "tokenizer_sha256")
_COUNTS = ("context", "stride")


@dataclass(frozen=True)
class Kept:
    """One evaluation; `record` has everything that its line says, see `keep`."""

    run: Run
    record: dict[str, Any]

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint's directory, e.g. `step_00001000`."""
        return str(self.record["checkpoint"])

    @property
    def step(self) -> int:
        """Optimizer step of the checkpoint."""
        return int(self.checkpoint.removeprefix("step_"))

    @property
    def path(self) -> Path:
        """Where the checkpoint was."""
        return self.run.path / "checkpoints" / self.checkpoint

    @property
    def time(self) -> float:
        """When it was made, in Unix seconds."""
        return float(self.record["time"])

    @property
    def text_name(self) -> str:
        """What the text was called."""
        return _printable(self.record["text"]["name"])

    @property
    def bpb(self) -> float | None:
        """Bits per byte."""
        return self.result("bpb")

    @property
    def automatic(self) -> int | None:
        """Every how many steps the trainer made such an evaluation by itself; None for one that was asked for."""
        every = self.record.get("automatic")
        return every if isinstance(every, int) else None

    def result(self, name: str) -> float | None:
        """One of the figures: loss, ppl, bpb, tokens, bytes, accuracy, calibration_error; None if there is none."""
        value = self.record["results"].get(name)
        return value if _is_number(value) else None

    @property
    def comparable(self) -> tuple[str, ...]:
        """Evaluations for which this is equal judged the same bytes, so that their bits per byte compare."""
        sha256, most = self.record["text"]["sha256"], self.record.get("max_tokens")
        return (sha256,) if most is None else (sha256, str(most), self.record["tokenizer_sha256"])

    @property
    def state(self) -> str:
        """`whole`, or that the checkpoint is `gone` or was `replaced` by one with other weights.

        Not all that a trainer evaluates is saved; that is `not saved` where it is not there.
        """
        try:
            weights = listed_files(self.path)[MODEL]["sha256"]
        except CheckpointError:
            missing = "gone" if self.automatic is None else "not saved"
            return missing if not self.path.is_dir() else "damaged"
        return "replaced" if self.record.get("weights_sha256", weights) != weights else "whole"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"run": self.run.id, "state": self.state, **self.record}


# ---------------------------------------------------------------- writing
def run_of(checkpoint: Path) -> Run | None:
    """The run that a checkpoint's directory is in; None outside of runs."""
    path = checkpoint.absolute()
    owner = path.parent.parent
    in_run = path.parent.name == "checkpoints" and CHECKPOINT_NAME.fullmatch(path.name) is not None
    return Run(owner) if in_run and (owner / "config.yaml").is_file() else None


def keep(
    checkpoint: Path,
    report: Report,
    *,
    text_name: str,
    tokenizer_sha256: str,
    document_separator: str | None = None,
    rope_scaling: str | None = None,
    command: Sequence[str] = (),
) -> Path | None:
    """Add an evaluation to those of the checkpoint's run; the file, or None for a checkpoint outside of a run.

    Raises:
        RunError: the file cannot be written.
    """
    run = run_of(checkpoint)
    if run is None:
        return None
    path = run.path / FILE
    try:
        record = {
            "format_version": FORMAT_VERSION,
            "time": time.time(),
            "checkpoint": checkpoint.absolute().name,
            "weights_sha256": listed_files(checkpoint)[MODEL]["sha256"],
            "tokenizer_sha256": tokenizer_sha256,
            "text": {"name": _printable(text_name), "sha256": report.text_sha256, "bytes": report.text_bytes},
            "context": report.context,
            "stride": report.stride,
            "max_tokens": report.max_tokens,
            "document_separator": document_separator,
            "rope_scaling": rope_scaling,
            "results": _results(report),
            "breakdown": _short(report),
            "dgsgpt_version": dgsgpt.__version__,
            "command": [_printable(word) for word in command],
        }
        _end_torn_line(path)
        files.append_line(path, record)
    except OSError as e:
        raise RunError(f"{path}: the evaluation cannot be kept: {e.strerror or e}; free space, or allow writing") from e
    return path


def _results(report: Report) -> dict[str, Any]:
    figures = {name: value for name, value in report.figures().items() if name not in _COUNTS}
    more = ("forward_tokens", "accuracy", "calibration_error")
    return {**figures, **{name: getattr(report, name) for name in more}}


def _short(report: Report) -> dict[str, Any]:
    """The breakdown without passages, which would keep parts of the text."""
    return {
        "by_position": [group.to_dict() for group in report.by_position],
        "by_frequency": [group.to_dict() for group in report.by_frequency],
        "frequency_rule": report.frequency_rule,
    }


def _printable(text: str) -> str:
    """At most `MAX_NAME` characters that a line of JSON and a terminal can bear; a path need not be UTF-8."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return shown if len(shown) <= MAX_NAME else shown[: MAX_NAME - 1] + "…"


def _end_torn_line(path: Path) -> None:
    """A line that a crash cut short must not take the next one with it; an empty line does no harm."""
    try:
        with path.open("rb") as f:
            torn = f.seek(0, os.SEEK_END) > 0 and f.seek(-1, os.SEEK_END) >= 0 and f.read(1) != b"\n"
    except FileNotFoundError:
        return
    if torn:
        with path.open("ab", buffering=0) as f:
            f.write(b"\n")


# ---------------------------------------------------------------- reading
def read(run: Run) -> tuple[list[Kept], int]:
    """What was kept of a run's checkpoints, oldest first, and how many lines are damaged and left out.

    Raises:
        RunError: the file is there and cannot be read.
    """
    path = run.path / FILE
    found: list[Kept] = []
    damaged = 0
    try:
        for line, _ in files.read_lines(path):
            if line is not None and not line.strip():
                continue
            record = _parse(line)
            if record is None:
                damaged += 1
            else:
                found.append(Kept(run, record))
    except FileNotFoundError:
        return [], 0
    except OSError as e:
        raise RunError(f"{path}: cannot be read: {e.strerror or e}; allow reading") from e
    return found, damaged


def _parse(line: bytes | None) -> dict[str, Any] | None:
    """One line's record, or None where it is not as `keep` writes it."""
    try:
        record = json.loads(line or b"", parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        return None
    text, results = record.get("text"), record.get("results")
    whole = (
        isinstance(text, dict)
        and isinstance(results, dict)
        and isinstance(text.get("name"), str)
        and isinstance(text.get("sha256"), str)
        and all(isinstance(record.get(name), str) for name in _TEXTS)
        and all(type(record.get(name)) is int for name in _COUNTS)
        and _is_number(record.get("time"))
        and CHECKPOINT_NAME.fullmatch(record["checkpoint"]) is not None
    )
    return record if whole else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold; JSON may have integers that none can."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def list_kept(
    runs: Iterable[Run], *, checkpoint: str | None = None, text_sha256: str | None = None, more: Iterable[Kept] = ()
) -> tuple[list[Kept], int]:
    """What was kept of some runs, of one checkpoint's name or one text if given, and how many lines are damaged.

    `more` are listed among them, such as those made while training (see `dgsgpt.evaluation.automatic`).
    By text, the one evaluated last first; for each text the fewest bits per byte first.

    Raises:
        RunError: a file is there and cannot be read.
    """
    found = list(more)
    damaged = 0
    for run in runs:
        some, bad = read(run)
        damaged += bad
        found += some
    found = [
        kept
        for kept in found
        if checkpoint in (None, kept.checkpoint) and text_sha256 in (None, kept.record["text"]["sha256"])
    ]
    latest: dict[tuple[str, ...], float] = {}
    for kept in found:
        latest[kept.comparable] = max(latest.get(kept.comparable, 0.0), kept.time)
    worst = math.inf
    found.sort(
        key=lambda kept: (
            -latest[kept.comparable], kept.comparable, worst if kept.bpb is None else kept.bpb, -kept.time,
        )
    )  # fmt: skip
    return found, damaged


__all__ = ["FILE", "Kept", "keep", "list_kept", "read", "run_of"]
