"""What people say of runs and checkpoints: a star, tags, a note, a name to show; of runs also that they are archived.

It is kept in `runs/<id>/annotations.json`, beside the checkpoints and not in them: these stay as they were saved.
Writers take a lock, so that two tabs lose nothing of each other. Without torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dgsgpt import files
from dgsgpt.errors import RunError
from dgsgpt.runs import Run

FILE, LOCK = "annotations.json", ".annotations.lock"
FORMAT_VERSION = 1
MAX_NAME, MAX_NOTE, MAX_TAG, MAX_TAGS = 80, 10_000, 32, 20
CHECKPOINT_NAME = re.compile(r"step_[0-9]{1,20}")
LOCK_TIMEOUT_S = 10.0
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, halves of characters, line and paragraph ends
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # make a text look like another one


@dataclass(frozen=True)
class Annotation:
    """What is said of one run or checkpoint. A starred checkpoint is never discarded by `train.keep_last`.

    An archived run is kept whole, and left out of lists until it is asked for.
    """

    star: bool = False
    tags: tuple[str, ...] = ()
    note: str = ""
    name: str = ""
    archived: bool = False

    def __bool__(self) -> bool:
        return self != NONE

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file and in `--json`."""
        told = {"star": self.star, "tags": list(self.tags), "note": self.note, "name": self.name}
        return {**told, "archived": True} if self.archived else told


NONE = Annotation()


@dataclass(frozen=True)
class Annotations:
    """All that is said of a run and its checkpoints, by directory name; `problem` tells what could not be read."""

    run: Annotation = NONE
    checkpoints: Mapping[str, Annotation] = field(default_factory=dict)
    problem: str | None = None

    def of(self, checkpoint_name: str | None) -> Annotation:
        """What is said of a checkpoint, or of the run itself (None)."""
        return self.run if checkpoint_name is None else self.checkpoints.get(checkpoint_name, NONE)

    @property
    def starred(self) -> list[str]:
        """Names of the checkpoints that have a star."""
        return [name for name, said in self.checkpoints.items() if said.star]


# ---------------------------------------------------------------- reading
def read(run: Run) -> Annotations:
    """What is said of `run`. A damaged file reads as nothing said, with a `problem` that names it."""
    path = run.path / FILE
    if not path.exists():
        return Annotations()
    raw = files.read_json(path)
    if raw is None:
        return Annotations(problem=f"{path}: is damaged; mend it, or remove it and lose stars, tags and notes")
    if raw.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        return Annotations(
            problem=f"{path}: format version {raw.get('format_version')!r} is not {FORMAT_VERSION}; use a matching "
            "dgsgpt"
        )
    try:
        listed = _mapping(raw.get("checkpoints", {}), "checkpoints")
        return Annotations(
            run=from_dict(raw.get("run", {}), "run"),
            checkpoints={name: from_dict(said, f"checkpoints.{name}") for name, said in listed.items()},
        )
    except RunError as e:
        return Annotations(problem=f"{path}: {e}; mend it there")


def of_checkpoints(paths: Iterable[Path]) -> dict[Path, Annotation]:
    """What is said of each checkpoint directory; the file of a run is read once."""
    by_run: dict[Path, Annotations] = {}
    found: dict[Path, Annotation] = {}
    for path in paths:
        folder = path.absolute().parent.parent
        if folder not in by_run:
            by_run[folder] = read(Run(folder))
        found[path] = by_run[folder].of(path.name)
    return found


def from_dict(value: Any, where: str) -> Annotation:
    """An annotation of plain values.

    Raises:
        RunError: names what is not as this module writes it.
    """
    raw = _mapping(value, where)
    star, tags, note, name = (raw.get(key, default) for key, default in NONE.to_dict().items())
    archived = raw.get("archived", False)
    for key, value in (("star", star), ("archived", archived)):
        if not isinstance(value, bool):
            raise RunError(f"{where}.{key}={value!r} must be true or false")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in [*tags, note, name]):
        raise RunError(f"{where} must have a list of texts as tags, and texts as note and name")
    return Annotation(star, _joined((), tags, ()), check_note(note), check_name(name), archived)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RunError(f"{where} must be a mapping, not {type(value).__name__}")
    return value


# ---------------------------------------------------------------- rules
def check_name(text: str) -> str:
    """A name to show, trimmed; empty for none.

    Raises:
        RunError: it is too long, or not one line of printable characters.
    """
    return _one_line(text, "name", MAX_NAME)


def check_tag(text: str) -> str:
    """A tag, trimmed and otherwise as written.

    Raises:
        RunError: it is empty, too long, or not one line of printable characters.
    """
    tag = _one_line(text, "tag", MAX_TAG)
    if not tag:
        raise RunError(f"tag {text!r} is empty; write 1 to {MAX_TAG} characters")
    return tag


def check_note(text: str) -> str:
    """A note, which may have lines.

    Raises:
        RunError: it is too long, or has control characters other than tab and line end.
    """
    text = text.replace("\r\n", "\n").strip()
    if len(text) > MAX_NOTE:
        raise RunError(f"note has {len(text):,} characters, {MAX_NOTE:,} are allowed; shorten it")
    _check_characters(text.replace("\n", "").replace("\t", ""), "note")
    return text


def _one_line(text: str, what: str, limit: int) -> str:
    text = text.strip()
    if len(text) > limit:
        raise RunError(f"{what} {text[:limit]!r}… has {len(text):,} characters, {limit} are allowed; shorten it")
    _check_characters(text, what)
    return text


def _check_characters(text: str, what: str) -> None:
    bad = next((c for c in text if unicodedata.category(c) in _UNSEEN or c in _TURNING), None)
    if bad is not None:
        raise RunError(f"{what} holds the control character U+{ord(bad):04X}; leave it out")


def _joined(tags: Iterable[str], add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
    """Tags without those to remove and with those to add; one that differs only in case is there already."""
    gone = {tag.strip().casefold() for tag in remove}
    kept = {tag.casefold(): tag for tag in tags if tag.casefold() not in gone}
    for tag in map(check_tag, add):
        kept.setdefault(tag.casefold(), tag)
    if len(kept) > MAX_TAGS:
        raise RunError(f"{len(kept)} tags are too many, {MAX_TAGS} are allowed; remove some first")
    return tuple(kept.values())


# ---------------------------------------------------------------- writing
def annotate(
    run: Run,
    checkpoint_name: str | None = None,
    *,
    star: bool | None = None,
    add_tags: Iterable[str] = (),
    remove_tags: Iterable[str] = (),
    note: str | None = None,
    name: str | None = None,
    archived: bool | None = None,
) -> Annotation:
    """Change what is said of a checkpoint (`step_00001000`), or of the run itself (None); what is None stays.

    Raises:
        RunError: a text breaks a rule, there is no such run or checkpoint, a checkpoint is to be archived, or the file
            is damaged or cannot be written.
    """
    if archived is not None and checkpoint_name is not None:
        raise RunError(f"{run.id}: {checkpoint_name} cannot be archived, runs can; leave the step out")
    with locked(run):
        said = _writable(run)
        _check_there(run, checkpoint_name)
        before = said.of(checkpoint_name)
        after = Annotation(
            star=before.star if star is None else star,
            tags=_joined(before.tags, add_tags, remove_tags),
            note=before.note if note is None else check_note(note),
            name=before.name if name is None else check_name(name),
            archived=before.archived if archived is None else archived,
        )
        _write(run, said, checkpoint_name, after)
    return after


def put(run: Run, checkpoint_name: str, said: Annotation) -> None:
    """Replace all that is said of a checkpoint, be it there or not. The caller holds the lock.

    Raises:
        RunError: the file is damaged or cannot be written.
    """
    _write(run, _writable(run), checkpoint_name, said)


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Nobody else changes what is said of `run`, nor discards one of its checkpoints, meanwhile.

    Raises:
        RunError: another process does not let go, or the directory is not there or cannot be written.
    """
    if not run.path.is_dir():  # the lock would make it
        raise RunError(f"{run.path}: no such run; see `dgsgpt runs`, and `dgsgpt trash` if it was deleted")
    try:
        lock = FileLock(run.path / LOCK)
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        raise RunError(f"{run.path / FILE}: is being written by another process; try again in a moment") from None
    except OSError as e:
        raise _refused(run, e) from e
    with lock:
        yield


def _writable(run: Run) -> Annotations:
    said = read(run)
    if said.problem:
        raise RunError(said.problem)
    return said


def _check_there(run: Run, checkpoint_name: str | None) -> None:
    if checkpoint_name is None:
        return
    if not CHECKPOINT_NAME.fullmatch(checkpoint_name) or not (run.path / "checkpoints" / checkpoint_name).is_dir():
        raise RunError(f"run {run.id!r} has no checkpoint {checkpoint_name[:80]!r}; see `dgsgpt checkpoints {run.id}`")


def _write(run: Run, said: Annotations, checkpoint_name: str | None, after: Annotation) -> None:
    if checkpoint_name is None:
        said = replace(said, run=after)
    else:
        said = replace(said, checkpoints={**said.checkpoints, checkpoint_name: after})
    value = {
        "format_version": FORMAT_VERSION,
        "run": said.run.to_dict(),
        "checkpoints": {name: one.to_dict() for name, one in sorted(said.checkpoints.items()) if one},
    }
    try:
        files.write_json(run.path / FILE, value)
    except OSError as e:
        raise _refused(run, e) from e


def _refused(run: Run, e: OSError) -> RunError:
    return RunError(f"{run.path / FILE}: cannot be written: {e.strerror or e}; check that the disk has room for it")
