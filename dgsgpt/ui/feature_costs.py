"""What each feature of the architecture does and costs, computed by the planner for the draft at hand.

The cost of a feature is the difference between two plans: this config with it, and this config without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgsgpt.config import ModelConfig, MoEConfig, layer_is_moe, layer_windows
from dgsgpt.costs import ngram_rows
from dgsgpt.format import MINUS, number, percent, si
from dgsgpt.pace import arithmetic_per_token
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
    """The two drafts a feature's card compares: `rope`, `gqa`, `window`, `moe`, `ngram` or `checkpointing`."""
    parked = parked or {}
    if feature == "gqa":
        heads = form.get(draft, "model.n_head")
        heads = heads if isinstance(heads, int) and heads > 0 else 1
        on = form.get(draft, "model.n_kv_head") != heads
        shared = parked.get("gqa")
        if shared not in fewer_kv_heads(draft):
            shared = shared_kv_heads(draft)
        return _pair(draft, on, {"model.n_kv_head": shared}, {"model.n_kv_head": heads})
    if feature == "checkpointing":
        path = "train.gradient_checkpointing"
        on = form.get(draft, path) != "none"
        return _pair(draft, on, {path: parked.get("checkpointing", "full")}, {path: "none"})
    section = f"model.{feature}"
    on = form.get(draft, section) is not None
    with_it = draft if on else form.toggle(draft, section, True, parked.get(section))
    return Variants(on, with_it, draft if not on else form.toggle(draft, section, False))


def fewer_kv_heads(draft: Draft) -> list[int]:
    """The numbers of KV heads that share: proper divisors of the heads, even ones or 1 where layers split the heads."""
    heads = form.get(draft, "model.n_head")
    heads = heads if isinstance(heads, int) else 1
    split = "B" in form.kinds_of_layers(draft)
    return [d for d in range(1, heads) if heads % d == 0 and not (split and d % 2 and d > 1)]


def shared_kv_heads(draft: Draft) -> int:
    """The KV heads that turning grouped-query attention on begins with: about a quarter of the heads."""
    wanted = (form.get(draft, "model.n_head") or 1) / 4
    return min(fewer_kv_heads(draft), key=lambda d: (abs(d - wanted), d), default=1)


def _pair(draft: Draft, on: bool, turn_on: dict[str, Any], turn_off: dict[str, Any]) -> Variants:
    return Variants(on, draft if on else form.apply(draft, turn_on), form.apply(draft, turn_off) if on else draft)


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


# ---------------------------------------------------------------- what layers see
@dataclass(frozen=True)
class Reach:
    """How many layers see a window only (local), the whole context (full), or with half of the heads each (both)."""

    local: int
    full: int
    both: int

    def words(self) -> str:
        """The counts in a few words, e.g. `3 local, 1 full`, or `local in every layer`."""
        counts = {"local": self.local, "full": self.full, "both": self.both}
        present = {kind: count for kind, count in counts.items() if count}
        if len(present) > 1:
            return ", ".join(f"{count} {kind}" for kind, count in present.items())
        return f"{'local and full' if self.both else next(iter(present))} in every layer"


def reach(model: ModelConfig) -> Reach:
    """The layers of a model by what their attention sees."""
    windows = layer_windows(model)
    full, both = windows.count((None,)), sum(len(w) > 1 for w in windows)
    return Reach(model.n_layer - full - both, full, both)


# ---------------------------------------------------------------- what it does, with this config's numbers
def explain(feature: str, model: ModelConfig, mode: str) -> str:
    """One sentence on what a feature does in a config that has it."""
    if feature == "rope":
        return f"Turns queries and keys by their position, so that attention sees distance.{_explain_scaling(model)}"
    if feature == "gqa":
        return _explain_sharing(model)
    if feature == "window":
        return _explain_window(model)
    if feature == "moe" and model.moe:
        return _explain_experts(model, model.moe)
    if feature == "ngram":
        return _explain_ngrams(model)
    if mode == "selective":
        return "Keeps the costly activations of each layer and computes the cheap ones again on the way back."
    return "Keeps only the input of each layer and computes the rest again on the way back."


def _explain_sharing(model: ModelConfig) -> str:
    group = model.n_head // model.n_kv_head
    if model.n_kv_head == 1:
        return f"All {model.n_head} query heads share one key/value head (multi-query)."
    return f"{number(group)} query heads share each of {model.n_kv_head} key/value heads."


def _explain_scaling(model: ModelConfig) -> str:
    scaling = model.rope.scaling if model.rope else None
    if scaling is None:
        return ""
    if scaling.factor == 1:
        return f" With factor 1 {form.name_of(scaling.kind)} scaling stretches nothing."
    slows = "every rotation" if scaling.kind == "linear" else "the slow rotations"
    name = form.name_of(scaling.kind)
    return f" {name[0].upper()}{name[1:]} scaling slows {slows} {scaling.factor:g} times, for longer contexts."


def _explain_experts(model: ModelConfig, moe: MoEConfig) -> str:
    sparse = sum(layer_is_moe(model))
    where = "" if sparse == model.n_layer else f" in {sparse} of {model.n_layer} layers"
    always = [f"{moe.n_shared_expert} that every token passes"] if moe.n_shared_expert else []
    always += ["a dense one"] if moe.dense_residual else []
    after = ", after the dense one" if moe.after_dense else ""
    beside = f"{after}, beside {' and '.join(always)}" if always else after
    keeper = "A moving bias" if moe.balance == "bias" else "A loss" if moe.aux_loss_weight else "Nothing"
    return (
        f"A learned router sends each token to {moe.n_expert_per_token} of {moe.n_expert} networks{beside}{where}. "
        f"{keeper} keeps them equally busy."
    )


def _explain_ngrams(model: ModelConfig) -> str:
    rows = ngram_rows(model)
    if not rows:
        return ""
    orders = ["two", "three", "four", "five", "six", "seven", "eight"][: len(rows)]
    last = orders[0] if len(orders) == 1 else f"{', '.join(orders[:-1])} and {orders[-1]}"
    sizes = " and ".join(number(size) for size in dict.fromkeys(rows.values()))
    tables = "a table" if len(rows) == 1 else "tables"
    return (
        f"Adds what the last {last} tokens together looked up, in {tables} of {sizes} rows, to the token's embedding."
    )


def _explain_window(model: ModelConfig) -> str:
    seen, context = reach(model), number(model.block_size)
    if model.window is None or seen.full == model.n_layer:
        return f"All {model.n_layer} layers see the whole context: none is of kind S or B."
    size = number(model.window.size)
    if seen.both == model.n_layer:
        return f"In all {model.n_layer} layers half of the heads look back {size} tokens, the others see all {context}."
    if not seen.local:
        return (
            f"In {seen.both} of {model.n_layer} layers half of the heads look back {size} tokens; "
            f"all others see all {context}."
        )
    near = f"{seen.local} of {model.n_layer} layers {_verb(seen.local, 'look')} back {size} tokens"
    far = f", {seen.full} {_verb(seen.full, 'see')} all {context}" if seen.full else ""
    if seen.both:
        others = "the one, half the other" if seen.full else f"that, half see all {context}"
        return f"{near}{far}; in {seen.both}, half of the heads do {others}."
    return f"{near}{far or f', none sees all {context}'}."


def _verb(count: int, plural: str) -> str:
    return plural + "s" if count == 1 else plural
