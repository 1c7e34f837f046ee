"""The Configure page: every toggle of the network writes into the draft, and one without effect says so."""

from __future__ import annotations

from typing import Any

import pytest

from dgsgpt.profiles import load_profile
from dgsgpt.ui import features, form
from tests.pages.configure_page import (
    all_settings,
    bench,
    draft_value,
    machine,
    open_page,
    set_to,
    settled,
    shown,
    start_button,
    widget,
)

__all__ = ["machine"]  # a fixture that every test here uses

SCALING = "model.rope.scaling"


# ---------------------------------------------------------------- positions
def test_without_rope_its_card_asks_for_the_positions_instead() -> None:
    at = open_page()
    assert not any(w.key == "seg_model-positions" for w in at.segmented_control)
    set_to(at, "t_rope", False)
    assert "Against learned positions" in shown(at)
    set_to(at, "seg_model-positions", "none")
    assert draft_value(at, "model.positions") == "none"
    assert "Against no sign of positions" in shown(at)
    assert not start_button(at).disabled


def test_the_positions_cannot_be_set_while_rope_is_on() -> None:
    at = all_settings(open_page())
    assert widget(at, "choice_model-positions").disabled
    assert "No effect while rotary positions are on." in shown(at)
    set_to(at, "set_model-rope", False)
    assert not widget(at, "choice_model-positions").disabled
    set_to(at, "choice_model-positions", "none")
    assert draft_value(at, "model.positions") == "none"


# ---------------------------------------------------------------- context scaling
def test_scaling_is_chosen_by_kind_and_keeps_its_settings_while_it_is_off() -> None:
    at = set_to(open_page(), f"kind_{SCALING.replace('.', '-')}", "yarn")
    assert draft_value(at, f"{SCALING}.kind") == "yarn"
    assert draft_value(at, f"{SCALING}.factor") == 2.0
    assert widget(at, "kind_model-rope-scaling").label == "Scaling ●"
    set_to(at, "ladder_model-rope-scaling-factor", 8.0)
    assert "YaRN scaling slows the slow rotations 8 times" in shown(at)
    set_to(at, "kind_model-rope-scaling", "none")
    assert draft_value(at, SCALING) is None
    assert bench(at).draft == bench(at).base
    set_to(at, "kind_model-rope-scaling", "llama3")
    assert (draft_value(at, f"{SCALING}.kind"), draft_value(at, f"{SCALING}.factor")) == ("llama3", 8.0)
    settled(at.button(key="undo").click().run())
    assert draft_value(at, SCALING) is None


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("linear", set()),
        ("yarn", {"original_block_size", "beta_fast", "beta_slow", "attention_factor"}),
        ("llama3", {"original_block_size", "low_freq_factor", "high_freq_factor"}),
    ],
)
def test_fields_of_another_kind_of_scaling_are_disabled_and_say_why(kind: str, read: set[str]) -> None:
    at = all_settings(set_to(open_page(), "kind_model-rope-scaling", kind))
    names = {"original_block_size", "beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor"}
    able = {n for n in names if not widget(at, f"set_model-rope-scaling-{n}").disabled}
    assert able == read
    assert shown(at).count("No effect unless Scaling is") == len(names - read)


def test_each_field_of_yarn_writes_and_null_can_be_put_back() -> None:
    at = all_settings(set_to(open_page(), "kind_model-rope-scaling", "yarn"))
    values = {"original_block_size": 64, "beta_fast": 20.0, "beta_slow": 0.5, "attention_factor": 1.5}
    for name, value in values.items():
        set_to(at, f"set_model-rope-scaling-{name}", value)
        assert draft_value(at, f"{SCALING}.{name}") == value
    set_to(at, "set_model-rope-scaling-attention_factor", None)
    assert draft_value(at, f"{SCALING}.attention_factor") is None
    settled(at.button(key=f"reset_{SCALING}.beta_fast").click().run())
    assert draft_value(at, f"{SCALING}.beta_fast") == 32.0
    assert not start_button(at).disabled


def test_a_field_that_is_to_be_mended_can_be_set_even_without_effect() -> None:
    at = all_settings(set_to(open_page(), "kind_model-rope-scaling", "yarn"))
    set_to(at, "set_model-rope-scaling-beta_slow", 40.0)
    set_to(at, "choice_model-rope-scaling-kind", "linear")
    assert "Beta slow 40 must be below Beta fast 32" in shown(at)
    assert not widget(at, "set_model-rope-scaling-beta_slow").disabled
    settled(next(b for b in at.button if "Use 1.0" in b.label).click().run())
    assert widget(at, "set_model-rope-scaling-beta_slow").disabled
    assert not start_button(at).disabled


def test_a_problem_of_a_field_elsewhere_is_told_in_the_card() -> None:
    at = all_settings(set_to(open_page(), "kind_model-rope-scaling", "yarn"))
    set_to(at, "set_model-rope-scaling-original_block_size", 9999)
    settled(at.segmented_control(key="tier").set_value("Essentials").run())
    assert shown(at).count("Original context 9999 must not exceed Context 256") == 1
    settled(next(b for b in at.button if "Use null" in b.label).click().run())
    assert not start_button(at).disabled


# ---------------------------------------------------------------- window
def test_a_pattern_of_layers_that_do_both_is_offered_and_counted() -> None:
    at = set_to(open_page(), "t_window", True)
    set_to(at, "choice_model-window-pattern", "B")
    assert draft_value(at, "model.window.pattern") == "B"
    assert "In all 4 layers half of the heads look back 128 tokens, the others see all 256." in shown(at)
    assert "local and full in every layer" in shown(at)
    assert "in half of the heads, every earlier token in the others" in shown(at)
    assert not start_button(at).disabled


def test_a_pattern_of_one_s_own_is_shown_with_each_kind_of_mask() -> None:
    at = all_settings(set_to(open_page(), "t_window", True))
    set_to(at, "set_model-window-pattern", "SLB")
    settled(at.segmented_control(key="tier").set_value("Essentials").run())
    assert widget(at, "choice_model-window-pattern").value == "SLB"
    assert "2 local, 1 full, 1 both" in shown(at)
    assert [shown(at).count(f">{name}</div>") for name in ("local", "both", "full")] == [1, 1, 1]


@pytest.mark.parametrize(("typed", "pattern"), [(" slb ", "SLB"), ("SSSL", "SSSL"), ("xy", "XY")])
def test_a_typed_pattern_is_taken_in_capitals(typed: str, pattern: str) -> None:
    assert features._letters(typed) == pattern


def test_heads_that_cannot_be_halved_are_told_with_a_fix() -> None:
    at = set_to(set_to(open_page(), "t_window", True), "choice_model-window-pattern", "B")
    set_to(at, "set_model-n_head", 1)
    assert "Heads 1 must be even for layers of kind B" in shown(at)
    assert start_button(at).disabled
    settled(next(b for b in at.button if "Use 2" in b.label).click().run())
    assert not start_button(at).disabled


def test_a_window_that_no_layer_has_cannot_be_set() -> None:
    at = all_settings(set_to(open_page(), "t_window", True))
    set_to(at, "set_model-window-pattern", "L")
    assert widget(at, "set_model-window-size").disabled
    assert "No effect while every layer is of kind L." in shown(at)


# ---------------------------------------------------------------- experts
def test_the_balance_is_chosen_and_its_other_setting_is_disabled() -> None:
    at = set_to(open_page(), "t_moe", True)
    assert "A loss keeps them equally busy." in shown(at)
    set_to(at, "seg_model-moe-balance", "bias")
    assert draft_value(at, "model.moe.balance") == "bias"
    assert "A moving bias keeps them equally busy." in shown(at)
    all_settings(at)
    assert widget(at, "set_model-moe-aux_loss_weight").disabled
    set_to(at, "set_model-moe-bias_update_rate", 0.01)
    assert draft_value(at, "model.moe.bias_update_rate") == 0.01
    settled(at.button(key="reset_model.moe.bias_update_rate").click().run())
    assert draft_value(at, "model.moe.bias_update_rate") == 0.001
    assert draft_value(at, "model.moe.balance") == "bias"
    set_to(at, "choice_model-moe-balance", "aux_loss")
    assert widget(at, "set_model-moe-bias_update_rate").disabled
    assert not widget(at, "set_model-moe-aux_loss_weight").disabled


def test_a_dense_network_can_stand_beside_the_experts() -> None:
    at = set_to(open_page(), "t_moe", True)
    set_to(at, "set_model-moe-dense_residual", True)
    assert draft_value(at, "model.moe.dense_residual") is True
    assert "to 2 of 8 networks, beside a dense one." in shown(at)
    assert not start_button(at).disabled


def test_weights_of_one_expert_per_token_are_never_renormalised() -> None:
    at = set_to(set_to(open_page(), "t_moe", True), "ladder_model-moe-n_expert_per_token", 1)
    all_settings(at)
    assert widget(at, "set_model-moe-renormalize").disabled
    assert "No effect with one expert per token." in shown(at)


def test_small_models_with_experts_are_told_that_they_save_no_time() -> None:
    at = open_page()
    assert "no saving of wall-clock" not in shown(at)
    set_to(at, "t_moe", True)
    assert "no saving of wall-clock" in shown(at)
    settled(at.button(key="use_medium").click().run())
    set_to(at, "t_moe", True)
    assert draft_value(at, "model.moe") is not None
    assert "no saving of wall-clock" not in shown(at)


# ---------------------------------------------------------------- the smaller choices
SMALLER: dict[str, Any] = {
    "choice_model-norm": ("layernorm", "model.norm"),
    "choice_model-mlp": ("relu2", "model.mlp"),
    "choice_model-logit_softcap": (30.0, "model.logit_softcap"),
    "ladder_model-dropout": (0.1, "model.dropout"),
    "set_model-value_residual": (True, "model.value_residual"),
    "set_model-x0_shortcut": (True, "model.x0_shortcut"),
    "set_model-zero_init": (True, "model.zero_init"),
}


@pytest.mark.parametrize("key", SMALLER)
def test_a_smaller_choice_writes_marks_and_goes_back(key: str) -> None:
    value, path = SMALLER[key]
    at = open_page()
    assert widget(at, key).label == form.label_of(path)
    assert form.SETTINGS[path].help in widget(at, key).help
    set_to(at, key, value)
    assert draft_value(at, path) == value
    assert widget(at, key).label == f"{form.label_of(path)} ●"
    assert not start_button(at).disabled
    settled(at.button(key="reset_all").click().run())
    assert bench(at).draft == form.draft_of(load_profile("cpu").config)


def test_optional_and_tiny_numbers_are_set_and_put_back_among_all_settings() -> None:
    at = all_settings(open_page())
    set_to(at, "set_model-logit_softcap", 15.0)
    set_to(at, "set_model-norm_eps", 1e-6)
    assert (draft_value(at, "model.logit_softcap"), draft_value(at, "model.norm_eps")) == (15.0, 1e-6)
    set_to(at, "set_model-logit_softcap", None)
    assert draft_value(at, "model.logit_softcap") is None
    assert at.button(key="reset_model.norm_eps").label == ":blue[Reset to 1e-05]"
    settled(at.button(key="reset_model.norm_eps").click().run())
    assert bench(at).draft == bench(at).base


def test_each_new_setting_is_found_by_its_words() -> None:
    for words, path in (
        ("softcap", "model.logit_softcap"),
        ("yarn beta", f"{SCALING}.beta_fast"),
        ("dense residual", "model.moe.dense_residual"),
        ("balance bias", "model.moe.bias_update_rate"),
        ("side by side", "model.window.pattern"),
    ):
        assert path in {s.path for s in form.find_settings(words)}, words


def test_both_tiers_name_a_choice_alike() -> None:
    at = open_page()
    named = widget(at, "choice_model-norm").options
    assert named == widget(all_settings(at), "choice_model-norm").options == ["RMSNorm", "LayerNorm"]
