from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dgsgpt.train import muon
from dgsgpt.train.muon import Muon, iteration_dtype, orthogonalize

SHAPES = [(16, 16), (48, 16), (16, 48), (16, 16), (8, 40), (48, 16)]


def parameters(shapes: list[tuple[int, ...]], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], count: int = 5) -> None:
    for index in range(count):
        give_gradients(params, 100 + index)
        optimizer.step()


def test_matrices_move_as_by_torchs_own_muon() -> None:
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    start = [p.detach().clone() for p in ours]
    steps(Muon(ours, lr=0.02, weight_decay=0.1, momentum=0.9, dtype=torch.bfloat16), ours)
    steps(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9), theirs)
    for a, b, before in zip(ours, theirs, start, strict=True):
        moved = (b - before).norm()
        assert (a - b).norm() < 2e-3 * moved  # bfloat16 has a precision of 4e-3; products are summed in other orders
        assert moved > 0.1


def test_the_iteration_in_float32_is_that_in_bfloat16_more_exactly() -> None:
    (narrow,), (wide,) = parameters([(32, 64)]), parameters([(32, 64)])
    for p, dtype in ((narrow, torch.bfloat16), (wide, torch.float32)):
        steps(Muon([p], lr=0.1, dtype=dtype), [p], 1)
    start = parameters([(32, 64)])[0]
    assert (narrow - wide).norm() < 0.03 * (wide - start).norm()


def test_every_matrix_of_a_stack_moves_as_it_would_alone() -> None:
    (stack,) = parameters([(3, 48, 16)])
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    whole = Muon([stack], lr=0.02, weight_decay=0.1, dtype=torch.float32)
    single = Muon(alone, lr=0.02, weight_decay=0.1, dtype=torch.float32)
    for index in range(4):
        give_gradients([stack], index)
        assert stack.grad is not None
        for matrix, grad in zip(alone, stack.grad, strict=True):
            matrix.grad = grad.clone()
        whole.step()
        single.step()
    assert torch.allclose(stack, torch.stack(list(alone)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "scale"), [((64, 16), 2.0), ((16, 64), 1.0), ((2, 64, 16), 2.0), ((2, 16, 64), 1.0)])
def test_the_step_grows_with_the_root_of_rows_over_columns(shape: tuple[int, ...], scale: float) -> None:
    (p,) = parameters([shape])
    before = p.detach().clone()
    steps(Muon([p], lr=1.0, dtype=torch.float32), [p], 1)
    singular = torch.linalg.svdvals(before - p.detach())
    assert singular.min() > 0.6 * scale
    assert singular.max() < 1.3 * scale


def test_orthogonalising_keeps_singular_vectors() -> None:
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    orthogonalize([result := x.clone()], torch.float32)
    inner = u.T @ result @ vt.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-4
    assert inner.diag().min() > 0.6


def test_large_batches_are_cut_without_changing_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = [(16, 16), (16, 16), (16, 16), (5, 16, 16)]
    whole, cut = parameters(shapes), parameters(shapes)
    steps(Muon(whole, lr=0.02, dtype=torch.float32), whole, 2)
    monkeypatch.setattr(muon, "BATCH_NUMBERS", 2 * 16 * 16)
    assert [len(batch) for batch in muon.batches(list(cut))] == [2, 1, 1]
    steps(Muon(cut, lr=0.02, dtype=torch.float32), cut, 2)
    for a, b in zip(whole, cut, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_zero_moves_nothing() -> None:
    (p,) = parameters([(8, 16)])
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    Muon([p], lr=0.5).step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("bad", [1.0, float("nan"), float("inf")])
def test_a_step_skipped_on_the_device_leaves_every_bit(bad: float) -> None:
    (p,) = parameters([(3, 8, 16)])
    optimizer = Muon([p], lr=0.1, weight_decay=0.1)
    steps(optimizer, [p], 2)
    with torch.no_grad():
        p[0, 0, 0] = -0.0
    before = bits([p, optimizer.state[p]["momentum_buffer"]])
    p.grad = torch.full_like(p, bad)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert bits([p, optimizer.state[p]["momentum_buffer"]]) == before


def test_a_step_that_need_not_be_skipped_is_the_ordinary_one() -> None:
    asked, plain = parameters(SHAPES), parameters(SHAPES)
    optimizer = Muon(asked, lr=0.1, weight_decay=0.1)
    optimizer.found_inf = torch.zeros(())
    steps(optimizer, asked)
    steps(Muon(plain, lr=0.1, weight_decay=0.1), plain)
    assert bits(asked) == bits(plain)


def test_a_cpu_iterates_in_bfloat16_only_where_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert iteration_dtype(device) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert iteration_dtype(device) == torch.bfloat16


def bits(tensors: list[Tensor] | list[nn.Parameter]) -> list[bytes]:
    return [t.detach().view(torch.uint8).numpy().tobytes() for t in tensors]
