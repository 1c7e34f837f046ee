"""Models that go out: transformers gives the same logits, and what comes back is what went."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open

from dgsgpt.config import ModelConfig
from dgsgpt.data.bpe import train_bpe
from dgsgpt.errors import CheckpointError, ConfigError
from dgsgpt.interop import hf_export
from dgsgpt.interop.hf_config import write_config
from tests.interop.hf_factory import (
    TINY,
    checkpoint,
    edit,
    exported,
    imported,
    logits,
    network,
    opened,
    quiet,
    rebuilt,
    tokens,
)


def window(pattern: str) -> dict[str, Any]:
    return {"size": 5, "pattern": pattern}


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"norm": "layernorm", "mlp": "gelu", "bias": True, "rope": None}),
    "gpt2 without biases": (
        "gpt2",
        {"norm": "layernorm", "mlp": "relu2", "rope": None, "tie_embeddings": False},
    ),
    "gpt2 without qkv bias": ("gpt2", {"norm": "layernorm", "mlp": "relu", "bias": True, "qkv_bias": "without",
                                       "rope": None}),
    "llama": ("llama", {"n_kv_head": 2}),
    "llama with biases": ("llama", {"bias": True, "tie_embeddings": False}),
    "llama without qkv bias": ("llama", {"bias": True, "qkv_bias": "without"}),
    "llama, wide heads": ("llama", {"head_size": 16, "mlp_hidden": 40}),
    "llama, yarn": ("llama", {"rope": {"theta": 5e4, "scaling": {"kind": "yarn", "factor": 4.0}}}),
    "llama, llama3": ("llama", {"rope": {"scaling": {"kind": "llama3", "factor": 8.0, "original_block_size": 16}}}),
    "mistral": ("mistral", {"n_kv_head": 1, "window": window("S")}),
    "mistral, heads that do not divide": ("mistral", {"n_head": 3, "n_kv_head": 3, "head_size": 12}),
    "llama, biases of q, k and v": ("llama", {"qkv_bias": "with", "tie_embeddings": False}),
    "qwen2, some windows": ("qwen2", {"window": window("SSL"), "qkv_bias": "with"}),
    "ministral": ("ministral", {"window": window("SL"), "head_size": 12}),
    "qwen3": ("qwen3", {"qk_norm": True, "window": window("LSS"), "head_size": 16}),
    "qwen3 with qkv bias": ("qwen3", {"qk_norm": True, "qkv_bias": "with"}),
    "qwen3, linear": ("qwen3", {"qk_norm": True, "rope": {"scaling": {"kind": "linear", "factor": 2.0}}}),
    "mixtral": ("mixtral", {"moe": {"n_expert": 4}}),
    "mixtral, yarn": ("mixtral", {"moe": {"n_expert": 3}, "rope": {"scaling": {
        "kind": "yarn", "factor": 4.0, "attention_factor": 1.1, "beta_fast": 16.0}}}),
    "mixtral, one expert": ("mixtral", {"window": window("S"), "moe": {
        "n_expert": 4, "n_expert_per_token": 1, "renormalize_single": True, "expert_hidden": 24,
        "capacity_factor": 1.5}}),
    "qwen3_moe": ("qwen3_moe", {"qk_norm": True, "moe": {
        "n_expert": 4, "every": 2, "renormalize": False, "expert_hidden": 20}}),
    "qwen3_moe, one expert": ("qwen3_moe", {"qk_norm": True, "qkv_bias": "with", "moe": {
        "n_expert": 4, "n_expert_per_token": 1}}),
    "arcee": ("arcee", {"mlp": "relu2"}),
    "starcoder2": ("starcoder2", {"norm": "layernorm", "mlp": "gelu", "bias": True, "n_kv_head": 2,
                                  "window": window("S")}),
}  # fmt: skip


@pytest.mark.parametrize(("family", "chosen"), NETWORKS.values(), ids=list(NETWORKS))
def test_exported_networks_give_the_same_logits_and_come_back_as_they_were(
    family: str, chosen: dict[str, Any], tmp_path: Path
) -> None:
    model = network(**chosen)
    folder = exported(tmp_path, model)
    theirs = opened(folder)
    assert theirs.config.model_type == family
    assert (logits(model, tokens()) - logits(theirs, tokens())).abs().max() < 1e-4

    back = imported(folder)
    assert back.model == model.config
    assert back.warnings == ()
    assert set(back.tensors) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.tensors[name], tensor), name

    # Without our own note the network is described by their keys alone, and is then equal but for zero biases.
    plain = rebuilt(imported(edit(folder, dgsgpt=...)))
    assert (logits(model, tokens()) - logits(plain, tokens())).abs().max() < 1e-4


def test_what_transformers_saves_again_comes_back_as_it_was(tmp_path: Path) -> None:
    model = network(qk_norm=True, dropout=0.1, moe={"n_expert": 4, "capacity_factor": 1.25})
    folder = exported(tmp_path, model)
    opened(folder).save_pretrained(folder)  # experts and keys as transformers writes them
    back = imported(folder)
    assert back.model == model.config
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in model.state_dict().items())


def test_our_own_note_is_not_believed_where_other_keys_differ(tmp_path: Path) -> None:
    folder = exported(tmp_path, network(dropout=0.1))
    assert imported(folder).model.dropout == 0.1
    back = imported(edit(folder, rms_norm_eps=1e-3, rope_theta=500.0, rope_parameters=..., head_dim=...))
    assert back.model.norm_eps == 1e-3
    assert back.model.rope is not None
    assert back.model.rope.theta == 500.0
    assert back.model.dropout == 0.0


def test_a_bias_that_was_trained_elsewhere_is_kept(tmp_path: Path) -> None:
    folder = exported(tmp_path, network(qkv_bias="with"))  # a Llama, which then has one in the output too
    theirs = opened(folder)
    with torch.no_grad():
        theirs.model.layers[1].self_attn.o_proj.bias += 0.5
    theirs.save_pretrained(folder)
    back = imported(folder)
    assert back.model.bias
    assert (logits(rebuilt(back), tokens()) - logits(theirs, tokens())).abs().max() < 1e-4


toggles = st.fixed_dictionaries(
    {
        "n_kv_head": st.sampled_from([1, 2, 4]),
        "bias": st.booleans(),
        "qkv_bias": st.sampled_from(["same", "with", "without"]),
        "norm": st.sampled_from(["rmsnorm", "layernorm"]),
        "mlp": st.sampled_from(["gelu", "relu", "relu2", "swiglu"]),
        "qk_norm": st.booleans(),
        "tie_embeddings": st.booleans(),
        "head_size": st.sampled_from([None, 6]),
        "rope": st.sampled_from([None, {"theta": 700.0}]),
        "positions": st.sampled_from(["learned", "learned", "none"]),
        "window": st.sampled_from([None, window("S"), window("SL"), window("SB")]),
        "moe": st.sampled_from([None, None, {"n_expert": 3}, {"n_expert": 3, "every": 2}, {
            "n_expert": 3, "n_expert_per_token": 1}, {"n_expert": 3, "n_shared_expert": 1}]),
        "logit_softcap": st.sampled_from([None, None, None, 5.0]),
        "x0_shortcut": st.sampled_from([False, False, False, True]),
    }
)  # fmt: skip
near = st.builds(  # one of the networks above, with a setting or two as they come
    lambda known, other, changed: known[1] | {name: other[name] for name in changed},
    st.sampled_from(list(NETWORKS.values())),
    toggles,
    st.sets(st.sampled_from(["n_kv_head", "bias", "qkv_bias", "tie_embeddings", "head_size", "qk_norm", "window"]),
            max_size=2),
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(toggles, near))
def test_a_network_is_refused_by_its_settings_or_gives_the_same_logits(chosen: dict[str, Any]) -> None:
    try:
        model = network(**{**chosen, "n_layer": 2, "vocab_size": 256})
    except ValidationError:
        return
    with tempfile.TemporaryDirectory() as place:
        try:
            folder = exported(Path(place), model)
        except ConfigError as e:
            refusal = e
        else:
            assert (logits(model, tokens()) - logits(opened(folder), tokens())).abs().max() < 1e-4
            assert imported(folder).model == model.config
            event("exported")
            return
    event("refused")
    assert refusal.problems
    assert "\n" not in str(refusal)
    for path in refusal.problems:
        assert path.split(".")[1] in ModelConfig.model_fields
        assert f"{path}=" in str(refusal)


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"window": window("SB")}, ["model.window.pattern=SB"]),
        ({"ngram": {}, "x0_shortcut": True}, ["model.ngram", "model.x0_shortcut=true"]),
        ({"value_residual": True, "logit_softcap": 15.0}, ["model.value_residual=true", "model.logit_softcap=15.0"]),
        ({"rope": None, "positions": "none"}, ["model.positions=none"]),
        ({"head_bias": True, "tie_embeddings": False}, ["model.head_bias=true"]),
        ({"moe": {"after_dense": True, "bias": True}}, ["model.moe.after_dense=true", "model.moe.bias=true"]),
        ({"moe": {"n_shared_expert": 1}}, ["model.moe.n_shared_expert=1"]),
        ({"moe": {"balance": "bias"}}, ["model.moe.balance=bias"]),
        ({"moe": {"renormalize": False}}, ["model.moe.renormalize=false"]),
        ({"moe": {"n_expert_per_token": 1}}, ["model.moe.renormalize_single=false"]),
        ({"norm": "layernorm", "rope": None, "mlp": "gelu", "n_kv_head": 2}, ["model.n_kv_head=2"]),
        ({"bias": True, "window": window("SL")}, ["model.window.pattern=SL"]),
    ],
)
def test_a_network_that_exists_nowhere_is_refused_by_all_settings_in_the_way(
    chosen: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "ours", network(**chosen))
    with pytest.raises(ConfigError) as e:
        hf_export.write_hf(path, tmp_path / "theirs", progress=quiet)
    assert all(name in str(e.value) for name in named)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "theirs").exists()


# ---------------------------------------------------------------- what is written
def test_a_folder_has_all_that_others_need(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = train_bpe("It was the best of times, it was the worst of times. " * 20, 264)
    model = network(vocab_size=tokenizer.vocab_size)
    path = checkpoint(tmp_path / "ours", model, tokenizer)
    folder = hf_export.write_hf(path, tmp_path / "new" / "theirs", progress=quiet)
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "It was the wörst of times."
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.end_of_text
    assert opened(folder).config.eos_token_id == tokenizer.end_of_text
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "2.5000" in card
    assert "austen" in card
    assert sorted(p.name for p in tmp_path.joinpath("new").iterdir()) == ["theirs"]
    assert imported(folder).tokenizer.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_sixteen_bits_are_those_rounded(dtype: str, tmp_path: Path) -> None:
    model = network()
    folder = exported(tmp_path, model, dtype=dtype)
    kind = getattr(torch, dtype)
    with safe_open(str(folder / "model.safetensors"), "pt") as f:
        assert {f.get_tensor(name).dtype for name in f.keys()} == {kind}  # noqa: SIM118
    assert opened(folder).dtype == kind
    back = imported(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.tensors[name], tensor.to(kind).float())


def test_a_weight_too_large_for_float16_is_named(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.blocks[1].norm2.weight[3] = 1e5
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm2\.weight reaches 100000.*bfloat16"):
        exported(tmp_path, model, dtype="float16")
    assert not (tmp_path / "theirs").exists()


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_export, "MAX_SHARD_BYTES", 40_000)
    model = network(moe={"n_expert": 4})
    folder = exported(tmp_path, model)
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(shards) > 3
    assert set(index["weight_map"].values()) == {p.name for p in shards}
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    assert (logits(model, tokens()) - logits(opened(folder), tokens())).abs().max() < 1e-4
    assert all(torch.equal(imported(folder).tensors[n], t) for n, t in model.state_dict().items())


# ---------------------------------------------------------------- bad input
def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "ours", network())
    dest = tmp_path / "theirs"
    dest.mkdir()
    hf_export.write_hf(path, dest, progress=quiet)  # empty: taken
    before = {p.name: p.read_bytes() for p in dest.iterdir()}
    with pytest.raises(CheckpointError, match="already there"):
        hf_export.write_hf(path, dest, progress=quiet)
    assert {p.name: p.read_bytes() for p in dest.iterdir()} == before
    with pytest.raises(CheckpointError, match="already there"):
        hf_export.write_hf(path, dest / "config.json", progress=quiet)


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "ours", network())
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        hf_export.write_hf(path, tmp_path / "theirs", progress=quiet)
    assert not (tmp_path / "theirs").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "ours", network())

    def full(fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        hf_export.write_hf(path, tmp_path / "theirs", progress=quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_weights_that_are_no_numbers_are_not_exported(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.blocks[2].attn.q.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks\.2\.attn\.q\.weight holds NaN"):
        exported(tmp_path, model)
    assert not (tmp_path / "theirs").exists()


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="dtype=int4"):
        exported(tmp_path, network(), dtype="int4")


def test_names_in_the_model_card_are_no_markdown() -> None:
    from dgsgpt.interop.hf_card import model_card
    from dgsgpt.interop.hf_families import FAMILIES

    model = ModelConfig.model_validate({**TINY, "window": window("SL")})
    assert "AutoTokenizer splits" in model_card(model, FAMILIES["qwen2"], {}, "float32")
    card = model_card(model, FAMILIES["llama"], {"run_id": "a\n![x](http://y)", "corpus": "<img>"}, "float32")
    assert "![x]" not in card
    assert "<img>" not in card
    assert "layer_types" in card


def test_every_family_is_written_for_programs_older_than_transformers_5() -> None:
    told = write_config(ModelConfig.model_validate({**TINY, "rope": {"scaling": {"kind": "linear", "factor": 2.0}}}))
    assert told["rope_theta"] == told["rope_parameters"]["rope_theta"] == 10_000.0
    assert told["rope_scaling"]["rope_type"] == "linear"
