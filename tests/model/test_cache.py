import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.model import GPT
from tests.model.tiny import VARIANTS, random_tokens, tiny_model

MODELS = {name: tiny_model(**changes).eval() for name, changes in VARIANTS.items()}


def in_chunks(model: GPT, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    cache = model.make_cache(len(tokens), tokens.size(1))
    with torch.no_grad():
        return torch.cat([model(part, cache=cache).logits for part in tokens.split(sizes, dim=1)], dim=1)


@st.composite
def chunk_sizes(draw: st.DrawFn, total: int = 48) -> list[int]:
    sizes: list[int] = []
    while sum(sizes) < total:
        sizes.append(draw(st.integers(1, min(20, total - sum(sizes)))))
    return sizes


@pytest.mark.parametrize("name", VARIANTS)
@given(sizes=chunk_sizes())
@settings(max_examples=6, deadline=None)
def test_cached_logits_equal_uncached_for_every_chunking(name: str, sizes: list[int]) -> None:
    tokens = random_tokens()
    with torch.no_grad():
        expected = MODELS[name](tokens).logits
    torch.testing.assert_close(in_chunks(MODELS[name], tokens, sizes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 8, 47, 48])
@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9, 16, 48])
def test_cached_logits_equal_uncached_beyond_the_window(window: int, chunk: int) -> None:
    model = tiny_model(window={"size": window, "pattern": "S"}).eval()
    tokens = random_tokens()
    sizes = [chunk] * (48 // chunk) + ([48 % chunk] if 48 % chunk else [])
    torch.testing.assert_close(in_chunks(model, tokens, sizes), model(tokens).logits, atol=1e-5, rtol=1e-5)


def test_cached_logits_go_on_past_the_trained_context() -> None:
    model = MODELS["all"]
    tokens = random_tokens(length=100)
    torch.testing.assert_close(in_chunks(model, tokens, [40] + [1] * 60), model(tokens).logits, atol=1e-5, rtol=1e-5)


def test_a_sliding_layer_keeps_only_its_window() -> None:
    full = tiny_model().make_cache(2, 1000)
    sliding = tiny_model(window={"size": 8, "pattern": "SSL"}).make_cache(2, 1000)
    one_layer = 2 * 2 * 2 * 1000 * 8 * 4  # k and v, rows, heads, tokens, width, bytes
    assert full.n_bytes == 3 * one_layer
    assert sliding.n_bytes == one_layer + 2 * one_layer * 8 // 1000


def test_a_full_cache_says_so() -> None:
    model = MODELS["gqa"]
    cache = model.make_cache(2, 10)
    model(random_tokens(length=8), cache=cache)
    with pytest.raises(ValueError, match="8 cached \\+ 3 new tokens exceed the cache's max_tokens=10"):
        model(random_tokens(length=3), cache=cache)


def test_learned_positions_end_in_a_cache_too() -> None:
    model = MODELS["plain"]
    cache = model.make_cache(2, 100)
    model(random_tokens(length=48), cache=cache)
    with pytest.raises(ValueError, match="49 tokens do not fit"):
        model(random_tokens(length=1), cache=cache)


def test_a_half_precision_cache_comes_close() -> None:
    model, tokens = MODELS["window"], random_tokens()
    cache = model.make_cache(2, 48, dtype=torch.bfloat16)
    with torch.no_grad():
        parts = [model(part, cache=cache).logits for part in tokens.split(5, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens).logits, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", ["gqa", "window", "both", "both_mqa", "ngram"])
def test_selected_rows_go_on_as_if_they_had_been_read_so(name: str) -> None:
    model, tokens = MODELS[name], random_tokens(batch=3)
    rows = torch.tensor([2, 0, 2, 2])
    cache = model.make_cache(3, 48)
    with torch.no_grad():
        model(tokens[:, :30], cache=cache)
        cache.select(rows)
        actual = torch.cat([model(tokens[rows, i : i + 1], cache=cache).logits for i in range(30, 48)], dim=1)
        expected = model(tokens[rows]).logits[:, 30:]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_a_ring_is_never_moved_or_made_anew() -> None:
    model = tiny_model(window={"size": 8, "pattern": "S"}).eval()
    cache = model.make_cache(2, 10_000)
    places = [x.data_ptr() for buffer in cache.buffers() for x in (buffer.k, buffer.v)]
    size = cache.n_bytes
    with torch.no_grad():
        for _ in range(30):
            model(random_tokens(length=1), cache=cache)
    assert [x.data_ptr() for buffer in cache.buffers() for x in (buffer.k, buffer.v)] == places
    assert cache.n_bytes == size == 3 * 2 * 2 * 2 * 8 * 8 * 4
