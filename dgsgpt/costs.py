"""Counting from a config: parameters, arithmetic, the bytes of a cache.

Parameters are exact. What is alive while a model trains is in `dgsgpt.memory_plan`. Pure arithmetic, no torch.
"""

# ruff: noqa: N806 - shapes are written B, T, C as in the papers; the legend is in dgsgpt/model/__init__.py

from __future__ import annotations

from dgsgpt.config import ModelConfig, RunConfig, layer_is_moe, layer_windows

UNKNOWN_VOCAB_SIZE = 128  # characters of a text that has not been read yet
# torch itself: its libraries, a CUDA context, workspaces inside kernels. An estimate: no tracker of tensors sees it.
RUNTIME_BYTES = 512 * 2**20
CUDA_RUNTIME_BYTES = 1_500_000_000


def vocab_size(model: ModelConfig) -> int:
    """Rows of the token embedding, also before the text that tells them has been read."""
    return model.vocab_size or UNKNOWN_VOCAB_SIZE


def compute_bytes(config: RunConfig, device: str) -> int:
    """Bytes of a number in matrix products."""
    train = config.train
    if train.weight_precision == "bf16" or train.precision in ("bf16", "fp16"):
        return 2
    return 2 if train.precision == "auto" and settled_device(config, device) == "cuda" else 4


def runtime_bytes(config: RunConfig, device: str) -> int:
    """What torch itself takes on the device."""
    return CUDA_RUNTIME_BYTES if settled_device(config, device) == "cuda" else RUNTIME_BYTES


def settled_device(config: RunConfig, device: str) -> str:
    """Where the config trains: the device it names, else `device`."""
    return device if config.train.device == "auto" else config.train.device


# ---------------------------------------------------------------- parameters
def network_matrices(model: ModelConfig) -> int:
    """Matrices of a feed-forward network."""
    return 3 if model.mlp == "swiglu" else 2


def _attention_weights(model: ModelConfig) -> int:
    return 2 * model.n_embd * (model.attention_width + model.n_kv_head * model.head_dim)


def _dense_widths(model: ModelConfig, moe: bool) -> list[int]:
    """Hidden widths of the networks that every token passes in a layer: the dense one, that beside the experts."""
    if not moe or model.moe is None:
        return [model.hidden]
    return [model.hidden] * model.moe.after_dense + [model.shared_hidden] * (model.shared_hidden > 0)


def _network_weights(model: ModelConfig, moe: bool, active: bool) -> int:
    """Matrix elements of a layer's networks: dense ones, router and experts."""
    C, matrices = model.n_embd, network_matrices(model)
    hidden, router = sum(_dense_widths(model, moe)), 0
    if moe and model.moe is not None:
        hidden += model.expert_hidden * (model.moe.n_expert_per_token if active else model.moe.n_expert)
        router = C * model.moe.n_expert
    return router + matrices * C * hidden


def _vectors(model: ModelConfig, moe: bool, active: bool) -> int:
    """Biases and gains of one block."""
    C, inner = model.n_embd, network_matrices(model) - 1
    norms = 3 if moe and model.moe is not None and model.moe.after_dense else 2
    total = norms * _norm(model) + (2 * model.head_dim if model.qk_norm else 0)
    if model.has_qkv_bias:
        total += model.attention_width + 2 * model.n_kv_head * model.head_dim
    if model.bias:
        total += C + sum(inner * hidden + C for hidden in _dense_widths(model, moe))
    if moe and model.moe is not None and model.moe.bias:
        experts = model.moe.n_expert_per_token if active else model.moe.n_expert
        total += model.moe.n_expert + experts * (inner * model.expert_hidden + C)
    return total


def _norm(model: ModelConfig) -> int:
    return model.n_embd * (2 if model.norm == "layernorm" and model.bias else 1)


def ngram_rows(model: ModelConfig) -> dict[int, int]:
    """Rows of the table of each order of n-grams: one for each n-gram if `ngram.rows` are enough, else these."""
    if model.ngram is None:
        return {}
    orders = range(2, model.ngram.max_order + 1)
    return {order: min(vocab_size(model) ** order, model.ngram.rows) for order in orders}


def count_params(model: ModelConfig, active: bool = False) -> int:
    """Parameters of the model, a tied embedding once; `active` counts only what one token passes.

    That is its own experts and, of the tables of n-grams, one row each.
    """
    C = model.n_embd
    total = vocab_size(model) * (C * (1 if model.tie_embeddings else 2) + model.head_bias) + _norm(model)
    total += model.block_size * C if model.rope is None and model.positions == "learned" else 0
    total += C * sum(1 if active else rows for rows in ngram_rows(model).values())
    for moe in layer_is_moe(model):
        total += _attention_weights(model) + _network_weights(model, moe, active) + _vectors(model, moe, active)
    # Two shares for each shortcut into each block; the first has nothing earlier to mix in.
    return total + 2 * (model.n_layer - 1) * (model.value_residual + model.x0_shortcut)


def count_buffers(model: ModelConfig) -> int:
    """Numbers that are no parameters but are kept with them: the biases that balance experts."""
    return model.moe.n_expert * sum(layer_is_moe(model)) if model.moe and model.moe.balance == "bias" else 0


# ---------------------------------------------------------------- arithmetic and the cache
def count_flops_per_token(model: ModelConfig, blocks_only: bool = False) -> int:
    """Training FLOPs per token: 6 per weight of an active matrix, the output layer's too, and 12 H D per token seen.

    The count of PaLM (Chowdhery et al. 2022, appendix B), where a sliding layer sees its window, not the context, and
    a layer of kind B the mean over its heads.
    """
    C, T = model.n_embd, model.block_size
    total = 0 if blocks_only else 6 * vocab_size(model) * C
    for moe, windows in zip(layer_is_moe(model), layer_windows(model), strict=True):
        total += 6 * (_attention_weights(model) + _network_weights(model, moe, active=True))
        total += 12 * model.attention_width * sum(min(window or T, T) for window in windows) // len(windows)
    return total


def count_kv_bytes_per_token(model: ModelConfig, size: int) -> int:
    """Bytes of a full context's cache over its tokens, `size` to a number; sliding heads keep their window."""
    T, numbers = model.block_size, 0
    for windows in layer_windows(model):
        heads = max(1, model.n_kv_head // len(windows))  # a single head is kept for each of two windows
        numbers += 2 * heads * model.head_dim * sum(min(window or T, T) for window in windows)
    return round(numbers * size / T)
