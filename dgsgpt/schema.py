"""The one typed schema of a run: defaults, bounds, help and the rules between fields.

YAML files, `--set a.b=c`, the dashboard's widgets and the documentation are derived from it.
A toggle is an optional sub-config: `model.rope`, `model.window` and `model.moe` are off when null.
Grouped-query attention has no flag: `n_kv_head == n_head` is multi-head, `1` is multi-query attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dgsgpt import strict_yaml
from dgsgpt.rules import Tier, nearby_divisors

SCHEMA_VERSION = 1


def setting(default: Any, help: str, *, tier: Tier = "advanced", unit: str | None = None, **bounds: Any) -> Any:
    """A field of the schema: its default, one sentence of help, tier, unit and bounds."""
    return Field(default, description=help, json_schema_extra={"tier": tier, "unit": unit}, **bounds)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# ---------------------------------------------------------------- data
class TokenizerConfig(_Section):
    """How text becomes tokens."""

    kind: Literal["bpe", "char", "byte", "gpt2"] = setting(
        "bpe",
        "bpe learns subwords from the corpus, char uses its characters, byte needs no training, gpt2 is OpenAI's.",
        tier="basic",
    )
    vocab_size: int = setting(
        4096,
        "Vocabulary that bpe learns; the other kinds have their own size.",
        tier="basic",
        unit="tokens",
        ge=264,
        le=262_144,
    )


class DataConfig(_Section):
    """Which text, and how it is split."""

    corpus: str = setting(
        "austen",
        "An embedded corpus (austen, plays), a prepared dataset, or the path of a UTF-8 text file.",
        tier="basic",
        min_length=1,
    )
    tokenizer: TokenizerConfig = setting(TokenizerConfig(), "How text becomes tokens.")
    val_fraction: float = setting(
        0.1, "Share of the text, taken from its end, that is only used for validation.", ge=0.001, le=0.5
    )


# ---------------------------------------------------------------- model
class RopeScalingConfig(_Section):
    """Stretching of rotary positions beyond the length a model was trained on."""

    kind: Literal["linear"] = setting(
        "linear", "linear divides every position by the factor (Chen et al. 2023).", tier="expert"
    )
    factor: float = setting(1.0, "Context multiplier.", tier="expert", ge=1.0, le=1024.0)


class RopeConfig(_Section):
    """Rotary positions (Su et al. 2021), half-split as in Llama."""

    theta: float = setting(
        10_000.0, "Base of the rotation frequencies; larger bases suit longer contexts.", ge=10.0, le=1e9
    )
    scaling: RopeScalingConfig | None = setting(None, "Context extension; null is none.", tier="expert")


class WindowConfig(_Section):
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
        "Layer kinds, repeated over the layers: S sliding, L long (full attention).",
        tier="basic",
        pattern=r"^[SL]{1,64}$",
    )


class MoEConfig(_Section):
    """Sparse mixture of experts in place of the feed-forward network (Shazeer et al. 2017; Fedus et al. 2021)."""

    n_expert: int = setting(8, "Experts in each MoE layer.", tier="basic", ge=2, le=512)
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
        True, "Scale the chosen experts' weights to sum to one (never with one expert a token).", tier="expert"
    )
    aux_loss_weight: float = setting(0.01, "Weight of the load-balancing loss.", ge=0.0, le=10.0)
    z_loss_weight: float = setting(
        0.001, "Weight of the router z-loss, which keeps its logits small.", tier="expert", ge=0.0, le=10.0
    )


class ModelConfig(_Section):
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
    bias: bool = setting(False, "Biases in linear layers and LayerNorm.")
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
    qk_norm: bool = setting(False, "Normalise queries and keys of each head before attention.")
    tie_embeddings: bool = setting(True, "One matrix for the token embedding and the output layer.")
    rope: RopeConfig | None = setting(
        RopeConfig(), "Rotary positions; null is a learned embedding for each position.", tier="basic"
    )
    window: WindowConfig | None = setting(
        None, "Sliding-window attention; null is full attention in every layer.", tier="basic"
    )
    moe: MoEConfig | None = setting(None, "Sparse mixture of experts; null is a dense network.", tier="basic")

    @model_validator(mode="before")
    @classmethod
    def _kv_heads_default_to_heads(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("n_kv_head") is None and "n_head" in given:
            return {**given, "n_kv_head": given["n_head"]}
        return given

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(
                f"model.n_head={self.n_head} must divide model.n_embd={self.n_embd}; try "
                f"{nearby_divisors(self.n_embd, self.n_head)}"
            )
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"model.n_kv_head={self.n_kv_head} must divide model.n_head={self.n_head}; try "
                f"{nearby_divisors(self.n_head, self.n_kv_head)}"
            )
        if self.rope and self.head_dim % 2:
            raise ValueError(
                f"model.n_head={self.n_head} gives heads of odd width {self.head_dim}, which RoPE cannot rotate "
                "in pairs; "
                "choose n_embd / n_head even, or set model.rope=null"
            )
        if self.window and self.window.size > self.block_size:
            raise ValueError(
                f"model.window.size={self.window.size} must not exceed model.block_size={self.block_size}; "
                f"lower the window to {self.block_size} or raise the context"
            )
        if self.moe and self.moe.n_expert_per_token > self.moe.n_expert:
            raise ValueError(
                f"model.moe.n_expert_per_token={self.moe.n_expert_per_token} must not exceed "
                f"model.moe.n_expert={self.moe.n_expert}; "
                f"lower it to {self.moe.n_expert} or add experts"
            )
        if self.moe and self.moe.every > self.n_layer:
            raise ValueError(
                f"model.moe.every={self.moe.every} leaves no MoE layer among model.n_layer={self.n_layer}; lower "
                f"it to {self.n_layer} or less"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Width D of one attention head."""
        return self.n_embd // self.n_head

    @property
    def hidden(self) -> int:
        """Hidden width of the dense feed-forward network."""
        if self.mlp_hidden is not None:
            return self.mlp_hidden
        # Shazeer 2020: two thirds of 4C keep a gated network's three matrices at the size of two.
        return 4 * self.n_embd if self.mlp != "swiglu" else -(-8 * self.n_embd // 3 // 8) * 8

    @property
    def expert_hidden(self) -> int:
        """Hidden width of one expert."""
        return (self.moe.expert_hidden if self.moe else None) or self.hidden


def layer_windows(model: ModelConfig) -> list[int | None]:
    """How many tokens each layer sees, the current one included; None is all of them.

    The one reading of `window.pattern`, shared by the model, the planner and the KV cache.
    """
    if model.window is None:
        return [None] * model.n_layer
    pattern = model.window.pattern
    return [model.window.size if pattern[i % len(pattern)] == "S" else None for i in range(model.n_layer)]


def layer_is_moe(model: ModelConfig) -> list[bool]:
    """Which layers hold experts: with `moe.every = n`, the last of each n."""
    if model.moe is None:
        return [False] * model.n_layer
    return [(i + 1) % model.moe.every == 0 for i in range(model.n_layer)]


# ---------------------------------------------------------------- train
class ScheduleConfig(_Section):
    """Learning rate over the run: a linear warm-up, then a decay to `min_lr_ratio` of the peak."""

    kind: Literal["cosine", "linear", "constant"] = setting(
        "cosine", "Shape of the decay after the warm-up.", tier="basic"
    )
    warmup_steps: int = setting(
        100, "Steps over which the rate rises from zero to its peak.", tier="basic", unit="steps", ge=0
    )
    min_lr_ratio: float = setting(0.1, "Rate at the last step as a share of the peak.", ge=0.0, le=1.0)


class TrainConfig(_Section):
    """How it is trained. One step is one optimizer step over micro_batch_size * grad_accum_steps sequences."""

    steps: int = setting(1000, "Optimizer steps.", tier="basic", unit="steps", ge=1, le=100_000_000)
    micro_batch_size: int = setting(
        16, "Sequences in one forward pass.", tier="basic", unit="sequences", ge=1, le=65_536
    )
    grad_accum_steps: int = setting(
        1, "Forward passes whose gradients are added up for one step.", tier="basic", ge=1, le=65_536
    )
    optimizer: Literal["adamw"] = setting("adamw", "Update rule; weight decay applies to matrices only.")
    lr: float = setting(1e-3, "Peak learning rate.", tier="basic", gt=0.0, le=10.0)
    beta1: float = setting(0.9, "AdamW: memory of the gradient's mean.", tier="expert", ge=0.0, lt=1.0)
    beta2: float = setting(0.95, "AdamW: memory of the gradient's square.", tier="expert", ge=0.0, lt=1.0)
    weight_decay: float = setting(0.1, "Decoupled weight decay of matrices.", ge=0.0, le=10.0)
    grad_clip: float | None = setting(1.0, "Largest global gradient norm; null does not clip.", gt=0.0, le=1e6)
    schedule: ScheduleConfig = setting(ScheduleConfig(), "Learning rate over the run.")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "Arithmetic of the forward pass; auto is bf16 on GPUs that have it, else fp32."
    )
    compile: Literal["off", "on"] = setting(
        "off", "torch.compile of each block; worth its minute of compiling on long runs."
    )
    gradient_checkpointing: Literal["none", "full", "selective"] = setting(
        "none",
        "Recompute activations instead of keeping them: all of a block (full) or the cheap ones (selective).",
        tier="basic",
    )
    eval_every: int = setting(100, "Steps between validations; 0 is only at the end.", tier="basic", unit="steps", ge=0)
    eval_tokens: int = setting(
        65_536, "Validation tokens each time; the last validation uses the whole split.", unit="tokens", ge=1
    )
    checkpoint_every: int = setting(
        500, "Steps between checkpoints; 0 is only at the end.", tier="basic", unit="steps", ge=0
    )
    keep_last: int = setting(5, "Checkpoints kept, beside the best one.", unit="checkpoints", ge=1, le=100_000)
    log_every: int = setting(10, "Steps between lines of metrics.", tier="expert", unit="steps", ge=1)
    sample_every: int = setting(0, "Steps between sample texts; 0 is none.", unit="steps", ge=0)
    sample_prompt: str = setting("It was", "What sample texts begin with.", min_length=1, max_length=2000)
    sample_tokens: int = setting(64, "Length of sample texts.", tier="expert", unit="tokens", ge=1, le=4096)
    seed: int = setting(1, "Seed of initial weights, batches and dropout.", tier="basic", ge=0, le=2**31 - 1)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where to train; auto is the GPU if there is one.")


class RunConfig(_Section):
    """Everything that decides a run."""

    schema_version: Literal[1] = setting(SCHEMA_VERSION, "Version of this schema.", tier="expert")
    data: DataConfig = setting(DataConfig(), "Which text, and how it is split.")
    model: ModelConfig = setting(ModelConfig(), "The network.")
    train: TrainConfig = setting(TrainConfig(), "How it is trained.")

    @field_validator("schema_version", mode="before")
    @classmethod
    def _known_version(cls, given: Any) -> Any:
        if given != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version={given!r} is not {SCHEMA_VERSION}; this file needs another version of dgsgpt"
            )
        return given

    @property
    def tokens_per_step(self) -> int:
        """Tokens one optimizer step learns from."""
        return self.train.micro_batch_size * self.train.grad_accum_steps * self.model.block_size

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as written to YAML and JSON."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The text of `config.yaml`; `parse_config` reads it back equal."""
        return strict_yaml.dump(self.to_dict())
