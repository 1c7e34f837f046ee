"""Embeddings of n-grams: which row each has, how evenly rows are used, and what lies before a text."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dgsgpt.costs import count_params, ngram_rows
from dgsgpt.model import GPT
from dgsgpt.model.ngram import NgramEmbedding, NoNgrams
from tests.model.tiny import random_tokens, tiny_config, tiny_model

PAIRS_EXACT = {"ngram": {"max_order": 4, "rows": 4000}}  # 61 * 61 pairs fit, triples do not


def embedding(vocab_size: int = 61, **ngram: int) -> NgramEmbedding:
    """The tables alone, filled with numbers."""
    module = NgramEmbedding(tiny_config(vocab_size=vocab_size, ngram=ngram))  # its tables are not filled yet
    with torch.no_grad():
        for table in module.tables.values():
            table.weight.normal_()
    return module


def rows_of(module: NgramEmbedding, tokens: torch.Tensor) -> dict[int, torch.Tensor]:
    return dict(zip(module.rows, module.indices(tokens), strict=True))


def test_a_table_has_a_row_for_each_ngram_where_the_rows_are_enough() -> None:
    assert ngram_rows(tiny_config()) == {}
    assert ngram_rows(tiny_config(**PAIRS_EXACT)) == {2: 61**2, 3: 4000, 4: 4000}
    assert ngram_rows(tiny_config(ngram={"max_order": 3, "rows": 61**2})) == {2: 61**2, 3: 61**2}
    assert ngram_rows(tiny_config(ngram={"max_order": 3, "rows": 61**3})) == {2: 61**2, 3: 61**3}
    assert ngram_rows(tiny_config(ngram={"max_order": 2, "rows": 61**2 - 1})) == {2: 61**2 - 1}


def test_the_model_has_the_tables_that_are_counted() -> None:
    config = tiny_config(**PAIRS_EXACT)
    model = GPT(config)
    assert {n: tuple(p.shape) for n, p in model.state_dict().items() if n.startswith("ngram")} == {
        "ngram.tables.2.weight": (61**2, 32),
        "ngram.tables.3.weight": (4000, 32),
        "ngram.tables.4.weight": (4000, 32),
    }
    assert count_params(config) == sum(p.numel() for p in model.parameters())
    assert count_params(config, active=True) == count_params(tiny_config()) + 3 * 32


def test_without_ngrams_there_is_nothing() -> None:
    model = tiny_model()
    assert isinstance(model.ngram, NoNgrams)
    x = torch.randn(2, 5, 32)
    assert model.ngram(x, random_tokens(length=5), None, None) is x
    cache = model.make_cache(2, 48)
    model(random_tokens(), cache=cache)
    assert cache.recent.shape == (2, 0)


def test_ngrams_that_fit_have_a_row_each() -> None:
    module = embedding(vocab_size=7, max_order=4, rows=7**3)
    for order in (2, 3):
        grams = torch.tensor(list(itertools.product(range(7), repeat=order)))
        index = rows_of(module, grams)[order][:, -1]
        assert sorted(index.tolist()) == list(range(7**order))


@pytest.mark.parametrize("order", [2, 3, 5, 8])
def test_a_row_depends_on_the_whole_ngram_and_on_nothing_else(order: int) -> None:
    module = embedding(max_order=8, rows=65_537)
    tokens = random_tokens(batch=1, length=30)
    before = rows_of(module, tokens)[order][0]
    for place in range(30):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 61
        after = rows_of(module, changed)[order][0]
        differs = (after != before).nonzero().flatten().tolist()
        assert differs == list(range(place, min(30, place + order)))


def test_the_order_of_tokens_counts() -> None:
    module = embedding(max_order=3, rows=256)
    several = torch.tensor(list(itertools.permutations([3, 14, 59])))
    index = rows_of(module, several)
    assert len(set(index[3][:, -1].tolist())) > 3
    assert len({rows_of(module, torch.tensor([pair]))[2][0, -1].item() for pair in ([3, 14], [14, 3])}) == 2


@functools.cache
def texts(kind: str) -> torch.Tensor:
    """20 thousand distinct triples [N, 3] of ids, as texts or an adversary would have them."""
    draw = torch.Generator().manual_seed(0)
    if kind == "zipf":  # frequent ids are small, as a byte-pair vocabulary has them
        ids = (50_257 ** torch.rand(200_000, 3, generator=draw, dtype=torch.float64)).long()
    elif kind == "counter":  # one id after the other
        ids = torch.arange(30_000)[:, None] + torch.arange(3)
    elif kind == "grid":  # a small alphabet
        ids = torch.tensor(list(itertools.product(range(28), repeat=3)))
    elif kind == "powers":  # multiples of a power of two differ in their upper bits only
        ids = torch.tensor(list(itertools.product(range(28), repeat=3))) * 1024
    else:  # only the token furthest back differs
        ids = torch.arange(30_000)[:, None] * torch.tensor([1, 0, 0])
    ids = ids.unique(dim=0)
    return ids[torch.randperm(len(ids), generator=draw)[:20_000]]


@pytest.mark.parametrize("rows", [256, 1000, 4096, 16_384])
@pytest.mark.parametrize("kind", ["zipf", "counter", "grid", "powers", "last"])
def test_hashed_ngrams_spread_evenly(kind: str, rows: int) -> None:
    grams = texts(kind)
    assert len(grams) == 20_000
    index = rows_of(embedding(vocab_size=50_257, max_order=3, rows=rows), grams)[3][:, -1]
    count = torch.bincount(index, minlength=rows).double()
    assert len(count) == rows
    # Chi-squared of a uniform draw has mean rows - 1 and deviation sqrt(2 rows); more even than chance is welcome.
    chi_squared = ((count - 20_000 / rows) ** 2 / (20_000 / rows)).sum().item()
    assert chi_squared < rows - 1 + 6 * math.sqrt(2 * rows)
    # Ids of a regular pattern must not all fall into a part of the rows either.
    assert (count == 0).sum() <= rows * math.exp(-20_000 / rows) + 6 * math.sqrt(rows)


def test_ids_of_a_large_vocabulary_and_of_32_bits_have_the_same_rows() -> None:
    module = embedding(vocab_size=50_257, max_order=8, rows=1000)
    tokens = random_tokens(vocab_size=50_257)
    for order, index in rows_of(module, tokens).items():
        assert index.min() >= 0
        assert index.max() < 1000
        assert torch.equal(rows_of(module, tokens.int())[order], index)


def test_two_orders_do_not_share_their_collisions() -> None:
    module = embedding(vocab_size=50_257, max_order=3, rows=1000)
    index = rows_of(module, texts("zipf"))
    pair, triple = index[2][:, -1], index[3][:, -1]
    together = (pair * 1000 + triple).unique().numel()
    expected = 1e6 * (1 - math.exp(-20_000 / 1e6))  # cells of a million that 20 thousand uniform draws fill
    assert together > 0.9 * expected


def test_embedding_is_the_sum_over_complete_ngrams() -> None:
    module = embedding(max_order=4, rows=4000)
    tokens, x = random_tokens(length=9), torch.randn(2, 9, 32)
    expected = x.clone()
    for b, t in itertools.product(range(2), range(9)):
        for order, table in module.tables.items():
            n = int(order)
            if t >= n - 1:
                gram = tokens[b : b + 1, t - n + 1 : t + 1]
                expected[b, t] += table.weight[rows_of(module, gram)[n][0, -1]]
    torch.testing.assert_close(module(x, tokens, None, None), expected)


def test_a_document_begins_as_a_text_does() -> None:
    module = embedding(max_order=4, rows=4000)
    tokens, x = random_tokens(length=12), torch.randn(2, 12, 32)
    lengths = [1, 2, 6, 3]
    places = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    packed = module(x, tokens, places, None)
    alone = [module(a, b, None, None) for a, b in zip(x.split(lengths, 1), tokens.split(lengths, 1), strict=True)]
    assert torch.equal(packed, torch.cat(alone, dim=1))
    assert torch.equal(packed[:, 0], x[:, 0])


def test_only_rows_that_were_read_learn() -> None:
    model = tiny_model(**PAIRS_EXACT)
    tokens = torch.tensor([[5, 6, 7]])
    model(tokens, tokens).loss.backward()
    touched = model.ngram.tables["2"].weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == sorted([6 + 5 * 61, 7 + 6 * 61])
    assert model.ngram.tables["4"].weight.grad.abs().sum() == 0  # three tokens hold no four


def test_tables_start_at_zero_and_learn_from_there() -> None:
    torch.manual_seed(0)
    model = GPT(tiny_config(**PAIRS_EXACT))
    tables = list(model.ngram.tables.values())
    assert not any(table.weight.any() for table in tables)
    with torch.no_grad():
        for table in tables:
            table.weight.fill_(1.0)
    model.init_weights()
    assert not any(table.weight.any() for table in tables)
    model(random_tokens(), random_tokens()).loss.backward()
    assert all(table.weight.grad.any() for table in tables)


def test_the_cache_holds_just_what_ngrams_reach_back_to() -> None:
    model, tokens = tiny_model(**PAIRS_EXACT).eval(), random_tokens()
    cache = model.make_cache(2, 48)
    for begin, end, kept in ((0, 2, 2), (2, 3, 3), (3, 4, 3), (4, 20, 3)):
        model(tokens[:, begin:end], cache=cache)
        assert torch.equal(cache.recent, tokens[:, end - kept : end])


def test_a_cache_survives_the_callers_buffer_and_a_failed_pass() -> None:
    model, tokens = tiny_model(**PAIRS_EXACT, rope=None).eval(), random_tokens()
    cache = model.make_cache(2, 60)
    buffer = tokens[:, :40].clone()
    with torch.no_grad():
        model(buffer, cache=cache)
        buffer.zero_()
        with pytest.raises(ValueError, match="do not fit"):
            model(tokens[:, :20], cache=cache)
        actual = model(tokens[:, 40:], cache=cache).logits
        torch.testing.assert_close(actual, model(tokens).logits[:, 40:], atol=1e-5, rtol=1e-5)


def test_weights_in_half_precision_do() -> None:
    model, tokens = tiny_model(**PAIRS_EXACT), random_tokens()
    exact = model(tokens, tokens).loss.item()
    for p in model.parameters():
        p.data = p.data.bfloat16() if p.ndim >= 2 else p.data
    out = model(tokens, tokens)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(exact, rel=0.05)
    grad = model.ngram.tables["3"].weight.grad
    assert grad.dtype == torch.bfloat16
    assert grad.isfinite().all()
    assert grad.any()


def test_fake_tensors_do() -> None:
    with FakeTensorMode():
        model = GPT(tiny_config(ngram={"max_order": 8, "rows": 16_777_216}))
        tokens = torch.zeros(2, 48, dtype=torch.long)
        out = model(tokens, tokens)
        out.loss.backward()
    assert model.ngram.tables["8"].weight.grad.shape == (16_777_216, 32)
