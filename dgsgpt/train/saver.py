"""Saving beside training: a copy of the tensors is taken at once, and written while the next steps run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch import Tensor

from dgsgpt import annotations as remarks
from dgsgpt import checkpoint as ck
from dgsgpt.errors import RunError
from dgsgpt.runs import Run
from dgsgpt.train.report import say

SPARE = 2.0  # a copy is taken where it fits so many times into the memory that is free


@dataclass(frozen=True)
class Saved:
    """A checkpoint that lies on the disk."""

    path: Path
    step: int
    best: bool  # of the run, by validation loss
    seconds: float  # of writing and hashing
    held_s: float  # of these, that training waited for


Write = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Path]


class Saver:
    """One checkpoint at a time; the next waits for the one before.

    With `background` off, or too little memory for a copy, `save` returns when the checkpoint is on the disk.
    """

    def __init__(self, run: Run, keep_last: int, background: bool) -> None:
        self._run, self._keep_last, self._background = run, keep_last, background
        self._pool = ThreadPoolExecutor(1, "save")
        self._pending: Future[Saved] | None = None

    def save(self, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], write: Write) -> None:
        """Have `write(model tensors, optimizer tensors)` make the checkpoint of `step`, then discard old ones.

        Raises:
            CheckpointError: this save, or the one still under way, failed.
        """
        assert self._pending is None, "poll before the next save"
        begun = time.perf_counter()
        copied = self._background and _has_room([*model.values(), *optimizer.values()])
        if copied:
            model, optimizer = _copy(model), _copy(optimizer)
        held = time.perf_counter() - begun
        self._pending = self._pool.submit(self._write, step, model, optimizer, write, held if copied else None)
        if not copied:
            self._pending.exception()  # waits

    def poll(self, wait: bool = False) -> Saved | None:
        """The checkpoint that has been completed since this was last asked, if any.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._pending is None or not (wait or self._pending.done()):
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def _write(
        self,
        step: int,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        write: Write,
        held: float | None,
    ) -> Saved:
        begun = time.perf_counter()
        path = write(model, optimizer)
        best = ck.best_of([i for i in ck.list_checkpoints(self._run) if i.complete])
        # Its own: the run may have gone back to before a damaged checkpoint, which looks newer and whole.
        self._prune(path.parent, [path, *([best.path] if best else [])])
        seconds = time.perf_counter() - begun
        return Saved(path, step, best is not None and best.path == path, seconds, seconds if held is None else held)

    def _prune(self, folder: Path, spare: list[Path]) -> None:
        """Discard old ones, none of those with a star; where it cannot be known which these are, none at all."""
        try:
            with remarks.locked(self._run):  # so that none is starred while it goes
                said = remarks.read(self._run)
                if said.problem:
                    raise RunError(said.problem)
                ck.prune(folder, self._keep_last, [*spare, *(folder / name for name in said.starred)])
        except RunError as e:
            say(f"old checkpoints are kept this time: {e}")


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _has_room(tensors: list[Tensor]) -> bool:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return SPARE * size < psutil.virtual_memory().available
