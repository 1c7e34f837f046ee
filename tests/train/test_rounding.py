from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dgsgpt.train import rounding
from dgsgpt.train.rounding import Rounder, Shadow
from dgsgpt.train.weights import is_stored_narrow, store_weights
from tests.model.tiny import VARIANTS, random_tokens, tiny_model

CPU = torch.device("cpu")


def rounded(value: Tensor, seed: int = 0) -> Tensor:
    stored = torch.empty_like(value, dtype=torch.bfloat16)
    Rounder(seed, CPU).round_into(stored, value)
    return stored


def neighbours(value: float) -> tuple[float, float]:
    """The bfloat16 numbers around a float32 one, by cutting its bits off and counting one up."""
    low = torch.tensor(value).view(torch.int32).item() >> 16 << 16
    one, other = (torch.tensor(b, dtype=torch.int32).view(torch.float32).item() for b in (low, low + (1 << 16)))
    return min(one, other), max(one, other)


# ---------------------------------------------------------------- rounding
@pytest.mark.parametrize("value", [1.001, -1.001, 0.30004, 3e-5, -7.77e10, 1e-40, 255.9])
def test_the_mean_of_many_draws_is_the_value(value: float) -> None:
    n = 1 << 18
    exact = torch.tensor(value).double().item()  # as float32 has it
    draws = rounded(torch.full((n,), value)).double()
    low, high = neighbours(value)
    assert set(draws.unique().tolist()) == {low, high}
    deviation = (high - low) / 2 / n**0.5  # at most, of the mean
    assert abs(draws.mean().item() - exact) < 5 * deviation


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 2**31 - 1))
@settings(max_examples=300, deadline=None)
def test_a_number_becomes_one_of_its_neighbours_and_never_infinite(value: float, seed: int) -> None:
    result = rounded(torch.tensor([value]), seed).item()
    largest = torch.finfo(torch.bfloat16).max
    assert result in (*neighbours(value), largest, -largest)
    assert abs(result) <= largest


def test_what_bfloat16_holds_stays_bit_for_bit() -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    result = rounded(every.float())
    real = ~every.isnan()
    assert torch.equal(result[real].view(torch.int16), every[real].view(torch.int16))
    assert bool(result[~real].isnan().all())


def test_an_update_that_bfloat16_loses_is_kept_on_average() -> None:
    start, update, steps = 1.0, 1e-4, 1000  # the next bfloat16 is 0.0078 away
    at_random = torch.full((4096,), start, dtype=torch.bfloat16)
    nearest = at_random.clone()
    rounder = Rounder(3, CPU)
    for _ in range(steps):
        rounder.round_into(at_random, at_random.float() + update)
        nearest.copy_(nearest.float() + update)
    assert nearest.unique().tolist() == [start]
    # Each of 4096 walks has 1000 jumps of 0.0078 with probability 0.0128: a deviation of 0.028, of the mean 4.4e-4.
    assert at_random.double().mean().item() == pytest.approx(start + steps * update, abs=5 * 4.4e-4)


def test_draws_follow_from_seed_and_count_alone() -> None:
    value = torch.rand(1000)
    first, again, other = Rounder(1, CPU), Rounder(1, CPU), Rounder(2, CPU)
    stored = torch.empty(3, 1000, dtype=torch.bfloat16)
    first.round_into(stored[0], value)
    first.round_into(stored[0], value)
    again.count = 1
    again.round_into(stored[1], value)
    other.count = 1
    other.round_into(stored[2], value)
    assert first.count == again.count == 2
    assert torch.equal(stored[0], stored[1])
    assert not torch.equal(stored[0], stored[2])
    again.round_into(stored[2], value)
    assert not torch.equal(stored[1], stored[2])


def test_rounding_in_parts_draws_anew_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "CHUNK_NUMBERS", 1000)
    stored = torch.empty(3, 1000, dtype=torch.bfloat16)
    Rounder(0, CPU).round_into(stored, torch.full((3, 1000), 1.003))
    assert not torch.equal(stored[0], stored[1])
    assert stored.double().mean().item() == pytest.approx(1.003, abs=4e-4)


def test_a_shadow_has_memory_only_in_use() -> None:
    p = nn.Parameter(torch.randn(8, 4).bfloat16())
    p.grad = torch.randn(8, 4).bfloat16()
    shadow = Shadow(p)
    with shadow.filled() as inner:
        assert inner.dtype == torch.float32
        assert torch.equal(inner, p.float())
        assert inner.grad is not None
        assert torch.equal(inner.grad, p.grad.float())
    assert shadow.parameter is inner
    assert inner.numel() == 0
    assert inner.grad is None


# ---------------------------------------------------------------- weights in bfloat16
def test_vectors_and_routers_stay_in_float32() -> None:
    model = tiny_model(moe={"n_expert": 4, "balance": "bias", "bias": True}, norm="layernorm", bias=True)
    store_weights(model, "bf16")
    narrow = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert len(narrow) + len(wide) == len(list(model.parameters()))
    assert all("router" in n or "norm" in n or n.endswith("bias") for n in wide)
    assert {"embed.weight", "blocks.0.attn.q.weight", "blocks.0.mlp.experts.down"} <= narrow
    assert all(b.dtype == torch.float32 for b in model.buffers())
    assert all(is_stored_narrow(n, p) == (n in narrow) for n, p in model.named_parameters())


def test_float32_changes_nothing() -> None:
    model = tiny_model()
    store_weights(model, "fp32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_network_computes_in_bfloat16_what_it_does_in_float32(variant: str) -> None:
    wide, narrow = tiny_model(**VARIANTS[variant]), tiny_model(**VARIANTS[variant])
    store_weights(narrow, "bf16")
    tokens, targets = random_tokens(seed=1), random_tokens(seed=2)
    out = wide(tokens, targets)
    (out.loss + out.aux_loss).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = narrow(tokens, targets)
    (rough.loss + rough.aux_loss).backward()
    assert rough.loss.item() == pytest.approx(out.loss.item(), abs=0.01)
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in narrow.parameters())
    exact, close = (
        torch.cat([p.grad.float().flatten() for p in m.parameters() if p.grad is not None]) for m in (wide, narrow)
    )
    # Routing may tip for single tokens, which then pass other experts.
    assert (exact - close).norm() < 0.15 * exact.norm()


def test_the_gradient_of_a_frequent_token_is_summed_in_float32() -> None:
    model = tiny_model(tie_embeddings=False)
    store_weights(model, "bf16")
    index = torch.zeros(5000, dtype=torch.int64)
    model.embed(index).backward(torch.ones(5000, 32, dtype=torch.bfloat16))
    grad = model.embed.weight.grad
    assert grad is not None
    assert grad.dtype == torch.bfloat16
    assert grad[0].tolist() == [4992.0] * 32  # the bfloat16 next to 5000; torch's own sum ends at 256
    assert not grad[1:].any()
