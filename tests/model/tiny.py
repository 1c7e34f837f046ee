"""Small configs and models that the tests of the network share."""

from __future__ import annotations

from typing import Any

import torch

from dgsgpt.config import ModelConfig
from dgsgpt.model import GPT

TINY = {"n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "block_size": 48, "vocab_size": 61}

# One entry for each toggle, and all of them at once.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"rope": None, "n_kv_head": 4},
    "rope": {"n_kv_head": 4},
    "gqa": {},
    "mqa": {"n_kv_head": 1},
    "window": {"window": {"size": 8, "pattern": "SSL"}},
    "layernorm": {"norm": "layernorm", "mlp": "gelu", "bias": True, "rope": None},
    "relu2": {"mlp": "relu2", "qk_norm": True, "tie_embeddings": False},
    "relu": {"mlp": "relu", "rope": {"theta": 500.0, "scaling": {"kind": "linear", "factor": 2.0}}},
    "moe": {"moe": {"n_expert": 4}},
    "top1": {"moe": {"n_expert": 4, "n_expert_per_token": 1, "every": 2}, "mlp": "gelu"},
    "capacity": {"moe": {"n_expert": 4, "capacity_factor": 1.25, "n_shared_expert": 1}},
    "odd_experts": {"moe": {"n_expert": 3, "expert_hidden": 13}},
    "none": {"rope": None, "positions": "none"},
    "both": {"window": {"size": 8, "pattern": "B"}},
    "both_mqa": {"window": {"size": 8, "pattern": "SLB"}, "n_kv_head": 1},
    "yarn": {"rope": {"scaling": {"kind": "yarn", "factor": 4.0}}},
    "bias_balanced": {"moe": {"n_expert": 4, "balance": "bias", "dense_residual": True}},
    "shortcuts": {"value_residual": True, "x0_shortcut": True, "logit_softcap": 6.0},
    "ngram": {"ngram": {"max_order": 4, "rows": 4000}},  # all pairs, but triples and more hashed
    "head_size": {"head_size": 12, "qk_norm": True, "value_residual": True},
    "narrow_heads": {"head_size": 4, "window": {"size": 8, "pattern": "SB"}, "rope": None},
    "qkv_bias": {"qkv_bias": "with"},
    "no_qkv_bias": {"qkv_bias": "without", "bias": True, "norm": "layernorm", "mlp": "relu"},
    "head_bias": {"head_bias": True, "tie_embeddings": False, "logit_softcap": 6.0},
    "biased_experts": {"moe": {"n_expert": 4, "bias": True}},
    "biased_capacity": {"moe": {"n_expert": 4, "bias": True, "capacity_factor": 1.0, "n_shared_expert": 1}},
    "biased_odd_experts": {"moe": {"n_expert": 5, "bias": True, "expert_hidden": 13}, "mlp": "gelu", "bias": True},
    "after_dense": {"moe": {"n_expert": 4, "after_dense": True, "every": 2, "balance": "bias"}},
    "single": {"moe": {"n_expert": 4, "n_expert_per_token": 1, "renormalize_single": True}},
    "original": {  # the first DGS-GPT's network
        "moe": {"n_expert": 4, "after_dense": True, "bias": True, "n_expert_per_token": 1, "renormalize_single": True},
        "rope": None,
        "norm": "layernorm",
        "mlp": "relu",
        "bias": True,
        "qkv_bias": "without",
        "head_bias": True,
        "tie_embeddings": False,
    },
    "all": {
        "window": {"size": 8, "pattern": "SL"},
        "moe": {"n_expert": 4, "n_shared_expert": 1, "capacity_factor": 2.0},
        "qk_norm": True,
        "bias": True,
        "norm": "layernorm",
    },
    "all_new": {
        "window": {"size": 8, "pattern": "SB"},
        "moe": {"n_expert": 4, "dense_residual": True, "n_shared_expert": 1, "balance": "bias", "every": 2},
        "rope": {"scaling": {"kind": "llama3", "factor": 2.0}},
        "value_residual": True,
        "x0_shortcut": True,
        "logit_softcap": 5.0,
        "ngram": {"max_order": 3, "rows": 256},
        "norm_eps": 1e-6,
        "qk_norm": True,
    },
}


def tiny_config(**changes: Any) -> ModelConfig:
    """A config of about 30 thousand parameters."""
    return ModelConfig.model_validate({**TINY, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> GPT:
    """A model of `tiny_config`, its weights large enough that every part shows in the logits."""
    torch.manual_seed(seed)
    model = GPT(tiny_config(**changes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


def random_tokens(batch: int = 2, length: int = 48, seed: int = 0, vocab_size: int = 61) -> torch.Tensor:
    """Tokens [batch, length] that depend on the seed alone."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))
