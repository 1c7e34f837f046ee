"""Checkpoints opened for writing, shared by all sessions of this server.

At most `MAX_OPEN` models stay in memory; the one opened longest ago leaves when another comes. A session may wait for
its turn on a model that is leaving at that very moment: whoever has entered an engine keeps it until they have left,
and only the last one out frees it. Importing this module does not import torch; opening a checkpoint does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from dgsgpt import hardware
from dgsgpt.checkpoint import MANIFEST, MODEL, TOKENIZER
from dgsgpt.errors import CheckpointError, DgsgptError

if TYPE_CHECKING:
    from dgsgpt.checkpoint import Checkpoint
    from dgsgpt.data.tokenizer import Tokenizer

MAX_OPEN = 2
# Besides its weights a model needs room for its cache of keys and values, and CUDA for itself.
_GPU_SPARE_BYTES = 2 << 30
_TURN_POLL_S = 0.1

Stamp = tuple[int, int]


class Engine:
    """An opened checkpoint that several sessions use one after the other."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self._checkpoint: Checkpoint | None = checkpoint
        self._users = 0
        self._leaving = False
        self._guard = threading.Lock()
        self._turn = threading.Lock()
        self.device = device

    @property
    def checkpoint(self) -> Checkpoint:
        """The opened checkpoint; only for who has entered."""
        assert self._checkpoint is not None, "an engine is used between enter() and leave() only"
        return self._checkpoint

    def enter(self) -> bool:
        """Keep the model in memory until `leave`; False when it is already on its way out."""
        with self._guard:
            if self._leaving:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        """The opposite of `enter`; the last one out of a model that has left the cache frees it."""
        with self._guard:
            self._users -= 1
            last = self._leaving and self._users == 0
        if last:
            self._free()

    def evict(self) -> None:
        """The cache lets go: nobody may enter any more, and the model is freed once nobody uses it."""
        with self._guard:
            unused = not self._leaving and self._users == 0
            self._leaving = True
        if unused:
            self._free()

    @contextmanager
    def turn(self, waiting: Callable[[], None]) -> Iterator[None]:
        """One generation at a time; `waiting` is called again and again until it is our turn.

        Through `waiting`, which draws on the page, a press of Stop ends the waiting too.
        """
        while not self._turn.acquire(timeout=_TURN_POLL_S):
            waiting()
        try:
            yield
        finally:
            self._turn.release()

    def _free(self) -> None:
        self._checkpoint = None
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()  # hand the memory back: a training may be waiting for it


def stamp(path: Path, name: str = MANIFEST) -> Stamp:
    """Modification time in nanoseconds and size of one of a checkpoint's files: another one is another cache entry.

    Raises:
        CheckpointError: the file, hence the checkpoint, is gone.
    """
    try:
        stat = (path / name).stat()
    except OSError as e:
        raise CheckpointError(f"{path}: is not there any more or cannot be read; choose another checkpoint") from e
    return stat.st_mtime_ns, stat.st_size


def choose_device(weights_bytes: int) -> str:
    """`cuda` when a GPU has room for the weights beside whatever trains on it, else `cpu`."""
    found = hardware.detect()
    if not found.gpus or found.free_bytes < weights_bytes + _GPU_SPARE_BYTES:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@st.cache_resource(max_entries=MAX_OPEN, show_spinner=False, on_release=Engine.evict)
def _open(path: Path, changed: tuple[Stamp, Stamp]) -> Engine:
    import torch

    from dgsgpt.checkpoint import load_checkpoint

    try:
        device = choose_device((path / MODEL).stat().st_size)
        return Engine(load_checkpoint(path, device), device)
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: was deleted while it was opened; choose another checkpoint") from e
    except (MemoryError, torch.OutOfMemoryError) as e:
        raise DgsgptError(f"{path}: not enough memory for this model; stop a run or close another program") from e


@contextmanager
def opened(path: Path) -> Iterator[Engine]:
    """The engine of a checkpoint, opened if need be, held until the block ends.

    Raises:
        DgsgptError: it is missing, damaged, or too large for this machine.
    """
    while not (engine := _open(path, (stamp(path), stamp(path, MODEL)))).enter():
        time.sleep(_TURN_POLL_S / 10)  # it left the cache between the two calls: open it anew
    try:
        yield engine
    finally:
        engine.leave()


@st.cache_resource(max_entries=8, show_spinner=False)
def _tokenizer(path: Path, changed: Stamp) -> Tokenizer:
    from dgsgpt.data.tokenizer import load_tokenizer

    return load_tokenizer(path / TOKENIZER)


def tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, without its model and without torch.

    Raises:
        DgsgptError: it is missing or damaged.
    """
    return _tokenizer(path, stamp(path, TOKENIZER))
