"""Settings that change nothing in a draft: which they are, and why."""

from __future__ import annotations

from dgsgpt.ui.form import Draft, get, kinds_of_layers
from dgsgpt.ui.labels import label_of, name_of

_SCALING = "model.rope.scaling."
# A setting that is read only while another one has one of these values.
_READ_WHILE: dict[str, tuple[str, tuple[str, ...]]] = {
    _SCALING + "original_block_size": (_SCALING + "kind", ("yarn", "llama3")),
    _SCALING + "beta_fast": (_SCALING + "kind", ("yarn",)),
    _SCALING + "beta_slow": (_SCALING + "kind", ("yarn",)),
    _SCALING + "attention_factor": (_SCALING + "kind", ("yarn",)),
    _SCALING + "low_freq_factor": (_SCALING + "kind", ("llama3",)),
    _SCALING + "high_freq_factor": (_SCALING + "kind", ("llama3",)),
    "model.moe.bias_update_rate": ("model.moe.balance", ("bias",)),
    "model.moe.aux_loss_weight": ("model.moe.balance", ("aux_loss",)),
    "data.tokenizer.vocab_size": ("data.tokenizer.kind", ("bpe",)),
    "train.muon_lr": ("train.optimizer", ("muon",)),
    "train.muon_momentum": ("train.optimizer", ("muon",)),
    "train.beta1": ("train.optimizer", ("adamw", "muon", "adamw8bit")),
    "train.beta2": ("train.optimizer", ("adamw", "muon", "adamw8bit")),
    "train.schedule.min_lr_ratio": ("train.schedule.kind", ("cosine", "wsd", "linear")),
    "train.schedule.decay_share": ("train.schedule.kind", ("wsd",)),
}
# Settings that do nothing while another one is 0.
_OFF_AT_ZERO = {
    "train.sample_prompt": "train.sample_every",
    "train.sample_tokens": "train.sample_every",
    "train.early_stop_evals": "train.eval_every",
    "train.target_loss": "train.eval_every",
}


def why_idle(draft: Draft, path: str) -> str:
    """Why a setting whose section is on changes nothing in this draft, for people; empty when it does."""
    if path in _READ_WHILE:
        other, values = _READ_WHILE[path]
        idle, reason = get(draft, other) not in values, f"unless {label_of(other)} is {_any_of(values)}"
    elif path in _OFF_AT_ZERO:
        other = _OFF_AT_ZERO[path]
        idle, reason = get(draft, other) == 0, f"while {label_of(other)} is 0"
    elif path == "model.positions":
        idle, reason = get(draft, "model.rope") is not None, "while rotary positions are on"
    elif path == "model.head_bias":
        idle, reason = get(draft, "model.tie_embeddings") is True, f"while {label_of('model.tie_embeddings')} is on"
    elif path == "model.moe.renormalize":
        idle = get(draft, "model.moe.n_expert_per_token") == 1 and not get(draft, "model.moe.renormalize_single")
        reason = "with one expert per token"
    elif path == "model.moe.renormalize_single":
        return _why_single_idle(draft)
    elif path == "model.window.size":
        idle, reason = kinds_of_layers(draft) == {"L"}, "while every layer is of kind L"
    elif path == "train.fit_micro_batch":
        batch = (get(draft, "train.micro_batch_size"), get(draft, "train.grad_accum_steps"))
        idle, reason = batch == (1, 1), "with one sequence a step"
    else:
        return ""
    return f"No effect {reason}." if idle else ""


def _why_single_idle(draft: Draft) -> str:
    if get(draft, "model.moe.n_expert_per_token") != 1:
        return "No effect with several experts per token."
    off = not get(draft, "model.moe.renormalize")
    return f"No effect while {label_of('model.moe.renormalize')} is off." if off else ""


def _any_of(values: tuple[str, ...]) -> str:
    names = [name_of(value) for value in values]
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
