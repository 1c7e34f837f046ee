"""The families of Hugging Face models that dgsgpt reads and writes, as plain facts of their networks.

What each can express was read from the modules of transformers 5.23. Where a family always has a bias that a model of
ours has not, it is written as zeros, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Biases = Literal["none", "always", "qkv", "attention", "switches", "all"]


@dataclass(frozen=True)
class Family:
    """One `model_type`: what its network can be.

    `biases`: `always` everywhere; `qkv` queries, keys and values, nowhere else; `attention` those and the output by
    `attention_bias`; `switches` that and `mlp_bias`; `all` in every linear layer by `use_bias`; `none`.
    `windows`: on no layer, on `all` or none, or on the `layers` listed in `layer_types`.
    `experts`: none, in `every` layer and always renormalised (Mixtral), or in `some` layers (Qwen3-MoE).
    """

    model_type: str
    architecture: str
    title: str
    norm: Literal["rmsnorm", "layernorm"]
    activations: Mapping[str, str]  # ours -> theirs, the name that is written
    biases: Biases
    norm_eps: tuple[str, float]  # the key, and what is meant where it is missing
    prefix: str = "model."
    rotary: bool = True
    theta: float = 10_000.0
    n_kv_head: int | None = None  # where the key is missing; None is as many as heads
    head_dim: int | None = None  # where the key is missing; None is hidden_size / heads
    # Heads: as many of keys as of queries; of a number that divides the width; or any, whose width is then told.
    heads: Literal["equal", "divide", "any"] = "any"
    tied: bool = False  # where the key is missing
    qk_norm: bool = False
    windows: Literal["none", "all", "layers"] = "none"
    experts: Literal["none", "every", "some"] = "none"
    # transformers' AutoTokenizer then splits a text as this family's own tokenizer does, whatever tokenizer.json says.
    own_splitting: bool = False


GATED = {"swiglu": "silu"}
PLAIN = {"gelu": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2"}
RMS = ("rms_norm_eps", 1e-6)

# In the order in which an export tries them: the widest known come first.
FAMILIES: dict[str, Family] = {
    f.model_type: f
    for f in (
        Family("gpt2", "GPT2LMHeadModel", "GPT-2", "layernorm", {**PLAIN, "gelu": "gelu_new"}, "always",
               ("layer_norm_epsilon", 1e-5), prefix="transformer.", rotary=False, heads="equal", tied=True),
        Family("llama", "LlamaForCausalLM", "Llama", "rmsnorm", GATED, "switches", RMS,
               heads="divide"),
        Family("mistral", "MistralForCausalLM", "Mistral", "rmsnorm", GATED, "none", RMS, n_kv_head=8, windows="all"),
        Family("ministral", "MinistralForCausalLM", "Ministral", "rmsnorm", GATED, "none", RMS, n_kv_head=8,
               windows="layers"),
        Family("qwen2", "Qwen2ForCausalLM", "Qwen2", "rmsnorm", GATED, "qkv", RMS, n_kv_head=32, windows="layers",
               own_splitting=True),
        Family("qwen3", "Qwen3ForCausalLM", "Qwen3", "rmsnorm", GATED, "attention", RMS, n_kv_head=32, head_dim=128,
               qk_norm=True, windows="layers"),
        Family("mixtral", "MixtralForCausalLM", "Mixtral", "rmsnorm", GATED, "none", ("rms_norm_eps", 1e-5),
               theta=1e6, n_kv_head=8, windows="all", experts="every"),
        Family("qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3-MoE", "rmsnorm", GATED, "attention", RMS, n_kv_head=4,
               qk_norm=True, windows="all", experts="some"),
        Family("arcee", "ArceeForCausalLM", "Arcee", "rmsnorm", PLAIN, "switches", ("rms_norm_eps", 1e-5),
               heads="divide"),
        Family("starcoder2", "Starcoder2ForCausalLM", "StarCoder2", "layernorm", PLAIN, "all", ("norm_epsilon", 1e-5),
               n_kv_head=2, tied=True, windows="all"),
    )
}  # fmt: skip

# Names of one function; others are near but not the same (`gelu` is the exact form, ours the tanh form).
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu", "relu2": "relu2",
}  # fmt: skip

# Keys that leave the function of the network as it is: bookkeeping, training, generation.
_HARMLESS = """
    _name_or_path architectures auto_map transformers_version torch_dtype dtype use_cache initializer_range model_type
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id decoder_start_token_id
    begin_suppress_tokens suppress_tokens forced_bos_token_id forced_eos_token_id prefix bad_words_ids
    attention_dropout residual_dropout embedding_dropout resid_pdrop embd_pdrop attn_pdrop
    output_attentions output_hidden_states output_router_logits return_dict torchscript gradient_checkpointing
    router_aux_loss_coef router_jitter_noise pretraining_tp task_specific_params problem_type finetuning_task
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    id2label label2id num_labels _num_labels n_ctx reorder_and_upcast_attn use_bfloat16 tie_encoder_decoder is_decoder
    max_length min_length do_sample temperature top_k top_p typical_p num_beams num_beam_groups diversity_penalty
    early_stopping repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    num_return_sequences remove_invalid_values exponential_decay_length_penalty output_scores return_dict_in_generate
    is_llama_config unsloth_version unsloth_fixed _attn_implementation attn_implementation
    _flash_attn_2_enabled transformers.js_config gradient_checkpointing_kwargs mlp_dropout
    max_window_layers use_sliding_window dgsgpt
"""
HARMLESS = frozenset(_HARMLESS.split())

# Keys that change the network, with the values at which they do not; anything else is refused.
ONLY_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "quantization_config": ((None,), "weights in fewer bits are not read; take the unquantised model"),
    "is_encoder_decoder": ((None, False), "only decoders are read"),
    "add_cross_attention": ((None, False), "only decoders are read"),
    "cross_attention_hidden_size": ((None,), "only decoders are read"),
    "pruned_heads": ((None, {}), "heads were removed"),
    "chunk_size_feed_forward": ((None, 0), "not known here"),
    "scale_attn_weights": ((None, True), "scores are always divided by the root of the head's width"),
    "scale_attn_by_inverse_layer_idx": ((None, False), "scores are not scaled by layer"),
    "partial_rotary_factor": ((None, 1.0), "rotary positions turn all channels of a head"),
    "rotary_pct": ((None, 1.0), "rotary positions turn all channels of a head"),
    "rope_interleaved": ((None, False), "rotary pairs are half a head apart"),
    "embd_layer_norm": ((None, False), "embeddings are not normalised"),
    "n_shared_experts": ((None, 0), "shared experts of other kinds are not read"),
    "num_shared_experts": ((None, 0), "shared experts of other kinds are not read"),
    "shared_expert_intermediate_size": ((None, 0), "shared experts of other kinds are not read"),
    "logit_scale": ((None, 1.0), "logits are not scaled"),
    "logits_scaling": ((None, 1.0), "logits are not scaled"),
    "final_logit_softcapping": ((None,), "not written by this family"),
    "attn_logit_softcapping": ((None,), "attention scores are not capped"),
    "embedding_multiplier": ((None, 1.0), "embeddings are not scaled"),
    "residual_multiplier": ((None, 1.0), "sub-layers are not scaled"),
    "attention_multiplier": ((None,), "scores are always divided by the root of the head's width"),
    "no_rope_layers": ((None, []), "all layers have rotary positions"),
    "no_rope_layer_interval": ((None, 0), "all layers have rotary positions"),
    "use_parallel_residual": ((None, False), "sub-layers follow each other"),
    "use_mrope": ((None, False), "positions have one axis"),
    "alibi": ((None, False), "positions by distance penalty are not known here"),
    "qk_layernorm": ((None, False), "not written by this family"),
    "use_qk_norm": ((None, False), "not written by this family"),
    "num_nextn_predict_layers": ((None, 0), "layers that predict further tokens are not read"),
}


def supported() -> str:
    """The names of all `model_type` that are read, for messages."""
    return ", ".join(FAMILIES)
