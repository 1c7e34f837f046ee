"""Checkpoints: saving, verifying, describing and loading them. Nothing is pickled.

A checkpoint is a directory `step_00001000/` with `model.safetensors`, `optimizer.safetensors`, `state.json`,
`config.yaml`, `tokenizer.json`, `metadata.json` (what browsers read) and `manifest.json` (sha256 and size of every
file, written last). It is self-contained. Reading descriptions needs no torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgsgpt import files
from dgsgpt.config import RunConfig, load_config
from dgsgpt.errors import CheckpointError
from dgsgpt.manifest import (
    CONFIG,
    FORMAT_VERSION,
    MANIFEST,
    METADATA,
    MODEL,
    OPTIMIZER,
    STATE,
    TOKENIZER,
    hash_file,
    listed_files,
    size_problem,
    verify,
    write_manifest,
)
from dgsgpt.runs import Run, list_runs

if TYPE_CHECKING:
    import torch

    from dgsgpt.data.tokenizer import Tokenizer
    from dgsgpt.model import GPT

__all__ = [
    "CONFIG", "FORMAT_VERSION", "MANIFEST", "METADATA", "MODEL", "OPTIMIZER", "STATE", "TOKENIZER",
    "Checkpoint", "CheckpointInfo", "apply_weights", "best_of", "checkpoint_name", "describe", "discard",
    "find_checkpoint", "hash_file", "list_checkpoints", "listed_files", "load_checkpoint", "load_tensors",
    "newest_valid", "prune", "refuse_quantized", "remove_leftovers", "save_checkpoint", "verify",
]  # fmt: skip
MAX_HEADER_BYTES = 8_000_000
MAX_FIGURE = 1e300
_TOLD_OF_MODEL = ("n_layer", "n_head", "n_kv_head", "n_embd", "block_size", "vocab_size", "rope", "window", "moe")
_TOLD_OF_TRAINING = ("steps", "micro_batch_size", "grad_accum_steps", "optimizer", "lr", "weight_decay", "seed")


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known of a checkpoint without opening its weights."""

    path: Path
    run_id: str
    step: int
    metadata: dict[str, Any] = field(default_factory=dict)
    saved_at: float = 0.0
    bytes: int = 0
    problem: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all files are there in their full size; hashes are checked when it is opened."""
        return self.problem is None

    @property
    def label(self) -> str:
        """`run, step 1000`: how people name it."""
        return f"{self.run_id}, step {self.step}"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; the model is in eval mode."""

    path: Path
    model: GPT
    tokenizer: Tokenizer
    config: RunConfig
    metadata: dict[str, Any]
    state: dict[str, Any]


def checkpoint_name(step: int) -> str:
    """Name of the directory of a step."""
    return f"step_{step:08d}"


# ---------------------------------------------------------------- saving
def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model_tensors: Mapping[str, torch.Tensor],
    optimizer_tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    config: RunConfig,
    tokenizer: Tokenizer,
    metadata: Mapping[str, Any],
) -> Path:
    """Write a checkpoint so that at any instant either the whole of it exists, or nothing.

    Everything goes to a staging directory, each file is synced, the manifest comes last, then one rename.

    Raises:
        CheckpointError: the disk is full or read-only; earlier checkpoints are untouched.
    """
    from safetensors.torch import save_file

    final = folder / checkpoint_name(step)
    staging = folder / f".tmp-{checkpoint_name(step)}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        staging.mkdir()
        save_file(
            {k: v.detach().contiguous() for k, v in model_tensors.items()}, str(staging / MODEL), {"format": "pt"}
        )
        save_file({k: v.detach().contiguous() for k, v in optimizer_tensors.items()}, str(staging / OPTIMIZER))
        (staging / CONFIG).write_text(config.to_yaml(), encoding="utf-8")
        tokenizer.save(staging / TOKENIZER)
        (staging / STATE).write_text(files.to_json(state, 2), encoding="utf-8")
        size = files.directory_bytes(staging)
        weights = {"weights_bytes": (staging / MODEL).stat().st_size, "config": _summary(config)}
        described = {"format_version": FORMAT_VERSION, **metadata, **weights, "bytes": size}
        (staging / METADATA).write_text(files.to_json(described, 2), encoding="utf-8")
        for path in staging.iterdir():
            _sync(path)
        write_manifest(staging)
        _put_in_place(staging, final)
        files.fsync_directory(folder)
    except (OSError, RuntimeError) as e:  # safetensors reports a full disk as its own error type below RuntimeError
        shutil.rmtree(staging, ignore_errors=True)
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise CheckpointError(f"{final}: cannot be saved: {reason}; free some space or lower train.keep_last") from e
    except Exception as e:
        shutil.rmtree(staging, ignore_errors=True)
        if type(e).__name__ == "SafetensorError":
            raise CheckpointError(f"{final}: cannot be saved: {e}; free some space or lower train.keep_last") from e
        raise
    return final


def _summary(config: RunConfig) -> dict[str, Any]:
    """The settings that models are told apart by; all of them are in the config beside it."""
    model, train = config.model.model_dump(mode="json"), config.train.model_dump(mode="json")
    return {
        "model": {name: model[name] for name in _TOLD_OF_MODEL},
        "train": {name: train[name] for name in _TOLD_OF_TRAINING},
    }


def _put_in_place(staging: Path, final: Path) -> None:
    """Rename, away from the name what has it: a damaged checkpoint, or the same step saved again after a resume."""
    if not final.exists():
        staging.rename(final)
        return
    old = final.with_name(f".trash-{final.name}-{time.time_ns()}")
    final.rename(old)
    try:
        staging.rename(final)
    except OSError:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)  # only now: until here it may be the only whole one


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard(path: Path) -> None:
    """Remove a directory in two steps, so that a crash in between leaves nothing that looks like a checkpoint."""
    trash = path.with_name(f".trash-{path.name}-{time.time_ns()}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Clear away what an interrupted save or removal left."""
    for path in (*folder.glob(".tmp-*"), *folder.glob(".trash-*")):
        shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, keep_last: int, spare: Iterable[Path] = ()) -> list[Path]:
    """Discard all but the newest `keep_last` complete checkpoints and those to `spare`; returns what went.

    Damaged ones do not count among the kept, and the newest complete one is never discarded. Those with a star are
    among the spared: the caller, who holds the lock of `dgsgpt.annotations`, names them.
    """
    spared = set(spare)
    whole = [p for p in sorted(folder.glob("step_*")) if size_problem(p) is None]
    gone: list[Path] = []
    for path in whole[: max(0, len(whole) - max(1, keep_last))]:
        if path not in spared:
            with contextlib.suppress(OSError):  # a checkpoint that cannot be removed must not end a training run
                discard(path)
                gone.append(path)
    return gone


# ---------------------------------------------------------------- describing, without torch
def describe(path: Path) -> CheckpointInfo:
    """What a checkpoint says of itself; a damaged or incomplete one has a `problem`.

    In a run's directory the place decides about run and step: a fork begins with a checkpoint that names its origin.
    """
    metadata = files.read_json(path / METADATA) or {}
    told, saved = metadata.get("step"), metadata.get("saved_at")
    name = path.name.removeprefix("step_")
    in_run = path.absolute().parent.name == "checkpoints"
    numbered = name != path.name and name.isascii() and name.isdigit()
    return CheckpointInfo(
        path=path,
        run_id=path.absolute().parent.parent.name if in_run else str(metadata.get("run_id") or path.absolute().name),
        step=int(name[:20]) if numbered else told if type(told) is int else 0,
        metadata=metadata,
        saved_at=float(saved) if saved is not None and _is_figure(saved) else 0.0,
        bytes=metadata["bytes"] if type(metadata.get("bytes")) is int else 0,
        problem=size_problem(path) or (None if metadata else f"{METADATA} is missing or damaged"),
    )


def list_checkpoints(where: Path | Run) -> list[CheckpointInfo]:
    """Checkpoints of one run, or of all runs below a root; the newest first."""
    runs = [where] if isinstance(where, Run) else list_runs(where)
    found = [describe(p) for run in runs for p in run.checkpoints()]
    return sorted(found, key=lambda c: (c.saved_at, c.step), reverse=True)


def best_of(infos: Iterable[CheckpointInfo]) -> CheckpointInfo | None:
    """The one of lowest validation loss; all must be of one run.

    Validations of a run use the same tokens, unless it was forked onto another text: then those on the text of the
    newest checkpoint count.
    """
    rated = [i for i in infos if i.complete and _is_figure(i.metadata.get("loss_val"))]
    text = max(rated, key=lambda i: i.step).metadata.get("data_fingerprint") if rated else None
    rated = [i for i in rated if i.metadata.get("data_fingerprint") == text]
    return min(rated, key=lambda i: i.metadata["loss_val"], default=None)


def _is_figure(value: Any) -> bool:
    """A finite number; JSON files of others may hold NaN, or integers that no float can."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_FIGURE


def newest_valid(run: Run) -> tuple[Path | None, list[str]]:
    """The latest checkpoint of a run whose hashes hold, and what was wrong with the later ones."""
    problems: list[str] = []
    for path in reversed(run.checkpoints()):
        try:
            verify(path)
        except CheckpointError as e:
            problems.append(str(e))
        else:
            return path, problems
    return None, problems


def find_checkpoint(reference: str, root: Path) -> Path:
    """The directory meant by a path, `RUN` (its best, else newest, checkpoint) or `RUN@STEP`.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(reference)
    run_id, _, step = reference.partition("@")
    folder = root / run_id if "/" not in run_id else path
    try:
        if (path / MANIFEST).exists() or (path / MODEL).exists():
            return path
        infos = [i for i in list_checkpoints(Run(folder)) if i.complete] if folder.is_dir() else []
    except (OSError, ValueError):  # no name of a file at all: too long, or with a NUL
        infos = []
    if step:
        infos = [i for i in infos if str(i.step) == step]
    if not infos:
        raise CheckpointError(
            f"no checkpoint {reference[:100]!r}; give a checkpoint directory, a run id or RUN@STEP (see "
            "`dgsgpt checkpoints`)"
        )
    best = best_of(infos)
    return best.path if best else max(infos, key=lambda i: i.step).path


# ---------------------------------------------------------------- loading
def load_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: the file is truncated, malformed, or has an outsized header.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as f:
            header = int.from_bytes(f.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path}: a header of {header:,} bytes is over the limit of {MAX_HEADER_BYTES:,}; the file is not "
                "one of ours"
            )
        return load_file(str(path), device=device)
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {e}") from e


def load_checkpoint(path: str | Path, device: str = "cpu") -> Checkpoint:
    """Verify and open a checkpoint; its model is in eval mode on `device`.

    `path` is its directory, or that of a run, which stands for its best checkpoint, else its newest.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not match the config.
    """
    from dgsgpt.data.tokenizer import load_tokenizer
    from dgsgpt.model import GPT

    path = Path(path)
    if (path / "checkpoints").is_dir():
        path = find_checkpoint(str(path.absolute()), path.absolute().parent)
    verify(path)
    config = load_config(path / CONFIG)
    metadata = files.read_json(path / METADATA) or {}
    model = GPT(config.model).to(device)
    if metadata.get("quantized") is not None:
        from dgsgpt.model.quantized import Plan, install

        install(model, Plan.read(metadata, path), path)
    apply_weights(model, load_tensors(path / MODEL, device), path, widen=True)
    return Checkpoint(
        path=path,
        model=model.eval(),
        tokenizer=load_tokenizer(path / TOKENIZER),
        config=config,
        metadata=metadata,
        state=files.read_json(path / STATE) or {},
    )


def refuse_quantized(path: Path, doing: str) -> None:
    """Refuse what needs the weights as they were learned, where they have been rounded; `doing` e.g. `trained`.

    Raises:
        CheckpointError: the checkpoint is quantized; names the one it was made of.
    """
    metadata = files.read_json(path / METADATA) or {}
    kind, parent = metadata.get("quantized"), metadata.get("parent")
    if kind is None:
        return
    origin = f"{parent.get('run')}@{parent.get('step')}" if isinstance(parent, dict) else "the one it was made of"
    raise CheckpointError(f"{path}: is quantized to {kind} and cannot be {doing}; take {origin}, its origin")


def apply_weights(model: GPT, tensors: Mapping[str, torch.Tensor], source: Path, widen: bool = False) -> None:
    """Copy weights into the model; names, shapes and types must match exactly.

    With `widen`, bfloat16 weights may go into a float32 model, which holds them exactly.

    Raises:
        CheckpointError: names the first tensor that is missing, unknown or of another shape or type.
    """
    import torch

    own = model.state_dict()
    for name, tensor in own.items():
        given = tensors.get(name)
        if given is None:
            raise CheckpointError(f"{source}: tensor {name} is missing; the weights belong to another config")
        exact = given.dtype == tensor.dtype or (
            widen and given.dtype == torch.bfloat16 and tensor.dtype == torch.float32
        )
        if given.shape != tensor.shape or not exact:
            raise CheckpointError(
                f"{source}: tensor {name} is {given.dtype} {tuple(given.shape)}, the config asks for "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )
    unknown = sorted(set(tensors) - set(own))
    if unknown:
        raise CheckpointError(
            f"{source}: tensor {unknown[0]} is not part of the configured model; the weights belong to another config"
        )
    model.load_state_dict(dict(tensors))
