"""The Configure page: how a run is trained, n-gram embeddings, and a draft fitted to the memory that is free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt.format import si, size
from dgsgpt.hardware import Gpu, Hardware
from dgsgpt.planner import fit, naive, plan
from dgsgpt.profiles import load_profile
from dgsgpt.ui import form
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
    widget,
)

__all__ = ["machine"]  # a fixture that every test here uses


def fix(at: AppTest, label: str) -> AppTest:
    """Press the button that mends a problem."""
    (found,) = [b for b in at.button if b.label == f":blue[{label}]"]
    return settled(found.click().run())


# ---------------------------------------------------------------- widgets
FIELDS: dict[str, tuple[str, Any]] = {
    "ladder_train-weight_decay": ("train.weight_decay", 0.05),
    "choice_train-grad_clip": ("train.grad_clip", 2.0),
    "ladder_train-beta1": ("train.beta1", 0.8),
    "ladder_train-beta2": ("train.beta2", 0.99),
    "ladder_train-schedule-min_lr_ratio": ("train.schedule.min_lr_ratio", 0.05),
    "choice_train-precision": ("train.precision", "bf16"),
    "choice_train-weight_precision": ("train.weight_precision", "bf16"),
    "seg_train-compile": ("train.compile", "on"),
    "set_train-fit_micro_batch": ("train.fit_micro_batch", True),
    "set_train-eval_every": ("train.eval_every", 25),
    "choice_train-early_stop_evals": ("train.early_stop_evals", 5),
    "set_train-target_loss": ("train.target_loss", 1.5),
    "choice_train-on_nonfinite": ("train.on_nonfinite", "rollback"),
    "set_train-checkpoint_every": ("train.checkpoint_every", 50),
    "set_train-keep_last": ("train.keep_last", 2),
    "set_train-background_save": ("train.background_save", False),
    "set_data-document_separator": ("data.document_separator", " the "),
}


@pytest.mark.parametrize("key", FIELDS)
def test_a_training_setting_writes_marks_and_goes_back(key: str) -> None:
    path, value = FIELDS[key]
    at = open_page()
    before = widget(at, key).label
    assert before == form.label_of(path)
    assert form.SETTINGS[path].help in widget(at, key).help
    set_to(at, key, value)
    assert draft_value(at, path) == value
    assert widget(at, key).label == f"{before} ●"
    assert not start_button(at).disabled
    settled(at.button(key="reset_all").click().run())
    assert bench(at).draft == form.draft_of(load_profile("cpu").config)


def test_each_training_setting_is_found_and_reset_among_all() -> None:
    for words, path in (
        ("n-gram rows", "model.ngram.rows"),
        ("muon momentum", "train.muon_momentum"),
        ("8-bit", "train.optimizer"),
        ("early stop", "train.early_stop_evals"),
        ("document separator", "data.document_separator"),
    ):
        assert path in {s.path for s in form.find_settings(words)}, words
    at = set_to(all_settings(open_page()), "set_train-target_loss", 2.0)
    settled(at.button(key="reset_train.target_loss").click().run())
    assert draft_value(at, "train.target_loss") is None


def test_a_document_separator_may_be_a_line_break_and_may_be_emptied() -> None:
    at = set_to(open_page(), "set_data-document_separator", r"\n\n")
    assert draft_value(at, "data.document_separator") == "\n\n"
    assert widget(at, "set_data-document_separator").value == r"\n\n"
    set_to(at, "set_data-document_separator", "")
    assert draft_value(at, "data.document_separator") is None
    assert not start_button(at).disabled


def test_a_separator_that_the_text_does_not_have_is_told_at_its_field() -> None:
    at = set_to(open_page(), "set_data-document_separator", "<|nowhere|>")
    assert shown(at).count("must occur in the text") == 1
    assert "Document separator needs mending" in start_button(at).help
    fix(at, "Use null")
    assert draft_value(at, "data.document_separator") is None
    assert not start_button(at).disabled


# ---------------------------------------------------------------- the update rule
def test_each_optimizer_enables_what_it_reads_and_says_why_not() -> None:
    at = open_page()
    reads = {"adamw": "beta1 beta2", "muon": "beta1 beta2 muon_lr muon_momentum", "adafactor": "", "adamw8bit": "beta1"}
    for rule, names in reads.items():
        set_to(at, "seg_train-optimizer", rule)
        assert draft_value(at, "train.optimizer") == rule
        enabled = {n for n in ("beta1", "muon_lr", "muon_momentum") if not widget(at, f"ladder_train-{n}").disabled}
        assert enabled == set(names.split()) - {"beta2"}
        assert ("No effect unless Optimizer is Muon." in shown(at)) == (rule != "muon")
    assert widget(at, "seg_train-optimizer").options == ["AdamW", "Muon", "Adafactor", "8-bit AdamW"]


def test_the_groups_of_weights_are_shown_with_rule_and_decay() -> None:
    at = set_to(open_page(), "seg_train-optimizer", "muon")
    for part in (">Matrices<", ">Muon<", ">Embeddings<", ">AdamW<", ">Vectors<", "they never decay"):
        assert part in shown(at)
    set_to(at, "set_model-n_head", 10)
    assert "The groups of weights show when the settings are valid." in shown(at)


def test_an_update_in_the_backward_pass_is_barred_at_its_field_and_mended_by_a_button() -> None:
    at = set_to(set_to(open_page(), "set_train-grad_accum_steps", 4), "set_train-optimizer_in_backward", True)
    assert shown(at).count("Accumulation 4 does not go with Update in backward pass") == 1
    assert start_button(at).disabled
    fix(at, "Use 1")
    assert "Gradient clipping 1.0 does not go with Update in backward pass" in shown(at)
    fix(at, "Use null")
    assert (draft_value(at, "train.optimizer_in_backward"), draft_value(at, "train.grad_clip")) == (True, None)
    assert not start_button(at).disabled


def test_one_button_beside_the_switch_changes_all_that_bars_it() -> None:
    at = set_to(set_to(open_page(), "set_train-grad_accum_steps", 4), "set_train-optimizer_in_backward", True)
    assert "Barred by Accumulation and Gradient clipping" in shown(at)
    fix(at, "Accumulation 1, Gradient clipping null")
    assert "Barred by" not in shown(at)
    assert (draft_value(at, "train.grad_accum_steps"), draft_value(at, "train.grad_clip")) == (1, None)
    assert draft_value(at, "train.optimizer_in_backward") is True
    assert not start_button(at).disabled


def test_the_way_out_of_a_barred_update_is_offered_too() -> None:
    at = set_to(open_page(), "set_train-optimizer_in_backward", True)
    fix(at, "Turn off Update in backward pass")
    assert draft_value(at, "train.optimizer_in_backward") is False
    assert not start_button(at).disabled


# ---------------------------------------------------------------- its rate
def test_each_schedule_is_drawn_and_told() -> None:
    at = open_page()
    assert widget(at, "ladder_train-schedule-decay_share").disabled
    assert "Rises to 2e-3 over 50\u00a0steps, then falls along half a cosine to 2e-4." in shown(at)
    set_to(at, "seg_train-schedule-kind", "wsd")
    assert "WSD, 50 warm-up" in shown(at)
    assert 'alt="learning rate: WSD"' in shown(at)
    assert "then falls in a straight line to 2e-4." in shown(at)
    set_to(at, "ladder_train-schedule-decay_share", 0.5)
    assert draft_value(at, "train.schedule.decay_share") == 0.5
    set_to(at, "seg_train-schedule-kind", "constant")
    assert widget(at, "ladder_train-schedule-min_lr_ratio").disabled
    assert "over 50\u00a0steps and stays there." in shown(at)


def test_without_validations_nothing_can_end_a_run_early() -> None:
    at = set_to(open_page(), "set_train-eval_every", 0)
    assert widget(at, "choice_train-early_stop_evals").disabled
    assert widget(at, "set_train-target_loss").disabled
    assert shown(at).count("No effect while Evaluate every is 0.") == 2


# ---------------------------------------------------------------- n-grams
def test_n_gram_embeddings_tell_their_tables_and_their_cost() -> None:
    at = set_to(open_page(), "t_ngram", True)
    set_to(at, "ladder_model-ngram-max_order", 2)
    set_to(at, "ladder_model-ngram-rows", 4096)
    config = load_profile("cpu").config
    assert "the last two tokens together looked up, in a table of 4\u202f096 rows" in shown(at)
    assert f"parameters +{si(4096 * config.model.n_embd)}" in shown(at)
    assert not start_button(at).disabled
    set_to(at, "ladder_model-ngram-max_order", 4)
    assert "the last two, three and four tokens together" in shown(at)


# ---------------------------------------------------------------- memory
def test_a_profile_that_does_not_fit_is_offered_fitted_and_one_click_applies_it(
    machine: Callable[..., Hardware],
) -> None:
    machine(ram_total_bytes=64 * GIB, ram_available_bytes=2 * GIB)
    at = settled(open_page().button(key="use_low").click().run())
    config = load_profile("low").config
    free = plan(config, "cpu").total_bytes - (200 << 20)
    machine(ram_total_bytes=64 * GIB, ram_available_bytes=free)
    settled(at.run())
    fitted = fit(config, free, "cpu")
    assert fitted is not None
    assert "Profile Low does not fit here" in shown(at)
    assert "computed, not measured" in shown(at)
    for change in fitted.changes:
        assert change.split("=")[0].split(" ")[0] in shown(at)
    settled(at.button(key="use_fitted").click().run())
    assert "does not fit here" not in shown(at)
    assert {path: draft_value(at, path) for path in fitted.overrides} == fitted.overrides
    settled(at.button(key="undo").click().run())
    assert bench(at).draft == form.draft_of(config)


def test_a_model_that_nothing_makes_fit_says_so(machine: Callable[..., Hardware]) -> None:
    machine(ram_total_bytes=8 * GIB, ram_available_bytes=4 * GIB)
    at = settled(open_page().button(key="use_high").click().run())
    assert "No recipe makes this model fit" in shown(at)
    assert "use_fitted" not in [b.key for b in at.button]


def test_a_lean_recipe_tells_what_the_plain_one_would_need() -> None:
    at = settled(open_page().button(key="use_medium").click().run())
    need = plan(naive(load_profile("medium").config), "cpu").total_bytes
    assert f"By the plain recipe (AdamW in fp32, all sequences at once, nothing recomputed) {size(need)}" in shown(at)
    settled(at.button(key="use_cpu").click().run())
    assert "By the plain recipe" not in shown(at)


def test_on_a_gpu_without_measurements_the_time_is_computed_and_says_so(machine: Callable[..., Hardware]) -> None:
    machine(gpus=(Gpu(0, "Test GPU", 24 * 10**9, 23 * 10**9, None, None, None),))
    assert "computed for an H100 at 40 % of its peak, not measured here" in shown(open_page())


def test_profile_cards_tell_batch_and_recipe() -> None:
    page = shown(open_page())
    for name in ("low", "medium", "high"):
        train = load_profile(name).config.train
        assert f"batch {train.micro_batch_size * train.grad_accum_steps} ·" in page
    assert "AdamW</div>" in page
