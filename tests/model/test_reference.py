"""Logits against transformers' models, which share no code with ours."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
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
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dgsgpt.config import ModelConfig, RopeConfig
from dgsgpt.model import GPT
from dgsgpt.model.rope import RotaryPositions

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
    """Copy the weights of a Llama, Mistral, Mixtral, Qwen2 or Qwen3; every one of ours must be given, and of theirs."""
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
            renamed |= linear(source, f"{b}self_attn.{name}", f"{a}attn.{ours}")
        for name in ("q_norm", "k_norm") if model.config.qk_norm else ():
            renamed[f"{a}attn.{name}.weight"] = source[f"{b}self_attn.{name}.weight"]
        if model.config.moe:
            renamed[a + "mlp.router.weight"] = source[b + "mlp.gate.weight"]
            gate, up = source[b + "mlp.experts.gate_up_proj"].chunk(2, dim=1)
            renamed |= {a + "mlp.experts.gate": gate, a + "mlp.experts.up": up}
            renamed[a + "mlp.experts.down"] = source[b + "mlp.experts.down_proj"]
        else:
            for name in ("gate", "up", "down"):
                renamed |= linear(source, f"{b}mlp.{name}_proj", f"{a}mlp.{name}")
    model.load_state_dict(renamed, strict=True)
    return model.eval()


def linear(source: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """A matrix by our name, with its bias if it has one."""
    return {f"{ours}.{kind}": source[f"{theirs}.{kind}"] for kind in ("weight", "bias") if f"{theirs}.{kind}" in source}


def draw_biases(model: nn.Module) -> None:
    """Biases of zero would hide that one is missing."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0.0, 0.3)


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


# Of the four pairs of a head, some keep their speed, some are slowed down by the factor, and some lie between.
SCALINGS: dict[str, dict[str, Any]] = {
    "yarn": {"factor": 4.0},
    "yarn, all settings": {"factor": 5.0, "beta_fast": 8.0, "beta_slow": 0.5, "attention_factor": 1.25},
    "llama3": {"factor": 4.0},
    "llama3, all settings": {"factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 3.0},
}


@pytest.mark.parametrize("told", [True, False], ids=["original length told", "original length derived"])
@pytest.mark.parametrize("name", sorted(SCALINGS))
def test_llama_with_stretched_positions_gives_the_same_logits(name: str, told: bool) -> None:
    torch.manual_seed(6)
    kind, values = name.partition(",")[0], SCALINGS[name]
    original = round(160 / values["factor"])
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    theirs_rope = {"rope_type": kind, "rope_theta": 100.0, "original_max_position_embeddings": original}
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters={**theirs_rope, **bounds, **values}))
    scaling = {"kind": kind, "original_block_size": original if told else None, **values}
    ours = GPT(ModelConfig.model_validate({**OURS, "rope": {"theta": 100.0, "scaling": scaling}}))
    assert_same_logits(load_llama_like(ours, theirs), theirs)


def magnitudes(low: float, high: float) -> st.SearchStrategy[float]:
    """Powers of ten between two exponents: bounds of a ramp fall beyond the first and the last pair too."""
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


@given(
    kind=st.sampled_from(["linear", "yarn", "llama3"]),
    theta=magnitudes(1.0, 9.0),
    head_dim=st.integers(1, 128).map(lambda half: 2 * half),
    factor=magnitudes(0.0, 3.0),
    original=magnitudes(0.0, 6.0).map(int),
    slow=magnitudes(-2.0, 2.0),
    spread=magnitudes(0.2, 3.0),
    attention_factor=st.none() | st.floats(0.1, 10.0),
)
@example(  # the ramp would end beyond the last channel
    kind="yarn", theta=10.0, head_dim=4, factor=8.0, original=60, slow=0.01, spread=1000.0, attention_factor=None
)
@settings(max_examples=200, deadline=None)
def test_rotary_frequencies_equal_those_of_transformers(
    kind: str, theta: float, head_dim: int, factor: float, original: int, slow: float, spread: float,
    attention_factor: float | None,
) -> None:  # fmt: skip
    bounds = {
        "linear": {},
        "yarn": {"beta_fast": slow * spread, "beta_slow": slow, "attention_factor": attention_factor},
        "llama3": {"low_freq_factor": slow, "high_freq_factor": slow * spread},
    }[kind]
    theirs_rope = {"rope_type": kind, "rope_theta": theta, "factor": factor, **bounds}
    if kind != "linear":
        theirs_rope["original_max_position_embeddings"] = original
    shape = {"hidden_size": 2 * head_dim, "num_attention_heads": 2, "max_position_embeddings": original * 1024}
    expected, expected_factor = ROPE_INIT_FUNCTIONS[kind](LlamaConfig(**shape, rope_parameters=theirs_rope), "cpu")
    scaling = {"kind": kind, "factor": factor, "original_block_size": original, **bounds}
    ours = RotaryPositions(RopeConfig.model_validate({"theta": theta, "scaling": scaling}), head_dim, 1_000_000)
    unstretched = RotaryPositions(RopeConfig(theta=theta), head_dim, 1_000_000).frequencies("cpu")
    # Against the speed before stretching: a ramp of float32 cannot be exact to more than that.
    torch.testing.assert_close(ours.frequencies("cpu") / unstretched, expected / unstretched, rtol=1e-6, atol=5e-7)
    assert ours.attention_factor == pytest.approx(expected_factor, rel=1e-12)


def test_llama_with_another_epsilon_gives_the_same_logits() -> None:
    torch.manual_seed(7)
    theirs = LlamaForCausalLM(LlamaConfig(**{**SIZES, "rms_norm_eps": 1e-6}))
    with torch.no_grad():
        theirs.model.embed_tokens.weight.mul_(0.01)  # so small that the epsilon shows
    ours = GPT(ModelConfig.model_validate({**OURS, "norm_eps": 1e-6}))
    assert_same_logits(load_llama_like(ours, theirs), theirs)


@pytest.mark.parametrize("kv_heads", [2, 6])
def test_qwen2_with_biases_of_queries_keys_and_values_gives_the_same_logits(kv_heads: int) -> None:
    torch.manual_seed(9)
    theirs = Qwen2ForCausalLM(Qwen2Config(**{**SIZES, "num_key_value_heads": kv_heads}))
    draw_biases(theirs)
    ours = GPT(ModelConfig.model_validate({**OURS, "n_kv_head": kv_heads, "qkv_bias": "with"}))
    assert {name for name in ours.state_dict() if name.endswith("bias")} == {
        f"blocks.{i}.attn.{name}.bias" for i in range(3) for name in "qkv"
    }
    assert_same_logits(load_llama_like(ours, theirs), theirs)


def test_llama_with_biases_everywhere_gives_the_same_logits() -> None:
    torch.manual_seed(10)
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True))
    draw_biases(theirs)
    assert_same_logits(load_llama_like(GPT(ModelConfig.model_validate({**OURS, "bias": True})), theirs), theirs)


@pytest.mark.parametrize("head_dim", [4, 20])
def test_qwen3_with_heads_of_another_width_gives_the_same_logits(head_dim: int) -> None:
    torch.manual_seed(11)
    theirs = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=head_dim))
    changes = {"qk_norm": True, "head_size": head_dim}
    ours = GPT(ModelConfig.model_validate({**OURS, **changes}))
    assert ours.state_dict()["blocks.0.attn.out.weight"].shape == (48, 6 * head_dim)
    assert_same_logits(load_llama_like(ours, theirs), theirs)


@pytest.mark.parametrize("kv_heads", [2, 6])
def test_qwen3_gives_the_same_logits(kv_heads: int) -> None:
    torch.manual_seed(8)
    sizes = {**SIZES, "num_key_value_heads": kv_heads, "head_dim": 8, "rms_norm_eps": 1e-6}
    theirs = Qwen3ForCausalLM(Qwen3Config(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 1e6}))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "norm" in name:
                p.normal_(1.0, 0.3)  # gains of one would hide that one is missing
    changes = {"n_kv_head": kv_heads, "qk_norm": True, "norm_eps": 1e-6, "rope": {"theta": 1e6}}
    ours = GPT(ModelConfig.model_validate({**OURS, **changes}))
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
