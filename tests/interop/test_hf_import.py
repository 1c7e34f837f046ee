"""Models that come in: what transformers saved gives the same logits here, in all the forms such folders have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ArceeConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Starcoder2Config,
)

from dgsgpt.config import layer_windows
from dgsgpt.errors import CheckpointError
from dgsgpt.interop import keep
from dgsgpt.interop.hf_config import read_config
from tests.interop.hf_factory import edit, imported, logits, quiet, rebuilt, saved_by_transformers, tokens

NO_IDS = {"bos_token_id": None, "eos_token_id": None}  # those of the full-size models lie outside a tiny vocabulary
SIZES: dict[str, Any] = {
    **NO_IDS,
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, **NO_IDS}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 5e4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "rope_theta": 5e5}  # fmt: skip
MSCALE = {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 20}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

MODELS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2, untied and narrow": GPT2Config(**GPT2, tie_word_embeddings=False, n_inner=40, activation_function="relu"),
    "llama": LlamaConfig(**SIZES),
    "llama, tied, biases": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama, attention biases": LlamaConfig(**SIZES, attention_bias=True),
    "llama, network biases": LlamaConfig(**SIZES, mlp_bias=True),
    "llama, wide heads": LlamaConfig(**SIZES, head_dim=16, rms_norm_eps=1e-4),
    "llama, llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama, yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama, yarn with mscale": LlamaConfig(**SIZES, rope_parameters=MSCALE),
    "mistral": MistralConfig(**SIZES, sliding_window=5),
    "mistral, no window": MistralConfig(**SIZES, sliding_window=None),
    "mistral, window beyond the context": MistralConfig(**SIZES),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "mixtral, one expert": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=1, sliding_window=5),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2, upper layers slide": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=2, tie_word_embeddings=True
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3, listed layers": Qwen3Config(
        **SIZES, use_sliding_window=True, sliding_window=5, layer_types=LAYERS, attention_bias=True
    ),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    "qwen3_moe, every second": Qwen3MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=1, moe_intermediate_size=24, decoder_sparse_step=2,
        norm_topk_prob=True, use_sliding_window=True, sliding_window=5,
    ),
    "arcee": ArceeConfig(**SIZES),
    "starcoder2": Starcoder2Config(**SIZES, sliding_window=5),
    "starcoder2, no biases": Starcoder2Config(**SIZES, use_bias=False, tie_word_embeddings=False),
}  # fmt: skip


def random_model(config: PreTrainedConfig) -> Any:
    """A model of theirs whose weights are all random, gains of norms and biases too."""
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model


def distance(folder: Path, theirs: Any) -> float:
    """Largest difference between their logits and those of the imported folder."""
    ids = tokens(300)
    return float((logits(rebuilt(imported(folder)), ids) - logits(theirs, ids)).abs().max())


@pytest.mark.parametrize("config", MODELS.values(), ids=list(MODELS))
def test_what_transformers_saves_gives_the_same_logits(config: PreTrainedConfig, tmp_path: Path) -> None:
    theirs = random_model(config)
    assert distance(saved_by_transformers(tmp_path, theirs), theirs) < 1e-4


def test_windows_are_read_layer_by_layer(tmp_path: Path) -> None:
    theirs = random_model(MODELS["qwen2, upper layers slide"])
    folder = saved_by_transformers(tmp_path, theirs)
    assert layer_windows(imported(folder).model) == [(None,), (None,), (5,)]
    # As older versions wrote it: no list of layers, only from which on they slide.
    assert layer_windows(imported(edit(folder, layer_types=..., max_window_layers=1)).model) == [(None,), (5,), (5,)]
    assert imported(edit(folder, use_sliding_window=False)).model.window is None


def test_biases_that_the_family_lacks_are_said_to_be_zero(tmp_path: Path) -> None:
    folder = saved_by_transformers(tmp_path, random_model(MODELS["llama, attention biases"]))
    came = imported(folder)
    assert not came.tensors["blocks.0.mlp.up.bias"].any()
    assert came.tensors["blocks.0.attn.out.bias"].any()
    assert any("no biases in mlp" in warning for warning in came.warnings)


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_shards_of_transformers_are_joined(name: str, tmp_path: Path) -> None:
    theirs = random_model(MODELS[name])
    folder = saved_by_transformers(tmp_path, theirs, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert distance(folder, theirs) < 1e-4
    assert len(imported(folder).facts["files"]) == len(list(folder.glob("*.safetensors"))) + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_widened_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = random_model(LlamaConfig(**SIZES)).to(dtype)
    came = imported(saved_by_transformers(tmp_path, theirs))
    assert {t.dtype for t in came.tensors.values()} == {torch.float32}
    assert torch.equal(came.tensors["blocks.1.mlp.up.weight"], theirs.model.layers[1].mlp.up_proj.weight.float())


# ---------------------------------------------------------------- older and other forms
def reworked(folder: Path, change: Any) -> Path:
    """The folder with its tensors passed through `change`."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(str(path)).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, str(path))
    return folder


def test_gpt2_as_it_was_first_published_is_read(tmp_path: Path) -> None:
    """Without the prefix, with causal masks beside the weights, and with few keys in config.json."""
    theirs = random_model(GPT2Config(**GPT2))

    def older(tensors: dict[str, Any]) -> dict[str, Any]:
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8) for i in range(3)}
        return bare | masks | {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}

    folder = reworked(saved_by_transformers(tmp_path, theirs), older)
    keys = {**GPT2, "model_type": "gpt2", "n_ctx": 64, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
    (folder / "config.json").write_text(json.dumps(keys))
    assert distance(folder, theirs) < 1e-4
    assert imported(folder).warnings == ()


def test_experts_stacked_in_one_tensor_are_read(tmp_path: Path) -> None:
    for name in ("mixtral", "qwen3_moe"):
        theirs = random_model(MODELS[name])
        folder = saved_by_transformers(tmp_path / name, theirs)
        reworked(folder, lambda _, theirs=theirs: dict(theirs.state_dict()))  # the names that it has in memory
        with_stacks = load_file(str(folder / "model.safetensors"))
        assert "model.layers.0.mlp.experts.gate_up_proj" in with_stacks
        assert distance(folder, theirs) < 1e-4


@pytest.mark.parametrize("name", ["llama, llama3", "llama, yarn"])
def test_the_older_keys_of_rotary_positions_are_read(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    theirs = random_model(config)
    folder = saved_by_transformers(tmp_path, theirs)
    told = dict(config.rope_parameters)
    theta, kind = told.pop("rope_theta"), told.pop("rope_type")
    edit(folder, rope_parameters=..., rope_theta=theta, rope_scaling={**told, "type": kind})
    assert distance(folder, theirs) < 1e-4


def test_an_output_layer_that_repeats_the_embedding_is_tied(tmp_path: Path) -> None:
    theirs = random_model(LlamaConfig(**SIZES, tie_word_embeddings=True))
    folder = saved_by_transformers(tmp_path, theirs)
    reworked(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert distance(folder, theirs) < 1e-4
    reworked(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not the token embedding"):
        imported(folder)


def test_pytorch_model_bin_is_read_through_the_sandbox(tmp_path: Path) -> None:
    theirs = random_model(GPT2Config(**GPT2))
    folder = saved_by_transformers(tmp_path, theirs)
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")  # with lm_head, which shares memory
    assert distance(folder, theirs) < 1e-4


# Keys that config.json of published models has beside those that say what the network is.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        "model_type": "llama", "head_dim": 8, "mlp_bias": False, "pretraining_tp": 1, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "max_position_embeddings": 131072,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "max_window_layers": 24, "sliding_window": 32768, "use_mrope": False,
        "use_sliding_window": False, "rope_theta": 1000000.0,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3", "head_dim": 128, "max_window_layers": 28, "rope_scaling": None, "sliding_window": None,
        "use_sliding_window": False, "attention_bias": False,
    },
    "Mistral-7B-v0.1": {"model_type": "mistral", "sliding_window": 4096, "rope_theta": 10000.0},
    "SmolLM2-135M": {
        "model_type": "llama", "is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "distilgpt2": {
        "model_type": "gpt2", "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "n_ctx": 1024,
        "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 1024, "activation_function": "gelu_new",
        "summary_first_dropout": 0.1, "task_specific_params": {"text-generation": {"do_sample": True}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_of_published_models_are_read_without_a_warning(name: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 96, "max_position_embeddings": 32768, "hidden_act": "silu"}  # fmt: skip
    common = {"vocab_size": 300, "torch_dtype": "bfloat16", "use_cache": True, "eos_token_id": 2}
    given = {**(sizes if name != "distilgpt2" else {}), **common, **PUBLISHED[name]}
    described = read_config(given, Path("config.json"))
    assert described.warnings == ()
    assert described.model.n_layer == 2


def test_an_imported_folder_becomes_a_run(tmp_path: Path) -> None:
    from dgsgpt.checkpoint import load_checkpoint

    theirs = random_model(MODELS["qwen3"])
    folder = saved_by_transformers(tmp_path / "theirs", theirs)
    done = keep.import_model(folder, tmp_path / "runs", "brought", progress=quiet)
    opened = load_checkpoint(done.checkpoint)
    assert (logits(opened.model, tokens(300)) - logits(theirs, tokens(300))).abs().max() < 1e-4
    told = opened.metadata["imported"]
    assert told["family"] == "Qwen3"
    assert set(told["files"]) == {"config.json", "model.safetensors"}
    assert len(told["sha256"]) == 64
