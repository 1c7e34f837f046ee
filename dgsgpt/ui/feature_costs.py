"""What each feature of the architecture does and costs, computed by the planner for the draft at hand.

The cost of a feature is the difference between two plans: this config with it, and this config without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgsgpt.config import ModelConfig, RunConfig, layer_is_moe, layer_windows
from dgsgpt.costs import count_flops_per_token
from dgsgpt.format import MINUS, number, percent, si
from dgsgpt.planner import Plan, plan
from dgsgpt.ui import form, problems
from dgsgpt.ui.form import Draft

GIB = 1 << 30


@dataclass(frozen=True)
class Variants:
    """The draft with and without one feature, and whether it is on now."""

    on: bool
    with_it: Draft
    without: Draft


def variants(draft: Draft, feature: str, parked: Mapping[str, Any] | None = None) -> Variants:
    """The two drafts a feature's card compares: `rope`, `gqa`, `window`, `moe` or `checkpointing`."""
    parked = parked or {}
    if feature == "gqa":
        heads = form.get(draft, "model.n_head")
        heads = heads if isinstance(heads, int) and heads > 0 else 1
        on = form.get(draft, "model.n_kv_head") != heads
        shared = parked.get("gqa", form.shared_kv_heads(heads))
        if heads % shared or shared >= heads:
            shared = form.shared_kv_heads(heads)
        return _pair(draft, on, {"model.n_kv_head": shared}, {"model.n_kv_head": heads})
    if feature == "checkpointing":
        path = "train.gradient_checkpointing"
        on = form.get(draft, path) != "none"
        return _pair(draft, on, {path: parked.get("checkpointing", "full")}, {path: "none"})
    section = f"model.{feature}"
    on = form.get(draft, section) is not None
    with_it = draft if on else form.toggle(draft, section, True, parked.get(section))
    return Variants(on, with_it, draft if not on else form.toggle(draft, section, False))


def _pair(draft: Draft, on: bool, turn_on: dict[str, Any], turn_off: dict[str, Any]) -> Variants:
    return Variants(on, draft if on else form.apply(draft, turn_on), form.apply(draft, turn_off) if on else draft)


def arithmetic_per_token(config: RunConfig) -> float:
    """FLOPs a training token costs, with what full gradient checkpointing computes a second time."""
    flops = float(count_flops_per_token(config.model))
    if config.train.gradient_checkpointing == "full":
        flops += count_flops_per_token(config.model, blocks_only=True) / 3  # forward is a third of forward and backward
    return flops


def cost_of(pair: Variants, device: str = "auto") -> str:
    """The cost of a feature in one line; empty when one of the two configs is not valid."""
    with_it, without = problems.check(pair.with_it).config, problems.check(pair.without).config
    if with_it is None or without is None:
        return ""
    ratio = arithmetic_per_token(with_it) / arithmetic_per_token(without)
    return describe(plan(with_it, device), plan(without, device), ratio)


def describe(with_it: Plan, without: Plan, arithmetic: float) -> str:
    """The differences that are worth a word, from without to with; e.g. `parameters +1.2M, KV cache −50 %.`"""
    parts = []
    if with_it.params != without.params:
        factor = with_it.params / without.params
        times = f" (×{number(factor, 1)})" if factor >= 1.2 else ""
        parts.append(f"parameters {_signed(with_it.params - without.params)}{times}")
        if with_it.active_params - without.active_params != with_it.params - without.params:
            parts.append(f"active a token {_signed(with_it.active_params - without.active_params)}")
    gained = with_it.total_bytes - without.total_bytes
    if abs(gained) >= 0.001 * without.total_bytes:
        parts.append(f"memory {_signed_bytes(gained)} ({_change(with_it.total_bytes / without.total_bytes)})")
    cache = with_it.kv_bytes_per_token / without.kv_bytes_per_token if without.kv_bytes_per_token else 1
    parts += [
        f"{name} {_change(r)}" for name, r in (("arithmetic", arithmetic), ("KV cache", cache)) if abs(r - 1) >= 0.001
    ]
    if not parts:
        return "no difference in parameters, memory or arithmetic."
    return ", ".join(parts) + "."


def _change(ratio: float) -> str:
    change = ratio - 1
    text = percent(change, 0 if abs(change) >= 0.095 else 1)
    return text if text.startswith(MINUS) else f"+{text}"


def _signed(count: float) -> str:
    return (MINUS if count < 0 else "+") + si(abs(count))


def _signed_bytes(count: float) -> str:
    sign, size = MINUS if count < 0 else "+", abs(count)
    return f"{sign}{number(size / GIB, 1)} GiB" if size >= 0.095 * GIB else f"{sign}{number(size / (1 << 20))} MiB"


# ---------------------------------------------------------------- what it does, with this config's numbers
def explain(feature: str, model: ModelConfig, mode: str) -> str:
    """One sentence on what a feature does in a config that has it."""
    if feature == "rope":
        return "Turns queries and keys by their position, so that attention sees distance."
    if feature == "gqa":
        return _explain_sharing(model)
    if feature == "window":
        return _explain_window(model)
    if feature == "moe" and model.moe:
        sparse = sum(layer_is_moe(model))
        where = "" if sparse == model.n_layer else f" in {sparse} of {model.n_layer} layers"
        chosen = f"{model.moe.n_expert_per_token} of {model.moe.n_expert}"
        return f"A learned router sends each token to {chosen} small networks{where}."
    if mode == "selective":
        return "Keeps the costly activations of each layer and computes the cheap ones again on the way back."
    return "Keeps only the input of each layer and computes the rest again on the way back."


def _explain_sharing(model: ModelConfig) -> str:
    group = model.n_head // model.n_kv_head
    if model.n_kv_head == 1:
        return f"All {model.n_head} query heads share one key/value head (multi-query)."
    return f"{number(group)} query heads share each of {model.n_kv_head} key/value heads."


def _explain_window(model: ModelConfig) -> str:
    reach = Counter(layer_windows(model))
    full = reach.pop(None, 0)
    if not reach:
        return f"All {model.n_layer} layers see the whole context: the pattern has no S."
    size, local = next(iter(reach.items()))
    near = f"{local} of {model.n_layer} layers look back {number(size)} tokens"
    if not full:
        return f"{near}, none sees all {number(model.block_size)}."
    return f"{near}, {full} {'sees' if full == 1 else 'see'} all {number(model.block_size)}."
