"""Folders that are damaged, hostile, or of networks we do not have: each is named, nothing is executed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dgsgpt.errors import CheckpointError
from dgsgpt.interop import keep
from dgsgpt.interop.hf_config import larger, own_config, read_config, write_config
from dgsgpt.interop.hf_families import FAMILIES
from tests.interop.hf_factory import copied, edit, exported, imported, network, quiet


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder, as someone else would have made it."""
    return edit(exported(tmp_path_factory.mktemp("whole"), network(window={"size": 5, "pattern": "SL"})), dgsgpt=...)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return copied(whole, tmp_path / "model")


def refused(folder: Path, match: str) -> str:
    with pytest.raises(CheckpointError, match=match) as e:
        imported(folder)
    assert "\n" not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------- config.json
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "gemma2"}, "model_type='gemma2' is not supported; supported are gpt2, llama, mistral"),
        ({"model_type": None}, "model_type=None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' cannot be imported: for Ministral known are silu, swish"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type='dynamic'.*linear, yarn"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type='longrope'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate=False"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 3}}, "rope_scaling.beta=3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "factor='two'.*must be a number"),
        ({"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one setting for all"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 cannot be imported"),
        ({"layer_types": ["full_attention"]}, "layer_types=.*for each layer"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "layer_types="),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.*unquantised"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"n_shared_experts": 2}, "n_shared_experts=2"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size='32' cannot be imported: it must be a whole number"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"num_attention_heads": 0}, "n_head=0"),
        ({"num_hidden_layers": 10**9, "layer_types": ...}, "num_hidden_layers=1000000000 .* from 1 to 512"),
        ({"num_key_value_heads": 3}, "n_kv_head=3 must divide"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'.*true or false"),
        ({"rms_norm_eps": float("1e400")}, "config.json"),
        ({"vocab_size": 200}, "tokenizer has 256 ids"),
    ],
)
def test_a_config_we_cannot_express_is_refused_by_key_and_value(
    folder: Path, changes: dict[str, Any], match: str
) -> None:
    refused(edit(folder, **changes), match)


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ({"norm": "layernorm", "mlp": "gelu", "rope": None}, {"scale_attn_by_inverse_layer_idx": True}, "inverse"),
        ({"norm": "layernorm", "mlp": "gelu", "rope": None}, {"activation_function": "gelu"}, "gelu_new"),
        ({"norm": "layernorm", "mlp": "gelu", "rope": None}, {"add_cross_attention": True}, "only decoders"),
        ({"moe": {"n_expert": 2}, "qk_norm": True}, {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ({"moe": {"n_expert": 2}}, {"num_experts_per_tok": 5}, "n_expert_per_token=5"),
        ({"window": {"size": 5, "pattern": "S"}}, {"layer_types": ["full_attention"] * 3}, "^$"),
        ({"window": {"size": 5, "pattern": "S"}},
         {"layer_types": ["full_attention", "full_attention", "sliding_attention"]}, "one kind of layer"),
    ],
)  # fmt: skip
def test_other_families_refuse_what_they_do_not_have(
    family: dict[str, Any], changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = edit(exported(tmp_path, network(**family)), **changes)
    if match == "^$":  # all layers alike: only the list decides, which is then full attention
        assert imported(folder).model.window is None
    else:
        refused(folder, match)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0,
        "mscale_all_dim": 2.0, "beta_fast": 20, "beta_slow": 2, "attention_factor": 1.0, "truncate": True}  # fmt: skip
SOME: list[dict[str, Any]] = [
    {"norm": "layernorm", "mlp": "gelu", "rope": None},
    {"norm": "layernorm", "mlp": "gelu"},
    {"qk_norm": True, "window": {"size": 5, "pattern": "SL"}},
    {"qk_norm": True, "moe": {"n_expert": 4, "every": 2}},
    {"moe": {"n_expert": 4}},
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SOME), st.data())
def test_no_value_of_any_key_is_a_bug(chosen: dict[str, Any], data: st.DataObject) -> None:
    told = {**write_config(network(**chosen).config), "rope_scaling": dict(YARN), "original_max_position_embeddings": 8}
    part = told["rope_scaling"] if data.draw(st.integers(0, 3)) == 0 else told
    for key in data.draw(st.sets(st.sampled_from(sorted(part)), min_size=1, max_size=2)):
        part[key] = data.draw(anything)
    try:
        described = read_config(told, Path("config.json"))
    except CheckpointError as e:
        refusal = str(e)
    else:
        own = own_config(told, described)
        assert own is None or larger(own).model == described.model
        return
    assert refusal.startswith("config.json")
    assert "\n" not in refusal


def test_keys_that_nobody_knows_are_told_and_code_is_never_run(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w')")
    edit(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, strange_gate=[1, 2], is_llama_config=True)
    warnings = imported(folder).warnings
    assert any("strange_gate=[1, 2]" in w for w in warnings)
    assert any("auto_map" in w and "never run" in w for w in warnings)
    assert len(warnings) == 2
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"model_type": "llama", "model_type": "gpt2"}', "'model_type' is there twice"),
        (b'{"rms_norm_eps": NaN}', "NaN is not a number"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"a": "' + b"x" * 4_000_000 + b'"}', "over the limit"),
    ],
)
def test_a_config_that_is_not_json_is_refused(folder: Path, content: bytes, match: str) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, match)


def test_names_that_are_no_text_cannot_write_on_the_terminal(folder: Path) -> None:
    evil = folder.rename(folder.with_name("evil\n\x1b[31m"))
    for spoil in (lambda: edit(evil, vocab_size=9), lambda: edit(evil, hidden_size="x"), (evil / "config.json").unlink):
        spoil()
        assert refused(evil, r"evil\\n\\x1b").isprintable()


def test_many_unknown_keys_are_counted(folder: Path) -> None:
    edit(folder, **{f"odd\n{i:03}": i for i in range(100)})
    warnings = imported(folder).warnings
    assert len(warnings) < 30
    assert warnings[-1] == "config.json: 80 more keys are not known here either."
    assert all(warning.isprintable() for warning in warnings)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "has no weights")
    (folder / "config.json").unlink()
    refused(folder, "config.json: no such file")


def test_every_supported_family_is_listed(folder: Path) -> None:
    message = refused(edit(folder, model_type="t5"), "not supported")
    assert all(name in message for name in FAMILIES)


# ---------------------------------------------------------------- weights
def rework(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Change the tensors of the folder in place."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(str(path)).items()}
    change(tensors)
    save_file(tensors, str(path))
    return folder


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(UP), f"tensor {UP} is missing"),
        (lambda t: t.update({UP: t[UP].T.contiguous()}), f"tensor {UP} has the shape .* by config.json it must be"),
        (lambda t: t.update({UP: t[UP].to(torch.int8)}), f"tensor {UP} is stored as I8"),
        (lambda t: t.update({UP: t[UP].double()}), f"tensor {UP} is stored as F64"),
        (lambda t: t.update({"model.layers.3.mlp.up_proj.weight": t[UP].clone()}), "layers.3.* has no place"),
        (lambda t: t.update({"score.weight": t[UP].clone(), "v_head.x": t[UP].clone()}), "no place.*1 more"),
    ],
)
def test_weights_that_are_not_of_the_config_are_named(folder: Path, change: Any, match: str) -> None:
    refused(rework(folder, change), match)


def test_weights_that_are_no_numbers_do_not_become_a_run(folder: Path, tmp_path: Path) -> None:
    rework(folder, lambda t: t[UP].__setitem__((0, 0), float("nan")))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.up\.weight holds NaN"):
        keep.import_model(folder, tmp_path / "runs", "broken", progress=quiet)
    assert not (tmp_path / "runs" / "broken").exists()


def test_a_cut_file_is_refused_wherever_it_is_cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for share in range(32):
        path.write_bytes(data[: len(data) * share // 32])
        refused(folder, "model.safetensors")
    path.write_bytes(data + b"more")
    refused(folder, "model.safetensors|tensor")


def with_header(folder: Path, header: bytes, length: int | None = None) -> Path:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length or len(header)) + header)
    return folder


@pytest.mark.parametrize(
    ("header", "length", "match"),
    [
        (b"{}", 2**40, "over the limit"),
        (b"{}", 2**63, "over the limit"),
        (b"{}", 100, "ends within its header"),
        (b'{"a": {}, "a": {}}', None, "'a' is there twice"),
        (b"[" * 50_000, None, "is not JSON"),
        (b'{"a": 3}', None, "entry of tensor 'a' is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', None, "damaged"),
        (b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 0], "data_offsets": [0, 0]}}', None, "is missing"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', None, "ends before|damaged"),
        (b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', None, "damaged"),
        (b'{"a": {"dtype": "F8", "shape": [1' + b"0" * 400 + b'], "data_offsets": [0, 0]}}', None, "damaged"),
        (b'{"a": {"dtype": "\\u001b[31m", "shape": [0], "data_offsets": [0, 0]}}', None, "is missing"),
        (b'{"' + b"x" * 100_000 + b'": 3}', None, "xxx…"),
    ],
)
def test_hostile_headers_are_refused(folder: Path, header: bytes, length: int | None, match: str) -> None:
    refused(with_header(folder, header, length), match)


def test_a_file_of_holes_that_claims_terabytes_is_refused_at_once(folder: Path) -> None:
    rows, size = 2**38, 2**40
    told = json.dumps({"a": {"dtype": "F32", "shape": [rows], "data_offsets": [0, size]}}).encode()
    with_header(folder, told)
    with (folder / "model.safetensors").open("r+b") as f:
        f.truncate(8 + len(told) + size)
    refused(folder, "take 1,099.5 GB of memory in float32")


def test_a_hole_between_tensors_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [n + 8 for n in entry["data_offsets"]]
    told = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told + bytes(8) + data[8 + size :])
    refused(folder, "cannot be read")


# ---------------------------------------------------------------- shards
@pytest.fixture
def shards(folder: Path) -> Path:
    """The folder with its weights in two files and an index."""
    tensors = load_file(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name].clone() for name in places if places[name] == file}, str(folder / file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def remap(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "model.safetensors.index.json"
    places = json.loads(path.read_text())["weight_map"]
    change(places)
    path.write_text(json.dumps({"weight_map": places}))
    return folder


def test_shards_are_joined(shards: Path, whole: Path) -> None:
    there, here = imported(whole).tensors, imported(shards).tensors
    assert all(torch.equal(tensor, here[name]) for name, tensor in there.items())


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "part-1.safetensors").unlink()
    refused(shards, "part-1.safetensors is missing")


@pytest.mark.parametrize(
    "name", ["../part-0.safetensors", "/etc/passwd", "a/../part-0.safetensors", "part-0.bin", ".safetensors", 7, None]
)
def test_an_index_stays_in_its_folder(shards: Path, name: Any) -> None:
    (shards.parent / "part-0.safetensors").write_bytes((shards / "part-0.safetensors").read_bytes())
    refused(remap(shards, lambda places: places.update({UP: name})), "names the file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update({UP: "part-0.safetensors", "model.norm.weight": "part-0.safetensors"}), "is not in part-0"),
        (lambda m: m.pop(UP), f"does not list tensor .*{UP}"),
        (lambda m: m.clear(), "weight_map must list"),
    ],
)
def test_an_index_that_is_at_odds_with_its_files_is_refused(shards: Path, change: Any, match: str) -> None:
    refused(remap(shards, change), match)


def test_a_tensor_in_two_files_is_refused(shards: Path) -> None:
    for name in ("part-0.safetensors", "part-1.safetensors"):
        tensors = load_file(str(shards / name))
        save_file({**{n: t.clone() for n, t in tensors.items()}, "twice": torch.ones(1)}, str(shards / name))
    refused(shards, "'twice' is also in part-0")


def test_a_malicious_pickle_is_not_run(folder: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(folder / "canary"), "w"))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))
    refused(folder, "pytorch_model.bin")
    assert not (folder / "canary").exists()
