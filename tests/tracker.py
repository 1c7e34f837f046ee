"""Peak memory of the real trainer as torch's memory tracker sees it, without the memory: with fake tensors.

Fake tensors have shapes and storages but no numbers, so a model of any size costs nothing, and the tracker counts what
real ones would take. Every operator is the CPU's. Four things need help:

* Numbers that steer the trainer (is the loss finite?) are read as 1.
* torch refuses its grouped matrix product on fake float32, though its kernels have it; the shapes are given here.
* Muon iterates in the dtype this CPU is fastest in; the plan counts float32, and so it is here.
* torch's chunked loss is one operator to the tracker. Its source is run in its place, so that its chunks are seen.

Experts of a width that grouped kernels cannot take ask how many rows each has, which fake tensors do not know.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode

from dgsgpt.config import ModelConfig, RunConfig
from dgsgpt.data.loader import Batch
from dgsgpt.model import GPT
from dgsgpt.train.optim import build_updates
from dgsgpt.train.parallel import apply_gradient_checkpointing
from dgsgpt.train.stepper import Stepper
from dgsgpt.train.weights import store_weights
from tests.memory import LiveBytes

LEAN: dict[str, Any] = {"weight_precision": "bf16", "optimizer": "adafactor"}
IN_BACKWARD: dict[str, Any] = {"optimizer_in_backward": True, "grad_clip": None}
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
    "ngram": {"ngram": {"max_order": 4, "rows": 8_000}},
    "ngram_heavy": {"ngram": {"rows": 40_000}, "tie_embeddings": False, "train": {"micro_batch_size": 2}},
    "adafactor": {"train": {"optimizer": "adafactor"}},
    "adafactor_heavy": {"n_embd": 256, "block_size": 32, "train": {"micro_batch_size": 1, "optimizer": "adafactor"}},
    "muon": {"train": {"optimizer": "muon"}},
    "muon_heavy": {"n_embd": 256, "block_size": 32, "train": {"micro_batch_size": 1, "optimizer": "muon"}},
    "muon_experts": {"moe": {"n_expert": 4}, "block_size": 32, "train": {"micro_batch_size": 2, "optimizer": "muon"}},
    "half": {"train": {"weight_precision": "bf16"}, "mlp": "relu2"},
    "half_plain": {
        "rope": None, "norm": "layernorm", "mlp": "gelu", "bias": True, "dropout": 0.1,
        "train": {"weight_precision": "bf16"},
    },
    "half_shortcuts": {
        "value_residual": True, "x0_shortcut": True, "n_layer": 3, "train": {"weight_precision": "bf16"},
    },
    "half_experts": {"moe": {"n_expert": 4}, "qk_norm": True, "train": {"weight_precision": "bf16"}},
    "half_muon": {"train": {"weight_precision": "bf16", "optimizer": "muon", "grad_accum_steps": 2}},
    "half_muon_heavy": {
        "n_embd": 256, "block_size": 32,
        "train": {"weight_precision": "bf16", "optimizer": "muon", "micro_batch_size": 1},
    },
    "lean": {"vocab_size": 32_000, "train": {**LEAN, "grad_accum_steps": 2}},
    "lean_heavy": {"n_embd": 256, "block_size": 32, "train": {**LEAN, "micro_batch_size": 1}},
    "lean_ngram": {"ngram": {"rows": 40_000}, "train": {**LEAN, "micro_batch_size": 2}},
    "in_backward": {"train": IN_BACKWARD, "tie_embeddings": False},
    "in_backward_heavy": {"n_embd": 256, "block_size": 32, "train": {**IN_BACKWARD, "micro_batch_size": 1}},
    "in_backward_lean": {"n_embd": 128, "train": {**IN_BACKWARD, **LEAN, "micro_batch_size": 4}},
    "in_backward_lean_heavy": {
        "n_embd": 256, "block_size": 32, "tie_embeddings": False, "vocab_size": 8_000,
        "train": {**IN_BACKWARD, **LEAN, "micro_batch_size": 1},
    },
    "in_backward_muon": {"n_embd": 128, "train": {**IN_BACKWARD, "optimizer": "muon", "micro_batch_size": 4}},
    "wide_heads": {"head_size": 48, "qkv_bias": "with", "qk_norm": True},
    "narrow_heads": {"head_size": 8, "n_kv_head": 1, "window": {"size": 40, "pattern": "BL"}, "block_size": 300},
    "biased_experts": {"moe": {"n_expert": 4, "bias": True}, "mlp": "gelu"},
    "biased_capacity": {"moe": {"n_expert": 8, "bias": True, "capacity_factor": 1.0, "n_shared_expert": 1}},
    "after_dense": {
        "moe": {"n_expert": 4, "n_expert_per_token": 1, "after_dense": True, "bias": True, "renormalize_single": True},
        "rope": None, "norm": "layernorm", "mlp": "relu", "bias": True, "qkv_bias": "without", "dropout": 0.1,
    },
    "after_dense_shared": {"moe": {"n_expert": 4, "after_dense": True, "every": 2, "n_shared_expert": 1}, "n_layer": 3},
    "head_bias": {"head_bias": True, "tie_embeddings": False, "vocab_size": 32_000, "logit_softcap": 30.0},
    "head_bias_heavy": {
        "head_bias": True, "tie_embeddings": False, "vocab_size": 8_000, "n_embd": 256, "block_size": 32,
        "train": {"micro_batch_size": 1},
    },
}  # fmt: skip
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

    def __init__(self, config: RunConfig) -> None:
        self.shape = (config.train.micro_batch_size, config.model.block_size)
        self.vocab_size = config.model.vocab_size or 0

    def get(self, step: int) -> Batch:
        return Batch(torch.randint(self.vocab_size, self.shape), torch.randint(self.vocab_size, self.shape))


class _Tracked(GPT):
    """A model whose tracker follows modules through every forward pass; by itself it does so through one only."""

    def __init__(self, config: ModelConfig, tracker: MemTracker) -> None:
        super().__init__(config)
        self.forget = tracker.reset_mod_stats

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.forget()
        return super().__call__(*args, **kwargs)


def track(config: RunConfig) -> dict[str, int]:
    """Bytes by kind at the highest moment of a step on the CPU; `Total` is their sum, `Other` the update rules' state.

    Any step does: that state is made before the first.
    """
    with FakeTensorMode(), patch("dgsgpt.train.muon.iteration_dtype", lambda device: torch.float32):
        stepper, tracker = _trainer(config)
        tracker.track_external(stepper.model, *stepper.updates.tensors().values())
        with tracker, Helper():
            stepper.step(0)
        peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    return {getattr(kind, "value", kind): n_bytes for kind, n_bytes in peak.items()}


def fake_peak(config: RunConfig) -> int:
    """The same total by the other counter of this suite, which is faster and looks at storages alone.

    torch's own holds on to the results of blocks that are computed again: with two of them that does not show, with
    six it is a tenth of a peak that no real step has (`live_peak` is the witness).
    """
    with FakeTensorMode(), Helper():
        return live_peak(config)


def live_peak(config: RunConfig) -> int:
    """The same total from real tensors; without `Helper` it does not see into the chunked loss."""
    stepper, _ = _trainer(config)
    state = stepper.updates.tensors().values()
    before = sum(t.nbytes for t in (*stepper.model.parameters(), *stepper.model.buffers(), *state))
    with LiveBytes() as live:
        stepper.step(0)
    return before + live.peak


def _trainer(config: RunConfig) -> tuple[Stepper, MemTracker]:
    """What takes steps, as a run sets it up."""
    tracker = MemTracker()
    model = _Tracked(config.model, tracker)
    store_weights(model, config.train.weight_precision)
    apply_gradient_checkpointing(model, config.train.gradient_checkpointing)
    batches: Any = _Batches(config)
    return Stepper(model, build_updates(model, config.train), batches, config.train, torch.device("cpu")), tracker
