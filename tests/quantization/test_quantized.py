"""Rounded weights are the nearest ones there are, and models of them compute what their dense weights would."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dgsgpt.errors import CheckpointError, DgsgptError
from dgsgpt.model import GPT
from dgsgpt.model.quantized import (
    Plan,
    QuantizedLinear,
    QuantizedMatrix,
    install,
    pack,
    quantizable,
    resident_bytes,
    unpack,
)
from dgsgpt.quantization import rounding
from dgsgpt.quantization.rounding import fit_group, quantize_model, quantize_tensors
from tests.model.tiny import VARIANTS, random_tokens, tiny_model

pytest.importorskip("torchao")

KINDS = ["int8", "int4"]
NETWORKS = ["gqa", "relu2", "layernorm", "moe", "biased_odd_experts", "original", "all_new"]


def rounded(weight: np.ndarray, kind: str, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By hand, in 64 bits: integers and scales of `weight` [..., n groups of `group`], and which are as near to two."""
    least, most = (-128, 127) if kind == "int8" else (-8, 7)
    grouped = weight.astype(np.float64).reshape(*weight.shape[:-1], -1, group)
    scales = np.abs(grouped).max(-1) / ((most - least) / 2)
    if kind == "int4":  # the nearest number of 16 bits with 8 of mantissa
        scales = torch.from_numpy(scales).float().bfloat16().double().numpy()
    steps = grouped / np.maximum(scales, 1e-30)[..., None]
    ties = np.abs(np.abs(steps) % 1 - 0.5) < 1e-4  # the largest of a group is one: 127.5 steps
    integers = np.clip(np.rint(steps), least, most)
    return integers.reshape(weight.shape), scales, ties.reshape(weight.shape)


def as_dense(model: GPT) -> GPT:
    """The model with its dequantized weights in layers that know nothing of quantization."""
    plain = GPT(model.config)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith((".values", ".scales"))}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedMatrix):
            stack = module.values.ndim == 3
            experts = range(len(module.values)) if stack else [None]
            parts = [module.dense(e) for e in experts]
            state[name] = torch.stack(parts) if stack else parts[0]
    plain.load_state_dict(state)
    return plain.eval()


# ---------------------------------------------------------------- rounding
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "size"), [((24, 64), None), ((7, 88), 32), ((3, 16, 96), 64), ((5, 13), None)])
def test_weights_are_rounded_to_the_nearest_by_hand(kind: str, shape: tuple[int, ...], size: int | None) -> None:
    torch.manual_seed(1)
    weight = torch.randn(shape) * torch.rand(shape[-2], 1) * 10
    weight[..., 0, :] = 0  # a row of nothing but zeros
    group = fit_group(shape[-1], rounding.check_choice(kind, size))
    filled = nn.functional.pad(weight, (0, -shape[-1] % 32))
    values, scales = rounding._rounding()(filled, kind, group)
    integers, by_hand, ties = rounded(filled.numpy(), kind, group)
    matrix = QuantizedMatrix(weight, kind, group)
    matrix.load_state_dict({"values": values, "scales": scales})
    found = values.numpy() if kind == "int8" else unpack(values).numpy()
    assert (found[~ties] == integers[~ties]).all()
    assert np.abs(found - integers).max() <= 1
    real = np.abs(by_hand) > 0
    np.testing.assert_allclose(scales.double().numpy()[real], by_hand[real], rtol=1e-6 if kind == "int8" else 2**-8)
    dense = torch.stack([matrix.dense(e) for e in range(shape[0])]) if len(shape) == 3 else matrix.dense()
    steps = np.repeat(scales.double().numpy(), group, axis=-1)[..., : shape[-1]]
    half = 0.5001 if kind == "int8" else 0.5 + 8 * 2**-8  # the largest weight of a group, by the rounding of its scale
    assert (np.abs(dense.numpy() - weight.numpy()) <= steps * half + 1e-6).all()
    np.testing.assert_allclose(dense.numpy(), found[..., : shape[-1]] * steps, rtol=1e-6)


def test_packing_is_undone_by_unpacking_for_every_pair_of_integers() -> None:
    pairs = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8)
    packed = pack(pairs)
    assert packed.shape == (256, 1)
    assert len(packed.unique()) == 256
    assert torch.equal(unpack(packed), pairs)


@pytest.mark.parametrize(
    ("columns", "size", "group"),
    [(64, None, 64), (13, None, 32), (64, 32, 32), (96, 64, 32), (344, 128, 32), (40, 32, 32)],
)
def test_groups_fit_the_width_of_the_filled_row(columns: int, size: int | None, group: int) -> None:
    assert fit_group(columns, size) == group


# ---------------------------------------------------------------- models
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_a_quantized_model_computes_what_its_dense_weights_say(network: str, kind: str) -> None:
    model = tiny_model(**VARIANTS[network]).eval()
    tokens = random_tokens()
    exact = model(tokens).logits
    names = set(quantizable(model))
    report = quantize_model(model, kind)
    assert set(report.plan.groups) == names
    found, dense = model(tokens).logits, as_dense(model)(tokens).logits
    # Inputs and results of 16 bits: two digits and a half, through three layers; and some tokens find other experts.
    assert (found - dense).norm() < (0.15 if model.config.moe else 0.02) * dense.norm()
    assert (found - exact).norm() < (0.2 if kind == "int8" else 0.8) * exact.norm()
    assert not torch.equal(found, exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["gqa", "moe", "biased_odd_experts", "odd_experts"])
@torch.no_grad()
def test_a_token_at_a_time_gives_the_logits_of_the_whole_text(network: str, kind: str) -> None:
    """Few rows go through torch's packed kernels, many through unpacked matrices."""
    model = tiny_model(**VARIANTS[network]).eval()
    quantize_model(model, kind)
    tokens = random_tokens(2, 24)
    cache = model.make_cache(2, 24)
    written = torch.cat([model(tokens[:, i : i + 1], cache=cache).logits for i in range(24)], dim=1)
    whole = model(tokens).logits
    assert (written - whole).norm() < 0.01 * whole.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (13, 40), (16, 32), (17, 96), (48, 200), (344, 128)])
def test_kernels_for_few_rows_read_widths_of_any_kind(kind: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, group = torch.randn(shape), fit_group(shape[1], rounding.check_choice(kind, None))
    values, scales = rounding._rounding()(nn.functional.pad(weight, (0, -shape[1] % 32)), kind, group)
    layer = QuantizedLinear(QuantizedMatrix(weight, kind, group), None)
    layer.load_state_dict({"weight.values": values, "weight.scales": scales})
    x = torch.randn(40, shape[1])
    many, few = layer(x), torch.cat([layer(row) for row in x.split(1)])
    dense = layer.weight.dense()
    assert (few - many).norm() <= 0.003 * many.norm()
    assert (many - x @ dense.T).norm() <= 0.006 * (x @ dense.T).norm()


@torch.no_grad()
def test_a_matrix_that_is_filled_anew_forgets_what_kernels_were_given() -> None:
    model = tiny_model().eval()
    again = copy.deepcopy(model)
    for p in again.parameters():
        p.mul_(1.5)
    stored = [{name: t.clone() for name, t in m.state_dict().items()} for m in (model, again)]
    first, second = (quantize_tensors(tensors, model.config, "int4") for tensors in stored)
    quantize_model(model, "int4")
    token = random_tokens(1, 1)
    before = model(token).logits
    model.load_state_dict(dict(second.tensors))
    changed = model(token).logits
    model.load_state_dict(dict(first.tensors))
    assert not torch.allclose(before, changed)
    assert torch.equal(model(token).logits, before)


def test_bfloat16_weights_are_quantized_and_the_rest_stays_bfloat16() -> None:
    model = tiny_model()
    stored = {k: v.bfloat16() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    made = quantize_tensors(stored, model.config, "int8")
    assert made.tensors["embed.weight"].dtype == torch.bfloat16
    assert made.tensors["blocks.0.attn.q.weight.values"].dtype == torch.int8
    assert made.before_bytes == sum(t.nbytes for t in stored.values())
    exact = quantize_tensors({k: v.float() for k, v in stored.items()}, model.config, "int8")
    for end in ("values", "scales"):
        name = f"blocks.0.attn.q.weight.{end}"
        assert torch.equal(made.tensors[name], exact.tensors[name])


# ---------------------------------------------------------------- the account
@pytest.mark.parametrize("network", ["gqa", "relu2", "all_new"])
def test_every_byte_and_weight_is_accounted_for(network: str) -> None:
    model = tiny_model(**VARIANTS[network])
    held = resident_bytes(model)
    state = model.state_dict()
    made = quantize_model(model, "int4")
    assert made.before_bytes == sum(t.nbytes for t in state.values()) == held
    assert made.after_bytes == sum(t.nbytes for t in made.tensors.values()) == resident_bytes(model)
    assert sum(part.weights for part in made.parts) == sum(t.numel() for t in state.values())
    left = {part.name for part in made.parts if not part.quantized}
    expected = {"gqa": set(), "relu2": {"output layer"}, "all_new": {"n-gram tables", "routers"}}[network]
    assert left == {"token embedding", "norms and biases"} | expected
    assert all(part.note for part in made.parts)
    assert all(part.after_bytes == part.before_bytes for part in made.parts if not part.quantized)


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("kind", "size", "told"),
    [("int3", None, "quantization='int3' must be int8 or int4"), ("int4", 24, "group_size=24 must be one of 32")],
)
def test_choices_that_there_are_not_are_refused(kind: str, size: int | None, told: str) -> None:
    with pytest.raises(DgsgptError, match=told):
        quantize_model(tiny_model(), kind, size)


def test_without_torchao_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(DgsgptError, match=r'needs torchao.*pip install "dgsgpt\[lowbit\]"'):
        quantize_model(tiny_model(), "int8")


def test_weights_that_are_no_numbers_are_named() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].attn.k.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.k\.weight holds NaN"):
        quantize_model(model, "int8")


@pytest.mark.parametrize(
    "plan",
    [
        Plan("int8", {"blocks.9.attn.q.weight": 32}), Plan("int8", {"embed.weight": 32}),
        Plan("int4", {"blocks.0.attn.q.weight": 31}),
    ],
)  # fmt: skip
def test_plans_for_another_network_are_refused(plan: Plan) -> None:
    with pytest.raises(CheckpointError, match="belong to another config"):
        install(tiny_model(), plan)


def test_quantized_layers_are_in_place_of_linear_ones_and_nothing_of_them_learns() -> None:
    model = tiny_model(**VARIANTS["moe"])
    quantize_model(model, "int8")
    layers: list[Any] = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 3 * 4
    assert not [name for name, _ in model.named_parameters() if ".attn." in name]
    assert quantizable(model) == {}
