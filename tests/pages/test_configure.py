"""The Configure page, driven from the router as a browser would: profiles, draft, features, memory, settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dgsgpt.hardware import Gpu, Hardware
from dgsgpt.planner import plan
from dgsgpt.profiles import PROFILE_NAMES, load_profile
from dgsgpt.ui import form
from dgsgpt.ui.app import page_file
from tests.pages.configure_page import (
    GIB,
    all_settings,
    bench,
    draft_value,
    machine,
    open_page,
    set_to,
    settled,
    shown,
    start_button,
)

__all__ = ["machine"]  # a fixture that every test here uses


# ---------------------------------------------------------------- profiles
def test_the_automatic_profile_is_chosen_at_first() -> None:
    at = open_page()
    assert bench(at).draft == form.draft_of(load_profile("cpu").config)
    assert at.button(key="use_cpu").disabled
    assert "automatic" in shown(at)
    assert not start_button(at).disabled


def test_a_gpu_decides_the_automatic_profile(machine: Callable[..., Hardware]) -> None:
    gpu = Gpu(0, "Test GPU", 24 * 10**9, 20 * 10**9, None, None, None)
    machine(gpus=(gpu,))
    at = open_page()
    assert bench(at).profile == "medium"
    assert "Test GPU" in shown(at)


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_each_profile_can_be_taken_and_shows_its_exact_figures(name: str) -> None:
    at = open_page()
    if name != "cpu":
        settled(at.button(key=f"use_{name}").click().run())
    config = load_profile(name).config
    assert bench(at).draft == form.draft_of(config)
    need = plan(config, "cpu").total_bytes / GIB
    assert f"{need:,.1f} GiB".replace(",", "\u202f") in shown(at)
    assert start_button(at).disabled == (need > 24)


# ---------------------------------------------------------------- the draft
def test_knobs_write_into_the_draft_and_mark_what_differs() -> None:
    at = set_to(open_page(), "set_model-n_layer", 6)
    assert draft_value(at, "model.n_layer") == 6
    labels = [w.label for w in at.number_input]
    assert "Layers ●" in labels
    assert "Heads" in labels
    settled(at.button(key="reset_all").click().run())
    assert bench(at).draft == bench(at).base
    assert "Layers" in [w.label for w in at.number_input]


def test_undo_brings_back_each_step() -> None:
    at = open_page()
    first = bench(at).draft
    set_to(set_to(at, "ladder_model-block_size", 512), "set_train-seed", 9)
    settled(at.button(key="undo").click().run())
    assert (draft_value(at, "train.seed"), draft_value(at, "model.block_size")) == (1, 512)
    settled(at.button(key="undo").click().run())
    assert bench(at).draft == first
    assert at.button(key="undo").disabled


def test_the_draft_survives_a_change_of_page() -> None:
    at = set_to(set_to(open_page(), "set_model-n_layer", 7), "t_moe", True)
    settled(at.switch_page(str(page_file("data"))).run())
    settled(at.switch_page(str(page_file("configure"))).run())
    assert draft_value(at, "model.n_layer") == 7
    assert at.number_input(key="set_model-n_layer").value == 7
    assert at.toggle(key="t_moe").value is True


def test_the_tokenizer_field_sets_kind_and_vocabulary() -> None:
    at = set_to(open_page(), "tokenizer_data-tokenizer-kind", ("bpe", 1024))
    assert draft_value(at, "data.tokenizer.vocab_size") == 1024
    set_to(at, "tokenizer_data-tokenizer-kind", ("char", 0))
    assert draft_value(at, "data.tokenizer.kind") == "char"
    assert not start_button(at).disabled


# ---------------------------------------------------------------- features
FEATURES = {
    "t_rope": ("Rotary positions (RoPE)", "model.rope"),
    "t_gqa": ("Grouped-query attention", "model.n_kv_head"),
    "t_window": ("Sliding window", "model.window"),
    "t_moe": ("Sparse mixture of experts", "model.moe"),
    "t_ngram": ("N-gram embeddings", "model.ngram"),
    "t_checkpointing": ("Gradient checkpointing", "train.gradient_checkpointing"),
}


@pytest.mark.parametrize("key", FEATURES)
def test_a_feature_switches_both_ways_and_keeps_its_settings(key: str) -> None:
    title, path = FEATURES[key]
    at = open_page()
    assert at.toggle(key=key).label.removesuffix(" ●") == title
    on = at.toggle(key=key).value
    before = draft_value(at, path)
    set_to(at, key, not on)
    assert draft_value(at, path) != before
    assert not start_button(at).disabled
    set_to(at, key, on)
    assert draft_value(at, path) == before


def test_costs_are_the_planner_s_differences() -> None:
    at = open_page()
    config = load_profile("cpu").config
    learned = config.model.block_size * config.model.n_embd
    assert f"Against learned positions: parameters −{learned / 1000:.1f}k" in shown(at)
    set_to(at, "t_moe", True)
    with_experts = plan(load_config_with(config, moe={}), "cpu")
    gained = with_experts.params - plan(config, "cpu").params
    assert f"Against one dense network: parameters +{gained / 1e6:.1f}M" in shown(at)


def load_config_with(config: Any, **model: Any) -> Any:
    values = config.to_dict()
    return type(config).model_validate({**values, "model": {**values["model"], **model}})


def test_a_capacity_can_be_chosen_and_taken_back() -> None:
    at = set_to(open_page(), "t_moe", True)
    set_to(at, "choice_model-moe-capacity_factor", 1.25)
    assert draft_value(at, "model.moe.capacity_factor") == 1.25
    set_to(at, "choice_model-moe-capacity_factor", "null")
    assert draft_value(at, "model.moe.capacity_factor") is None


# ---------------------------------------------------------------- memory
def test_a_remedy_is_applied_and_the_need_falls(machine: Callable[..., Hardware]) -> None:
    machine(ram_available_bytes=plan(load_profile("cpu").config, "cpu").total_bytes - (64 << 20))
    at = open_page()
    assert "Does not fit" in shown(at)
    assert "To make it fit" in shown(at)
    settled(at.button(key="remedy_0").click().run())
    assert bench(at).draft != bench(at).base
    assert "Does not fit" not in shown(at)


def test_more_memory_than_the_machine_has_cannot_be_started() -> None:
    at = open_page()
    settled(at.button(key="use_high").click().run())
    assert start_button(at).disabled
    assert "this machine has 24" in start_button(at).help.replace("\xa0", " ")


# ---------------------------------------------------------------- all settings, search
def test_all_settings_shows_every_setting_of_the_schema() -> None:
    at = open_page()
    for key in ("t_moe", "t_window", "t_ngram"):
        set_to(at, key, True)
    page = shown(all_settings(at))
    off = {p for p in form.SETTINGS if p.startswith("model.rope.scaling.")}
    assert [p for p in form.SETTINGS if p not in page and p not in off] == []
    assert page.count("Off because Context scaling is off.") == len(off)


def test_a_single_setting_goes_back_to_the_base() -> None:
    at = set_to(open_page(), "q", "dropout")
    set_to(at, "set_model-dropout", 0.25)
    set_to(at, "q", "seed")
    set_to(at, "set_train-seed", 5)
    settled(at.button(key="reset_train.seed").click().run())
    assert (draft_value(at, "train.seed"), draft_value(at, "model.dropout")) == (1, 0.25)


def test_a_search_without_result_says_so() -> None:
    assert "No setting has" in shown(set_to(open_page(), "q", "<b>nonsense</b>"))
