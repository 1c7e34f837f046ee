"""The sampler against closed forms and against the filters of transformers."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.errors import DgsgptError
from dgsgpt.generation import Sampling, filter_logits, sample_token
from dgsgpt.generation.sampling import gumbel_noise

LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.5, 0.0, 1.0, -3.0, 0.7])


def kept(logits: torch.Tensor, **rules: Any) -> list[int]:
    return torch.nonzero(filter_logits(logits, Sampling(**rules)).isfinite()).flatten().tolist()


def draws(logits: torch.Tensor, count: int, **rules: Any) -> Counter[int]:
    generator = torch.Generator().manual_seed(5)
    sampling = Sampling(**rules)
    return Counter(sample_token(logits, sampling, generator) for _ in range(count))


@pytest.mark.parametrize(
    "rules",
    [{"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 4}, {"temperature": 1.0, "top_p": 0.8}],
)
def test_draws_follow_the_closed_form_distribution(rules: dict[str, Any]) -> None:
    weights = {i: math.exp(float(x) / rules["temperature"]) for i, x in enumerate(LOGITS)}
    order = sorted(weights, key=weights.__getitem__, reverse=True)
    if "top_k" in rules:
        order = order[: rules["top_k"]]
    if "top_p" in rules:
        total, mass, cut = sum(weights.values()), 0.0, 0
        while mass < rules["top_p"] * total:
            mass += weights[order[cut]]
            cut += 1
        order = order[:cut]
    n = 8000
    seen = draws(LOGITS, n, **rules)
    assert set(seen) <= set(order)
    total = sum(weights[i] for i in order)
    chi2 = sum((seen[i] - n * weights[i] / total) ** 2 / (n * weights[i] / total) for i in order)
    # Wilson-Hilferty: the seed is fixed, so this is no matter of luck; 4.5 sigma leaves room for other torch versions.
    k = len(order) - 1
    assert ((chi2 / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k)) < 4.5


@settings(deadline=None)
@given(st.lists(st.integers(-3000, 3000), min_size=2, max_size=60, unique=True), st.floats(0.05, 5), st.data())
def test_filters_equal_those_of_transformers(values: list[int], temperature: float, data: st.DataObject) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    k = data.draw(st.none() | st.integers(1, 70))
    p = data.draw(st.none() | st.floats(0.01, 0.99))
    logits = torch.tensor(values, dtype=torch.float64) / 100
    theirs = TemperatureLogitsWarper(temperature)(None, logits[None])
    if k is not None:
        theirs = TopKLogitsWarper(k)(None, theirs)
    mass = torch.softmax(theirs[0], 0).sort(descending=True).values.cumsum(0)
    if p is not None:
        theirs = TopPLogitsWarper(p)(None, theirs)
    ours = filter_logits(logits, Sampling(temperature=temperature, top_k=k, top_p=p))
    expected, found = torch.softmax(theirs[0], 0), torch.softmax(ours, 0)
    if p is not None and float((mass - p).abs().min()) < 1e-9:
        return  # which side of p the sum falls on is then a matter of rounding
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.floats(1e-3, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(values: list[float], p: float) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    chosen = kept(logits, temperature=1.0, top_p=p)
    probabilities = np.exp(np.array(values) - max(values))
    probabilities /= probabilities.sum()
    assert chosen
    assert probabilities[chosen].sum() >= p - 1e-9
    smallest = min(chosen, key=lambda i: probabilities[i])
    assert probabilities[chosen].sum() - probabilities[smallest] <= p + 1e-9


def test_top_k_keeps_exactly_k_and_the_lower_id_among_ties() -> None:
    logits = torch.tensor([1.0, 3.0, 1.0, 1.0, 0.0])
    assert kept(logits, temperature=1.0, top_k=2) == [0, 1]
    assert kept(logits, temperature=1.0, top_k=3) == [0, 1, 2]
    assert kept(torch.zeros(6), temperature=1.0, top_k=4) == [0, 1, 2, 3]


def test_top_p_keeps_the_token_that_crosses() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert kept(logits, temperature=1.0, top_p=0.4) == [0]
    assert kept(logits, temperature=1.0, top_p=0.6) == [0, 1]
    assert kept(logits, temperature=1.0, top_p=0.9) == [0, 1, 2]
    assert kept(logits, temperature=1.0, top_p=1e-12) == [0]
    assert kept(torch.tensor([0.0, 900.0]), temperature=1.0, top_p=1.0) == [0, 1]


def test_a_top_k_above_the_vocabulary_keeps_all() -> None:
    assert kept(LOGITS, temperature=1.0, top_k=10**9) == list(range(8))


def test_temperature_zero_is_the_first_likeliest_token() -> None:
    assert draws(LOGITS, 50, temperature=0) == {1: 50}
    assert sample_token(torch.tensor([0.0, 5.0, 5.0]), Sampling(temperature=0)) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-12, 100.0])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    seen = draws(torch.tensor([1e4, -1e4, 9e3]), 40, temperature=temperature)
    assert sum(seen.values()) == 40
    assert seen[0] > 0


def test_masked_logits_are_never_drawn() -> None:
    logits = torch.full((5,), -torch.inf)
    logits[3] = 0.0
    assert draws(logits, 20, temperature=1.0, top_k=3, top_p=0.9) == {3: 20}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_numbers_are_refused(bad: float, temperature: float) -> None:
    for logits in (torch.tensor([0.0, bad, 1.0]), torch.full((3,), -math.inf)):
        with pytest.raises(DgsgptError, match="not numbers"):
            sample_token(logits, Sampling(temperature=temperature))


def test_equal_seeds_draw_equal_tokens() -> None:
    assert [draws(LOGITS, 30, temperature=1.0)] == [draws(LOGITS, 30, temperature=1.0)]


# ---------------------------------------------------------------- the noise of the draw
def test_a_seed_gives_the_same_noise_whatever_the_filters_and_the_model() -> None:
    def left_after(logits: torch.Tensor, **rules: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        for _ in range(5):
            sample_token(logits, Sampling(**rules), generator)
        return gumbel_noise(4, generator)

    plain = left_after(LOGITS, temperature=1.0)
    assert torch.equal(left_after(LOGITS, temperature=0.3, top_k=2), plain)
    assert torch.equal(left_after(-LOGITS * 3, temperature=1.5, top_p=0.4), plain)


def test_models_that_agree_draw_the_same_token_and_similar_ones_mostly_do() -> None:
    chance = torch.Generator().manual_seed(1)
    rules = Sampling(temperature=1.0)
    shared = apart = 0
    for seed in range(300):
        logits = torch.randn(50, generator=chance)
        near = logits + 0.1 * torch.randn(50, generator=chance)
        token = sample_token(logits, rules, torch.Generator().manual_seed(seed))
        assert sample_token(logits + 7, rules, torch.Generator().manual_seed(seed)) == token
        shared += token == sample_token(near, rules, torch.Generator().manual_seed(seed))
        apart += token == sample_token(near, rules, torch.Generator().manual_seed(seed + 1000))
    assert shared > 250  # draws of their own agree by chance in a few percent
    assert apart < 60


def test_a_filter_that_keeps_the_drawn_token_does_not_change_it() -> None:
    for seed in range(100):
        whole = sample_token(LOGITS, Sampling(temperature=1.0), torch.Generator().manual_seed(seed))
        few = sample_token(LOGITS, Sampling(temperature=1.0, top_k=4), torch.Generator().manual_seed(seed))
        assert few == whole or whole not in kept(LOGITS, temperature=1.0, top_k=4)


def test_the_noise_follows_the_gumbel_distribution() -> None:
    noise = gumbel_noise(200_000, torch.Generator().manual_seed(0)).numpy()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.015)
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.02)
    for x in (-1.0, 0.0, 1.0, 4.0):
        assert (noise <= x).mean() == pytest.approx(math.exp(-math.exp(-x)), abs=0.005)


def test_a_uniform_number_of_zero_makes_no_infinite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.zeros(count, dtype=torch.float64))
    assert torch.isfinite(gumbel_noise(3)).all()
    assert sample_token(torch.tensor([-math.inf, 0.0]), Sampling(temperature=1.0)) == 1


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": 0},
        {"top_k": 2.5},
        {"top_k": True},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"seed": -1},
        {"seed": 2**64},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"min_p": math.nan},
        {"min_p": True},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": math.nan},
        {"repetition_penalty": 1e9},
        {"repetition_penalty": None},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [1]},
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(rules: dict[str, Any]) -> None:
    with pytest.raises(DgsgptError) as e:
        Sampling(**rules)
    assert str(e.value).startswith(f"{next(iter(rules))}=")
    assert "\n" not in str(e.value)


@given(seed=st.integers(0, 2**32), size=st.integers(2, 80), k=st.integers(1, 60), rounded=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_short_way_for_top_k_alone_draws_the_same_token(seed: int, size: int, k: int, rounded: bool) -> None:
    logits = 4 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if rounded else logits  # so that some are equal
    sampling = Sampling(temperature=0.7, top_k=k)
    one, other = (torch.Generator().manual_seed(seed) for _ in range(2))
    scores = filter_logits(logits, sampling) + gumbel_noise(size, other)
    assert sample_token(logits, sampling, one) == int(scores.argmax())
    assert torch.equal(one.get_state(), other.get_state())
