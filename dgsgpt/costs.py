"""Counting from a config: parameters, arithmetic and the bytes of a training step.

Parameters are exact. Activations follow what the model's operators keep for the backward pass and are checked
against torch's allocations in `tests/test_planner.py`; compiled blocks keep less. Pure arithmetic, no torch.
"""

# ruff: noqa: N803, N806 - shapes are written B, T, C as in the papers; the legend is in dgsgpt/model/__init__.py

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from dgsgpt.config import ModelConfig, RunConfig, layer_is_moe, layer_windows

UNKNOWN_VOCAB_SIZE = 128  # characters of a text that has not been read yet
RUNTIME_BYTES = 512 * 2**20  # torch itself: CUDA context and library workspaces, or the process's own memory
Windows = tuple[int | None, ...]  # of one layer, as `layer_windows` gives them
MIN_BLOCK = 64  # as in dgsgpt/model/attention.py, which cannot be imported here: it needs torch


# ---------------------------------------------------------------- parameters and arithmetic
def _vocab(model: ModelConfig) -> int:
    return model.vocab_size or UNKNOWN_VOCAB_SIZE


def _matrices(model: ModelConfig) -> int:
    """Matrices of a feed-forward network."""
    return 3 if model.mlp == "swiglu" else 2


def _attention_weights(model: ModelConfig) -> int:
    return 2 * model.n_embd * (model.n_embd + model.n_kv_head * model.head_dim)


def _mlp_weights(model: ModelConfig, moe: bool, active: bool) -> int:
    """Matrix elements of a layer's network: its dense one, or router and experts."""
    C, matrices = model.n_embd, _matrices(model)
    if not moe or model.moe is None:
        return matrices * C * model.hidden
    experts = model.moe.n_expert_per_token if active else model.moe.n_expert
    return C * model.moe.n_expert + matrices * C * model.expert_hidden * (experts + model.moe.n_shared_expert)


def _vectors(model: ModelConfig, moe: bool) -> int:
    """Biases and gains of one block; routed experts have no biases."""
    C, narrow = model.n_embd, model.n_kv_head * model.head_dim
    total = 2 * _norm(model) + (2 * model.head_dim if model.qk_norm else 0)
    if model.bias:
        shared = model.moe.n_shared_expert * model.expert_hidden if moe and model.moe else 0
        hidden = shared if moe else model.hidden
        total += 2 * C + 2 * narrow + ((_matrices(model) - 1) * hidden + C if hidden else 0)
    return total


def _norm(model: ModelConfig) -> int:
    return model.n_embd * (2 if model.norm == "layernorm" and model.bias else 1)


def count_params(model: ModelConfig, active: bool = False) -> int:
    """Parameters of the model, a tied embedding once; `active` counts only the experts that one token passes."""
    C = model.n_embd
    total = _vocab(model) * C * (1 if model.tie_embeddings else 2) + _norm(model)
    total += model.block_size * C if model.rope is None else 0
    for moe in layer_is_moe(model):
        total += _attention_weights(model) + _mlp_weights(model, moe, active) + _vectors(model, moe)
    return total


def count_flops_per_token(model: ModelConfig, blocks_only: bool = False) -> int:
    """Training FLOPs per token: 6 per weight of an active matrix, the output layer's too, and 12 C per token seen.

    The count of PaLM (Chowdhery et al. 2022, appendix B), where a sliding layer sees its window, not the context.
    """
    C, T = model.n_embd, model.block_size
    total = 0 if blocks_only else 6 * _vocab(model) * C
    for moe, windows in zip(layer_is_moe(model), layer_windows(model), strict=True):
        total += 6 * (_attention_weights(model) + _mlp_weights(model, moe, active=True)) + 12 * C * _seen(windows, T)
    return total


def _seen(windows: Windows, T: int) -> int:
    """Tokens that a head sees at most, the mean over the heads of a layer."""
    return sum(min(window or T, T) for window in windows) // len(windows)


def count_kv_bytes_per_token(model: ModelConfig, size: int) -> int:
    """Bytes of a full context's cache over its tokens, `size` to a number; a sliding layer keeps its window."""
    seen = sum(_seen(windows, model.block_size) for windows in layer_windows(model))
    return round(2 * model.n_kv_head * model.head_dim * size * seen / model.block_size)


# ---------------------------------------------------------------- memory that comes and goes
@dataclass(frozen=True)
class _LayerBytes:
    """Bytes of one layer for one micro-batch."""

    whole: float  # kept without checkpointing
    kept: float  # kept in the chosen mode
    passing: float  # temporaries of its backward pass


def compute_bytes(config: RunConfig, device: str) -> int:
    """Bytes of a number in matrix products."""
    train = config.train
    device = device if train.device == "auto" else train.device
    return 2 if train.precision == "bf16" or (train.precision == "auto" and device == "cuda") else 4


def count_transient_bytes(config: RunConfig, e: int) -> dict[str, int]:
    """Activations, logits and workspace, `e` bytes to a number in matrix products."""
    model, mode = config.model, config.train.gradient_checkpointing
    C, V, B, T = model.n_embd, _vocab(model), config.train.micro_batch_size, model.block_size
    N = B * T
    windows, moes = layer_windows(model), layer_is_moe(model)
    kinds = {kind: _layer_bytes(model, *kind, B, e, mode) for kind in set(zip(windows, moes, strict=True))}
    layers = [kinds[kind] for kind in zip(windows, moes, strict=True)]
    ends = N * (8 + _norm_bytes(model, e) + (4 * C if model.dropout else 0))  # tokens, last norm, embedding's dropout
    angles = 8 * T * model.head_dim if model.rope else 0
    activations = ends + angles + sum(layer.kept for layer in layers)
    # At the loss: logits, their log-softmax in float32 and the gradients of both.
    logits = N * V * (16 if e == 4 else 14)
    # Later the caller still holds the logits while one block after the other is recomputed, the last one first.
    beneath = accumulate(layer.kept for layer in layers)
    later = max(kept + layer.whole - layer.kept + layer.passing for kept, layer in zip(beneath, layers, strict=True))
    above = max(0.0, later + ends + angles + N * V * e - activations - logits)
    copies = 2 * _matrix_params(model) if e == 2 else 0  # autocast's
    return {
        "activations": round(activations),
        "logits": logits,
        "workspace": round(above) + copies + RUNTIME_BYTES,
    }


def _matrix_params(model: ModelConfig) -> int:
    blocks = sum(_attention_weights(model) + _mlp_weights(model, moe, active=False) for moe in layer_is_moe(model))
    return blocks + _vocab(model) * model.n_embd


def _layer_bytes(model: ModelConfig, windows: Windows, moe: bool, B: int, e: int, mode: str) -> _LayerBytes:
    N, C = B * model.block_size, model.n_embd
    narrow = model.n_kv_head * model.head_dim
    mlp, products, passing = _moe_bytes(model, e) if moe else _mlp_bytes(model, model.hidden, e)
    whole = N * (2 * _norm_bytes(model, e) + mlp) + _attention_bytes(model, windows, B, e)
    whole += N * 2 * e * C if model.dropout else 0
    routing = 12 * model.moe.n_expert_per_token if moe and model.moe else 0  # top-k, which is never recomputed
    if mode == "full":
        kept = N * (4.0 * C + routing)
    elif mode == "selective":
        # What enters the block, and the results of q, k, v, attention, out and the network's products.
        kept = N * (4 * C + e * (3 * C + 2 * narrow) + 4 * model.n_head + products + routing)
    else:
        kept = whole
    return _LayerBytes(whole, kept, N * passing)


def _norm_bytes(model: ModelConfig, e: int) -> int:
    """A token's bytes for a norm: its float32 input, its output, and RMSNorm's value before the gain."""
    C = model.n_embd
    return (4 * C + 8 if model.norm == "layernorm" else 8 * C + 4) + e * C


def _attention_bytes(model: ModelConfig, windows: Windows, B: int, e: int) -> float:
    """Bytes kept of a layer's attention, each of `windows` with its share of the heads."""
    return sum(_branch_bytes(model, window, B, e) for window in windows) / len(windows)


def _branch_bytes(model: ModelConfig, window: int | None, B: int, e: int) -> float:
    """Bytes kept where all heads have one window: q, k, v, result, log-sum-exp; q and k before their norm."""
    C, T, H, narrow = model.n_embd, model.block_size, model.n_head, model.n_kv_head * model.head_dim
    normed = 4 * (2 * (C + narrow) + H + model.n_kv_head) if model.qk_norm else 0
    if window is None or window >= T:
        return B * T * (e * (2 * C + 2 * narrow) + 4 * H + normed)
    size = math.ceil(max(window, min(MIN_BLOCK, T)) / 8) * 8
    blocks = math.ceil(T / size)
    padded = B * blocks * size
    pairs = 2 - 1 / blocks  # all blocks but the first hold the keys of two
    masks = e * size**2 * (3 if blocks > 1 else 1)
    return padded * (e * (2 * C + 2 * narrow * pairs) + 4 * H) + B * T * (e * C + normed) + masks


def _mlp_bytes(model: ModelConfig, hidden: int, e: int) -> tuple[float, float, float]:
    """A token's bytes for a network: kept, of which results of products, and temporaries of the backward pass."""
    C, F = model.n_embd, e * hidden
    kept = {"gelu": 2, "relu": 1, "relu2": 2, "swiglu": 4}[model.mlp] * F
    passing = F + 2 * e * C if model.mlp == "swiglu" else {"gelu": 0, "relu": 1, "relu2": 2}[model.mlp] * F + 3 * e * C
    return kept, (_matrices(model) - 1) * F + e * C, passing


def _moe_bytes(model: ModelConfig, e: int) -> tuple[float, float, float]:
    """The same for experts: rows gathered for each, their networks, and the router."""
    moe, C = model.moe, model.n_embd
    assert moe is not None
    E, K = moe.n_expert, moe.n_expert_per_token
    one = _mlp_bytes(model, model.expert_hidden, e)
    if moe.capacity_factor is None:
        rows, routing, copies = float(K), 8.0 * E + 36 * K, 2
    else:
        rows = min(moe.capacity_factor * K, float(E))
        routing, copies = 8 * E + 16 * K + 21 * rows, 3
    kept: float = rows * (one[0] + copies * e * C) + routing
    products = rows * one[1] + 4 * E
    passing = rows * one[2]
    if e == 2:
        kept += 4 * C - (0 if moe.n_shared_expert else e * C)  # the router reads a float32 copy
    if moe.n_shared_expert:
        shared = _mlp_bytes(model, moe.n_shared_expert * model.expert_hidden, e)
        kept, products, passing = kept + shared[0], products + shared[1], max(passing, shared[2])
    return kept, products, passing
