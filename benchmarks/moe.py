"""P5: a mixture of experts against a dense network of the same active FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch

from benchmarks.measure import Setup, Side
from benchmarks.report import Case, Target
from benchmarks.training import TrainingStep, training_config
from dgsgpt.config import RunConfig
from dgsgpt.model import GPT, Block
from dgsgpt.planner import plan
from dgsgpt.train.precision import autocast, has_native_bf16

BYTES = 256  # the byte vocabulary
SHAPE = {"n_layer": 2, "n_head": 6, "n_embd": 384, "block_size": 512}
QUICK_SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32}
BATCH, QUICK_BATCH = 8, 2
CAPACITY_FACTOR = 1.25
AT_MOST = Target("P5", at_most=1.25)
DENSE = "dense"


def run(setup: Setup) -> Iterator[Case]:
    """A whole training step, then the layer alone; in float32, and in bfloat16 where the device has it."""
    precisions = ["fp32", "bf16"] if has_native_bf16(setup.device) else ["fp32"]
    for precision in precisions:
        yield _step_case(setup, precision)
    for precision in precisions:
        yield _layer_case(setup, precision)


def _step_case(setup: Setup, precision: str) -> Case:
    configs = _configs(setup, precision)
    sides = [Side(name, TrainingStep(config, setup.device)) for name, config in configs.items()]
    case = _case(setup, f"training step, {precision}", configs, sides, None if setup.quick else AT_MOST)
    for name, config in configs.items():
        case.facts[name]["flops_per_token"] = plan(config, setup.device.type).flops_per_token
    return case


def _layer_case(setup: Setup, precision: str) -> Case:
    configs = _configs(setup, precision)
    sides = [Side(name, _layer_passes(config, setup.device)) for name, config in configs.items()]
    return _case(setup, f"layer alone, {precision}", configs, sides, None)


def _case(setup: Setup, name: str, configs: dict[str, RunConfig], sides: list[Side], target: Target | None) -> Case:
    times = setup.time(sides)
    tokens = configs[DENSE].tokens_per_step
    model = configs[DENSE].model
    settings = {**(QUICK_SHAPE if setup.quick else SHAPE), "mlp": model.mlp, "hidden": model.hidden, "tokens": tokens}
    case = Case(name, {**settings, "experts": 8, "experts_per_token": 2}, times)
    case.facts = {side: {"tokens_per_s": tokens / timing.median_s} for side, timing in times.items()}
    for side in configs:
        if side != DENSE:
            case.add_ratio(f"time, {side} / {DENSE}", side, DENSE, target)
    return case


def _configs(setup: Setup, precision: str) -> dict[str, RunConfig]:
    """Dense, dropless and with a capacity; two experts of half the dense width cost what the dense network does."""
    shape: dict[str, Any] = {**(QUICK_SHAPE if setup.quick else SHAPE), "vocab_size": BYTES, "mlp": "gelu"}
    batch = QUICK_BATCH if setup.quick else BATCH
    moe = {"n_expert": 8, "n_expert_per_token": 2, "expert_hidden": 2 * shape["n_embd"]}

    def config(**changes: Any) -> RunConfig:
        return training_config({**shape, **changes}, micro_batch_size=batch, precision=precision)

    return {
        DENSE: config(),
        "MoE dropless": config(moe=moe),
        f"MoE capacity {CAPACITY_FACTOR}": config(moe={**moe, "capacity_factor": CAPACITY_FACTOR}),
    }


def _layer_passes(config: RunConfig, device: torch.device) -> Callable[[], None]:
    """Forward and backward of one block's network on `x` [B, T, C], with the gradients of its weights."""
    torch.manual_seed(0)
    layer = cast(Block, GPT(config.model).to(device).blocks[0]).mlp
    shape = (config.train.micro_batch_size, config.model.block_size, config.model.n_embd)
    x = torch.randn(shape, device=device, requires_grad=True)
    context = autocast(device, config.train.precision)

    def passes() -> None:
        with context():
            y, aux, _ = layer(x)
        loss = y.float().sum()
        (loss if aux is None else loss + aux).backward()
        layer.zero_grad(set_to_none=True)
        x.grad = None

    return passes
