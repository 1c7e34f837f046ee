"""The checkpoints of all runs: what is known of each, what people said of it, and whether its bytes were verified."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.annotations import NONE, Annotation, Annotations
from dgsgpt.annotations import read as read_words
from dgsgpt.checkpoint import CheckpointInfo, best_of, describe, verify
from dgsgpt.errors import CheckpointError
from dgsgpt.runs import Run

OWN_TAGS = ("best", "demo", "imported", "int8", "int4")
_MAX_KNOWN = 20_000

Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Entry:
    """One checkpoint of the list, with its run and what people said of both."""

    info: CheckpointInfo
    run: Run
    best: bool = False
    said: Annotation = NONE
    run_said: Annotation = NONE
    stamp: Stamp = ()

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
    def title(self) -> str:
        """The name people gave it or its run, else the run's id."""
        return self.said.name or self.run_said.name or self.run.id

    @property
    def star(self) -> bool:
        """Whether people marked it."""
        return self.said.star

    @property
    def imported(self) -> Mapping[str, Any] | None:
        """What is known of its import; None when it was trained here."""
        told = self.info.metadata.get("imported") or self.run.facts.get("imported")
        return told if isinstance(told, dict) else None

    @property
    def quantized(self) -> str | None:
        """`int8` or `int4` where its weights were rounded: it can be used, not trained."""
        kind = self.info.metadata.get("quantized")
        return kind if isinstance(kind, str) else None

    @property
    def tags(self) -> list[str]:
        """Short remarks: best of its run, of the demo, imported, quantized, then people's own."""
        given = dict.fromkeys((*self.said.tags, *self.run_said.tags))
        rounded = (self.quantized == "int8", self.quantized == "int4")
        known = (self.best, self.run.is_demo, self.imported is not None, *rounded)
        own = [tag for tag, on in zip(OWN_TAGS, known, strict=True) if on]
        return own + [tag for tag in given if tag not in own]

    @property
    def words(self) -> list[str]:
        """What a search looks through."""
        said = (self.said, self.run_said)
        return [self.run.id, *self.tags, *(s.name for s in said if s.name), *(s.note for s in said if s.note)]

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


# ---------------------------------------------------------------- listing
def stamp_of(path: Path) -> Stamp:
    """Names, sizes and modification times in nanoseconds of a checkpoint's files; empty when it is gone."""
    found: list[tuple[str, int, int]] = []
    with contextlib.suppress(OSError), os.scandir(path) as files:
        for file in files:
            with contextlib.suppress(OSError):  # a file that vanishes meanwhile is one that is missing
                stat = file.stat()
                found.append((file.name, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found))


@st.cache_resource(show_spinner=False)
def _known() -> dict[Path, tuple[Stamp, CheckpointInfo]]:
    return {}


def _describe(path: Path) -> tuple[Stamp, CheckpointInfo]:
    """What a checkpoint says of itself, read again only when one of its files is another."""
    known, stamp = _known(), stamp_of(path)
    if path not in known or known[path][0] != stamp:
        if len(known) >= _MAX_KNOWN:
            known.clear()
        known[path] = stamp, describe(path)
    return known[path]


def entries(runs: Iterable[Run]) -> list[Entry]:
    """The checkpoints of all runs, the newest first; damaged ones are listed too."""
    found: list[Entry] = []
    for run in runs:
        described = [_describe(path) for path in run.checkpoints()]
        best = best_of(info for _, info in described)
        said = read_words(run) if described else Annotations()
        for stamp, info in described:
            is_best = best is not None and info.path == best.path
            found.append(Entry(info, run, is_best, said.of(info.path.name), said.run, stamp))
    return sorted(found, key=lambda e: (e.info.saved_at, e.step), reverse=True)


def whole(found: Sequence[Entry]) -> list[Entry]:
    """Those that can be opened, as far as names and sizes tell."""
    return [entry for entry in found if entry.info.complete]


def by_ref(found: Sequence[Entry], ref: str | None) -> Entry | None:
    """The entry named `RUN@STEP`, or the newest of `RUN`; None when there is none."""
    return next((e for e in found if ref in (e.ref, e.run.id)), None)


def earlier_whole(found: Sequence[Entry], entry: Entry, verdicts: Mapping[Path, Verdict]) -> Entry | None:
    """The checkpoint to open instead of a damaged one: of the same run, the last before it, else the first after it."""
    sound = [e for e in found if e.run == entry.run and e.step != entry.step and not problem_of(e, verdicts)]
    before = [e for e in sound if e.step < entry.step]
    return max(before, key=lambda e: e.step) if before else min(sound, key=lambda e: e.step, default=None)


# ---------------------------------------------------------------- verification
@dataclass(frozen=True)
class Verdict:
    """What comparing every byte with the manifest gave, and for which state of the files that holds."""

    stamp: Stamp
    problem: str | None


@st.cache_resource(show_spinner=False)
def verdicts() -> dict[Path, Verdict]:
    """What was verified since the server started, by the checkpoint's directory."""
    return {}


def check(entry: Entry) -> Verdict:
    """Hash every file of a checkpoint (this reads it whole)."""
    stamp = stamp_of(entry.info.path)
    try:
        verify(entry.info.path)
    except CheckpointError as e:
        return Verdict(stamp, told(e, entry))
    except OSError as e:
        return Verdict(stamp, f"cannot be read: {e.strerror or e}")
    return Verdict(stamp, None)


def told(error: Exception, entry: Entry) -> str:
    """An error about a checkpoint, by the name people know instead of its path."""
    return str(error).replace(f"{entry.info.path}: ", "").replace(str(entry.info.path), entry.label)


def verdict_of(entry: Entry, known: Mapping[Path, Verdict]) -> Verdict | None:
    """The verdict on an entry, if its files are still those that were read."""
    verdict = known.get(entry.info.path)
    return verdict if verdict and verdict.stamp == entry.stamp else None


def problem_of(entry: Entry, known: Mapping[Path, Verdict]) -> str | None:
    """What is damaged, by names and sizes or by hashes; None when nothing is known of."""
    verdict = verdict_of(entry, known)
    return entry.info.problem or (verdict.problem if verdict else None)


def state_word(entry: Entry, known: Mapping[Path, Verdict]) -> str:
    """`damaged`; `verified` by hashes; else `imported` or `whole`, by names and sizes."""
    if problem_of(entry, known):
        return "damaged"
    return "verified" if verdict_of(entry, known) else "imported" if entry.imported is not None else "whole"
