"""What a config costs before anything is run: parameters, arithmetic, memory by part, and how to make it fit.

The counting is in `dgsgpt.costs`, `dgsgpt.memory_plan` and `dgsgpt.update_groups`, fitting to what is free in
`dgsgpt.fitting`; here are the sum and the remedies. Pure arithmetic, no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgsgpt.config import RunConfig
from dgsgpt.costs import (
    compute_bytes,
    count_buffers,
    count_flops_per_token,
    count_kv_bytes_per_token,
    count_params,
)
from dgsgpt.fitting import (
    MIN_CONTEXT,
    Fitted,
    Verdict,
    fit,
    largest_micro_batch,
    lean_changes,
    naive,
    override,
    verdict,
)
from dgsgpt.memory_plan import plan_memory
from dgsgpt.rules import differences
from dgsgpt.update_groups import UpdateGroup, state_bytes, update_groups, weight_bytes

if TYPE_CHECKING:
    from dgsgpt.hardware import Hardware

__all__ = [
    "Fitted",
    "Plan",
    "Remedy",
    "UpdateGroup",
    "Verdict",
    "fit",
    "fit_to",
    "largest_micro_batch",
    "memory_of",
    "naive",
    "plan",
    "remedies",
    "report",
    "update_groups",
    "verdict",
]

CHECKPOINT_EXTRA_BYTES = 256 * 2**10  # tokenizer, metadata, state
# How much a remedy changes what is learned, beside how fast.
HARM = ("train.weight_precision", "train.optimizer", "train.optimizer_in_backward", "model.block_size")


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
        checkpoint_bytes=weight_bytes(config) + state_bytes(config) + 4 * count_buffers(model) + CHECKPOINT_EXTRA_BYTES,
        total_tokens=train.steps * config.tokens_per_step,
    )


# ---------------------------------------------------------------- against this machine
def memory_of(config: RunConfig, machine: Hardware) -> tuple[str, int]:
    """The device that a config trains on here, and the bytes of its memory that no program holds now."""
    device = machine.device if config.train.device == "auto" else config.train.device
    on_gpu = device == "cuda" and bool(machine.gpus)
    return device, machine.gpus[0].free_bytes if on_gpu else machine.ram_available_bytes


def fit_to(config: RunConfig, machine: Hardware) -> Fitted | None:
    """`fit` to what is free here now."""
    device, free_bytes = memory_of(config, machine)
    return fit(config, free_bytes, device)


def report(config: RunConfig, machine: Hardware) -> dict[str, Any]:
    """What `dgsgpt plan --json` prints."""
    device, free_bytes = memory_of(config, machine)
    planned = plan(config, device)
    judged = verdict(planned.total_bytes, free_bytes)
    fitted = None if judged == "fits" else fit(config, free_bytes, device)
    return {
        "params": planned.params,
        "active_params": planned.active_params,
        "flops_per_token": planned.flops_per_token,
        "memory": {**planned.memory, "total": planned.total_bytes},
        "fits": judged != "over",
        "verdict": judged,
        "free_bytes": free_bytes,
        "naive_bytes": plan(naive(config), device).total_bytes,
        "groups": [group._asdict() for group in update_groups(config)],
        "fitted": None if fitted is None else {
            "changes": list(fitted.changes),
            "overrides": fitted.overrides,
            "total_bytes": fitted.total_bytes,
            "set": [part for path, value in fitted.overrides.items() for part in ("--set", f"{path}={_yaml(value)}")],
        },
    }  # fmt: skip


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# ---------------------------------------------------------------- remedies
def remedies(config: RunConfig, free_bytes: int, device: str = "auto") -> list[Remedy]:
    """Ways to make an ill-fitting config fit, each priced by `plan`: those that suffice first; none if it fits.

    If no single one suffices, `fit` joins them; if that does not either, all of them together are offered.
    """
    if verdict(plan(config, device).total_bytes, free_bytes) == "fits":
        return []
    found = list(_single_remedies(config, free_bytes, device))
    if not any(fits for fits, _ in found):
        found += _joint_remedies(config, free_bytes, device)
    enough = sorted((r for fits, r in found if fits), key=lambda r: (_harm(r), r.time_ratio or 1.0))
    return enough + sorted((r for fits, r in found if not fits), key=lambda r: -r.saved_bytes)


def _harm(remedy: Remedy) -> int:
    return max((place for place, path in enumerate(HARM, 1) if path in remedy.overrides), default=0)


def _single_remedies(config: RunConfig, free_bytes: int, device: str) -> Iterator[tuple[bool, Remedy]]:
    candidates = [overrides for _, overrides in lean_changes(config, device)]
    if config.train.gradient_checkpointing == "none":
        candidates.append({"train.gradient_checkpointing": "selective"})
    candidates += [find(config, free_bytes, device) for find in (_smaller_micro_batch, _shorter_context)]
    for overrides in candidates:
        yield from _priced(config, overrides, free_bytes, device)


def _joint_remedies(config: RunConfig, free_bytes: int, device: str) -> Iterator[tuple[bool, Remedy]]:
    fitted = fit(config, free_bytes, device)
    joined = {path: value for _, overrides in lean_changes(config, device) for path, value in overrides.items()}
    yield from _priced(config, joined if fitted is None else fitted.overrides, free_bytes, device)


def _priced(
    config: RunConfig, overrides: dict[str, Any], free_bytes: int, device: str
) -> Iterator[tuple[bool, Remedy]]:
    """Whether the remedy suffices, and the remedy; nothing where it saves nothing."""
    eased = override(config, overrides)
    changed = {path: now for path, (_, now) in differences(config.to_dict(), eased.to_dict()).items()}
    need = plan(eased, device).total_bytes
    saved = plan(config, device).total_bytes - need
    if saved > 0:
        time_ratio = _time_ratio(config, eased)
        yield verdict(need, free_bytes) == "fits", Remedy(_label(config, eased), changed, saved, time_ratio)


def _smaller_micro_batch(config: RunConfig, free_bytes: int, device: str) -> dict[str, Any]:
    """Half the micro-batch and twice the accumulation until it fits or one sequence is left; the step is the same."""
    overrides: dict[str, Any] = {}
    size, times = config.train.micro_batch_size, config.train.grad_accum_steps
    while size > 1 and verdict(plan(override(config, overrides), device).total_bytes, free_bytes) != "fits":
        factor = next((f for f in range(2, math.isqrt(size) + 1) if size % f == 0), size)
        size, times = size // factor, times * factor
        overrides = {"train.micro_batch_size": size, "train.grad_accum_steps": times}
    return overrides


def _shorter_context(config: RunConfig, free_bytes: int, device: str) -> dict[str, Any]:
    """Half the context, and the window with it where it would stick out, until it fits."""
    overrides: dict[str, Any] = {}
    context, window = config.model.block_size, config.model.window
    while context >= 2 * MIN_CONTEXT and (
        verdict(plan(override(config, overrides), device).total_bytes, free_bytes) != "fits"
    ):
        context //= 2
        overrides = {"model.block_size": context}
        if window is not None and window.size > context:
            overrides["model.window.size"] = context
    return overrides


def _time_ratio(old: RunConfig, new: RunConfig) -> float | None:
    """Arithmetic per token, new to old; None where speed changes otherwise (bf16, selective recomputing, updates)."""
    old_mode, new_mode = old.train.gradient_checkpointing, new.train.gradient_checkpointing
    settings = ("precision", "weight_precision", "optimizer", "optimizer_in_backward")
    if any(getattr(new.train, name) != getattr(old.train, name) for name in settings):
        return None
    if new_mode != old_mode and new_mode == "selective":
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
    if new.train.weight_precision != old.train.weight_precision:
        parts.append("bf16 weights")
    if new.train.optimizer != old.train.optimizer:
        parts.append(new.train.optimizer.capitalize())
    if new.train.optimizer_in_backward != old.train.optimizer_in_backward:
        parts.append(f"updates in the backward pass, batch {new.train.micro_batch_size}, no clipping")
    elif new.train.micro_batch_size != old.train.micro_batch_size:
        parts.append(f"micro-batch {new.train.micro_batch_size} with {new.train.grad_accum_steps} accumulation steps")
    if new.model.block_size != old.model.block_size:
        parts.append(f"context of {new.model.block_size} tokens")
    label = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return label[0].upper() + label[1:]
