"""Logits against transformers' models, which share no code with ours."""

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from dgsgpt.config import ModelConfig
from dgsgpt.model import GPT

SIZES = {
    "vocab_size": 71,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "attn_implementation": "eager",
}
OURS = {
    "vocab_size": 71,
    "n_embd": 48,
    "mlp_hidden": 80,
    "n_layer": 3,
    "n_head": 6,
    "n_kv_head": 2,
    "block_size": 160,
    "tie_embeddings": False,
    "mlp": "swiglu",
    "norm": "rmsnorm",
}


def load_llama_like(model: GPT, theirs: nn.Module) -> GPT:
    """Copy the weights of a Llama, Mistral or Mixtral; every one of ours must be given."""
    source = dict(theirs.state_dict())
    renamed: dict[str, Tensor] = {
        "embed.weight": source["model.embed_tokens.weight"],
        "norm.weight": source["model.norm.weight"],
        "head.weight": source["lm_head.weight"],
    }
    for i in range(model.config.n_layer):
        a, b = f"blocks.{i}.", f"model.layers.{i}."
        renamed[a + "norm1.weight"] = source[b + "input_layernorm.weight"]
        renamed[a + "norm2.weight"] = source[b + "post_attention_layernorm.weight"]
        for ours, name in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}.items():
            renamed[f"{a}attn.{ours}.weight"] = source[f"{b}self_attn.{name}.weight"]
        if model.config.moe:
            renamed[a + "mlp.router.weight"] = source[b + "mlp.gate.weight"]
            gate, up = source[b + "mlp.experts.gate_up_proj"].chunk(2, dim=1)
            renamed |= {a + "mlp.experts.gate": gate, a + "mlp.experts.up": up}
            renamed[a + "mlp.experts.down"] = source[b + "mlp.experts.down_proj"]
        else:
            for name in ("gate", "up", "down"):
                renamed[f"{a}mlp.{name}.weight"] = source[f"{b}mlp.{name}_proj.weight"]
    model.load_state_dict(renamed, strict=True)
    return model.eval()


def assert_same_logits(ours: GPT, theirs: nn.Module, length: int = 150) -> None:
    tokens = torch.randint(71, (2, length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = theirs.eval()(tokens).logits
        actual = ours.eval()(tokens).logits
    assert expected.std() > 0.1  # a comparison of zeros would prove nothing
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_llama_with_grouped_queries_gives_the_same_logits(kv_heads: int) -> None:
    torch.manual_seed(1)
    theirs = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": kv_heads}))
    ours = GPT(ModelConfig.model_validate({**OURS, "n_kv_head": kv_heads}))
    assert_same_logits(load_llama_like(ours, theirs), theirs)


def test_llama_with_linearly_scaled_positions_gives_the_same_logits() -> None:
    torch.manual_seed(2)
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope))
    ours = GPT(
        ModelConfig.model_validate({**OURS, "rope": {"theta": 5000.0, "scaling": {"kind": "linear", "factor": 4.0}}})
    )
    assert_same_logits(load_llama_like(ours, theirs), theirs)


@pytest.mark.parametrize("window", [1, 5, 32, 70])
def test_mistral_with_a_sliding_window_gives_the_same_logits(window: int) -> None:
    torch.manual_seed(3)
    theirs = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window))
    ours = GPT(ModelConfig.model_validate({**OURS, "window": {"size": window, "pattern": "S"}}))
    assert_same_logits(load_llama_like(ours, theirs), theirs)


def test_mixtral_gives_the_same_logits() -> None:
    torch.manual_seed(4)
    theirs = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=5, num_experts_per_tok=2, sliding_window=None))
    ours = GPT(ModelConfig.model_validate({**OURS, "rope": {"theta": 1e6}, "moe": {"n_expert": 5}}))
    assert_same_logits(load_llama_like(ours, theirs), theirs)


def test_gpt2_gives_the_same_logits() -> None:
    torch.manual_seed(5)
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=71, n_positions=160, n_embd=48, n_layer=3, n_head=6, initializer_range=0.2)
    )
    ours = GPT(
        ModelConfig(
            vocab_size=71, n_embd=48, n_layer=3, n_head=6, n_kv_head=6, block_size=160,
            bias=True, norm="layernorm", mlp="gelu", rope=None, tie_embeddings=True,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.endswith("bias"):
                p.normal_(0.0, 0.1)
    source = theirs.state_dict()
    renamed = {
        "embed.weight": source["transformer.wte.weight"],
        "positions.weight": source["transformer.wpe.weight"],
        "norm.weight": source["transformer.ln_f.weight"],
        "norm.bias": source["transformer.ln_f.bias"],
    }
    for i in range(3):
        a, b = f"blocks.{i}.", f"transformer.h.{i}."
        for kind in ("weight", "bias"):
            renamed[f"{a}norm1.{kind}"] = source[f"{b}ln_1.{kind}"]
            renamed[f"{a}norm2.{kind}"] = source[f"{b}ln_2.{kind}"]
            qkv = source[f"{b}attn.c_attn.{kind}"].chunk(3, dim=-1)
            for ours_name, part in zip("qkv", qkv, strict=True):
                renamed[f"{a}attn.{ours_name}.{kind}"] = part.t()
            for ours_name, name in {"attn.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}.items():
                renamed[f"{a}{ours_name}.{kind}"] = source[
                    f"{b}{name}.{kind}"
                ].t()  # GPT-2 stores its matrices [in, out]
    ours.load_state_dict(renamed, strict=True)
    assert_same_logits(ours, theirs)
