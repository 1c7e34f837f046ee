"""The trash: runs and checkpoints that were deleted, until they are restored or deleted for good. Without torch.

An item is `runs/.trash/<time>-<run>[-step_00001000]/` with `trash.json` (what, from where, when, bytes, what was said
of it) and `content`, the directory itself. `trash.json` comes first, then one rename brings the content; a restore is
one rename back. So at any instant the content is in its place or in the trash, whole; an item without content is the
rest of an interrupted move, and not one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dgsgpt import annotations as remarks
from dgsgpt import files, process
from dgsgpt.annotations import CHECKPOINT_NAME, Annotation
from dgsgpt.checkpoint import describe
from dgsgpt.errors import RunError
from dgsgpt.runs import RUN_ID, Run

FOLDER, FACTS, CONTENT = ".trash", "trash.json", "content"
GONE = ".gone-"
LOCK_TIMEOUT_S = 10.0
_WORKED_ON = (".supervisor.lock", ".trainer.lock")  # held while a process works on a run


@dataclass(frozen=True)
class TrashItem:
    """A run, or one of its checkpoints, in the trash; `problem` tells why it cannot be restored."""

    id: str
    path: Path
    run_id: str = ""
    checkpoint_name: str | None = None
    trashed_at: float = 0.0
    bytes: int = 0
    run_created_at: float = 0.0
    said: Annotation = field(default_factory=Annotation)
    problem: str | None = None

    @property
    def content(self) -> Path:
        """The directory that was deleted."""
        return self.path / CONTENT

    @property
    def step(self) -> int | None:
        """The step of a checkpoint; None for a whole run."""
        return int(self.checkpoint_name.removeprefix("step_")) if self.checkpoint_name else None

    @property
    def label(self) -> str:
        """`RUN` or `RUN@STEP`, as people name it; of a damaged item its id."""
        return self.id if not self.run_id else self.run_id if self.step is None else f"{self.run_id}@{self.step}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "item": self.id,
            "run": self.run_id,
            "step": self.step,
            "path": str(self.path),
            "trashed_at": self.trashed_at,
            "bytes": self.bytes,
            "annotation": self.said.to_dict(),
            "problem": self.problem,
        }


# ---------------------------------------------------------------- what is there
def list_trash(root: Path) -> list[TrashItem]:
    """What can be restored, and what is damaged; the latest first."""
    folder = root / FOLDER
    if not folder.is_dir():
        return []
    found = [_describe(p) for p in folder.iterdir() if not p.name.startswith(".") and (p / CONTENT).is_dir()]
    return sorted(found, key=lambda item: (item.trashed_at, item.id), reverse=True)


def _describe(path: Path) -> TrashItem:
    facts = files.read_json(path / FACTS) or {}
    run_id, name = facts.get("run"), facts.get("checkpoint")
    plain = isinstance(run_id, str) and RUN_ID.fullmatch(run_id) is not None
    if not plain or not (name is None or (isinstance(name, str) and CHECKPOINT_NAME.fullmatch(name))):
        problem = f"{path / FACTS} is missing or damaged; move {path / CONTENT} back to its place by hand"
        return TrashItem(path.name, path, bytes=files.directory_bytes(path), problem=problem)
    try:
        said = remarks.from_dict(facts.get("annotation", {}), "annotation")
    except RunError:  # that it can be restored counts for more than what was said of it
        said = Annotation()
    at, size, created = (facts.get(key, 0) for key in ("trashed_at", "bytes", "run_created_at"))
    if not all(isinstance(number, int | float) for number in (at, size, created)):
        at = size = created = 0
    return TrashItem(path.name, path, str(run_id), name, at, int(size), created, said)


def find_item(root: Path, reference: str) -> TrashItem:
    """The item meant by its id, or the latest one of `RUN` or `RUN@STEP`.

    Raises:
        RunError: there is none.
    """
    found = list_trash(root)
    chosen = next((i for i in found if reference == i.id), next((i for i in found if reference == i.label), None))
    if chosen is None:
        known = ", ".join(i.id for i in found[:3])
        raise RunError(
            f"no item {reference[:120]!r} in the trash of {root}"
            + (f"; there are {known}" if known else "; it is empty")
        )
    return chosen


# ---------------------------------------------------------------- deleting
def move_to_trash(root: Path, run: Run, checkpoint_name: str | None = None) -> TrashItem:
    """Move a checkpoint, or the whole run (None), into the trash of `root`.

    Raises:
        RunError: it is not there or not below `root`, a process needs it, or the disk refuses; it is then in its place.
    """
    source = _source(root, run, checkpoint_name)
    with _locked(root), remarks.locked(run):
        _check_unused(run, checkpoint_name)
        said = remarks.read(run)
        try:
            item = _make_item(root, run, checkpoint_name, source, said.of(checkpoint_name))
            source.rename(item.content)
            files.fsync_directory(item.path)
            files.fsync_directory(source.parent)
        except OSError as e:
            raise RunError(
                f"{source}: cannot be moved to the trash: {e.strerror or e}; check that it lies on the same disk as "
                f"{root} and may be written"
            ) from e
        if checkpoint_name is not None and item.said:  # a run's own words are in it
            try:
                # Or the next checkpoint of this step would be starred.
                remarks.put(run, checkpoint_name, Annotation())
            except RunError:
                item.content.rename(source)
                raise
    return item


def _source(root: Path, run: Run, checkpoint_name: str | None) -> Path:
    if run.path.absolute().parent.resolve() != root.resolve():
        raise RunError(f"{run.path}: is not in {root}; give its folder by --runs-dir, or remove it by hand")
    source = run.path
    if checkpoint_name is not None:
        if not CHECKPOINT_NAME.fullmatch(checkpoint_name):
            raise RunError(f"{checkpoint_name[:80]!r} is not the name of a checkpoint such as step_00001000")
        source = run.path / "checkpoints" / checkpoint_name
    if source.is_symlink():
        raise RunError(f"{source}: is a link to another place; remove it by hand")
    if not source.is_dir():
        raise RunError(f"{source}: is not there (any more); see `dgsgpt checkpoints`")
    return source


def _check_unused(run: Run, checkpoint_name: str | None) -> None:
    status = run.status()
    if not (status.is_live or process.is_alive(files.read_json(run.path / "proc.json")) or _worked_on(run)):
        return
    state = status.state if status.is_live else "being worked on"
    if checkpoint_name is None:
        raise RunError(f"run {run.id!r} is {state}; `dgsgpt stop {run.id}` first, then delete it")
    newest = next((p for p in reversed(run.checkpoints()) if describe(p).complete), None)
    if newest is not None and newest.name == checkpoint_name:
        raise RunError(
            f"{run.id}: {checkpoint_name} is the newest whole checkpoint of a run that is {state}, which would go on "
            f"from it; `dgsgpt stop {run.id}` first, then delete it"
        )


def _worked_on(run: Run) -> bool:
    """Whether a process holds the run, though it may not have said so yet."""
    try:
        for path in (run.path / name for name in _WORKED_ON):
            if path.exists():
                FileLock(path).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


def _make_item(root: Path, run: Run, checkpoint_name: str | None, source: Path, said: Annotation) -> TrashItem:
    now = time.time()
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = "-".join([stamp, run.id, *([checkpoint_name] if checkpoint_name else [])])
    names = (stem if n == 1 else f"{stem}-{n}" for n in range(1, 1_000_000))
    path = next(p for name in names if not (p := root / FOLDER / name).exists())
    item = TrashItem(path.name, path, run.id, checkpoint_name, now, files.directory_bytes(source), run.created_at, said)
    path.mkdir()
    facts = {
        "run": run.id,
        "checkpoint": checkpoint_name,
        "from": str(source.absolute().relative_to(run.path.absolute().parent)),
        "trashed_at": now,
        "bytes": item.bytes,
        "run_created_at": item.run_created_at,
        "annotation": said.to_dict(),
    }
    files.write_json(path / FACTS, facts)
    files.fsync_directory(root / FOLDER)
    return item


# ---------------------------------------------------------------- restoring
def restore(root: Path, item: TrashItem | str) -> Path:
    """Move an item back to where it was; returns that place.

    Raises:
        RunError: the item is damaged or not there, its place is taken, or its run is gone; it is then still in the
            trash.
    """
    item = find_item(root, item if isinstance(item, str) else item.id)
    if item.problem:
        raise RunError(item.problem)
    run = Run(root / item.run_id)
    with _locked(root):
        if item.checkpoint_name is None:
            _check_free(item, run.path)
            return _move_back(item, run.path)
        _check_same_run(root, item, run)
        with remarks.locked(run):
            _check_free(item, run.path / "checkpoints" / item.checkpoint_name)
            if item.said:  # first: words about what is not there do no harm, the other way round they are lost
                remarks.put(run, item.checkpoint_name, item.said)
            return _move_back(item, run.path / "checkpoints" / item.checkpoint_name)


def _check_same_run(root: Path, item: TrashItem, run: Run) -> None:
    if not (run.path / "config.yaml").is_file():
        its_run = next((i for i in list_trash(root) if i.label == item.run_id), None)
        remedy = f"it is in the trash: `dgsgpt restore {its_run.id}` first" if its_run else f"copy {item.content}"
        raise RunError(f"run {item.run_id!r}, to which {item.label} belongs, is not in {root}; {remedy}")
    if item.run_created_at and run.created_at != item.run_created_at:
        raise RunError(
            f"run {item.run_id!r} is another run than the one that {item.label} was deleted from; copy {item.content}"
        )


def _check_free(item: TrashItem, target: Path) -> None:
    if os.path.lexists(target):
        raise RunError(
            f"{item.label}: {target} is there (again); `dgsgpt delete {item.label}` puts it into the trash, then "
            f"`dgsgpt restore {item.id}`"
        )


def _move_back(item: TrashItem, target: Path) -> Path:
    try:
        target.parent.mkdir(exist_ok=True)
        item.content.rename(target)
        files.fsync_directory(target.parent)
    except OSError as e:
        raise RunError(f"{target}: cannot be restored: {e.strerror or e}; {item.id} is still in the trash") from e
    shutil.rmtree(item.path, ignore_errors=True)  # without content it is no item, whatever stays of it
    return target


# ---------------------------------------------------------------- deleting for good
def empty(root: Path, items: Iterable[TrashItem | str] | None = None) -> int:
    """Delete these items, or all, for good; returns the bytes that were freed: files that a fork shares stay.

    Raises:
        RunError: an item is not there, or the disk refuses; what went until then is gone.
    """
    chosen = list_trash(root) if items is None else [find_item(root, i if isinstance(i, str) else i.id) for i in items]
    if not (root / FOLDER).is_dir():
        return 0
    with _locked(root):
        for item in chosen:
            try:
                # Half of it deleted must not look like an item, nor meet the half of an earlier one.
                item.path.rename(item.path.with_name(f"{GONE}{time.time_ns()}-{item.id}"))
            except OSError as e:
                raise RunError(f"{item.path}: cannot be deleted: {e.strerror or e}; check who may write there") from e
    freed = 0
    for path in (root / FOLDER).glob(f"{GONE}*"):
        freed += _own_bytes(path / CONTENT)
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise RunError(f"{path}: cannot be deleted whole; check who may write there, then empty the trash again")
    return freed


def _own_bytes(folder: Path) -> int:
    """Size of the files that have no other link, which a fork or fine-tuning would keep."""
    found = [path.lstat() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return sum(stat.st_size for stat in found if stat.st_nlink == 1)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One change of the trash at a time; what an interrupted one left is cleared away first."""
    folder = root / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        raise RunError(f"{folder}: is being changed by another process; try again in a moment") from None
    except OSError as e:
        raise RunError(f"{folder}: cannot be written: {e.strerror or e}; check who may write there") from e
    with lock:
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith(".") and not (path / CONTENT).exists():
                shutil.rmtree(path, ignore_errors=True)
        yield
