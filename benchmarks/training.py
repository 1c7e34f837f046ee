"""A whole training step as a side: the calls that the trainer makes, on random tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from dgsgpt.config import RunConfig, build_config
from dgsgpt.data.loader import Batch, Batches
from dgsgpt.train.optim import build_updates
from dgsgpt.train.parallel import apply_gradient_checkpointing, compile_blocks
from dgsgpt.train.stepper import Stepper
from dgsgpt.train.weights import build_model

DISTINCT_BATCHES = 4
TINY_SHAKESPEARE_CHARS = 65  # the vocabulary of the usual small character models


def training_config(model: Mapping[str, Any], **train: Any) -> RunConfig:
    """A config of `model` and `train`, long enough that the learning rate never reaches its end."""
    values = {
        "data": {"tokenizer": {"kind": "char"}},  # the vocabulary is then `model.vocab_size`
        "model": dict(model),
        "train": {"steps": 1_000_000, "checkpoint_every": 0, **train},
    }
    return build_config(values, "benchmark")


class RandomBatches:
    """A few batches of random tokens, over and over; in place of a prepared text."""

    def __init__(self, config: RunConfig) -> None:
        assert config.model.vocab_size is not None
        shape = (DISTINCT_BATCHES, config.train.micro_batch_size, config.model.block_size + 1)
        self._rows = torch.randint(config.model.vocab_size, shape)

    def get(self, step: int) -> Batch:
        """Batch number `step`."""
        rows = self._rows[step % DISTINCT_BATCHES]
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


class TrainingStep:
    """Model, optimizer and stepper, put together as the trainer does; called, it makes one optimizer step.

    `compiler_problem` says in one line why the blocks were not compiled where `train.compile` is on; None is well.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        train = config.train
        torch.manual_seed(train.seed)
        self.model = build_model(config.model, train.weight_precision, device)
        updates = build_updates(self.model, train)
        apply_gradient_checkpointing(self.model, train.gradient_checkpointing)
        self.compiler_problem = compile_blocks(self.model) if train.compile == "on" else None
        batches = cast(Batches, RandomBatches(config))  # the stepper asks of them `get` alone
        self._stepper = Stepper(self.model, updates, batches, train, device)
        self._index = 0

    def __call__(self) -> None:
        """Batch, forward, loss, backward, clip, step."""
        self._stepper.step(self._index)
        self._index += 1
