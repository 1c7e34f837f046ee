"""Batches: every row is the text that its prompt and seed give alone, for every kind of network."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch

from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.generation import Result, generate_batch, stream, write_batch
from dgsgpt.model import GPT
from tests.generation.test_beam import OneEndTokenizer
from tests.generation.test_engine import BeginTokenizer, tiny
from tests.model.tiny import VARIANTS, random_tokens, tiny_model

LETTERS = "".join(chr(ord("A") + i) for i in range(58))
PROMPTS = ["A", "Once", "UponATime", "Once", "abcdefghijklmnopqrstuvwxyz" * 3, "TheCat", "B", "LongerThanTheOthers"]


def alone(model: GPT, tokenizer: Any, prompt: str, seed: int, **sampling: Any) -> tuple[str, Any]:
    out = stream(model, tokenizer, prompt, seed=seed, **sampling)
    return "".join(out), out.stats


def assert_as_alone(model: GPT, tokenizer: Any, prompts: list[str], found: list[Result], **sampling: Any) -> None:
    assert [result.row for result in found] == list(range(len(found)))
    for result in found:
        text, stats = alone(model, tokenizer, prompts[result.prompt], 7 + result.row, **sampling)
        assert result.stats.ids == stats.ids
        assert result.text == text
        assert result.stats.nats == pytest.approx(stats.nats, rel=1e-3, abs=1e-4)
        for name in ("seed", "prompt_tokens", "cropped", "finish_reason", "tokens"):
            assert getattr(result.stats, name) == getattr(stats, name)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_row_is_what_its_prompt_and_seed_give_alone(name: str) -> None:
    model, tokenizer = tiny_model(**VARIANTS[name]).eval(), OneEndTokenizer(LETTERS)
    rules = {"max_new_tokens": 60, "temperature": 1.5, "top_k": 40, "repetition_penalty": 1.1}  # beyond the context
    found = generate_batch(model, tokenizer, PROMPTS, batch_size=5, seed=7, **rules)
    assert_as_alone(model, tokenizer, PROMPTS, found, **rules)
    assert max(one.stats.prompt_tokens + one.stats.tokens for one in found) > 60  # of a context of 48: begun anew
    assert len({result.text for result in found}) == len(PROMPTS)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_samples_and_the_size_of_the_batch_change_no_text(batch_size: int) -> None:
    model, tokenizer = tiny(block_size=16), CharTokenizer("abcdefghij")
    prompts = ["abc", "d", "abc", "efghijabcdefghijabcdef"]
    rules = {"max_new_tokens": 25, "temperature": 1.0, "stop": ["ab", "j"]}
    found = generate_batch(model, tokenizer, prompts, samples=3, batch_size=batch_size, seed=7, **rules)
    assert [(one.prompt, one.sample) for one in found] == list(itertools.product(range(4), range(3)))
    assert_as_alone(model, tokenizer, prompts, found, **rules)
    assert {one.stats.finish_reason for one in found} == {"stop", "length"}


def test_greedy_rows_and_a_token_before_every_text() -> None:
    model, prompts = tiny(block_size=12), ["abc", "defg", "a much longer one than fits"]
    rules = {"max_new_tokens": 30, "temperature": 0}
    found = generate_batch(model, BeginTokenizer(), prompts, seed=7, **rules)
    assert_as_alone(model, BeginTokenizer(), prompts, found, **rules)


def test_the_last_seeds_wrap_around_and_a_drawn_one_is_told() -> None:
    model, tokenizer = tiny(), CharTokenizer("abcdef")
    found = generate_batch(model, tokenizer, ["a", "b"], seed=2**63 - 1, max_new_tokens=5)
    assert [one.stats.seed for one in found] == [2**63 - 1, 0]
    drawn = generate_batch(model, tokenizer, ["a", "b"], max_new_tokens=20)[1]
    assert alone(model, tokenizer, "b", drawn.stats.seed, max_new_tokens=20)[0] == drawn.text


def test_rows_share_passes_whatever_the_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny(block_size=64), CharTokenizer("abcdefghij")
    passes = 0
    forward = model.forward

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*args, **more)

    monkeypatch.setattr(model, "forward", counted)
    prompts = ["abcdefghij"[: 1 + i % 10] for i in range(30)]
    generate_batch(model, tokenizer, prompts, max_new_tokens=20, seed=1)
    # 10 lengths are read; the shortest rows then take 9 steps until they are as long as the longest; then 19 for all.
    assert passes <= 10 + 9 + 19


def test_results_come_as_they_are_done_and_progress_reaches_the_end() -> None:
    model, tokenizer = tiny(), CharTokenizer("abcdefgh")
    seen: list[tuple[float, int]] = []
    rows = [
        one.row
        for one in write_batch(
            model, tokenizer, ["abcdef", "a", "bb"], batch_size=2, max_new_tokens=6, seed=0, stop="h",
            on_progress=lambda *now: seen.append(now),
        )
    ]  # fmt: skip
    assert sorted(rows) == [0, 1, 2]
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert seen[-1][0] == 1.0
    assert 0 < seen[0][0] < 1


@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_stopping_frees_the_caches_and_restores_the_mode(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny().train(), CharTokenizer("abcdefgh")
    caches: list[weakref.ref[Any]] = []
    make = model.make_cache

    def made(*args: Any, **more: Any) -> Any:
        cache = make(*args, **more)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(model, "make_cache", made)

    def interrupt(share: float, tokens: int) -> None:
        if how == "interrupted" and tokens > 10:
            raise KeyboardInterrupt

    found = write_batch(
        model, tokenizer, ["a", "bb", "ccc", "a"], batch_size=3, max_new_tokens=10, on_progress=interrupt
    )
    stopped = False
    try:
        next(found)
        found.close()  # type: ignore[attr-defined]
    except KeyboardInterrupt:
        stopped = True
    gc.collect()
    assert stopped == (how == "interrupted")
    assert len(caches) >= 3
    assert [cache for cache in caches if cache() is not None] == []
    assert model.training
    assert list(found) == []


def test_no_row_has_more_cache_than_it_needs() -> None:
    model, rooms = tiny(block_size=4096), []
    make = model.make_cache
    model.make_cache = lambda rows, room: rooms.append((rows, room)) or make(rows, room)  # type: ignore[method-assign]
    generate_batch(model, CharTokenizer("ab"), ["ab", "a", "b"], samples=2, max_new_tokens=5)
    assert sorted(rooms) == [(1, 7), (2, 7)]


@pytest.mark.parametrize("name", ["gqa", "window", "both_mqa", "ngram", "all_new"])
def test_caches_that_join_go_on_as_one_and_cleared_ones_as_if_new(name: str) -> None:
    model, tokens = tiny_model(**VARIANTS[name]).eval(), random_tokens(batch=5)
    first, second = model.make_cache(2, 48), model.make_cache(3, 48)
    with torch.no_grad():
        expected = model(tokens).logits
        model(random_tokens(batch=2, seed=9), cache=first)  # full of other tokens
        places = [buffer.k.data_ptr() for buffer in first.buffers()]
        first.clear()
        assert [buffer.k.data_ptr() for buffer in first.buffers()] == places
        model(tokens[:2, :20], cache=first)
        model(tokens[2:, :20], cache=second)
        first.join(second)
        actual = torch.cat([model(tokens[:, i : i + 1], cache=first).logits for i in range(20, 48)], dim=1)
    torch.testing.assert_close(actual, expected[:, 20:], atol=1e-5, rtol=1e-5)


def test_caches_of_different_lengths_do_not_join() -> None:
    model = tiny_model().eval()
    first, second = model.make_cache(1, 48), model.make_cache(1, 48)
    with torch.no_grad():
        model(random_tokens(batch=1, length=4), cache=second)
    with pytest.raises(ValueError, match="4 of 48 tokens cannot join one of 0 of 48"):
        first.join(second)


def test_rows_keep_their_buffers_where_as_many_go_on() -> None:
    model = tiny_model().eval()
    cache = model.make_cache(3, 48)
    with torch.no_grad():
        model(random_tokens(batch=3, length=4), cache=cache)
    places = [buffer.v.data_ptr() for buffer in cache.buffers()]
    cache.select(torch.tensor([2, 2, 0]))
    assert [buffer.v.data_ptr() for buffer in cache.buffers()] == places


# ---------------------------------------------------------------- bad input
def test_a_prompt_that_cannot_be_used_is_told_by_its_number_before_anything_is_written() -> None:
    model, tokenizer = tiny(), CharTokenizer("abc")
    with pytest.raises(DataError, match=r"prompt 3 of 3: .*'é'"):
        write_batch(model, tokenizer, ["a", "b", "é"])
    with pytest.raises(DgsgptError, match="prompt 2 of 2: the prompt is empty"):
        write_batch(model, tokenizer, ["a", ""])
    with pytest.raises(DgsgptError, match=r"^the prompt is empty"):
        write_batch(model, tokenizer, [""])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 0}, "samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"top_q": 1}, "top_q"),
        ({"min_p": 2}, "min_p=2"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(DgsgptError, match=said):
        write_batch(tiny(), CharTokenizer("abc"), ["a"], **settings)


def test_no_prompt_a_foreign_tokenizer_and_damaged_weights_are_refused() -> None:
    with pytest.raises(DgsgptError, match="no prompts"):
        write_batch(tiny(), CharTokenizer("abc"), [])
    with pytest.raises(DgsgptError, match="has 400 tokens but the model only 256"):
        write_batch(tiny(), CharTokenizer("".join(map(chr, range(1000, 1400)))), ["Ϩ"])
    gpt = tiny()
    with torch.no_grad():
        next(gpt.parameters()).fill_(torch.nan)
    with pytest.raises(DgsgptError, match="not numbers"):
        generate_batch(gpt, CharTokenizer("abc"), ["a"])


@pytest.mark.timeout(600)
def test_prompts_of_a_million_characters_are_answered() -> None:
    found = generate_batch(tiny(), ByteTokenizer(), ["word " * 200_000, "a"], max_new_tokens=3, top_k=10**6)
    assert [one.stats.cropped for one in found] == [1_000_000 - 15, 0]
