"""The schema of the network: `model:` in a config, and what its layers are.

A toggle is an optional sub-config: `model.rope`, `model.window` and `model.moe` are off when null.
Grouped-query attention has no flag: `n_kv_head == n_head` is multi-head, `1` is multi-query attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from dgsgpt.rules import Section, nearby_divisors, setting

Windows = tuple[int | None, ...]  # how many tokens the heads of one layer see; None is all of them

# What both the network and the planner go by; the planner must not import torch.
MIN_WINDOW_BLOCK = 64  # a block of queries is at least this long: with a window of 4, blocks of 4 would be all overhead
SHORT_ATTENTION = 256  # fewer bfloat16 queries at once are attended in float32 on CPUs, whose kernel is faster there
LOSS_CHUNK_LOGITS = 2**21  # logits that exist at once where the loss is computed in chunks: 8 MiB in float32
MIN_LOSS_CHUNK = {"cpu": 256, "cuda": 2048}  # rows; fewer would leave the processor waiting


class RopeScalingConfig(Section):
    """Stretching of rotary positions beyond the length a model was trained on."""

    kind: Literal["linear", "yarn", "llama3"] = setting(
        "linear",
        "linear divides every position by the factor; yarn and llama3 stretch only the slow rotations.",
        tier="expert",
    )
    factor: float = setting(1.0, "Context multiplier.", tier="expert", ge=1.0, le=1024.0)
    original_block_size: int | None = setting(
        None,
        "yarn, llama3: context before the stretching; null is block_size / factor.",
        tier="expert",
        unit="tokens",
        ge=1,
        le=1_048_576,
    )
    beta_fast: float = setting(
        32.0,
        "yarn: pairs that turn at least this often within the original context keep their speed.",
        tier="expert",
        gt=0.0,
        le=1e6,
    )
    beta_slow: float = setting(
        1.0, "yarn: pairs that turn at most this often are slowed down by the factor.", tier="expert", gt=0.0, le=1e6
    )
    attention_factor: float | None = setting(
        None, "yarn: multiplies queries and keys; null is 0.1 ln(factor) + 1.", tier="expert", gt=0.0, le=100.0
    )
    low_freq_factor: float = setting(
        1.0,
        "llama3: pairs that turn fewer times within the original context are slowed down by the factor.",
        tier="expert",
        gt=0.0,
        le=1e6,
    )
    high_freq_factor: float = setting(
        4.0,
        "llama3: pairs that turn more often within the original context keep their speed.",
        tier="expert",
        gt=0.0,
        le=1e6,
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            a, b = getattr(self, low), getattr(self, high)
            if a >= b:
                raise ValueError(
                    f"model.rope.scaling.{low}={a:g} must be below model.rope.scaling.{high}={b:g}; "
                    f"lower the first or raise the second"
                )
        return self


class RopeConfig(Section):
    """Rotary positions (Su et al. 2021), half-split as in Llama."""

    theta: float = setting(
        10_000.0, "Base of the rotation frequencies; larger bases suit longer contexts.", ge=10.0, le=1e9
    )
    scaling: RopeScalingConfig | None = setting(None, "Context extension; null is none.", tier="expert")


class WindowConfig(Section):
    """Sliding-window attention: some layers see only the last `size` tokens, the current one included."""

    size: int = setting(
        128,
        "How many tokens a sliding layer sees, the current one included.",
        tier="basic",
        unit="tokens",
        ge=1,
        le=1_048_576,
    )
    pattern: str = setting(
        "SSSL",
        "Layer kinds, repeated over the layers: S sliding, L long (full attention), B both side by side.",
        tier="basic",
        pattern=r"^[SLB]{1,64}$",
    )


class MoEConfig(Section):
    """Sparse mixture of experts in place of the feed-forward network (Shazeer et al. 2017; Fedus et al. 2021)."""

    n_expert: int = setting(8, "Experts in each MoE layer.", tier="basic", ge=1, le=512)
    n_expert_per_token: int = setting(2, "Experts each token is sent to.", tier="basic", ge=1, le=64)
    capacity_factor: float | None = setting(
        None,
        "Slots of an expert as a multiple of its even share; overflow is dropped. null is dropless.",
        ge=0.25,
        le=64.0,
    )
    n_shared_expert: int = setting(0, "Experts that every token passes, beside the routed ones.", ge=0, le=16)
    every: int = setting(1, "Every n-th layer is an MoE layer, the last of each n; the others stay dense.", ge=1, le=64)
    expert_hidden: int | None = setting(
        None, "Hidden width of one expert; null is that of the dense network.", tier="expert", ge=1, le=1_048_576
    )
    renormalize: bool = setting(
        True, "Scale the chosen experts' weights to sum to one (with one expert a token see the next).", tier="expert"
    )
    renormalize_single: bool = setting(
        False,
        "Also with one expert a token: its weight is then always 1, and only the balance loss trains the router.",
        tier="expert",
    )
    dense_residual: bool = setting(
        False, "A dense network beside the experts, as wide as that of a dense layer; the two results are added."
    )
    after_dense: bool = setting(
        False,
        "The experts follow a dense network, as a third sub-layer with a norm of its own (the original DGS-GPT).",
        tier="expert",
    )
    bias: bool = setting(False, "Biases in the router and in the experts.", tier="expert")
    balance: Literal["aux_loss", "bias"] = setting(
        "aux_loss",
        "How experts are kept equally busy: a loss that rewards it, or a bias that only moves the choice.",
    )
    bias_update_rate: float = setting(
        0.001, "balance=bias: how far each step moves the bias of an expert.", tier="expert", gt=0.0, le=1.0
    )
    aux_loss_weight: float = setting(0.01, "balance=aux_loss: weight of the load-balancing loss.", ge=0.0, le=10.0)
    z_loss_weight: float = setting(
        0.001, "Weight of the router z-loss, which keeps its logits small.", tier="expert", ge=0.0, le=10.0
    )


class NgramConfig(Section):
    """Embeddings of the last few tokens together, beside that of the token alone (Pagnoni et al. 2024, section 3.2).

    A table is looked up, not multiplied: what often follows two or three tokens is learned at almost no arithmetic.
    """

    max_order: int = setting(3, "Longest n-gram; 3 embeds pairs and triples.", tier="basic", ge=2, le=8)
    rows: int = setting(
        16_384, "Rows of each table; n-grams are hashed into them.", tier="basic", ge=256, le=16_777_216
    )


class ModelConfig(Section):
    """The network. Shapes: C = n_embd, H = n_head, G = n_kv_head, T = block_size, V = vocab_size."""

    n_layer: int = setting(4, "Transformer blocks.", tier="basic", ge=1, le=512)
    n_head: int = setting(4, "Query heads; must divide n_embd.", tier="basic", ge=1, le=1024)
    n_kv_head: int = setting(
        4,
        "Key and value heads: n_head is multi-head, fewer is grouped-query, 1 is multi-query.",
        tier="basic",
        ge=1,
        le=1024,
    )
    n_embd: int = setting(256, "Width of the residual stream.", tier="basic", ge=1, le=131_072)
    block_size: int = setting(
        256, "Context: tokens the model is trained to look back over.", tier="basic", unit="tokens", ge=1, le=1_048_576
    )
    vocab_size: int | None = setting(
        None, "Rows of the token embedding; null takes the tokenizer's size.", tier="expert", ge=2, le=1_048_576
    )
    dropout: float = setting(0.0, "Share of activations zeroed in training.", ge=0.0, lt=1.0)
    head_size: int | None = setting(
        None, "Width of one attention head; null is n_embd / n_head.", tier="expert", ge=1, le=4096
    )
    bias: bool = setting(False, "Biases in linear layers and LayerNorm.")
    qkv_bias: Literal["same", "with", "without"] = setting(
        "same", "Biases of queries, keys and values; same is as `bias`.", tier="expert"
    )
    head_bias: bool = setting(False, "A bias in the output layer; needs one of its own, not a tied one.", tier="expert")
    norm: Literal["rmsnorm", "layernorm"] = setting("rmsnorm", "Normalisation before each sub-layer.")
    mlp: Literal["gelu", "relu", "relu2", "swiglu"] = setting(
        "swiglu", "Feed-forward network; swiglu is gated and two thirds as wide."
    )
    mlp_hidden: int | None = setting(
        None,
        "Hidden width of the network; null is 4 n_embd (8/3 n_embd for swiglu).",
        tier="expert",
        ge=1,
        le=1_048_576,
    )
    norm_eps: float = setting(
        1e-5, "Added under the root of every norm, against division by zero.", tier="expert", ge=1e-12, le=1e-2
    )
    qk_norm: bool = setting(False, "Normalise queries and keys of each head before attention.")
    tie_embeddings: bool = setting(True, "One matrix for the token embedding and the output layer.")
    zero_init: bool = setting(
        False, "Start what adds to the residual stream at zero, so that every block begins as the identity."
    )
    logit_softcap: float | None = setting(
        None, "Squash logits smoothly into plus or minus this many; null does not.", gt=0.0, le=1e4
    )
    value_residual: bool = setting(
        False, "Mix the first layer's values into those of every later layer, in learned shares."
    )
    x0_shortcut: bool = setting(False, "Mix the token embedding into the input of every block, in learned shares.")
    rope: RopeConfig | None = setting(
        RopeConfig(),
        "Rotary positions; null leaves it to `positions` how the model knows where a token is.",
        tier="basic",
    )
    positions: Literal["learned", "none"] = setting(
        "learned", "Without rope: a learned embedding for each position, or none (only causality tells the order)."
    )
    window: WindowConfig | None = setting(
        None, "Sliding-window attention; null is full attention in every layer.", tier="basic"
    )
    moe: MoEConfig | None = setting(None, "Sparse mixture of experts; null is a dense network.", tier="basic")
    ngram: NgramConfig | None = setting(
        None, "Embeddings of pairs, triples and longer n-grams beside each token's own; null is none.", tier="basic"
    )

    @model_validator(mode="before")
    @classmethod
    def _kv_heads_default_to_heads(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("n_kv_head") is None and "n_head" in given:
            return {**given, "n_kv_head": given["n_head"]}
        return given

    @model_validator(mode="after")
    def _rules(self) -> Self:
        for rule in (self._head_rules, self._position_rules, self._window_rules, self._moe_rules):
            rule()
        return self

    def _head_rules(self) -> None:
        if self.head_size is None and self.n_embd % self.n_head:
            raise ValueError(
                f"model.n_head={self.n_head} must divide model.n_embd={self.n_embd}; try "
                f"{nearby_divisors(self.n_embd, self.n_head)}"
            )
        if self.head_bias and self.tie_embeddings:
            raise ValueError(
                "model.head_bias=true needs an output layer of its own; set model.tie_embeddings=false, or the bias to "
                "false"
            )
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"model.n_kv_head={self.n_kv_head} must divide model.n_head={self.n_head}; try "
                f"{nearby_divisors(self.n_head, self.n_kv_head)}"
            )

    def _position_rules(self) -> None:
        if self.rope and self.head_dim % 2:
            raise ValueError(
                f"model.n_head={self.n_head} gives heads of odd width {self.head_dim}, which RoPE cannot rotate "
                "in pairs; choose n_embd / n_head (or model.head_size) even, or set model.rope=null"
            )
        scaling = self.rope.scaling if self.rope else None
        if scaling and (scaling.original_block_size or 0) > self.block_size:
            raise ValueError(
                f"model.rope.scaling.original_block_size={scaling.original_block_size} must not exceed "
                f"model.block_size={self.block_size}, the stretched context; set it to null or raise the context"
            )

    def _window_rules(self) -> None:
        if self.window is None:
            return
        if self.window.size > self.block_size:
            raise ValueError(
                f"model.window.size={self.window.size} must not exceed model.block_size={self.block_size}; "
                f"lower the window to {self.block_size} or raise the context"
            )
        if "B" not in self.window.pattern[: self.n_layer]:
            return
        kind_b = (
            f"layers of kind B in model.window.pattern={self.window.pattern}, which give half of the heads the window"
        )
        if self.n_head % 2:
            raise ValueError(f"model.n_head={self.n_head} must be even for {kind_b}; make it even, or write L for B")
        if self.n_kv_head % 2 and self.n_kv_head > 1:
            raise ValueError(
                f"model.n_kv_head={self.n_kv_head} must be even, or 1, for {kind_b}; "
                f"take an even divisor of model.n_head={self.n_head}, or 1, or write L for B"
            )

    def _moe_rules(self) -> None:
        if self.moe is None:
            return
        if self.moe.n_expert_per_token > self.moe.n_expert:
            raise ValueError(
                f"model.moe.n_expert_per_token={self.moe.n_expert_per_token} must not exceed "
                f"model.moe.n_expert={self.moe.n_expert}; lower it to {self.moe.n_expert} or add experts"
            )
        if self.moe.every > self.n_layer:
            raise ValueError(
                f"model.moe.every={self.moe.every} leaves no MoE layer among model.n_layer={self.n_layer}; lower "
                f"it to {self.n_layer} or less"
            )
        if self.moe.after_dense and self.moe.dense_residual:
            raise ValueError(
                "model.moe.after_dense=true puts the dense network before the experts, model.moe.dense_residual=true "
                "beside them; set one of them to false"
            )

    @property
    def head_dim(self) -> int:
        """Width D of one attention head."""
        return self.head_size or self.n_embd // self.n_head

    @property
    def attention_width(self) -> int:
        """Width H * D of all heads together, which is n_embd unless `head_size` says otherwise."""
        return self.n_head * self.head_dim

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.bias if self.qkv_bias == "same" else self.qkv_bias == "with"

    @property
    def hidden(self) -> int:
        """Hidden width of the dense feed-forward network."""
        if self.mlp_hidden is not None:
            return self.mlp_hidden
        # Shazeer 2020: two thirds of 4C keep a gated network's three matrices at the size of two.
        return 4 * self.n_embd if self.mlp != "swiglu" else -(-8 * self.n_embd // 3 // 8) * 8

    @property
    def shared_hidden(self) -> int:
        """Hidden width of the one network that every token passes beside the routed experts; 0 is none.

        Networks whose results are added are one network of their joint width.
        """
        if self.moe is None:
            return 0
        return self.moe.n_shared_expert * self.expert_hidden + (self.hidden if self.moe.dense_residual else 0)

    @property
    def expert_hidden(self) -> int:
        """Hidden width of one expert."""
        return (self.moe.expert_hidden if self.moe else None) or self.hidden


def layer_windows(model: ModelConfig) -> list[Windows]:
    """How many tokens the heads of each layer see, the current one included; None is all of them.

    One entry is for all heads; two (a layer of kind B) are for the first and the second half of them. This is the
    one reading of `window.pattern`, shared by the model, the planner and the KV cache.
    """
    if model.window is None:
        return [(None,)] * model.n_layer
    size, pattern = model.window.size, model.window.pattern
    kinds: dict[str, Windows] = {"S": (size,), "L": (None,), "B": (size, None)}
    return [kinds[pattern[i % len(pattern)]] for i in range(model.n_layer)]


def layer_is_moe(model: ModelConfig) -> list[bool]:
    """Which layers hold experts: with `moe.every = n`, the last of each n."""
    if model.moe is None:
        return [False] * model.n_layer
    return [(i + 1) % model.moe.every == 0 for i in range(model.n_layer)]


def loss_chunk_rows(model: ModelConfig, n_tokens: int, device: str) -> int | None:
    """Rows of logits that exist at once while `n_tokens` are judged; None is all, as one product.

    Chunks pay when the logits no longer fit a processor's caches and are wider than what they are made of.
    """
    vocab_size = model.vocab_size or 0
    if vocab_size <= model.n_embd or n_tokens * vocab_size <= 2 * LOSS_CHUNK_LOGITS:
        return None
    return max(MIN_LOSS_CHUNK.get(device, MIN_LOSS_CHUNK["cuda"]), LOSS_CHUNK_LOGITS // vocab_size)
