"""Alternatives are those the generation had: against what it paid, and against its own answer at single places."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch

from dgsgpt.data.alphabets import CharTokenizer
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.generation import choices_at, stream
from dgsgpt.inspect import tokens
from dgsgpt.inspect.tokens import Choice, read_choices
from dgsgpt.model import GPT
from tests.generation.test_engine import tiny

LETTERS = CharTokenizer("abcdefgh")


class Begins(CharTokenizer):
    """A tokenizer whose models expect a token before every text."""

    @property
    def begin_of_text(self) -> int | None:
        return 7


def written(gpt: GPT, prompt: str, count: int, tokenizer: CharTokenizer = LETTERS) -> Any:
    pieces = stream(gpt, tokenizer, prompt, max_new_tokens=count, temperature=1.3, seed=2)
    list(pieces)
    return pieces.stats


def read(gpt: GPT, prompt: str, ids: list[int], tokenizer: CharTokenizer = LETTERS, top: int = 3) -> list[Choice]:
    return list(chain.from_iterable(read_choices(gpt, tokenizer, prompt, ids, top)))


@pytest.mark.parametrize("tokenizer", [LETTERS, Begins("abcdefgh")])
@pytest.mark.parametrize("part", [256, 3])
@pytest.mark.parametrize(("block_size", "pattern"), [(64, "SL"), (8, "SL"), (8, "S"), (2, None), (1, None)])
def test_alternatives_are_those_that_the_generation_had(
    block_size: int, pattern: str | None, part: int, tokenizer: CharTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_PART_TOKENS", part)
    gpt = tiny(block_size=block_size, window={"size": 5, "pattern": pattern} if pattern else None)
    prompt = "abcdabcdabcd"  # longer than most of the contexts
    stats = written(gpt, prompt, 40, tokenizer)
    found = read(gpt, prompt, stats.ids, tokenizer)
    assert [choice.nats for choice in found] == pytest.approx(stats.nats, rel=1e-3, abs=1e-4)
    for index in (0, 1, 9, 25, 39):
        every = choices_at(gpt, tokenizer, prompt, stats.ids, index, range(8))
        best = sorted(range(8), key=lambda token: -every[token])[:3]
        assert [token for token, _ in found[index].likeliest] == best
        assert [share for _, share in found[index].likeliest] == pytest.approx([every[t] for t in best], rel=1e-3)


def test_all_alternatives_of_a_small_vocabulary_sum_to_one_and_the_taken_one_is_among_them() -> None:
    gpt = tiny().train()
    stats = written(gpt, "ab", 12)
    for choice, token in zip(read(gpt, "ab", stats.ids, top=99), stats.ids, strict=True):
        shares = dict(choice.likeliest)
        assert len(shares) == 8
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert math.exp(-choice.nats) == pytest.approx(shares[token], rel=1e-5)
    assert gpt.training  # as it was


def test_the_longest_text_is_read_about_twice_and_may_be_left_at_any_part() -> None:
    gpt = tiny(block_size=32)
    passes: list[int] = []
    gpt.register_forward_hook(lambda _, inputs, output: passes.append(inputs[0].size(1)))
    ids = torch.randint(0, 8, (4096,), generator=torch.Generator().manual_seed(1)).tolist()
    parts = read_choices(gpt, LETTERS, "ab", ids)
    assert passes == []
    first = next(parts)
    assert 0 < len(first) < 100
    assert sum(map(len, parts)) + len(first) == 4096
    assert sum(passes) <= 2 * 4096 + 32


def test_no_token_is_no_work_and_what_cannot_be_read_is_refused() -> None:
    gpt = tiny()
    assert read(gpt, "ab", []) == []
    with pytest.raises(DgsgptError, match="token id 8 must be below the vocabulary's 8"):
        read(gpt, "ab", [8])
    with pytest.raises(DataError, match="'z'"):
        read(gpt, "z", [1])
    with torch.no_grad():
        next(gpt.parameters()).fill_(torch.nan)
    with pytest.raises(DgsgptError, match="not numbers"):
        read(gpt, "ab", [1])
