"""Where two generations part, and how sure each model was there."""

from __future__ import annotations

import pytest
import torch

from dgsgpt.data.alphabets import CharTokenizer
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.generation import choices_at, divergence, stream
from tests.generation.test_engine import tiny

TOKENIZER = CharTokenizer("abcdefgh")


def test_the_first_difference_is_found() -> None:
    assert divergence([1, 2, 3], [1, 2, 3]) is None
    assert divergence([], []) is None
    assert divergence([1, 2, 3], [1, 5, 3]) == 1
    assert divergence([1, 2], [1, 2, 3]) == 2
    assert divergence([1, 2, 3], []) == 0


@pytest.mark.parametrize("block_size", [64, 8, 2, 1])
def test_the_probability_of_a_choice_is_what_the_generation_saw(block_size: int) -> None:
    gpt = tiny(block_size=block_size)
    out = stream(gpt, TOKENIZER, "abc", max_new_tokens=30, temperature=1.0, seed=1)
    list(out)
    for index in (0, 1, 7, 20, 29):
        (found,) = choices_at(gpt, TOKENIZER, "abc", out.stats.ids, index, [out.stats.ids[index]])
        assert found == pytest.approx(float(torch.exp(torch.tensor(-out.stats.nats[index]))), rel=1e-4)


def test_probabilities_of_all_tokens_sum_to_one_and_the_mode_is_kept() -> None:
    gpt = tiny().train()
    found = choices_at(gpt, TOKENIZER, "abc", [1, 2], 2, range(8))
    assert sum(found) == pytest.approx(1)
    assert len(set(found)) == 8
    assert gpt.training


def test_models_that_share_noise_part_where_they_disagree() -> None:
    a, b = tiny(seed=3), tiny(seed=4)
    rules = {"max_new_tokens": 40, "temperature": 1.0, "seed": 7}
    again, first, second = (stream(gpt, TOKENIZER, "ab", **rules) for gpt in (a, a, b))
    for pieces in (again, first, second):
        list(pieces)
    assert divergence(again.stats.ids, first.stats.ids) is None
    at = divergence(first.stats.ids, second.stats.ids)
    assert at is not None
    said = [first.stats.ids[at], second.stats.ids[at]]
    by_a, by_b = (choices_at(gpt, TOKENIZER, "ab", first.stats.ids, at, said) for gpt in (a, b))
    # One noise for both: what each took gains from one model to the other.
    assert by_a[0] / by_a[1] > by_b[0] / by_b[1]


def test_what_cannot_be_asked_is_refused() -> None:
    gpt = tiny()
    with pytest.raises(DgsgptError, match="token 3 cannot be asked for: the generation has 2"):
        choices_at(gpt, TOKENIZER, "a", [0, 1], 3, [0])
    with pytest.raises(DgsgptError, match="token id 8 must be below the vocabulary's 8"):
        choices_at(gpt, TOKENIZER, "a", [0, 1], 1, [0, 8])
    with pytest.raises(DataError, match="'z'"):
        choices_at(gpt, TOKENIZER, "z", [0], 0, [0])
    with torch.no_grad():
        next(gpt.parameters()).fill_(torch.nan)
    with pytest.raises(DgsgptError, match="not numbers"):
        choices_at(gpt, TOKENIZER, "a", [0], 0, [0])
