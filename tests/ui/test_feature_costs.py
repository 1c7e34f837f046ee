"""What the feature cards say: how many layers see what, in numbers and in sentences."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.config import ModelConfig, RunConfig, build_config
from dgsgpt.ui import feature_costs as costs
from dgsgpt.ui import form, problems, run_cards


def model(**changes: Any) -> ModelConfig:
    return build_config({"model": {"n_layer": 6, "n_head": 4, "n_embd": 64, "block_size": 64, **changes}}).model


@given(st.text("SLB", min_size=1, max_size=9), st.integers(1, 20))
def test_layers_are_counted_by_the_letters_of_the_pattern(pattern: str, n_layer: int) -> None:
    found = costs.reach(model(n_layer=n_layer, window={"size": 16, "pattern": pattern}))
    letters = (pattern * n_layer)[:n_layer]
    assert (found.local, found.full, found.both) == tuple(letters.count(letter) for letter in "SLB")


def test_without_a_window_every_layer_is_full() -> None:
    assert costs.reach(model()) == costs.Reach(0, 6, 0)


@pytest.mark.parametrize(
    ("pattern", "few", "sentence"),
    [
        ("S", "local in every layer", "6 of 6 layers look back 16 tokens, none sees all 64."),
        ("SL", "3 local, 3 full", "3 of 6 layers look back 16 tokens, 3 see all 64."),
        ("SSSSSL", "5 local, 1 full", "5 of 6 layers look back 16 tokens, 1 sees all 64."),
        ("LLLLLS", "1 local, 5 full", "1 of 6 layers looks back 16 tokens, 5 see all 64."),
        ("L", "full in every layer", "All 6 layers see the whole context: none is of kind S or B."),
        (
            "B",
            "local and full in every layer",
            "In all 6 layers half of the heads look back 16 tokens, the others see all 64.",
        ),
        ("LB", "3 full, 3 both", "In 3 of 6 layers half of the heads look back 16 tokens; all others see all 64."),
        (
            "SB",
            "3 local, 3 both",
            "3 of 6 layers look back 16 tokens; in 3, half of the heads do that, half see all 64.",
        ),
        (
            "SLB",
            "2 local, 2 full, 2 both",
            "2 of 6 layers look back 16 tokens, 2 see all 64; in 2, half of the heads do the one, half the other.",
        ),
    ],
)
def test_sentences_count_layers_of_both_kinds(pattern: str, few: str, sentence: str) -> None:
    windowed = model(window={"size": 16, "pattern": pattern})
    assert costs.reach(windowed).words() == few
    assert costs.explain("window", windowed, "none") == sentence


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("SL", ", window 16"), ("SB", ", window 16"), ("B", ", window 16 in half of the heads"), ("L", "")],
)
def test_a_run_s_few_words_name_the_window_only_where_some_layer_has_it(pattern: str, words: str) -> None:
    config = build_config({"model": {"n_layer": 2, "n_head": 4, "window": {"size": 16, "pattern": pattern}}})
    assert run_cards.words(config) == f"2 layers × 256{words}"


@pytest.mark.parametrize(
    ("moe", "words"),
    [
        ({}, "to 2 of 8 networks. A loss keeps"),
        ({"dense_residual": True}, "to 2 of 8 networks, beside a dense one. A loss keeps"),
        ({"n_shared_expert": 2, "every": 2}, "beside 2 that every token passes in 3 of 6 layers."),
        ({"after_dense": True}, "to 2 of 8 networks, after the dense one. A loss keeps"),
        ({"after_dense": True, "n_shared_expert": 1}, ", after the dense one, beside 1 that every token passes. A"),
        ({"balance": "bias"}, "A moving bias keeps them equally busy."),
        ({"aux_loss_weight": 0.0}, "Nothing keeps them equally busy."),
    ],
)
def test_the_sentence_on_experts_tells_who_works_and_how_they_are_balanced(moe: dict[str, Any], words: str) -> None:
    assert words in costs.explain("moe", model(moe=moe), "none")


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        (None, "so that attention sees distance."),
        ({"kind": "yarn", "factor": 4.0}, "YaRN scaling slows the slow rotations 4 times, for longer contexts."),
        ({"kind": "linear", "factor": 2.5}, "Linear scaling slows every rotation 2.5 times, for longer contexts."),
        ({"kind": "llama3", "factor": 1.0}, "With factor 1 Llama 3 scaling stretches nothing."),
    ],
)
def test_the_sentence_on_rotary_positions_tells_of_their_scaling(scaling: dict[str, Any] | None, words: str) -> None:
    assert costs.explain("rope", model(rope={"scaling": scaling}), "none").endswith(words)


@given(st.integers(2, 256), st.sampled_from([None, "SL", "B", "SSB"]))
def test_shared_kv_heads_are_a_proper_divisor_that_the_schema_takes(n_head: int, pattern: str | None) -> None:
    n_head += n_head % 2 if pattern and "B" in pattern else 0
    draft = form.apply(form.draft_of(RunConfig()), {"model.n_head": n_head, "model.n_embd": 2 * n_head})
    draft = form.apply(draft, {"model.window.pattern": pattern} if pattern else {})
    shared = costs.shared_kv_heads(draft)
    assert shared < n_head
    for heads in (shared, *costs.fewer_kv_heads(draft)):
        assert problems.check(form.apply(draft, {"model.n_kv_head": heads})).problems == {}
