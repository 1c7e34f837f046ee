"""A config made to fit the memory that is free: the same model, the least harmful changes first, each one named.

Pure arithmetic, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dgsgpt.config import RunConfig, build_config
from dgsgpt.costs import settled_device
from dgsgpt.memory_plan import plan_memory
from dgsgpt.rules import differences, put

SPARE = 0.05  # share of the free memory below which a fit is tight
MIN_CONTEXT = 64
# Adafactor's rate is relative to the size of the weights, not to one: this is torch's own default.
ADAFACTOR_LR = 0.01

Verdict = Literal["fits", "tight", "over"]


@dataclass(frozen=True)
class Fitted:
    """A config that fits, and how it differs from the one that was to be fitted; nothing where that fits itself."""

    config: RunConfig
    changes: tuple[str, ...]  # a sentence each
    overrides: dict[str, Any]  # dotted settings and their new values
    total_bytes: int  # what it needs


@dataclass(frozen=True)
class Change:
    """One way to need less memory; `overrides` are empty where a config has it already."""

    overrides: Callable[[RunConfig, str], dict[str, Any]]
    sentence: Callable[[RunConfig, RunConfig], str]  # of the config before and after all changes


def need_bytes(config: RunConfig, device: str) -> int:
    """The most memory that is needed at once."""
    return sum(plan_memory(config, device).values())


def verdict(total_bytes: int, free_bytes: int) -> Verdict:
    """Whether `total_bytes` go into `free_bytes`; tight is with less than 5 % to spare."""
    if total_bytes > free_bytes:
        return "over"
    return "tight" if total_bytes > (1 - SPARE) * free_bytes else "fits"


def override(config: RunConfig, overrides: dict[str, Any]) -> RunConfig:
    """The config with dotted settings changed.

    Raises:
        ConfigError: they do not go together.
    """
    values = config.to_dict()
    for path, value in overrides.items():
        values = put(values, path, value)
    return build_config(values)


def naive(config: RunConfig) -> RunConfig:
    """The same model, batch and context by the plain recipe: AdamW in float32, all at once, nothing recomputed."""
    train = config.train
    return override(
        config,
        {
            "train.micro_batch_size": min(65_536, train.micro_batch_size * train.grad_accum_steps),
            "train.grad_accum_steps": 1,
            "train.optimizer": "adamw",
            "train.optimizer_in_backward": False,
            "train.precision": "fp32",
            "train.weight_precision": "fp32",
            "train.gradient_checkpointing": "none",
        },
    )


def largest_micro_batch(config: RunConfig, free_bytes: int, device: str = "auto") -> int:
    """The largest divisor of a step's sequences whose plan fits as a micro-batch; 0 where not even one does."""
    batch = config.train.micro_batch_size * config.train.grad_accum_steps
    return _largest(config, free_bytes, device, batch) or 0


def _largest(config: RunConfig, free_bytes: int, device: str, limit: int) -> int | None:
    """The largest divisor of the batch up to `limit` that fits."""
    batch = config.train.micro_batch_size * config.train.grad_accum_steps
    divisors = [size for size in range(1, min(limit, batch) + 1) if batch % size == 0]
    low, high = 0, len(divisors)  # a larger micro-batch never needs less: the first `low` fit, those from `high` not
    while low < high:
        middle = (low + high) // 2
        if _fits(override(config, _batches(config, divisors[middle])), free_bytes, device):
            low = middle + 1
        else:
            high = middle
    return divisors[low - 1] if low else None


def _fits(config: RunConfig, free_bytes: int, device: str) -> bool:
    return verdict(need_bytes(config, device), free_bytes) == "fits"


def _batches(config: RunConfig, size: int) -> dict[str, Any]:
    """Micro-batches of `size`; the batch of a step stays, but where weights are updated in the backward pass."""
    batch = config.train.micro_batch_size * config.train.grad_accum_steps
    times = 1 if config.train.optimizer_in_backward else batch // size
    return {"train.micro_batch_size": size, "train.grad_accum_steps": times}


# ---------------------------------------------------------------- changes
def _full_checkpointing(config: RunConfig, device: str) -> dict[str, Any]:
    return {"train.gradient_checkpointing": "full"}


def _half_products(config: RunConfig, device: str) -> dict[str, Any]:
    # CPUs often only emulate them.
    wanted = settled_device(config, device) == "cuda" and config.train.precision == "fp32"
    return {"train.precision": "bf16"} if wanted else {}


def _half_weights(config: RunConfig, device: str) -> dict[str, Any]:
    products = {} if config.train.precision in ("auto", "bf16") else {"train.precision": "bf16"}
    return {**products, "train.weight_precision": "bf16"}


def _adafactor(config: RunConfig, device: str) -> dict[str, Any]:
    train = config.train
    if train.optimizer == "adafactor":
        return {}
    decay = float(f"{train.weight_decay * train.lr / ADAFACTOR_LR:.3g}")  # as much of it in a step as before
    return {"train.optimizer": "adafactor", "train.lr": ADAFACTOR_LR, "train.weight_decay": decay}


def _in_backward(config: RunConfig, device: str) -> dict[str, Any]:
    if config.train.precision == "fp16":  # its gradients are scaled and must be judged together
        return {}
    free = {"train.grad_accum_steps": 1, "train.grad_clip": None, "train.fit_micro_batch": False}
    return {**free, "train.optimizer_in_backward": True}


CHANGES = (
    Change(
        _full_checkpointing,
        lambda old, new: "Every block is computed again in the backward pass: up to a third more arithmetic.",
    ),
    Change(_half_products, lambda old, new: "Matrix products are computed in bf16."),
    Change(_half_weights, lambda old, new: "Matrices are stored in bf16, their updates rounded up or down at random."),
    Change(
        _adafactor,
        lambda old, new: (
            f"Adafactor takes the place of {old.train.optimizer}, with train.lr={new.train.lr:g}: its rate is relative "
            "to the size of the weights."
        ),
    ),
    Change(
        _in_backward,
        lambda old, new: (
            "Each weight is updated as soon as its gradient is there: nothing is clipped, and a step learns from "
            f"{_sequences(new.train.micro_batch_size)}, not {old.train.micro_batch_size * old.train.grad_accum_steps}."
        ),
    ),
)


def lean_changes(config: RunConfig, device: str) -> Iterator[tuple[Change, dict[str, Any]]]:
    """The changes that a config does not have yet, the least harmful first."""
    now = config.to_dict()
    for change in CHANGES:
        overrides = change.overrides(config, device)
        if overrides and differences(now, override(config, overrides).to_dict()):
            yield change, overrides


# ---------------------------------------------------------------- fitting
def fit(config: RunConfig, free_bytes: int, device: str = "auto") -> Fitted | None:
    """The same model so that its plan fits `free_bytes`, by as few and as harmless changes as will do; None if none do.

    First smaller micro-batches that add up to the same batch; then recomputing, bf16 products, bf16 weights,
    Adafactor, updates within the backward pass, which makes the batch smaller; last a shorter context.
    """
    available = list(lean_changes(config, device))
    for count in range(len(available) + 1):
        found = _try(config, available[:count], free_bytes, device)
        if found is not None:
            chosen = _needed(config, available[:count], found, free_bytes, device)
            return _fitted(config, _try(config, chosen, free_bytes, device) or found, chosen, device)
    for shorter in _shorter(config):
        found = _try(shorter, available, free_bytes, device)
        if found is not None:
            chosen = _needed(shorter, available, found, free_bytes, device)
            return _fitted(config, _try(shorter, chosen, free_bytes, device) or found, chosen, device)
    return None


Chosen = Sequence[tuple[Change, dict[str, Any]]]


def _try(config: RunConfig, chosen: Chosen, free_bytes: int, device: str) -> RunConfig | None:
    """The config with these changes and the largest micro-batch up to its own that then fits."""
    joined = {path: value for _, overrides in chosen for path, value in overrides.items()}
    changed = override(config, joined)
    size = _largest(changed, free_bytes, device, config.train.micro_batch_size)
    return None if size is None else override(changed, _batches(changed, size))


def _needed(config: RunConfig, chosen: Chosen, found: RunConfig, free_bytes: int, device: str) -> Chosen:
    """Those of the changes without which it would not fit, or only by smaller micro-batches; the harmful go first."""
    for change in reversed(list(chosen)):
        rest = [other for other in chosen if other is not change]
        without = _try(config, rest, free_bytes, device)
        if without is not None and without.train.micro_batch_size >= found.train.micro_batch_size:
            chosen = rest
    return chosen


def _shorter(config: RunConfig) -> Iterator[RunConfig]:
    """Half the context, a quarter and so on, with the window where it would stick out."""
    context, window = config.model.block_size, config.model.window
    while context >= 2 * MIN_CONTEXT:
        context //= 2
        overrides: dict[str, Any] = {"model.block_size": context}
        if window is not None and window.size > context:
            overrides["model.window.size"] = context
        yield override(config, overrides)


def _fitted(old: RunConfig, new: RunConfig, chosen: Chosen, device: str) -> Fitted:
    overrides = {path: now for path, (_, now) in differences(old.to_dict(), new.to_dict()).items()}
    changes = []
    size, times = new.train.micro_batch_size, new.train.grad_accum_steps
    if size != old.train.micro_batch_size and not new.train.optimizer_in_backward:
        changes.append(
            f"{_sequences(size)} at a time and {times} times a step, in place of {old.train.micro_batch_size}: "
            "the batch stays."
        )
    changes += [change.sentence(old, new) for change, _ in chosen]
    if new.model.block_size != old.model.block_size:
        changes.append(f"The context is {new.model.block_size} tokens, not {old.model.block_size}.")
    return Fitted(new, tuple(changes), overrides, need_bytes(new, device))


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else f"{count} sequences"
