# ruff: noqa: N803 - shapes are written T, S as in the papers

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgsgpt.model.attention import Surroundings, attend_all, attend_window
from tests.memory import LiveBytes
from tests.model.tiny import random_tokens, tiny_model


def brute_force(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention written out: scores of every pair, softmax over those that a query may see."""
    T, S, repeat = q.size(2), k.size(2), q.size(1) // k.size(1)
    out = torch.empty_like(q)
    for head in range(q.size(1)):
        keys, values = k[:, head // repeat], v[:, head // repeat]
        scores = q[:, head] @ keys.transpose(1, 2) / math.sqrt(q.size(-1))
        for i in range(T):
            last = S - T + i
            seen = slice(max(0, last - window + 1), last + 1)
            out[:, head, i] = (scores[:, i, None, seen].softmax(-1) @ values[:, seen])[:, 0]
    return out


def tensors(T: int, S: int, heads: int, groups: int, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(2, heads, T, 4), (2, groups, S, 4), (2, groups, S, 4)]
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]


@given(
    T=st.integers(1, 150),
    before=st.integers(0, 80),
    window=st.integers(1, 160),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_window_attention_equals_brute_force(
    T: int, before: int, window: int, heads: tuple[int, int], seed: int
) -> None:
    q, k, v = tensors(T, T + before, *heads, seed)
    torch.testing.assert_close(attend_window(q, k, v, window=window), brute_force(q, k, v, window))


@given(T=st.integers(1, 40), before=st.integers(0, 40), heads=st.sampled_from([(1, 1), (4, 2), (3, 3)]))
@settings(max_examples=30, deadline=None)
def test_full_attention_equals_brute_force(T: int, before: int, heads: tuple[int, int]) -> None:
    q, k, v = tensors(T, T + before, *heads, seed=1)
    torch.testing.assert_close(attend_all(q, k, v), brute_force(q, k, v, T + before))


@pytest.mark.parametrize(("T", "window"), [(100, 7), (130, 64), (64, 70), (65, 64)])
def test_window_attention_has_the_gradients_of_brute_force(T: int, window: int) -> None:
    inputs = [x.requires_grad_() for x in tensors(T, T, 4, 2, seed=2)]
    weights = torch.randn(2, 4, T, 4, dtype=torch.float64)
    ours = torch.autograd.grad((attend_window(*inputs, window=window) * weights).sum(), inputs)
    theirs = torch.autograd.grad((brute_force(*inputs, window) * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def peak_bytes(T: int) -> int:
    inputs = [x.float().requires_grad_() for x in tensors(T, T, 4, 2, seed=3)]
    with LiveBytes() as live:
        attend_window(*inputs, window=64).sum().backward()
    return live.peak


def test_window_attention_needs_memory_linear_in_length() -> None:
    assert peak_bytes(8192) < 4.2 * peak_bytes(2048)
    assert peak_bytes(8192) < 8192 * 8192  # a boolean T x T mask alone would be this large


def test_keys_and_values_are_as_narrow_as_their_heads() -> None:
    attention = tiny_model(n_kv_head=2).blocks[0].attn
    assert attention.k.weight.shape == attention.v.weight.shape == (16, 32)
    assert attention.q.weight.shape == attention.out.weight.shape == (32, 32)


def test_multi_head_is_grouped_query_with_every_group_repeated() -> None:
    grouped, full = tiny_model(n_kv_head=2), tiny_model(n_kv_head=4)
    state = grouped.state_dict()
    for name, weight in state.items():
        if name.endswith(("attn.k.weight", "attn.v.weight")):
            state[name] = weight.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state, strict=True)
    tokens = random_tokens()
    torch.testing.assert_close(full(tokens).logits, grouped(tokens).logits)


@pytest.mark.parametrize("window", [None, {"size": 5, "pattern": "S"}, {"size": 5, "pattern": "SL"}])
def test_no_token_sees_a_later_one(window: dict[str, object] | None) -> None:
    model = tiny_model(window=window).eval()
    a = random_tokens()
    b = a.clone()
    b[:, 30:] = random_tokens(seed=9)[:, 30:]
    x, y = model(a).logits, model(b).logits
    torch.testing.assert_close(x[:, :30], y[:, :30])
    assert not torch.allclose(x[:, 30:], y[:, 30:])


def test_stacked_windows_reach_layers_times_their_size_and_no_further() -> None:
    model = tiny_model(window={"size": 5, "pattern": "S"}).eval()
    a = random_tokens()
    b = a.clone()
    b[:, 0] = (b[:, 0] + 1) % 61
    differs = (model(a).logits != model(b).logits).any(-1).any(0)
    reach = 1 + 3 * (5 - 1)  # three layers, each four tokens back
    assert differs[:reach].all()
    assert not differs[reach:].any()


# ---------------------------------------------------------------- both at once
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_layer_of_kind_b_gives_half_of_its_heads_the_window(kv_heads: int) -> None:
    model = tiny_model(n_layer=1, n_kv_head=kv_heads, rope=None, window={"size": 5, "pattern": "B"}).eval()
    attn = model.blocks[0].attn
    x = torch.randn(2, 48, 32, generator=torch.Generator().manual_seed(0))
    q, k, v = (y.unflatten(-1, (-1, 8)).transpose(1, 2) for y in (attn.q(x), attn.k(x), attn.v(x)))
    k, v = (y.repeat_interleave(4 // kv_heads, dim=1) for y in (k, v))
    local = brute_force(q[:, :2], k[:, :2], v[:, :2], 5)
    full = brute_force(q[:, 2:], k[:, 2:], v[:, 2:], 48)
    expected = attn.out(torch.cat((local, full), dim=1).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attn(x, Surroundings(), None)[0], expected, atol=1e-5, rtol=1e-5)


@given(pattern=st.text("SLB", min_size=1, max_size=4), changed=st.integers(0, 47), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_changing_a_token_changes_no_logits_before_it(pattern: str, changed: int, seed: int) -> None:
    model = tiny_model(seed, window={"size": 6, "pattern": pattern}, value_residual=True, x0_shortcut=True).eval()
    tokens = random_tokens(seed=seed)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % 61
    with torch.no_grad():
        a, b = model(tokens).logits, model(other).logits
    torch.testing.assert_close(a[:, :changed], b[:, :changed], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(a[:, changed], b[:, changed], atol=1e-4)
