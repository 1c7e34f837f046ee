"""What a config costs before anything is run: parameters, arithmetic, memory by part, and how to make it fit.

The counting is in `dgsgpt.costs` and `dgsgpt.memory_plan`; here are its sum, its verdict and its remedies. Pure
arithmetic, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dgsgpt.config import RunConfig, build_config
from dgsgpt.costs import (
    compute_bytes,
    count_buffers,
    count_flops_per_token,
    count_kv_bytes_per_token,
    count_params,
)
from dgsgpt.memory_plan import plan_memory
from dgsgpt.rules import put

CHECKPOINT_EXTRA_BYTES = 256 * 2**10  # tokenizer, metadata, state
SPARE = 0.05  # share of the free memory below which a fit is tight
MIN_CONTEXT = 64

Verdict = Literal["fits", "tight", "over"]


@dataclass(frozen=True)
class Plan:
    """What a config costs; memory in bytes, of one process while it trains."""

    params: int
    active_params: int  # those one token passes
    flops_per_token: int  # training: forward and backward, without recomputation
    kv_bytes_per_token: int  # of a full context's cache, spread over its tokens
    memory: dict[str, int]  # at the highest moment: weights, gradients, optimizer, activations, logits, workspace
    checkpoint_bytes: int
    total_tokens: int  # the run reads

    @property
    def total_bytes(self) -> int:
        """All parts of the memory: the most that is needed at once."""
        return sum(self.memory.values())

    @property
    def train_flops(self) -> int:
        """Of the whole run."""
        return self.flops_per_token * self.total_tokens


@dataclass(frozen=True)
class Remedy:
    """One way to need less memory."""

    label: str
    overrides: dict[str, Any]  # dotted settings and their new values
    saved_bytes: int
    time_ratio: float | None  # arithmetic per token, new to old; None where arithmetic does not tell


def plan(config: RunConfig, device: str = "auto") -> Plan:
    """Price a config for `device` (cpu or cuda), which settles `precision: auto`; an unknown one counts as fp32."""
    model, train = config.model, config.train
    params = count_params(model)
    return Plan(
        params=params,
        active_params=count_params(model, active=True),
        flops_per_token=count_flops_per_token(model),
        kv_bytes_per_token=count_kv_bytes_per_token(model, compute_bytes(config, device)),
        memory=plan_memory(config, device),
        checkpoint_bytes=12 * params + 4 * count_buffers(model) + CHECKPOINT_EXTRA_BYTES,
        total_tokens=train.steps * config.tokens_per_step,
    )


def verdict(total_bytes: int, free_bytes: int) -> Verdict:
    """Whether `total_bytes` go into `free_bytes`; tight is with less than 5 % to spare."""
    if total_bytes > free_bytes:
        return "over"
    return "tight" if total_bytes > (1 - SPARE) * free_bytes else "fits"


# ---------------------------------------------------------------- remedies
def remedies(config: RunConfig, free_bytes: int, device: str = "auto") -> list[Remedy]:
    """Ways to make an ill-fitting config fit, each priced by `plan`: those that suffice first; none if it fits.

    If no single one suffices, they are joined: recomputing, then a smaller micro-batch, then a shorter context.
    """
    if verdict(plan(config, device).total_bytes, free_bytes) == "fits":
        return []
    found = list(_single_remedies(config, free_bytes, device))
    if not any(fits for fits, _ in found):
        found += _joint_remedies(config, free_bytes, device)
    enough = sorted(
        (r for fits, r in found if fits), key=lambda r: ("model.block_size" in r.overrides, r.time_ratio or 1.0)
    )
    return enough + sorted((r for fits, r in found if not fits), key=lambda r: -r.saved_bytes)


def _single_remedies(config: RunConfig, free_bytes: int, device: str) -> Iterator[tuple[bool, Remedy]]:
    mode = config.train.gradient_checkpointing
    candidates: list[dict[str, Any]] = []
    if (device if config.train.device == "auto" else config.train.device) == "cuda":
        candidates.append({"train.precision": "bf16"})  # on CPUs it is often emulated
    if mode == "none":
        candidates.append({"train.gradient_checkpointing": "selective"})
    if mode != "full":
        candidates.append({"train.gradient_checkpointing": "full"})
    candidates += [find(config, free_bytes, device) for find in (_smaller_micro_batch, _shorter_context)]
    for overrides in candidates:
        yield from _priced(config, overrides, free_bytes, device)


def _joint_remedies(config: RunConfig, free_bytes: int, device: str) -> Iterator[tuple[bool, Remedy]]:
    overrides: dict[str, Any] = {}
    if config.train.gradient_checkpointing != "full":
        overrides = {"train.gradient_checkpointing": "full"}
    for find in (_smaller_micro_batch, _shorter_context):
        more = find(_override(config, overrides), free_bytes, device)
        if overrides and more:
            yield from _priced(config, {**overrides, **more}, free_bytes, device)
        overrides = {**overrides, **more}


def _priced(
    config: RunConfig, overrides: dict[str, Any], free_bytes: int, device: str
) -> Iterator[tuple[bool, Remedy]]:
    """Whether the remedy suffices, and the remedy; nothing where it saves nothing."""
    eased = _override(config, overrides)
    need = plan(eased, device).total_bytes
    saved = plan(config, device).total_bytes - need
    if saved > 0:
        time_ratio = _time_ratio(config, eased)
        yield verdict(need, free_bytes) == "fits", Remedy(_label(config, eased), overrides, saved, time_ratio)


def _override(config: RunConfig, overrides: dict[str, Any]) -> RunConfig:
    values = config.to_dict()
    for path, value in overrides.items():
        values = put(values, path, value)
    return build_config(values)


def _smaller_micro_batch(config: RunConfig, free_bytes: int, device: str) -> dict[str, Any]:
    """Half the micro-batch and twice the accumulation until it fits or one sequence is left; the step is the same."""
    overrides: dict[str, Any] = {}
    size, times = config.train.micro_batch_size, config.train.grad_accum_steps
    while size > 1 and verdict(plan(_override(config, overrides), device).total_bytes, free_bytes) != "fits":
        factor = next((f for f in range(2, math.isqrt(size) + 1) if size % f == 0), size)
        size, times = size // factor, times * factor
        overrides = {"train.micro_batch_size": size, "train.grad_accum_steps": times}
    return overrides


def _shorter_context(config: RunConfig, free_bytes: int, device: str) -> dict[str, Any]:
    """Half the context, and the window with it where it would stick out, until it fits."""
    overrides: dict[str, Any] = {}
    context, window = config.model.block_size, config.model.window
    while context >= 2 * MIN_CONTEXT and (
        verdict(plan(_override(config, overrides), device).total_bytes, free_bytes) != "fits"
    ):
        context //= 2
        overrides = {"model.block_size": context}
        if window is not None and window.size > context:
            overrides["model.window.size"] = context
    return overrides


def _time_ratio(old: RunConfig, new: RunConfig) -> float | None:
    """Arithmetic per token, new to old; None where speed changes without it (bf16, selective recomputing)."""
    old_mode, new_mode = old.train.gradient_checkpointing, new.train.gradient_checkpointing
    if new.train.precision != old.train.precision or (new_mode != old_mode and new_mode == "selective"):
        return None
    return _flops_per_token(new) / _flops_per_token(old)


def _flops_per_token(config: RunConfig) -> float:
    flops: float = count_flops_per_token(config.model)
    if config.train.gradient_checkpointing == "full":
        flops += count_flops_per_token(config.model, blocks_only=True) / 3  # every block's forward pass once more
    return flops


def _label(old: RunConfig, new: RunConfig) -> str:
    parts = []
    if new.train.precision != old.train.precision:
        parts.append("bf16 arithmetic")
    if new.train.gradient_checkpointing != old.train.gradient_checkpointing:
        parts.append(f"{new.train.gradient_checkpointing} gradient checkpointing")
    if new.train.micro_batch_size != old.train.micro_batch_size:
        parts.append(f"micro-batch {new.train.micro_batch_size} with {new.train.grad_accum_steps} accumulation steps")
    if new.model.block_size != old.model.block_size:
        parts.append(f"context of {new.model.block_size} tokens")
    label = " and ".join(parts)
    return label[0].upper() + label[1:]
