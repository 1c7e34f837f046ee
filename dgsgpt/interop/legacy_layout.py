"""The network of the original DGS-GPT: its weights' names and shapes, and the same network in our terms.

Learned positions, LayerNorm, ReLU, biases everywhere (but for queries, keys and values where `attention_type` was
grouped_query), and an output layer of its own. `grouped_query` shared nothing between heads, and `n_query_groups`
changed nothing: it is multi-head attention. Experts follow the dense network as a third sub-layer, and the weights of
the chosen ones sum to one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dgsgpt.config import ModelConfig
from dgsgpt.errors import CheckpointError
from dgsgpt.rules import explain

if TYPE_CHECKING:
    from torch import Tensor

# Sub-modules of a block that only changed their names. Experts are stacked, and joint projections cut, besides.
_RENAMED = {
    "ln1": "norm1",
    "ln2": "norm2",
    "ln3": "norm3",
    "sa.q_proj": "attn.q",
    "sa.k_proj": "attn.k",
    "sa.v_proj": "attn.v",
    "sa.out_proj": "attn.out",
    "sa.mha.out_proj": "attn.out",
    "ff.net.0": "mlp.up",
    "ff.net.2": "mlp.down",
    "moe.gate": "moe.router",
}

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """What the names and shapes of a model's weights tell; fields have the names of its config."""

    n_layer: int
    n_embd: int
    block_size: int
    vocab_size: int
    attention_type: str
    moe_num_experts: int  # 0 is a dense network

    def shapes(self) -> Shapes:
        """Names and shapes of all weights."""
        c = self.n_embd
        shapes: Shapes = {
            "token_emb.weight": (self.vocab_size, c),
            "pos_emb.weight": (self.block_size, c),
            **_norm("ln_f", c),
            **_linear("lm_head", self.vocab_size, c),
        }
        for i in range(self.n_layer):
            shapes |= {f"blocks.{i}.{name}": shape for name, shape in self._block().items()}
        return shapes

    def _block(self) -> Shapes:
        c = self.n_embd
        block = {**_norm("ln1", c), **_norm("ln2", c), **_linear("ff.net.0", 4 * c, c), **_linear("ff.net.2", c, 4 * c)}
        if self.attention_type == "multihead":
            block |= {"sa.mha.in_proj_weight": (3 * c, c), "sa.mha.in_proj_bias": (3 * c,)}
            block |= _linear("sa.mha.out_proj", c, c)
        else:
            block |= {f"sa.{name}_proj.weight": (c, c) for name in "qkv"} | _linear("sa.out_proj", c, c)
        if self.moe_num_experts:
            block |= _norm("ln3", c) | _linear("moe.gate", self.moe_num_experts, c)
            for e in range(self.moe_num_experts):
                block |= _linear(f"moe.experts.{e}.0", 4 * c, c) | _linear(f"moe.experts.{e}.2", c, 4 * c)
        return block


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, out: int, width: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def build_model(layout: Layout, settings: Mapping[str, Any], name: str) -> ModelConfig:
    """The network as a config; `settings` are `n_head`, `moe_k` with experts, and `dropout`.

    Raises:
        CheckpointError: they break a rule, as `n_head` does that does not divide the width; `name` is the file's.
    """
    values: dict[str, Any] = {
        "n_layer": layout.n_layer,
        "n_head": settings["n_head"],
        "n_embd": layout.n_embd,
        "block_size": layout.block_size,
        "vocab_size": layout.vocab_size,
        "dropout": settings["dropout"],
        "bias": True,
        "qkv_bias": "with" if layout.attention_type == "multihead" else "without",
        "head_bias": True,
        "norm": "layernorm",
        "mlp": "relu",
        "mlp_hidden": 4 * layout.n_embd,
        "tie_embeddings": False,
        "rope": None,
        "positions": "learned",
    }
    if layout.moe_num_experts:
        values["moe"] = {
            "n_expert": layout.moe_num_experts,
            "n_expert_per_token": settings["moe_k"],
            "after_dense": True,
            "bias": True,
            "renormalize": True,
            "renormalize_single": settings["moe_k"] == 1,
        }
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as e:
        raise CheckpointError(str(explain(e, ModelConfig, name))) from None


def translate(weights: Mapping[str, Tensor], layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Our names and shapes, in float32."""
    import torch

    w = {key: tensor.to(torch.float32) for key, tensor in weights.items()}
    yield "embed.weight", w["token_emb.weight"]
    yield "positions.weight", w["pos_emb.weight"]
    for kind in ("weight", "bias"):
        yield f"norm.{kind}", w[f"ln_f.{kind}"]
        yield f"head.{kind}", w[f"lm_head.{kind}"]
    for i in range(layout.n_layer):
        for old, new in _RENAMED.items():
            for kind in ("weight", "bias"):
                if f"blocks.{i}.{old}.{kind}" in w:
                    yield f"blocks.{i}.{new}.{kind}", w[f"blocks.{i}.{old}.{kind}"]
        if layout.attention_type == "multihead":
            for kind in ("weight", "bias"):
                parts = w[f"blocks.{i}.sa.mha.in_proj_{kind}"].chunk(3)
                yield from ((f"blocks.{i}.attn.{n}.{kind}", part.clone()) for n, part in zip("qkv", parts, strict=True))
        for old, new in (("0", "up"), ("2", "down")) if layout.moe_num_experts else ():
            for kind, suffix in (("weight", ""), ("bias", "_bias")):
                each = [w[f"blocks.{i}.moe.experts.{e}.{old}.{kind}"] for e in range(layout.moe_num_experts)]
                yield f"blocks.{i}.moe.experts.{new}{suffix}", torch.stack(each)
