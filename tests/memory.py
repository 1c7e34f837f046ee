"""Bytes of tensors alive while a model trains, counted from torch's own allocations."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dgsgpt.config import RunConfig
from dgsgpt.model import GPT
from dgsgpt.train.parallel import apply_gradient_checkpointing


class LiveBytes(TorchDispatchMode):
    """Counts every storage that an operator makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in inputs:
                self._count(t.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, n_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= n_bytes


@dataclass(frozen=True)
class Measured:
    """Bytes of one forward and backward pass beside the weights."""

    activations: int  # kept after the forward pass without its logits and without bf16 copies of weights
    peak: int  # largest sum of activations, logits, gradients and temporaries


def measure(config: RunConfig) -> Measured:
    """Train one micro-batch on the CPU in the config's precision and checkpointing mode."""
    torch.manual_seed(0)
    model = GPT(config.model)
    apply_gradient_checkpointing(model, config.train.gradient_checkpointing)
    bf16 = config.train.precision == "bf16"
    assert config.model.vocab_size is not None
    shape = (config.train.micro_batch_size, config.model.block_size)
    tokens = torch.randint(config.model.vocab_size, shape)
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(tokens)
            kept = live.now  # while autocast still holds its copies of the weights
        assert out.logits is not None
        copies = 2 * _copied_elements(model, config) if bf16 else 0
        activations = kept - out.logits.nbytes - copies
        del out
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(tokens, tokens)
        assert out.loss is not None
        (out.loss + out.aux_loss).backward()
    return Measured(activations, live.peak)


def _copied_elements(model: GPT, config: RunConfig) -> int:
    """Elements of the weights of which a bf16 copy is alive after the forward pass."""
    uncopied = ["router.weight", "positions.weight"]
    if not config.model.tie_embeddings:
        uncopied.append("embed.weight")  # only looked up, never multiplied
    if config.train.gradient_checkpointing != "none":
        uncopied += ["experts.up", "experts.gate", "experts.down"]  # cast again when recomputed
    return sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith(tuple(uncopied)))
