"""Which update rule moves which weights, at which rate and decay, and what its state takes: from a config alone.

The weights are listed as the model has them, name by name, so that what depends on their shapes (factored states,
states in blocks, updates one weight at a time) is counted and not estimated. Pure arithmetic, no torch.
"""

# ruff: noqa: N806 - shapes are written C, V, E as in the papers; the legend is in dgsgpt/model/__init__.py

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from dgsgpt.architecture import ModelConfig, MoEConfig, layer_is_moe
from dgsgpt.config import RunConfig
from dgsgpt.costs import network_matrices, ngram_rows, vocab_size

BLOCK_8BIT = 256  # numbers of an 8-bit state that share a scale
SMALLEST_8BIT = 4096  # numbers; states of smaller weights stay in float32
TABLE_8BIT = 4 * 256  # bytes: which number each of the 256 codes of a state stands for
ROUNDED_AT_ONCE = 1 << 24  # numbers
ROUNDING_BYTES = 11  # to each of them: random bits, and whether it is finite, found by its magnitude
MUON_BATCH = 1 << 25  # numbers that Muon makes orthogonal at once


class Weight(NamedTuple):
    """A parameter of the model."""

    name: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def is_router(self) -> bool:
        """Routers stay in float32 and with AdamW: rounding them would change which experts are chosen."""
        return self.name.endswith("router.weight")

    @property
    def is_matrix(self) -> bool:
        """A matrix or a stack of matrices; these decay, vectors and stacks of experts' biases never do."""
        return len(self.shape) >= 2 and not self.name.endswith("bias")

    @property
    def in_block(self) -> bool:
        """A block's matrix that Muon orthogonalises; embeddings, the output layer and routers are not."""
        return self.is_matrix and self.name.startswith("blocks.") and not self.is_router

    def stored_bytes(self, half: bool) -> int:
        """A number's, where matrices are stored in 16 bits (`half`)."""
        return 2 if half and self.is_matrix and not self.is_router else 4


class UpdateGroup(NamedTuple):
    """Weights that are updated alike."""

    name: str
    rule: str  # adamw, muon, adafactor or adamw8bit
    lr: float  # at its peak
    weight_decay: float
    numbers: int  # parameters


# ---------------------------------------------------------------- the weights
@lru_cache(maxsize=64)
def list_weights(model: ModelConfig) -> tuple[Weight, ...]:
    """Every parameter, with the name and the shape that the model gives it."""
    C, V = model.n_embd, vocab_size(model)
    found = [Weight("embed.weight", (V, C))]
    found += [Weight(f"ngram.tables.{order}.weight", (rows, C)) for order, rows in ngram_rows(model).items()]
    if model.rope is None and model.positions == "learned":
        found.append(Weight("positions.weight", (model.block_size, C)))
    for i, moe in enumerate(layer_is_moe(model)):
        found += [Weight(f"blocks.{i}.{name}", shape) for name, shape in _block(model, moe, later=i > 0)]
    found += _norm("norm", model)
    if not model.tie_embeddings:
        found.append(Weight("head.weight", (V, C)))
    if model.head_bias:
        found.append(Weight("head.bias", (V,)))
    return tuple(found)


def _block(model: ModelConfig, moe: bool, later: bool) -> Iterator[Weight]:
    C, D, narrow = model.n_embd, model.head_dim, model.n_kv_head * model.head_dim
    if model.x0_shortcut and later:
        yield Weight("stream_mix.weight", (2,))
    yield from _norm("norm1", model)
    for name, rows in (("q", model.attention_width), ("k", narrow), ("v", narrow)):
        yield from _linear(f"attn.{name}", rows, C, model.has_qkv_bias)
    yield from _linear("attn.out", C, model.attention_width, model.bias)
    if model.qk_norm:
        yield from (Weight(f"attn.{name}.weight", (D,)) for name in ("q_norm", "k_norm"))
    if model.value_residual and later:
        yield Weight("attn.value_mix.weight", (2,))
    yield from _norm("norm2", model)
    if not moe or model.moe is None:
        yield from _network("mlp", model, model.hidden)
    elif model.moe.after_dense:
        yield from _network("mlp", model, model.hidden)
        yield from _norm("norm3", model)
        yield from _experts("moe", model, model.moe)
    else:
        yield from _experts("mlp", model, model.moe)


def _experts(prefix: str, model: ModelConfig, moe: MoEConfig) -> Iterator[Weight]:
    C, E, hidden = model.n_embd, moe.n_expert, model.expert_hidden
    routed = f"{prefix}.routed" if model.shared_hidden else prefix
    yield from _linear(f"{routed}.router", E, C, moe.bias)
    for name in ("up", "gate")[: network_matrices(model) - 1]:
        yield Weight(f"{routed}.experts.{name}", (E, hidden, C))
        if moe.bias:
            yield Weight(f"{routed}.experts.{name}_bias", (E, hidden))
    yield Weight(f"{routed}.experts.down", (E, C, hidden))
    if moe.bias:
        yield Weight(f"{routed}.experts.down_bias", (E, C))
    if model.shared_hidden:
        yield from _network(f"{prefix}.shared", model, model.shared_hidden)


def _network(prefix: str, model: ModelConfig, hidden: int) -> Iterator[Weight]:
    for name in ("up", "gate")[: network_matrices(model) - 1]:
        yield from _linear(f"{prefix}.{name}", hidden, model.n_embd, model.bias)
    yield from _linear(f"{prefix}.down", model.n_embd, hidden, model.bias)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (rows, columns))
    if bias:
        yield Weight(f"{name}.bias", (rows,))


def _norm(name: str, model: ModelConfig) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (model.n_embd,))
    if model.norm == "layernorm" and model.bias:
        yield Weight(f"{name}.bias", (model.n_embd,))


# ---------------------------------------------------------------- groups
def rule_of(weight: Weight, config: RunConfig) -> str:
    """The update rule that moves a weight."""
    if config.train.optimizer == "muon":
        return "muon" if weight.in_block else "adamw"
    return config.train.optimizer


def update_groups(config: RunConfig) -> tuple[UpdateGroup, ...]:
    """The groups the trainer builds: matrices, which with Muon are not embeddings; vectors, which do not decay."""
    train, muon = config.train, config.train.optimizer == "muon"
    kinds: dict[tuple[str, str], list[Weight]] = {}
    rest = "adamw" if muon else train.optimizer
    for key in (("matrices", "muon"), ("embeddings" if muon else "matrices", rest), ("vectors", rest)):
        kinds[key] = []
    for weight in list_weights(config.model):
        rule = rule_of(weight, config)
        name = "vectors" if not weight.is_matrix else "embeddings" if muon and rule == "adamw" else "matrices"
        kinds[name, rule].append(weight)
    return tuple(
        UpdateGroup(
            name,
            rule,
            train.muon_lr if rule == "muon" else train.lr,
            0.0 if name == "vectors" else train.weight_decay,
            sum(weight.numbers for weight in members),
        )
        for (name, rule), members in kinds.items()
        if members
    )


# ---------------------------------------------------------------- memory
def weight_bytes(config: RunConfig) -> int:
    """Bytes of all parameters as they are stored; their gradients take the same."""
    half = config.train.weight_precision == "bf16"
    return sum(weight.numbers * weight.stored_bytes(half) for weight in list_weights(config.model))


def state_bytes(config: RunConfig) -> int:
    """Bytes of the update rules' states."""
    return sum(_state_bytes(weight, rule_of(weight, config), config) for weight in list_weights(config.model))


def _state_bytes(weight: Weight, rule: str, config: RunConfig) -> int:
    numbers = weight.numbers
    if rule == "muon":  # the gradient's mean; in the precision of the weights
        return numbers * weight.stored_bytes(config.train.weight_precision == "bf16")
    if rule == "adafactor" and len(weight.shape) >= 2:  # mean squares of each row and of each column, in float32
        return 4 * (numbers // weight.shape[-1] + numbers // weight.shape[-2])
    if rule == "adafactor":
        return 4 * numbers
    if rule == "adamw8bit" and numbers >= SMALLEST_8BIT and numbers % BLOCK_8BIT == 0:
        return 2 * (numbers + 4 * numbers // BLOCK_8BIT + TABLE_8BIT)
    return 8 * numbers  # AdamW: the gradient's mean and square, in float32


def update_bytes(weights: Sequence[Weight], config: RunConfig, device: str) -> int:
    """Bytes that come and go while `weights` are updated, beside them, their gradients and their states.

    In float32 weights are updated in place, Muon's of one shape at once; those stored in bf16 one after another,
    through a copy in float32.
    """
    half = config.train.weight_precision == "bf16"
    peak = 0
    for weight in weights:
        temporaries = _rule_bytes([weight], config, device)
        if weight.stored_bytes(half) < 4:
            rounding = ROUNDING_BYTES * min(weight.numbers, ROUNDED_AT_ONCE)
            temporaries = 8 * weight.numbers + max(temporaries, rounding)  # weight and gradient in float32
        peak = max(peak, temporaries)
    if half or config.train.optimizer_in_backward:
        return peak
    together = _muon_batches(weights) if config.train.optimizer == "muon" else _adafactor_pairs(weights, config)
    return max([peak, *(_rule_bytes(batch, config, device) for batch in together)])


def _rule_bytes(weights: Sequence[Weight], config: RunConfig, device: str) -> int:
    """Temporaries of the rule itself, for weights that it updates at once."""
    rule, numbers = rule_of(weights[0], config), sum(weight.numbers for weight in weights)
    if rule == "adafactor":
        return 4 * numbers  # the estimate of the squares, which becomes the change
    if rule != "muon":
        return 0  # fused into one pass
    side, other = sorted(weights[0].shape[-2:])
    together = max(min(numbers, MUON_BATCH), side * other)  # numbers of matrices that are made orthogonal at once
    # The changes in float32; their matrices before and after an iteration, two products of the smaller side.
    return 4 * numbers + (2 if device == "cuda" else 4) * (2 * together + 2 * together * side // other)


def _adafactor_pairs(weights: Sequence[Weight], config: RunConfig) -> Iterator[Sequence[Weight]]:
    """Matrices one after another: torch lets the change of one go when it has that of the next."""
    matrices = [weight for weight in weights if weight.is_matrix]
    yield from pairwise(matrices) if config.train.optimizer == "adafactor" else ()


def _muon_batches(weights: Sequence[Weight]) -> Iterator[list[Weight]]:
    """Muon's weights of one shape, wide and tall alike, in batches of a bounded size."""
    shapes: dict[tuple[int, ...], list[Weight]] = {}
    for weight in weights:
        if weight.in_block:
            shapes.setdefault(tuple(sorted(weight.shape[-2:])), []).append(weight)
    for alike in shapes.values():
        batch: list[Weight] = []
        for weight in alike:
            if batch and sum(w.numbers for w in batch) + weight.numbers > MUON_BATCH:
                yield batch
                batch = []
            batch.append(weight)
        yield batch
