"""A small model with its updates, and ways to compare every bit of both, for the tests of optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dgsgpt.config import TrainConfig
from dgsgpt.model import GPT
from dgsgpt.train.optim import Updates, build_updates
from dgsgpt.train.weights import store_weights
from tests.model.tiny import random_tokens, tiny_model

RULES = ["adamw", "muon", "adafactor", pytest.param("adamw8bit", marks=pytest.mark.slow)]  # that one compiles
PRECISIONS = ["fp32", "bf16"]
# torchao compiles its step for each shape: here there are two, of which the matrices are large enough for 8 bits.
FEW_SHAPES: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_kv_head": 4, "mlp": "relu", "mlp_hidden": 64}
FEW_SHAPES |= {"vocab_size": 64}

Bits = dict[str, bytes]


def trained(optimizer: str = "adamw", precision: str = "fp32", **train: Any) -> tuple[GPT, Updates]:
    """A fresh model with its updates; the same at every call."""
    model = tiny_model(**FEW_SHAPES)
    settings = TrainConfig.model_validate({"optimizer": optimizer, "weight_precision": precision, **train})
    store_weights(model, settings.weight_precision)
    return model, build_updates(model, settings)


def give_gradients(model: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator).mul_(0.1).to(p.dtype)


def steps(model: GPT, updates: Updates, first: int, count: int) -> None:
    for index in range(first, first + count):
        give_gradients(model, index)
        updates.set_rates(1.0 / (1 + index))
        updates.step()
        updates.zero_grad()


def bits(tensors: dict[str, Tensor]) -> Bits:
    return {n: t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, t in tensors.items()}


def everything(model: GPT, updates: Updates) -> Bits:
    return bits({**model.state_dict(), **{f"state.{n}": t for n, t in updates.tensors().items()}})


def loss_of(model: GPT, seed: int) -> Tensor:
    tokens = random_tokens(seed=seed, vocab_size=61)
    out = model(tokens[:, :-1], tokens[:, 1:])
    assert out.loss is not None
    return out.loss + out.aux_loss
