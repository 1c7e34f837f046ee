"""P7: gradient checkpointing, peak memory and time of its modes, beside what the planner predicted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Setup, Side
from benchmarks.report import Case, Figure, Target
from benchmarks.training import TINY_SHAKESPEARE_CHARS, TrainingStep, training_config
from dgsgpt.config import RunConfig
from dgsgpt.costs import runtime_bytes
from dgsgpt.model import GPT
from dgsgpt.planner import plan
from dgsgpt.train.parallel import apply_gradient_checkpointing
from dgsgpt.train.precision import autocast

# Activations dominate: eight layers that are narrow for 4096 tokens.
SHAPE = {"n_layer": 8, "n_head": 4, "n_embd": 256, "block_size": 512}
QUICK_SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64}
BATCH, QUICK_BATCH = 8, 2
NONE, MODES = "none", ("none", "selective", "full")
TIME = {"selective": Target("P7", at_most=1.1), "full": Target("P7", at_most=1.33)}
PEAK = {"full": Target("P7", at_most=0.6)}  # 40 % less than without
ACTIVATIONS = {"full": Target("P7", at_most=0.2)}  # 80 % less


def run(setup: Setup) -> Iterator[Case]:
    """One case: a training step in each mode."""
    configs = {mode: _config(setup, mode) for mode in MODES}
    config = configs[NONE]
    settings = {**config.model.model_dump(mode="json"), "batch": config.train.micro_batch_size}
    settings["precision"] = config.train.precision
    times = setup.time([Side(mode, TrainingStep(config, setup.device)) for mode, config in configs.items()])
    case = Case("training step by checkpointing mode", settings, times)
    for mode, config in configs.items():
        case.facts[mode] = {
            "peak_bytes": setup.peak_bytes(partial(_two_steps, config, setup.device)),
            "planned_bytes": plan(config, setup.device.type).total_bytes - runtime_bytes(config, setup.device.type),
            "activations_bytes": _activation_bytes(config, setup),
        }
    for mode in MODES[1:]:
        case.add_ratio(f"time, {mode} / {NONE}", mode, NONE, _target(setup, TIME, mode))
        for what, targets in (("peak", PEAK), ("activations", ACTIVATIONS)):
            value = case.facts[mode][f"{what}_bytes"] / case.facts[NONE][f"{what}_bytes"]
            case.figures.append(Figure(f"{what} bytes, {mode} / {NONE}", value, target=_target(setup, targets, mode)))
    for mode in MODES:
        facts = case.facts[mode]
        case.figures.append(
            Figure(f"peak bytes, planned / measured, {mode}", facts["planned_bytes"] / facts["peak_bytes"])
        )
    yield case


def _target(setup: Setup, targets: dict[str, Target], mode: str) -> Target | None:
    return None if setup.quick else targets.get(mode)


def _config(setup: Setup, mode: str) -> RunConfig:
    model: dict[str, Any] = {**(QUICK_SHAPE if setup.quick else SHAPE), "vocab_size": TINY_SHAKESPEARE_CHARS}
    return training_config(
        model,
        micro_batch_size=QUICK_BATCH if setup.quick else BATCH,
        gradient_checkpointing=mode,
        precision="bf16" if setup.device.type == "cuda" else "fp32",
    )


def _two_steps(config: RunConfig, device: torch.device) -> None:
    """All that a trainer holds, from its weights on; from the second step on the optimizer's state is there."""
    step = TrainingStep(config, device)
    step()
    step()


def _activation_bytes(config: RunConfig, setup: Setup) -> int:
    """Bytes kept from the forward to the backward pass, without the logits; with autocast's copies of weights."""
    torch.manual_seed(0)
    model = GPT(config.model).to(setup.device)
    apply_gradient_checkpointing(model, config.train.gradient_checkpointing)
    assert config.model.vocab_size is not None
    shape = (config.train.micro_batch_size, config.model.block_size)
    tokens = torch.randint(config.model.vocab_size, shape, device=setup.device)

    def forward() -> Tensor:
        with autocast(setup.device, config.train.precision)():
            logits = model(tokens).logits
        assert isinstance(logits, Tensor)
        return logits

    _, kept = setup.memory(forward)
    return kept - forward().nbytes
