"""Peak memory of the real trainer as torch's memory tracker sees it, without the memory: with fake tensors.

Fake tensors have shapes and storages but no numbers, so a model of any size costs nothing, and the tracker counts what
real ones would take. Every operator is the CPU's. Three things need help:

* Numbers that steer the trainer (is the loss finite?) are read as 1.
* torch refuses its grouped matrix product on fake float32, though its kernels have it; the shapes are given here.
* torch's chunked loss is one operator to the tracker. Its source is run in its place, so that its chunks are seen.

Experts of a width that grouped kernels cannot take ask how many rows each has, which fake tensors do not know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode

from dgsgpt.config import RunConfig
from dgsgpt.model import GPT
from dgsgpt.train.optim import build_optimizer
from dgsgpt.train.parallel import apply_gradient_checkpointing
from dgsgpt.train.stepper import Stepper
from tests.memory import LiveBytes

# Every toggle of a model that memory depends on, and what they do to each other.
MEASURED: dict[str, dict[str, Any]] = {
    "llama": {},
    "plain": {"rope": None, "norm": "layernorm", "mlp": "gelu", "bias": True, "n_kv_head": 4},
    "no_positions": {"rope": None, "positions": "none", "mlp": "relu2"},
    "stretched": {"rope": {"scaling": {"kind": "yarn", "factor": 4.0}}, "norm_eps": 1e-6, "zero_init": True},
    "multi_query": {"n_embd": 128, "n_head": 8, "n_kv_head": 1, "tie_embeddings": False},
    "qk_norm": {"qk_norm": True, "mlp": "relu", "n_kv_head": 4},
    "dropout": {"dropout": 0.1, "mlp": "gelu"},
    "narrow_network": {"mlp_hidden": 24, "norm": "layernorm"},
    "long": {"block_size": 700},  # its logits come in chunks
    "small_window": {"window": {"size": 8, "pattern": "S"}, "n_kv_head": 1},
    "padded_window": {"block_size": 500, "window": {"size": 70, "pattern": "SL"}},
    "both": {"block_size": 300, "window": {"size": 40, "pattern": "BS"}, "qk_norm": True},
    "both_multi_query": {"block_size": 300, "window": {"size": 100, "pattern": "B"}, "n_kv_head": 1},
    "values": {"value_residual": True, "window": {"size": 64, "pattern": "SL"}, "block_size": 256},
    "shortcuts": {"value_residual": True, "x0_shortcut": True, "n_layer": 3},
    "experts": {"moe": {"n_expert": 4}},
    "one_expert": {"moe": {"n_expert": 8, "n_expert_per_token": 1, "every": 2}, "mlp": "gelu"},
    "capacity": {"moe": {"n_expert": 4, "capacity_factor": 0.75, "balance": "bias"}},
    "shared": {"moe": {"n_expert": 4, "capacity_factor": 1.0, "n_shared_expert": 1}, "bias": True},
    "residual": {"moe": {"n_expert": 4, "dense_residual": True, "n_shared_expert": 1, "expert_hidden": 64}},
    "experts_dropout": {"moe": {"n_expert": 4, "dense_residual": True, "renormalize": False}, "dropout": 0.1},
    "softcap": {"logit_softcap": 30.0, "vocab_size": 512},
    "vocabulary": {"vocab_size": 32_000},
    "vocabulary_untied": {"vocab_size": 32_000, "tie_embeddings": False, "n_embd": 128},
    "vocabulary_softcap": {"vocab_size": 32_000, "logit_softcap": 30.0},
    "accumulated": {"train": {"grad_accum_steps": 2}},
    "accumulated_vocabulary": {"train": {"grad_accum_steps": 2}, "vocab_size": 32_000},
    "heavy": {"n_embd": 256, "block_size": 32, "train": {"micro_batch_size": 1, "grad_accum_steps": 2}},
    "heavy_vocabulary": {"n_embd": 256, "block_size": 32, "vocab_size": 8_000, "train": {"micro_batch_size": 1}},
}
GPT2: dict[str, Any] = {  # of 124M parameters
    "n_layer": 12, "n_head": 12, "n_kv_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50_257,
    "rope": None, "norm": "layernorm", "mlp": "gelu", "bias": True, "train": {"micro_batch_size": 4},
}  # fmt: skip
CHUNKED_LOSS = "linear_cross_entropy_batch_chunked"


class Helper(TorchDispatchMode):
    """Stands in for the operators that fake tensors or the tracker cannot follow; it must be entered last."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        if func is torch.ops.aten._grouped_mm.default:
            return _grouped_shape(*args, **kwargs)
        if CHUNKED_LOSS in func.name():
            from torch.nn.modules import linear_cross_entropy as source

            named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
            del named["allow_retain_graph"]
            return source._linear_cross_entropy_batch_chunked_accumulator(**named)
        return func(*args, **kwargs)


def _grouped_shape(a: Tensor, b: Tensor, offs: Tensor, *_: Any) -> Tensor:
    """An empty result: rows [M, in] times stacks [E, in, out], or for their gradient [in, M] times [M, out]."""
    if b.ndim == 3:
        return a.new_empty(a.size(0), b.size(2))
    return a.new_empty(offs.size(0), a.size(0), b.size(1))


class _Batches:
    """Random batches, in place of a dataset's."""

    def __init__(self, config: RunConfig, tracker: MemTracker) -> None:
        self.shape = (config.train.micro_batch_size, config.model.block_size)
        self.vocab_size, self.tracker = config.model.vocab_size or 0, tracker

    def get(self, step: int) -> tuple[Tensor, Tensor]:
        self.tracker.reset_mod_stats()  # it follows modules through one forward pass only, but memory through all
        return torch.randint(self.vocab_size, self.shape), torch.randint(self.vocab_size, self.shape)


def track(config: RunConfig) -> dict[str, int]:
    """Bytes by kind at the highest moment of the trainer's second step on the CPU; `Total` is their sum.

    The first step is lower: the optimizer's state appears at its end.
    """
    with FakeTensorMode():
        stepper, tracker = _trainer(config)
        tracker.track_external(stepper.model, stepper.optimizer)
        with tracker, Helper():
            stepper.step(1)
        peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    return {getattr(kind, "value", kind): n_bytes for kind, n_bytes in peak.items()}


def live_peak(config: RunConfig) -> int:
    """The same total from real tensors, by the other counter of this suite; it does not see into the chunked loss."""
    stepper, _ = _trainer(config)
    state = [value for values in stepper.optimizer.state.values() for value in values.values()]
    before = sum(t.nbytes for t in (*stepper.model.parameters(), *stepper.model.buffers(), *state))
    with LiveBytes() as live:
        stepper.step(1)
    return before + live.peak


def _trainer(config: RunConfig) -> tuple[Stepper, MemTracker]:
    """What takes a step after the first: the optimizer has its state, as a step without gradients makes it."""
    model, tracker = GPT(config.model), MemTracker()
    apply_gradient_checkpointing(model, config.train.gradient_checkpointing)
    optimizer = build_optimizer(model, config.train)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    batches: Any = _Batches(config, tracker)
    return Stepper(model, optimizer, batches, config.train, torch.device("cpu")), tracker
