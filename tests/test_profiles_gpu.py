"""The profiles on a real GPU that is allowed no more memory than they are made for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dgsgpt.config import RunConfig
from dgsgpt.costs import CUDA_RUNTIME_BYTES
from dgsgpt.data.loader import Batch
from dgsgpt.fitting import override
from dgsgpt.model import GPT
from dgsgpt.planner import fit, plan
from dgsgpt.profiles import load_profile
from dgsgpt.train.optim import build_updates
from dgsgpt.train.parallel import apply_gradient_checkpointing
from dgsgpt.train.stepper import Stepper
from dgsgpt.train.weights import store_weights

GB = 10**9
VOCAB_SIZE, USED = 4096, 64  # of the tokenizer, and those in these batches: that these are few is quickly learned
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class FewTokens:
    """Batches of random tokens out of a few; a function of the step, as those of a text."""

    def __init__(self, config: RunConfig) -> None:
        self.shape = (config.train.micro_batch_size, config.model.block_size + 1)

    def get(self, step: int) -> Batch:
        tokens = torch.randint(USED, self.shape, generator=torch.Generator().manual_seed(step))
        return Batch(tokens[:, :-1], tokens[:, 1:])


@pytest.fixture
def capped() -> Iterator[Any]:
    """Gives what caps the memory that torch may take; what CUDA itself takes is left of the budget before."""
    total = torch.cuda.get_device_properties(0).total_memory

    def cap(budget: int) -> None:
        if budget > total:
            pytest.skip(f"this GPU has {total / GB:.0f} GB, the profile is made for {budget / GB:.0f}")
        torch.cuda.set_per_process_memory_fraction((budget - CUDA_RUNTIME_BYTES) / total)
        torch.cuda.reset_peak_memory_stats()

    yield cap
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


def take_steps(config: RunConfig, steps: int) -> tuple[list[float], int]:
    """Losses of real steps, and the most bytes that tensors took."""
    device = torch.device("cuda")
    with device:
        torch.manual_seed(config.train.seed)
        model = GPT(config.model)
    store_weights(model, config.train.weight_precision)
    apply_gradient_checkpointing(model, config.train.gradient_checkpointing)
    batches: Any = FewTokens(config)
    stepper = Stepper(model, build_updates(model, config.train), batches, config.train, device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()  # of the steps: the initial weights were drawn in float32
    losses = [stepper.step(index).read().loss for index in range(steps)]
    return losses, torch.cuda.max_memory_allocated()


def steady(config: RunConfig, accumulated: int) -> RunConfig:
    """Full rate from the first step, and no more accumulation than memory notices."""
    return override(
        config,
        {
            "model.vocab_size": VOCAB_SIZE,
            "train.grad_accum_steps": accumulated,
            "train.schedule.kind": "constant",
            "train.schedule.warmup_steps": 0,
        },
    )


@pytest.mark.parametrize(
    ("name", "budget", "steps"), [("low", 15 * GB, 12), ("medium", 40 * GB, 6), ("high", 100 * GB, 5)]
)
def test_a_profile_trains_within_its_budget(capped: Any, name: str, budget: int, steps: int) -> None:
    config = load_profile(name).config
    config = steady(config, min(2, config.train.grad_accum_steps))
    capped(budget)
    losses, peak = take_steps(config, steps)
    assert losses[-1] < losses[0] - 0.1
    # The plan takes the CPU's operators; fused norms and losses of a GPU keep no more.
    assert peak < plan(config, "cuda").total_bytes - CUDA_RUNTIME_BYTES + 0.05 * budget


def test_the_medium_profile_fitted_to_a_card_of_24_gb_trains_there(capped: Any) -> None:
    fitted = fit(load_profile("medium").config, 24 * GB, "cuda")
    assert fitted is not None
    config = steady(fitted.config, 1)
    capped(32 * GB)  # to draw the initial weights, which here takes float32
    losses, peak = take_steps(config, 6)
    assert losses[-1] < losses[0] - 0.1
    assert peak < 24 * GB - CUDA_RUNTIME_BYTES
