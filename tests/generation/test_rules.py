"""Each rule against its definition and against the processor of transformers; the chain of all, and the presets."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.data.alphabets import CharTokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation import PRESETS, Sampling, filter_logits, generate, preset, rules, sample_token, stream
from tests.generation.test_engine import tiny

# Distinct and far enough apart that float32, in which transformers computes, keeps their order.
VALUES = st.lists(st.integers(-1500, 1500), min_size=2, max_size=40, unique=True)


def tensor(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64) / 100


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same tokens are left, with the same probabilities."""
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    torch.testing.assert_close(torch.softmax(ours, 0), torch.softmax(theirs.double(), 0), rtol=1e-5, atol=1e-5)


def near_an_edge(logits: torch.Tensor, top_p: float | None, min_p: float | None) -> bool:
    """Whether a token is in or out by rounding alone."""
    p = torch.softmax(logits, 0)
    mass = p.sort(descending=True).values.cumsum(0)
    by_mass = top_p is not None and float((mass - top_p).abs().min()) < 1e-5
    by_ratio = min_p is not None and float((p / p.max() / min_p - 1).abs().min()) < 1e-5
    return by_mass or by_ratio


@settings(deadline=None, max_examples=60)
@given(VALUES, st.floats(0.2, 5), st.data())
def test_the_repetition_penalty_equals_that_of_transformers(values: list[int], penalty: float, data: Any) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    seen = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=20))
    logits = tensor(values)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), logits.float()[None])[0]
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[seen] = True
    ours = rules.penalize_repetition(logits, mask, penalty)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[~mask], logits[~mask])


@settings(deadline=None, max_examples=60)
@given(VALUES, st.floats(0.01, 0.99))
def test_min_p_equals_that_of_transformers_and_its_definition(values: list[int], p: float) -> None:
    from transformers import MinPLogitsWarper

    logits = tensor(values)
    if near_an_edge(logits, None, p):
        return
    ours = rules.keep_min_p(logits, p)
    same(ours, MinPLogitsWarper(p)(None, logits.float()[None])[0])
    probabilities = torch.softmax(logits, 0)
    assert torch.equal(ours.isfinite(), probabilities >= p * probabilities.max())


@settings(deadline=None, max_examples=60)
@given(VALUES, st.integers(1, 50))
def test_top_k_equals_that_of_transformers(values: list[int], k: int) -> None:
    from transformers import TopKLogitsWarper

    same(rules.keep_top_k(tensor(values), k), TopKLogitsWarper(k)(None, tensor(values).float()[None])[0])


@settings(deadline=None, max_examples=60)
@given(VALUES, st.floats(0.05, 5))
def test_temperature_equals_that_of_transformers(values: list[int], temperature: float) -> None:
    from transformers import TemperatureLogitsWarper

    theirs = TemperatureLogitsWarper(temperature)(None, tensor(values)[None])[0]
    same(rules.scale(tensor(values), temperature), theirs)


@settings(deadline=None, max_examples=60)
@given(VALUES, st.floats(0.05, 0.99))
def test_top_p_equals_that_of_transformers(values: list[int], p: float) -> None:
    from transformers import TopPLogitsWarper

    logits = tensor(values)
    if near_an_edge(logits, p, None):
        return
    same(rules.keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits.float()[None])[0])


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with")  # nothing is generated here
@settings(deadline=None, max_examples=80)
@given(VALUES, st.data())
def test_the_chain_equals_that_of_transformers_generation(values: list[int], data: Any) -> None:
    from transformers import GenerationConfig, LogitsProcessorList
    from transformers.generation import GenerationMixin

    chosen = {
        "temperature": data.draw(st.floats(0.2, 3)),
        "top_k": data.draw(st.integers(1, 45)),
        "top_p": data.draw(st.floats(0.1, 0.99)),
        "min_p": data.draw(st.floats(0.01, 0.5)),
        "repetition_penalty": data.draw(st.floats(0.5, 2).filter(lambda x: abs(x - 1) > 0.01)),
    }
    seen = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=10))
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[seen] = True
    sampling = Sampling(**chosen)
    logits = tensor(values)
    before = rules.scale(rules.penalize_repetition(logits, mask, sampling.repetition_penalty), sampling.temperature)
    ordered = before.sort().values
    if float(ordered.diff().abs().min()) < 1e-4:
        return  # the penalty made two of them equal, or equal in float32
    before = rules.keep_top_k(before, chosen["top_k"])
    if near_an_edge(before[before.isfinite()], chosen["top_p"], chosen["min_p"]):
        return
    config = GenerationConfig(do_sample=True, **chosen)
    owner = type("Owner", (GenerationMixin,), {"config": type("C", (), {"is_encoder_decoder": False})()})()
    chain = owner._get_logits_processor(config, logits_processor=LogitsProcessorList())
    theirs = chain(torch.tensor([seen]), logits.float()[None])[0]
    same(filter_logits(logits, sampling, mask), theirs)


@pytest.mark.parametrize(
    "chosen",
    [
        {"temperature": 1.0, "min_p": 0.3},
        {"temperature": 2.0, "repetition_penalty": 1.7},
        {"temperature": 0.7, "repetition_penalty": 0.6, "top_k": 6, "top_p": 0.95, "min_p": 0.05},
    ],
)
def test_draws_follow_the_exact_distribution(chosen: dict[str, Any]) -> None:
    logits = [0.1, 2.0, -1.0, 1.5, 0.0, 1.0, -3.0, 0.7]
    seen = {1, 2, 5}
    penalty = chosen.get("repetition_penalty", 1.0)
    after = [x if i not in seen else x * penalty if x < 0 else x / penalty for i, x in enumerate(logits)]
    weights = {i: math.exp(x / chosen["temperature"]) for i, x in enumerate(after)}
    order = sorted(weights, key=weights.__getitem__, reverse=True)[: chosen.get("top_k", 8)]
    total = sum(weights[i] for i in order)
    order = [i for n, i in enumerate(order) if sum(weights[j] for j in order[:n]) < chosen.get("top_p", 2) * total]
    order = [i for i in order if weights[i] >= chosen.get("min_p", 0) * weights[order[0]]]
    mask = torch.tensor([i in seen for i in range(8)])
    generator, n = torch.Generator().manual_seed(8), 8000
    drawn = Counter(sample_token(torch.tensor(logits), Sampling(**chosen), generator, mask) for _ in range(n))
    assert set(drawn) <= set(order)
    total = sum(weights[i] for i in order)
    chi2 = sum((drawn[i] - n * weights[i] / total) ** 2 / (n * weights[i] / total) for i in order)
    k = len(order) - 1
    assert k >= 2
    assert ((chi2 / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k)) < 4.5  # Wilson-Hilferty


def test_the_edges_of_min_p() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, -1e9], dtype=torch.float64)
    assert rules.keep_min_p(logits, 1.0).isfinite().tolist() == [False, True, True, False]
    assert torch.equal(rules.keep_min_p(logits, 0.0), logits)


def test_the_penalty_holds_for_prompt_and_new_tokens_and_for_greedy_choice() -> None:
    gpt, tokenizer = tiny(block_size=64), CharTokenizer("abcdefghijklmnop")
    text = generate(gpt, tokenizer, "abc", temperature=0, max_new_tokens=13, repetition_penalty=100.0)
    plain = generate(gpt, tokenizer, "abc", temperature=0, max_new_tokens=13)
    assert len(set("abc" + text)) > len(set("abc" + plain))


def test_a_penalty_of_one_changes_no_text() -> None:
    gpt, tokenizer = tiny(block_size=64), CharTokenizer("abcdefgh")
    a, b = (generate(gpt, tokenizer, "ab", seed=2, **more) for more in ({}, {"repetition_penalty": 1, "min_p": 0}))
    assert a == b


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_names_every_rule_and_writes(name: str) -> None:
    assert set(preset(name)) == {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
    out = stream(tiny(), CharTokenizer("abcd"), "a", max_new_tokens=5, seed=1, **preset(name))
    assert len("".join(out)) == 5


def test_changing_what_a_preset_gave_leaves_the_preset() -> None:
    preset("precise")["temperature"] = 9.0
    assert preset("precise")["temperature"] == 0.3


def test_an_unknown_preset_is_refused_by_name() -> None:
    with pytest.raises(DgsgptError, match=r"preset='Creativ' is unknown; .* did you mean creative\?"):
        preset("Creativ")
