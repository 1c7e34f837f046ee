"""Biases of experts, weights of single ones, experts after a dense network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dgsgpt.model.attention import Surroundings
from dgsgpt.model.moe import add_biases
from tests.model.experts import expert, inputs, layer, plain_loop
from tests.model.tiny import random_tokens, tiny_model


def test_biases_of_many_rows_sum_their_gradients_in_float32() -> None:
    """In bfloat16 a sum of ones stands still at 256."""
    ends = torch.tensor([3000, 3000, 4000], dtype=torch.int32)
    bias = torch.zeros(3, 8, requires_grad=True)
    y = torch.zeros(4000, 8, dtype=torch.bfloat16)
    add_biases(y, bias, ends).float().sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [[3000.0] * 8, [0.0] * 8, [1000.0] * 8]


@pytest.mark.parametrize("renormalize", [True, False])
def test_a_single_expert_may_count_fully(renormalize: bool) -> None:
    moe = layer(n_expert_per_token=1, renormalize_single=True, renormalize=renormalize)
    x = inputs()
    chosen = (x @ moe.router.weight.T).argmax(-1)
    alone = torch.stack([expert(moe, e, x) for e in range(4)], dim=-2)
    expected = alone.gather(-2, chosen[..., None, None].expand(-1, -1, 1, 32))[..., 0, :]
    y = moe(x)[0]
    if renormalize:
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    else:
        assert (y - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("capacity_factor", [None, 4.0])
def test_experts_after_a_dense_network_are_a_third_part_of_the_block(
    shared: int, capacity_factor: float | None
) -> None:
    moe = {"n_expert": 4, "after_dense": True, "every": 2, "bias": True, "n_shared_expert": shared,
           "capacity_factor": capacity_factor}  # fmt: skip
    model = tiny_model(n_layer=2, norm="layernorm", bias=True, mlp="relu", moe=moe)
    dense, block = model.blocks
    assert not hasattr(dense, "moe")
    x = inputs()
    around = Surroundings(model.positions.rotation(x, 0))
    y = x + block.attn(F.layer_norm(x, (32,), block.norm1.weight, block.norm1.bias), around, None)[0]
    rows = F.layer_norm(y, (32,), block.norm2.weight, block.norm2.bias)
    hidden = (rows @ block.mlp.up.weight.T + block.mlp.up.bias).relu()
    y = y + hidden @ block.mlp.down.weight.T + block.mlp.down.bias
    rows = F.layer_norm(y, (32,), block.norm3.weight, block.norm3.bias)
    routed = block.moe.routed if shared else block.moe
    y = y + plain_loop(routed, rows, 2, renormalize=True)
    if shared:
        hidden = (rows @ block.moe.shared.up.weight.T + block.moe.shared.up.bias).relu()
        y = y + hidden @ block.moe.shared.down.weight.T + block.moe.shared.down.bias
    out = block(x, around)
    torch.testing.assert_close(out.x, y, atol=1e-4, rtol=1e-4)
    assert out.router.load.shape == (4,)


def test_experts_after_a_dense_network_are_balanced_by_their_bias() -> None:
    moe = {"n_expert": 4, "after_dense": True, "every": 2, "balance": "bias", "bias_update_rate": 0.01}
    model = tiny_model(n_layer=4, moe=moe)
    out = model(random_tokens())
    model.balance_experts(out.router)
    for i, stats in zip((1, 3), out.router, strict=True):
        torch.testing.assert_close(model.blocks[i].moe.selection.bias, 0.01 * (stats.load.mean() - stats.load).sign())
