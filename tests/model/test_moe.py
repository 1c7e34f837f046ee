import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgsgpt.model.moe import Experts, grouped_matmul, looped_matmul
from tests.model.experts import expert, inputs, layer, plain_loop
from tests.model.tiny import random_tokens, tiny_config, tiny_model


@pytest.mark.parametrize("mlp", ["swiglu", "gelu", "relu", "relu2"])
@pytest.mark.parametrize(("k", "renormalize"), [(1, True), (2, True), (2, False), (4, True)])
@pytest.mark.parametrize("hidden", [16, 13])
@pytest.mark.parametrize("bias", [False, True])
def test_sparse_layer_equals_a_plain_loop_over_experts(
    mlp: str, k: int, renormalize: bool, hidden: int, bias: bool
) -> None:
    moe = layer(mlp=mlp, n_expert_per_token=k, renormalize=renormalize, expert_hidden=hidden, bias=bias)
    x = inputs()
    expected = plain_loop(moe, x, k, renormalize and k > 1)
    torch.testing.assert_close(moe(x)[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("bias", [False, True])
def test_capacity_drops_the_lowest_scores_in_training_and_none_in_use(factor: float, bias: bool) -> None:
    moe = layer(n_expert_per_token=2, capacity_factor=factor, bias=bias)
    x = inputs()
    capacity = math.ceil(factor * 40 * 2 / 4)
    y, _, stats = moe.train()(x)
    torch.testing.assert_close(y, plain_loop(moe, x, 2, True, capacity), atol=1e-4, rtol=1e-4)
    expected = (stats.load * 80 - capacity).clamp(min=0).sum() / 80
    torch.testing.assert_close(stats.dropped, expected)
    y, _, stats = moe.eval()(x)
    torch.testing.assert_close(y, plain_loop(moe, x, 2, True), atol=1e-4, rtol=1e-4)
    assert stats.dropped == 0


@given(order=st.permutations(range(40)), factor=st.sampled_from([0.3, 0.7, 1.0]))
@settings(max_examples=25, deadline=None)
def test_permuted_rows_drop_the_same(order: list[int], factor: float) -> None:
    moe = layer(n_expert_per_token=2, capacity_factor=factor).train()
    rows = inputs().view(1, 40, 32)
    y, _, stats = moe(rows)
    permuted, _, permuted_stats = moe(rows[:, order])
    assert stats.dropped > 0
    assert torch.equal(stats.dropped, permuted_stats.dropped)
    torch.testing.assert_close(permuted, y[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_the_loss_alone_moves_the_router(k: int, capacity_factor: float | None) -> None:
    moe = {"n_expert": 4, "n_expert_per_token": k, "capacity_factor": capacity_factor}
    model, tokens = tiny_model(moe=moe), random_tokens()
    model(tokens, tokens.roll(-1, 1)).loss.backward()
    for block in model.blocks:
        assert block.mlp.router.weight.grad.norm() > 1e-4


def test_summed_outputs_have_gradients() -> None:
    for moe in (layer(), layer(capacity_factor=1.0), layer(n_shared_expert=1), layer(expert_hidden=13)):
        x = inputs().requires_grad_()
        moe(x)[0].sum().backward()  # a gradient of stride zero, which grouped kernels refuse
        assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.parameters())


@pytest.mark.parametrize("counts", [[3, 0, 5, 2], [0, 0, 0, 10], [10, 0, 0, 0]])
def test_grouped_product_equals_looped_product(counts: list[int]) -> None:
    if not hasattr(F, "grouped_mm"):
        pytest.skip("this torch has no grouped_mm")
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    x, w = torch.randn(10, 16), torch.randn(4, 24, 16)
    torch.testing.assert_close(grouped_matmul(x, w, ends), looped_matmul(x, w, ends))
    batched = Experts(16, 24, 4, "relu")
    assert batched.multiply is grouped_matmul
    assert Experts(16, 20, 4, "relu").multiply is looped_matmul


def test_shared_experts_add_a_dense_network() -> None:
    moe = layer(n_shared_expert=2)
    x = inputs()
    dense = (F.silu(x @ moe.shared.gate.weight.T) * (x @ moe.shared.up.weight.T)) @ moe.shared.down.weight.T
    torch.testing.assert_close(moe(x)[0], moe.routed(x)[0] + dense)
    assert moe.shared.up.weight.shape[0] == 2 * tiny_config().hidden


def test_auxiliary_loss_is_the_papers() -> None:
    moe = layer(n_expert_per_token=2, aux_loss_weight=0.5, z_loss_weight=0.25)
    x = inputs()
    logits = x.flatten(0, 1) @ moe.router.weight.T
    probabilities = logits.softmax(-1)
    load = F.one_hot(probabilities.topk(2).indices, 4).float().mean((0, 1))
    expected = 0.5 * 4 * (load * probabilities.mean(0)).sum() + 0.25 * logits.logsumexp(-1).pow(2).mean()
    _, aux, stats = moe(x)
    torch.testing.assert_close(aux, expected)
    torch.testing.assert_close(stats.load, load)


def test_balanced_routing_has_the_least_balance_loss() -> None:
    moe = layer(n_expert_per_token=4, aux_loss_weight=1.0, z_loss_weight=0.0)
    torch.testing.assert_close(moe(inputs())[1], torch.tensor(1.0))  # every expert for every token


def test_auxiliary_losses_are_averaged_over_moe_layers() -> None:
    model, tokens = tiny_model(moe={"n_expert": 4, "every": 2}, n_layer=4), random_tokens()
    each: list[Tensor] = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda module, args, out: each.append(out[1]) if out[1] is not None else None)
    out = model(tokens)
    assert len(each) == len(out.router) == 2
    torch.testing.assert_close(out.aux_loss, (each[0] + each[1]) / 2)


def test_router_statistics_are_detached_shares() -> None:
    out = tiny_model(moe={"n_expert": 4, "capacity_factor": 0.5}).train()(random_tokens())
    for stats in out.router:
        torch.testing.assert_close(stats.load.sum(), torch.tensor(1.0))
        assert not stats.load.requires_grad
        assert not stats.dropped.requires_grad
        assert 0.5 <= stats.dropped < 1


def test_the_router_s_entropy_is_that_of_its_probabilities() -> None:
    moe = layer(n_expert_per_token=2).train()
    x = inputs()
    p = moe.router(x.flatten(0, -2)).double().softmax(-1)
    expected = -(p * p.log()).sum(-1).mean() / math.log(4)
    stats = moe(x)[2]
    assert float(stats.entropy) == pytest.approx(expected.item(), abs=1e-5)
    assert not stats.entropy.requires_grad
    torch.nn.init.zeros_(moe.router.weight)
    assert float(moe(x)[2].entropy) == pytest.approx(1.0)
    assert moe.eval()(x)[2].entropy == 0


# ---------------------------------------------------------------- laws
@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_one_expert_is_the_dense_network(mlp: str, capacity_factor: float | None) -> None:
    moe = layer(mlp=mlp, n_expert=1, n_expert_per_token=1, capacity_factor=capacity_factor)
    torch.testing.assert_close(moe(inputs())[0], expert(moe, 0, inputs()), atol=1e-5, rtol=1e-5)


@given(k=st.integers(1, 4), seed=st.integers(0, 99), rows=st.sampled_from([2, 10, 40]))
@settings(max_examples=25, deadline=None)
def test_dropless_equals_capacity_without_limit(k: int, seed: int, rows: int) -> None:
    dropless = layer(seed, n_expert_per_token=k)
    limited = layer(seed, n_expert_per_token=k, capacity_factor=64.0)
    x = inputs(rows, seed)
    a, b = dropless(x), limited(x)
    torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a[1], b[1])
    assert float(b[2].dropped) == 0.0


# ---------------------------------------------------------------- balance by bias
def test_a_bias_moves_the_choice_but_not_the_weights() -> None:
    moe = layer(balance="bias", n_expert_per_token=1, renormalize=False)
    moe.selection.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    y, _, stats = moe(inputs())
    assert stats.load.tolist() == [0.0, 0.0, 1.0, 0.0]
    scores = (inputs() @ moe.router.weight.T).softmax(-1)[..., 2:3]
    torch.testing.assert_close(y, scores * expert(moe, 2, inputs()), atol=1e-4, rtol=1e-4)


def test_the_bias_follows_the_papers_rule() -> None:
    moe = layer(balance="bias", bias_update_rate=0.01)
    moe.balance(torch.tensor([0.4, 0.25, 0.25, 0.1]))
    torch.testing.assert_close(moe.selection.bias, torch.tensor([-0.01, 0.0, 0.0, 0.01]))


def test_a_bias_evens_the_load_out_and_needs_no_loss() -> None:
    moe = layer(balance="bias", bias_update_rate=0.01, z_loss_weight=0.0)
    x = inputs(2000) + 1.0
    first = moe(x)[2].load
    assert moe(x)[1].item() == 0.0
    for _ in range(200):
        moe.balance(moe(x)[2].load)
    last = moe(x)[2].load
    assert first.max() > 0.35
    assert last.max() < 0.27
    assert list(dict(moe.named_buffers())) == ["selection.bias"]  # a checkpoint carries it


def test_a_dense_residual_is_a_network_beside_the_experts() -> None:
    with_dense = layer(dense_residual=True, n_shared_expert=2, expert_hidden=16)
    assert with_dense.shared.up.out_features == 2 * 16 + tiny_config().hidden
    x = inputs()
    y, _, _ = with_dense(x)
    torch.testing.assert_close(y, with_dense.routed(x)[0] + with_dense.shared(x)[0])


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("hidden", [16, 13])
@pytest.mark.parametrize("bias", [False, True])
def test_dropped_rows_leak_into_nothing(mlp: str, hidden: int, bias: bool) -> None:
    """What a grouped product leaves undefined is filled with NaN here, and must not show anywhere."""
    moe = layer(mlp=mlp, capacity_factor=0.5, expert_hidden=hidden, bias=bias)
    x = inputs().requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        y, aux, stats = moe(x)
        gradients = torch.autograd.grad(y.square().sum() + aux, [x, *moe.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert stats.dropped > 0.3
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)
    expected = plain_loop(moe, x, 2, renormalize=True, capacity=math.ceil(0.5 * 40 * 2 / 4))
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    learned = [x, *moe.experts.parameters()]
    theirs = torch.autograd.grad(expected.square().sum(), learned)
    ours = torch.autograd.grad(moe(x)[0].square().sum(), learned)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
