"""Models of the original DGS-GPT: the same logits, and one line for all that does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dgsgpt.errors import CheckpointError, DataError
from dgsgpt.interop import legacy
from dgsgpt.interop.incoming import Incoming
from dgsgpt.interop.legacy import is_legacy, read_legacy
from dgsgpt.interop.legacy_layout import Layout
from dgsgpt.interop.sandbox import TorchFile
from dgsgpt.interop.unpickle import Inventory, Limits
from dgsgpt.model import GPT

V, C, T, HEADS = 11, 16, 12, 4
CONFIG: dict[str, Any] = {
    "block_size": T,
    "vocab_size": V,
    "n_layer": 2,
    "n_head": HEADS,
    "n_embd": C,
    "dropout": 0.1,
    "use_moe": False,
    "moe_num_experts": 4,
    "moe_k": 2,
    "attention_type": "multihead",
    "n_query_groups": 2,
    "learning_rate": 5e-4,
    "weight_decay": 1e-5,
    "batch_size": 8,
    "max_iters": 600,
    "grad_clip": 1.0,
    "warmup_iters": 20,
}


@pytest.fixture
def opened_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this test's own making are opened without a child; the real way has tests of its own."""

    def read(path: Path, leave_out: Sequence[str] = ()) -> TorchFile:
        inventory = Inventory(path.stat().st_size, Limits(), leave_out)
        values = inventory.take(torch.load(path, weights_only=True))
        return TorchFile(inventory.tensors, values, "0" * 64, inventory.left_out)

    monkeypatch.setattr(legacy, "read_torch_file", read)


@pytest.fixture
def give(opened_here: None, save_torch: Callable[..., Path]) -> Callable[..., Incoming]:
    """Import what a file would hold."""

    def give(content: Mapping[str, Any], vocab: Path | None = None, **given: int) -> Incoming:
        return read_legacy(save_torch(content), vocab, given, lambda stage, share: None)

    return give


def weights(kind: str = "multihead", experts: int = 0, seed: int = 1) -> dict[str, Tensor]:
    """Random weights under the original names, with its buffer."""
    torch.manual_seed(seed)
    layout = Layout(2, C, T, V, kind, experts)
    state = {name: torch.randn(shape) * 0.3 for name, shape in layout.shapes().items()}
    return state | {f"blocks.{i}.sa.tril": torch.ones(T, T).tril() for i in range(2)}


def content(state: Mapping[str, Tensor], **changes: Any) -> dict[str, Any]:
    """A whole file of the original program."""
    return {"model_state_dict": dict(state), "config": {**CONFIG, **changes}, "model_info": {"total_params": 1}}


def original(w: Mapping[str, Tensor], ids: Tensor, k: int = 1) -> Tensor:
    """The original network, step by step as its format is described: `ids` [B, T] -> logits [B, T, V]."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def network(x: Tensor, name: str) -> Tensor:
        return linear(F.relu(linear(x, f"{name}.0")), f"{name}.2")

    x = w["token_emb.weight"][ids] + w["pos_emb.weight"][: ids.size(1)]
    hidden = torch.ones(ids.size(1), ids.size(1), dtype=torch.bool).triu(1)
    for block in ("blocks.0", "blocks.1"):
        y = norm(x, f"{block}.ln1")
        if f"{block}.sa.q_proj.weight" in w:
            q, key, v = (linear(y, f"{block}.sa.{name}_proj") for name in "qkv")
            out = f"{block}.sa.out_proj"
        else:
            q, key, v = F.linear(y, w[f"{block}.sa.mha.in_proj_weight"], w[f"{block}.sa.mha.in_proj_bias"]).chunk(3, -1)
            out = f"{block}.sa.mha.out_proj"
        q, key, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, key, v))
        scores = (q @ key.transpose(-1, -2) / (C // HEADS) ** 0.5).masked_fill(hidden, -torch.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), out)
        x = x + network(norm(x, f"{block}.ln2"), f"{block}.ff.net")
        if f"{block}.moe.gate.weight" in w:
            y = norm(x, f"{block}.ln3")
            best = linear(y, f"{block}.moe.gate").topk(k, dim=-1)
            every = torch.stack([network(y, f"{block}.moe.experts.{e}") for e in range(4)], dim=-2)
            chosen = every.gather(-2, best.indices[..., None].expand(*best.indices.shape, C))
            x = x + (best.values.softmax(-1)[..., None] * chosen).sum(-2)
    return linear(norm(x, "ln_f"), "lm_head")


def logits(incoming: Incoming, ids: Tensor) -> Tensor:
    """What our model computes with the imported weights; names and shapes must all be its own."""
    model = GPT(incoming.model).eval()
    model.load_state_dict(dict(incoming.tensors))
    with torch.no_grad():
        result = model(ids).logits
    assert result is not None
    return result


# ---------------------------------------------------------------- the same logits
@pytest.mark.parametrize("name", ["multihead_dense", "grouped_moe_top1"])
def test_samples_give_the_logits_of_the_original_program(legacy_samples: Path, name: str) -> None:
    stages: list[float] = []
    incoming = read_legacy(
        legacy_samples / f"{name}.pth", legacy_samples / "vocab.txt", {}, lambda stage, share: stages.append(share)
    )
    expected = load_file(legacy_samples / f"{name}.expected.safetensors")
    assert (logits(incoming, expected["ids"]) - expected["logits"]).abs().max() < 1e-5
    assert stages == sorted(stages)
    assert incoming.tokenizer.vocab_size == incoming.model.vocab_size == 53
    text = (legacy_samples / "vocab.txt").read_text()
    assert incoming.tokenizer.decode(incoming.tokenizer.encode(text)) == text
    assert incoming.tokenizer.encode("T")[0] == sorted(set(text)).index("T")
    with_optimizer = name == "multihead_dense"
    assert incoming.step == (6 if with_optimizer else 0)
    assert incoming.facts["optimizer_state"] == ("dropped" if with_optimizer else "none")
    assert re.fullmatch("[0-9a-f]{64}", incoming.facts["sha256"])
    assert incoming.warnings == ()


@pytest.mark.parametrize(
    ("kind", "experts", "k"),
    [("multihead", 0, 1), ("grouped_query", 0, 1), ("multihead", 4, 1), ("multihead", 4, 3), ("grouped_query", 4, 4)],
)
def test_every_variant_gives_the_logits_of_the_original(
    give: Callable[..., Incoming], kind: str, experts: int, k: int
) -> None:
    state = weights(kind, experts)
    incoming = give(content(state, attention_type=kind, use_moe=experts > 0, moe_k=k))
    ids = torch.randint(V, (3, T))
    assert (logits(incoming, ids) - original(state, ids, k)).abs().max() < 1e-5
    assert all(tensor.dtype == torch.float32 for tensor in incoming.tensors.values())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_a_bare_state_dict_opens_with_what_its_shapes_do_not_tell(give: Callable[..., Incoming], prefix: str) -> None:
    state = weights("multihead", 4)
    incoming = give({prefix + name: tensor for name, tensor in state.items()}, n_head=HEADS, moe_k=2, block_size=T)
    ids = torch.randint(V, (2, T))
    assert (logits(incoming, ids) - original(state, ids, 2)).abs().max() < 1e-5
    assert (incoming.train, incoming.step, incoming.facts["settings"]) == ({}, 0, {})


def test_blocks_that_were_compiled_one_by_one_open(give: Callable[..., Incoming]) -> None:
    state = {re.sub(r"^(blocks\.\d)", r"\1._orig_mod", name): tensor for name, tensor in weights().items()}
    assert "blocks.0._orig_mod.ln1.weight" in state
    assert set(give(content(state)).tensors) == set(give(content(weights())).tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(give: Callable[..., Incoming], dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in weights().items()}
    incoming = give(content(state))
    assert torch.equal(incoming.tensors["embed.weight"], state["token_emb.weight"].float())
    assert all(tensor.dtype == torch.float32 for tensor in incoming.tensors.values())


# ---------------------------------------------------------------- settings
def test_training_settings_come_along_where_they_are_possible(give: Callable[..., Incoming]) -> None:
    incoming = give(content(weights()))
    assert incoming.train == {
        "lr": 5e-4,
        "weight_decay": 1e-5,
        "micro_batch_size": 8,
        "steps": 600,
        "grad_clip": 1.0,
        "schedule": {"warmup_steps": 20},
    }
    assert incoming.model.dropout == 0.1
    assert incoming.facts["settings"]["n_query_groups"] == 2
    odd = give(content(weights(), learning_rate=-1.0, grad_clip=0, batch_size="8", dropout=2.0))
    assert odd.train == {"weight_decay": 1e-5, "steps": 600, "schedule": {"warmup_steps": 20}}
    assert odd.model.dropout == 0.0
    assert odd.warnings[:3] == (
        "its learning_rate=-1.0 is not possible as train.lr; the default stands",
        "its batch_size='8' is not possible as train.micro_batch_size; the default stands",
        "its grad_clip=0 is not possible as train.grad_clip; the default stands",
    )


@pytest.mark.parametrize(
    ("experts", "given", "said"),
    [
        (0, {}, "do not tell n_head, and no config in it does; give what it was trained with, e.g. --set n_head=4"),
        (4, {}, "do not tell n_head and moe_k, and no config in it does; give .* --set n_head=4 --set moe_k=1"),
        (4, {"n_head": 2}, "do not tell moe_k"),
        (0, {"n_head": 5}, "model.n_head=5 must divide model.n_embd=16; try 4 or 8"),
        (0, {"n_head": 0}, "--set has n_head=0, it must be a whole number from 1"),
        (0, {"n_head": 4, "moe_k": 1}, "--set moe_k is not among its settings: n_head, n_layer, n_embd"),
        (0, {"n_head": 4, "n_layer": 3}, "--set has n_layer=3, but the file's is 2; leave it out"),
        (4, {"n_head": 4, "moe_k": 5}, "model.moe.n_expert_per_token=5 must not exceed model.moe.n_expert=4"),
    ],
)
def test_what_is_missing_or_wrong_in_the_settings_is_asked_for(
    give: Callable[..., Incoming], experts: int, given: dict[str, int], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        give(weights("multihead", experts), **given)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 3}, "its config has n_layer=3, but the file's is 2; its weights belong to another config"),
        ({"n_embd": 32}, "its config has n_embd=32, but the file's is 16"),
        ({"use_moe": True}, "its config has use_moe=True, but the file's is False"),
        ({"attention_type": "grouped_query"}, "its config has attention_type='grouped_query'"),
        ({"n_head": "4"}, "its config has n_head='4', it must be a whole number"),
        ({"n_head": 3}, "model.n_head=3 must divide"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_named(
    give: Callable[..., Incoming], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        give(content(weights(), **changes))
    with pytest.raises(CheckpointError, match="--set has n_head=8, but the file's is 4; leave it out"):
        give(content(weights()), n_head=8)


def test_a_config_that_is_none_is_named(give: Callable[..., Incoming]) -> None:
    with pytest.raises(CheckpointError, match="its config is a list, not settings"):
        give({"model_state_dict": weights(), "config": [1, 2]})


# ---------------------------------------------------------------- weights that do not fit
def test_weights_that_do_not_fit_are_named(give: Callable[..., Incoming]) -> None:
    def changed(gone: str = "", **added: Tensor) -> dict[str, Any]:
        state = {name: tensor for name, tensor in weights().items() if name != gone}
        return content(state | {name.replace("__", "."): tensor for name, tensor in added.items()})

    cases = {
        "has no blocks.1.ff.net.2.bias; the file is not complete": changed("blocks.1.ff.net.2.bias"),
        "has blocks.0.sa.mask, which the original DGS-GPT does not": changed(blocks__0__sa__mask=torch.ones(2)),
        "has no blocks.2.ln1.weight (and 11 more)": changed(blocks__7__ln1__bias=torch.ones(C)),
        "ln_f.weight has the shape (5,) where the other weights ask for (16,)": changed(ln_f__weight=torch.ones(5)),
        "token_emb.weight has the shape (3,), it must have two": changed(token_emb__weight=torch.ones(3)),
        "lm_head.bias is of torch.int64, weights must be": changed(lm_head__bias=torch.ones(V, dtype=torch.int64)),
        "has ln_f.bias twice": changed(module__ln_f__bias=torch.ones(C)),
        "is not a model of the original DGS-GPT": changed("lm_head.bias"),
    }
    for said, bad in cases.items():
        with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
            give(bad)
        assert str(caught.value).isprintable()


def test_only_its_own_names_are_recognised() -> None:
    state = weights()
    assert is_legacy(state)
    assert is_legacy(f"model_state_dict/module.{name}" for name in state)
    assert not is_legacy(["transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"])
    assert not is_legacy([])


# ---------------------------------------------------------------- vocabulary
def test_without_a_vocabulary_private_characters_stand_for_it(give: Callable[..., Incoming]) -> None:
    incoming = give(content(weights()))
    assert incoming.tokenizer.decode(range(V)) == "".join(chr(0xE000 + i) for i in range(V))
    assert incoming.facts["placeholder_vocabulary"]
    assert "import it again with --vocab" in incoming.warnings[0]
    state = {**weights(), "token_emb.weight": torch.zeros(7000, C), "lm_head.weight": torch.zeros(7000, C)}
    large = give(content(state | {"lm_head.bias": torch.zeros(7000)}, vocab_size=7000))
    assert large.tokenizer.vocab_size == 7000
    assert not any(char.isprintable() for char in large.tokenizer.decode(range(7000)))


def test_a_vocabulary_of_another_size_is_named(give: Callable[..., Incoming], tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("abc")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: has 3 different characters, the model in .* knows 11"):
        give(content(weights()), vocab)
    with pytest.raises(DataError, match="no such text"):
        give(content(weights()), tmp_path / "missing.txt")
    vocab.write_bytes(b"\xff\xfea\0b\0")
    with pytest.raises(DataError, match="UTF-16"):
        give(content(weights()), vocab)


def test_a_byte_order_mark_counts_as_it_did_for_the_original(give: Callable[..., Incoming], tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_bytes(b"\xef\xbb\xbfabcdefghij\r\n")  # 10 letters and a line end
    assert give(content(weights()), vocab).tokenizer.decode(range(V)) == "\nabcdefghij"
    vocab.write_bytes(b"\xef\xbb\xbfabcdefghij")  # 10 letters and the mark
    assert give(content(weights()), vocab).tokenizer.decode(range(V)) == "abcdefghij\ufeff"
