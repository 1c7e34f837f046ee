"""What to do when memory ran out: one line, computed by the planner, in place of a stack trace; no torch."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator

import psutil

from dgsgpt import format as fmt
from dgsgpt.config import RunConfig
from dgsgpt.hardware import Hardware
from dgsgpt.planner import Remedy, memory_of, plan, remedies, verdict

MOST = 3  # remedies in one line
# Where the plan fits and memory ran out all the same (fragmentation, other programs, a kernel's own workspace), the
# remedies are to leave a fifth of what was planned.
UNPLANNED = 0.8
PHRASES = (
    "out of memory",  # CUDA's own
    "can't allocate memory",  # torch's allocator on CPUs
    "cannot allocate memory",  # the operating system
    "not enough memory",  # torch's allocator on Windows
    "_alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that memory ran out: on a GPU or not, torch's or Python's."""
    return any(_says_so(e) for e in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes; a compiler wraps what its kernels met."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        yield at
        seen.add(id(at))
        at = at.__cause__


def _says_so(error: BaseException) -> bool:
    # By name, so that nothing needs torch that has not met it: torch.OutOfMemoryError, also under its older name.
    if isinstance(error, MemoryError) or any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)


def usable_memory(config: RunConfig, machine: Hardware) -> tuple[str, int]:
    """The device a config trains on, and the bytes this process may use of its memory: what is free and what it has.

    After running out, what is free alone tells nothing: most of the rest is held by the process that failed.
    """
    device, free_bytes = memory_of(config, machine)
    if device == "cuda":
        torch = sys.modules.get("torch")
        return device, free_bytes + (torch.cuda.memory_reserved() if torch and torch.cuda.is_initialized() else 0)
    return device, min(machine.ram_total_bytes, free_bytes + psutil.Process(os.getpid()).memory_info().rss)


def out_of_memory_advice(config: RunConfig, device: str = "auto", free_bytes: int | None = None) -> str:
    """What the plan says is needed, what there is, and the best changes with what each saves, as for `--set`.

    Args:
        config: what was run when memory ran out.
        device: `cpu` or `cuda`, which settles `precision: auto`.
        free_bytes: memory this process may use (see `usable_memory`); None where it is not known.
    """
    need = plan(config, device).total_bytes
    fits = free_bytes is not None and verdict(need, free_bytes) == "fits"
    budget = int(UNPLANNED * need) if free_bytes is None or fits else free_bytes
    there = "" if free_bytes is None else f" and this process may use {fmt.size(free_bytes)}"
    if fits:
        there += ": less than that is free in one piece, or other programs took some"
    found = [(verdict(need - r.saved_bytes, budget) == "fits", r) for r in remedies(config, budget, device)]
    said = (
        f"out of memory: the plan says this config needs about {fmt.size(need)} "
        f"(with train.micro_batch_size={config.train.micro_batch_size}){there}; "
    )
    if not found:
        return said + "no setting of train saves more, take a smaller model.n_embd or model.n_layer"
    enough = [remedy for does, remedy in found if does]
    changes = "; ".join(
        f"{_settings(r)} saves {fmt.size(r.saved_bytes)}" for r in (enough or [r for _, r in found])[:MOST]
    )
    if enough:
        return f"{said}set {'one of ' if len(enough) > 1 else ''}{changes}"
    return f"{said}none of these is enough alone: {changes}; take a smaller model.n_embd or model.n_layer as well"


def _settings(remedy: Remedy) -> str:
    """What can be typed after `--set`, e.g. `train.micro_batch_size=1 with train.grad_accum_steps=16`."""
    ordered = sorted(remedy.overrides.items(), key=lambda item: item[0] != "train.micro_batch_size")
    texts = [f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in ordered]
    return texts[0] if len(texts) == 1 else f"{texts[0]} with {' and '.join(texts[1:])}"
