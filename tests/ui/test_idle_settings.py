"""Settings that change nothing in a draft: which they are, and what the page says."""

from __future__ import annotations

from typing import Any

import pytest

from dgsgpt.config import RunConfig
from dgsgpt.ui import form, idle


@pytest.mark.parametrize(
    ("path", "idle_with", "read_with"),
    [
        ("model.positions", {"model.rope.theta": 1e4}, {"model.rope": None}),
        *(
            (f"model.rope.scaling.{name}", {"model.rope.scaling.kind": idle}, {"model.rope.scaling.kind": read})
            for name, idle, read in (
                ("original_block_size", "linear", "yarn"),
                ("original_block_size", "linear", "llama3"),
                ("beta_fast", "llama3", "yarn"),
                ("beta_slow", "linear", "yarn"),
                ("attention_factor", "llama3", "yarn"),
                ("low_freq_factor", "yarn", "llama3"),
                ("high_freq_factor", "linear", "llama3"),
            )
        ),
        ("model.moe.bias_update_rate", {"model.moe.balance": "aux_loss"}, {"model.moe.balance": "bias"}),
        ("model.moe.aux_loss_weight", {"model.moe.balance": "bias"}, {"model.moe.balance": "aux_loss"}),
        ("model.moe.renormalize", {"model.moe.n_expert_per_token": 1}, {"model.moe.n_expert_per_token": 2}),
        (
            "model.moe.renormalize",
            {"model.moe.n_expert_per_token": 1},
            {"model.moe.n_expert_per_token": 1, "model.moe.renormalize_single": True},
        ),
        (
            "model.moe.renormalize_single",
            {"model.moe.n_expert_per_token": 2},
            {"model.moe.n_expert_per_token": 1, "model.moe.renormalize": True},
        ),
        (
            "model.moe.renormalize_single",
            {"model.moe.n_expert_per_token": 1, "model.moe.renormalize": False},
            {"model.moe.n_expert_per_token": 1},
        ),
        ("model.head_bias", {"model.tie_embeddings": True}, {"model.tie_embeddings": False}),
        ("model.window.size", {"model.window.pattern": "LLLLS"}, {"model.window.pattern": "LLLB"}),
        ("data.tokenizer.vocab_size", {"data.tokenizer.kind": "byte"}, {"data.tokenizer.kind": "bpe"}),
        ("train.schedule.min_lr_ratio", {"train.schedule.kind": "constant"}, {"train.schedule.kind": "linear"}),
        ("train.schedule.min_lr_ratio", {"train.schedule.kind": "constant"}, {"train.schedule.kind": "wsd"}),
        ("train.schedule.decay_share", {"train.schedule.kind": "cosine"}, {"train.schedule.kind": "wsd"}),
        ("train.muon_lr", {"train.optimizer": "adamw"}, {"train.optimizer": "muon"}),
        ("train.muon_momentum", {"train.optimizer": "adafactor"}, {"train.optimizer": "muon"}),
        *(
            (f"train.beta{i}", {"train.optimizer": "adafactor"}, {"train.optimizer": read})
            for i, read in ((1, "adamw"), (1, "muon"), (2, "muon"), (2, "adamw8bit"))
        ),
        ("train.fit_micro_batch", {"train.micro_batch_size": 1}, {"train.grad_accum_steps": 2}),
        ("train.early_stop_evals", {"train.eval_every": 0}, {"train.eval_every": 9}),
        ("train.target_loss", {"train.eval_every": 0}, {"train.eval_every": 9}),
        ("train.sample_prompt", {"train.sample_every": 0}, {"train.sample_every": 9}),
    ],
)
def test_a_setting_that_is_not_read_says_why(path: str, idle_with: dict[str, Any], read_with: dict[str, Any]) -> None:
    base = form.draft_of(RunConfig())
    assert idle.why_idle(form.apply(base, idle_with), path).startswith("No effect ")
    assert idle.why_idle(form.apply(base, read_with), path) == ""


def test_the_reason_names_settings_and_values_as_the_page_does() -> None:
    draft = form.apply(form.draft_of(RunConfig()), {"model.rope.scaling.kind": "linear"})
    reason = idle.why_idle(draft, "model.rope.scaling.original_block_size")
    assert reason == "No effect unless Scaling is YaRN or Llama 3."
    draft = form.apply(draft, {"train.optimizer": "adafactor"})
    assert idle.why_idle(draft, "train.beta2") == "No effect unless Optimizer is AdamW, Muon or 8-bit AdamW."
    for other, values in idle._READ_WHILE.values():
        assert set(values) < set(form.SETTINGS[other].choices)
