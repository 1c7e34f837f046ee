"""Texts packed into one row see no other text than their own."""

# ruff: noqa: N803 - shapes are written T as in the papers

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.model.attention import attend_all, attend_window
from dgsgpt.model.gpt import locate
from tests.memory import LiveBytes
from tests.model.test_attention import brute_force, tensors
from tests.model.tiny import VARIANTS, random_tokens, tiny_model


def numbered(lengths: list[int]) -> torch.Tensor:
    """Document numbers [T] of texts of these lengths, one after the other."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


@given(
    rows=st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=6), min_size=2, max_size=2),
    window=st.sampled_from([None, 1, 5, 64, 100, 150]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_packed_attention_equals_that_of_each_text_alone(
    rows: list[list[int]], window: int | None, heads: tuple[int, int], seed: int
) -> None:
    T = max(map(sum, rows))
    rows = [[*lengths, T - sum(lengths)] if sum(lengths) < T else lengths for lengths in rows]
    starts, _ = locate(torch.stack([numbered(lengths) for lengths in rows]))
    q, k, v = tensors(T, T, *heads, seed)
    actual = attend_all(q, k, v, starts) if window is None else attend_window(q, k, v, starts, window=window)
    for i, lengths in enumerate(rows):
        alone = [
            brute_force(*parts, window or T)
            for parts in zip(*(x[i : i + 1].split(lengths, dim=2) for x in (q, k, v)), strict=True)
        ]
        torch.testing.assert_close(actual[i : i + 1], torch.cat(alone, dim=2))


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_gradients_of_packed_texts_are_those_of_each_alone(name: str) -> None:
    model = tiny_model(**VARIANTS[name]).eval()
    lengths = [17, 1, 20, 10]
    tokens = random_tokens(batch=1)
    packed = model(tokens, documents=numbered(lengths)[None]).logits
    parts = [model(part).logits for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(parts, dim=1), atol=1e-5, rtol=1e-5)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(packed.square().mean(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(torch.cat(parts, 1).square().mean(), parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_one_text_a_row_changes_nothing() -> None:
    model, tokens = tiny_model(**VARIANTS["window"]).eval(), random_tokens()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, documents=torch.zeros_like(tokens)).logits, model(tokens).logits)


def test_a_number_that_comes_back_is_another_text() -> None:
    starts, places = locate(torch.tensor([[5, 5, 7, 7, 7, 5]]))
    assert starts.tolist() == [[0, 0, 2, 2, 2, 5]]
    assert places.tolist() == [[0, 1, 0, 1, 2, 0]]


def test_short_texts_in_a_long_row_need_memory_linear_in_its_length() -> None:
    def peak(T: int) -> int:
        q, k, v = (x.float().requires_grad_() for x in tensors(T, T, 1, 1, seed=0))
        starts, _ = locate((torch.arange(T) // 64).expand(2, -1))
        with LiveBytes() as live:
            attend_all(q, k, v, starts).sum().backward()
        return live.peak

    assert peak(4096) < 2.5 * peak(2048)


def test_packing_does_not_go_with_a_cache() -> None:
    model = tiny_model()
    tokens = random_tokens()
    with pytest.raises(ValueError, match="documents= packs whole texts"):
        model(tokens, documents=torch.zeros_like(tokens), cache=model.make_cache(2, 100))
