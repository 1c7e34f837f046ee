"""The draft of a config: changing, resetting, toggling, and the problems it may have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.config import RunConfig, build_config, parse_config
from dgsgpt.profiles import PROFILE_NAMES, load_profile
from dgsgpt.rules import flatten, list_settings
from dgsgpt.ui import form, problems

BASES = [form.draft_of(RunConfig()), *(form.draft_of(load_profile(name).config) for name in PROFILE_NAMES)]
HEADS = [1, 2, 4, 8, 16]

# Overrides that keep any base valid: widths divide by every count of heads, windows fit the shortest context.
valid_overrides = st.fixed_dictionaries(
    {},
    optional={
        "model.n_layer": st.integers(4, 64),
        "model.n_embd": st.sampled_from([1280, 2560]),
        "model.n_head": st.sampled_from(HEADS),
        "model.block_size": st.sampled_from([128, 256, 1024]),
        "model.window.size": st.integers(1, 128),
        "model.window.pattern": st.text("SLB", min_size=1, max_size=8),
        "model.moe.n_expert": st.integers(2, 32),
        "model.moe.n_expert_per_token": st.integers(1, 2),
        "model.moe.capacity_factor": st.none() | st.floats(0.25, 8.0),
        "model.rope.theta": st.floats(10.0, 1e6),
        "model.rope.scaling.kind": st.sampled_from(["linear", "yarn", "llama3"]),
        "model.rope.scaling.factor": st.floats(1.0, 8.0),
        "model.rope.scaling.original_block_size": st.none() | st.integers(1, 128),
        "model.rope.scaling.beta_fast": st.floats(2.0, 64.0),
        "model.rope.scaling.attention_factor": st.none() | st.floats(0.1, 2.0),
        "model.rope.scaling.high_freq_factor": st.floats(2.0, 8.0),
        "model.positions": st.sampled_from(["learned", "none"]),
        "model.moe.dense_residual": st.booleans(),
        "model.moe.balance": st.sampled_from(["aux_loss", "bias"]),
        "model.moe.bias_update_rate": st.floats(1e-6, 1.0),
        "model.norm_eps": st.floats(1e-12, 1e-2),
        "model.logit_softcap": st.none() | st.floats(1.0, 100.0),
        "model.zero_init": st.booleans(),
        "model.value_residual": st.booleans(),
        "model.x0_shortcut": st.booleans(),
        "train.lr": st.floats(1e-6, 1.0),
        "train.grad_clip": st.none() | st.floats(0.1, 10.0),
        "train.steps": st.integers(1000, 10_000),
        "train.optimizer": st.sampled_from(["adamw", "muon", "adafactor", "adamw8bit"]),
        "train.muon_lr": st.floats(1e-4, 1.0),
        "train.precision": st.sampled_from(["auto", "bf16"]),
        "train.weight_precision": st.sampled_from(["fp32", "bf16"]),
        "train.compile": st.sampled_from(["auto", "off", "on"]),
        "train.schedule.kind": st.sampled_from(["cosine", "wsd", "linear", "constant"]),
        "train.schedule.decay_share": st.floats(0.01, 1.0),
        "train.fit_micro_batch": st.booleans(),
        "train.early_stop_evals": st.none() | st.integers(1, 99),
        "train.target_loss": st.none() | st.floats(0.1, 9.0),
        "train.on_nonfinite": st.sampled_from(["skip", "rollback", "stop"]),
        "train.background_save": st.booleans(),
        "model.ngram.max_order": st.integers(2, 8),
        "model.ngram.rows": st.integers(256, 99_999),
        "data.document_separator": st.none() | st.sampled_from(["<|endoftext|>", "\n\n", "off"]),
        "data.val_fraction": st.floats(0.01, 0.5),
        "data.tokenizer.kind": st.sampled_from(["bpe", "char", "byte", "gpt2"]),
        "data.tokenizer.vocab_size": st.integers(264, 40_000),
    },
).filter(lambda o: o.get("model.n_head") != 1 or "B" not in o.get("model.window.pattern", ""))
any_overrides = st.fixed_dictionaries(
    {},
    optional={
        "model.n_head": st.integers(-3, 70),
        "model.n_kv_head": st.integers(-3, 70),
        "model.n_embd": st.integers(-3, 600),
        "model.n_layer": st.integers(-1, 9),
        "model.block_size": st.integers(0, 300),
        "model.window.size": st.integers(-1, 600),
        "model.window.pattern": st.sampled_from(["SL", "B", "SB", "", "XY"]),
        "model.rope.scaling.original_block_size": st.integers(0, 600),
        "model.rope.scaling.beta_fast": st.floats(0.0, 64.0),
        "model.rope.scaling.beta_slow": st.floats(0.0, 64.0),
        "model.rope.scaling.low_freq_factor": st.floats(0.0, 8.0),
        "model.moe.bias_update_rate": st.floats(0.0, 2.0),
        "model.norm_eps": st.sampled_from([0.0, 1e-6, 0.1]),
        "model.logit_softcap": st.none() | st.sampled_from([0.0, 30.0, 1e5]),
        "model.moe.n_expert": st.integers(0, 10),
        "model.moe.n_expert_per_token": st.integers(0, 12),
        "model.moe.every": st.integers(0, 80),
        "model.vocab_size": st.integers(0, 9000),
        "train.lr": st.sampled_from([0.0, -1.0, 1e-3, 11.0]),
        "train.steps": st.integers(0, 200),
        "train.optimizer_in_backward": st.booleans(),
        "train.grad_clip": st.none() | st.sampled_from([0.0, 1.0]),
        "train.grad_accum_steps": st.integers(0, 3),
        "train.fit_micro_batch": st.booleans(),
        "train.precision": st.sampled_from(["auto", "fp32", "fp16", "bf16"]),
        "train.weight_precision": st.sampled_from(["fp32", "bf16"]),
        "train.schedule.decay_share": st.sampled_from([0.0, 0.2, 1.5]),
        "model.ngram.max_order": st.integers(1, 9),
        "model.ngram.rows": st.integers(0, 9000),
        "train.schedule.warmup_steps": st.integers(-1, 400),
        "data.corpus": st.sampled_from(["", "austen"]),
    },
)
bases = st.sampled_from(BASES)
sections = st.sampled_from(["model.rope", "model.rope.scaling", "model.window", "model.moe", "model.ngram"])


@given(bases, any_overrides, st.lists(st.tuples(sections, st.booleans()), max_size=3), st.randoms())
def test_resetting_every_difference_restores_the_base_exactly(
    base: form.Draft, overrides: dict[str, Any], switches: list[tuple[str, bool]], chance: Any
) -> None:
    draft = form.apply(base, overrides)
    for section, on in switches:
        if form.is_shown(draft, section):
            draft = form.toggle(draft, section, on)
    for _ in range(4):  # resetting one setting may undo or reveal others
        paths = list(form.differs(draft, base))
        chance.shuffle(paths)
        for path in paths:
            draft = form.reset(draft, base, path)
    assert draft == base


@given(bases, valid_overrides)
def test_a_changed_draft_survives_yaml(base: form.Draft, overrides: dict[str, Any]) -> None:
    draft = form.apply(base, overrides)
    config = problems.check(draft).config
    assert config is not None, problems.check(draft).problems
    again = parse_config(config.to_yaml())
    assert again == config
    for path, value in overrides.items():
        if path != "data.tokenizer.vocab_size":
            assert form.get(form.draft_of(again), path) == value


@given(bases, any_overrides)
def test_every_offered_fix_mends_its_problem(base: form.Draft, overrides: dict[str, Any]) -> None:
    draft = form.apply(base, overrides)
    for path, problem in problems.check(draft).problems.items():
        assert problem.message
        assert "\n" not in problem.message
        for fix in problem.fixes:
            assert path not in problems.check(form.apply(draft, fix.overrides)).problems


@given(bases, any_overrides)
def test_a_draft_has_problems_exactly_when_the_schema_refuses_it(base: form.Draft, overrides: dict[str, Any]) -> None:
    checked = problems.check(form.apply(base, overrides))
    assert (checked.config is None) == bool(checked.problems)


@given(bases, st.sampled_from(["model.rope", "model.window", "model.moe"]), any_overrides)
def test_a_section_switched_off_and_on_again_is_as_before(
    base: form.Draft, section: str, overrides: dict[str, Any]
) -> None:
    draft = form.toggle(form.apply(base, overrides), section, True)
    parked = form.get(draft, section)
    off = form.toggle(draft, section, False)
    assert form.get(off, section) is None
    assert form.toggle(off, section, True, parked) == draft


@given(bases, any_overrides)
def test_drafts_are_never_changed_in_place(base: form.Draft, overrides: dict[str, Any]) -> None:
    before = flatten(base)
    draft = form.apply(base, overrides)
    form.reset(draft, base, "model.n_head")
    form.toggle(draft, "model.moe", True)
    assert flatten(base) == before


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_a_profile_as_a_draft_is_the_profile(name: str) -> None:
    config = load_profile(name).config
    assert problems.check(form.draft_of(config)).config == config
    assert form.differs(form.draft_of(config), form.draft_of(config)) == {}


def test_every_setting_of_the_schema_is_in_the_form() -> None:
    assert set(form.SETTINGS) == {s.path for s in list_settings(RunConfig)} - {"schema_version"}
    assert set(form.LABELS) <= set(form.SETTINGS)
    assert len(form.find_settings("")) == len(form.SETTINGS)


def test_search_needs_every_word_and_ignores_case() -> None:
    assert [s.path for s in form.find_settings("WARM steps")] == ["train.schedule.warmup_steps"]
    assert "model.rope.theta" in {s.path for s in form.find_settings("rope")}
    assert form.find_settings("no such thing") == []


def test_a_tokenizer_change_leaves_no_old_vocabulary_behind() -> None:
    draft = form.apply(form.draft_of(RunConfig()), {"data.tokenizer.kind": "byte"})
    config = problems.check(draft).config
    assert config is not None
    assert config.model.vocab_size == 256


def test_a_vocabulary_that_was_set_by_hand_is_kept() -> None:
    config = build_config({"data": {"tokenizer": {"kind": "byte"}}, "model": {"vocab_size": 320}})
    assert form.get(form.draft_of(config), "model.vocab_size") == 320


def test_kv_heads_follow_the_heads_until_they_are_shared() -> None:
    draft = form.apply(form.draft_of(RunConfig()), {"model.n_head": 8})
    assert form.get(draft, "model.n_kv_head") == 8
    draft = form.apply(form.apply(draft, {"model.n_kv_head": 2}), {"model.n_head": 16})
    assert form.get(draft, "model.n_kv_head") == 2


def test_a_window_begins_shorter_than_the_context() -> None:
    draft = form.apply(form.draft_of(RunConfig()), {"model.block_size": 32})
    draft = form.toggle(draft, "model.window", True)
    assert form.get(draft, "model.window.size") == 16
    assert problems.check(draft).config is not None


def test_context_scaling_begins_with_a_factor_that_stretches() -> None:
    draft = form.toggle(form.draft_of(RunConfig()), "model.rope.scaling", True)
    assert form.get(draft, "model.rope.scaling.factor") == 2.0
    assert problems.check(draft).config is not None


def test_a_setting_goes_back_to_the_base_or_to_what_its_section_begins_with() -> None:
    base = form.apply(form.draft_of(RunConfig()), {"model.block_size": 32, "model.norm_eps": 1e-6})
    draft = form.apply(base, {"model.window.size": 5, "model.moe.balance": "bias", "model.norm_eps": 1e-3})
    assert form.origin(draft, base, "model.norm_eps") == 1e-6
    assert form.origin(draft, base, "model.moe.balance") == "aux_loss"
    assert form.origin(draft, base, "model.window.size") == 16
    assert form.origin(draft, base, "model.moe") is None


def test_a_switched_section_is_one_change_with_its_telling_settings() -> None:
    base = form.draft_of(RunConfig())
    draft = form.apply(form.toggle(base, "model.moe", True), {"model.moe.z_loss_weight": 0.5, "train.steps": 7})
    found = form.changes(draft, base)
    assert found["model.moe"] == (None, {"n_expert": 8, "n_expert_per_token": 2, "z_loss_weight": 0.5})
    assert found["train.steps"] == (1000, 7)
    assert len(found) == 2
    assert form.changes(base, draft)["model.moe"][1] is None


@pytest.mark.parametrize(
    ("overrides", "path", "words", "fix"),
    [
        ({"model.n_head": 10}, "model.n_head", "Heads 10 must divide Width 256", {"model.n_head": 8}),
        (
            {"model.window.size": 512},
            "model.window.size",
            "Window 512 must not exceed Context 256",
            {"model.window.size": 256},
        ),
        (
            {"model.moe.n_expert_per_token": 9},
            "model.moe.n_expert_per_token",
            "Per token 9 must not exceed Experts 8",
            {"model.moe.n_expert_per_token": 8},
        ),
        (
            {"model.n_head": 1, "model.window.pattern": "SB"},
            "model.n_head",
            "Heads 1 must be even for layers of kind B in Pattern SB",
            {"model.n_head": 2},
        ),
        (
            {"model.rope.scaling.kind": "yarn", "model.rope.scaling.beta_slow": 40.0},
            "model.rope.scaling.beta_slow",
            "Beta slow 40 must be below Beta fast 32",
            {"model.rope.scaling.beta_slow": 1.0},
        ),
        (
            {"model.rope.scaling.original_block_size": 512},
            "model.rope.scaling.original_block_size",
            "Original context 512 must not exceed Context 256",
            {"model.rope.scaling.original_block_size": None},
        ),
        ({"data.corpus": ""}, "data.corpus", "must be text that is not empty", {"data.corpus": "austen"}),
    ],
)
def test_problems_stand_at_their_field_in_plain_words_with_a_fix(
    overrides: dict[str, Any], path: str, words: str, fix: dict[str, Any]
) -> None:
    checked = problems.check(form.apply(form.draft_of(RunConfig()), overrides))
    assert words in checked.problems[path].message
    assert fix in [f.overrides for f in checked.problems[path].fixes]
