"""Which layers slide and which hold experts: config.json and ours, both directions side by side."""

from __future__ import annotations

from typing import Any

from dgsgpt.config import ModelConfig, layer_windows
from dgsgpt.interop.hf_choose import renormalizes
from dgsgpt.interop.hf_families import Family
from dgsgpt.interop.hf_keys import Keys, refuse

MAX_PATTERN = 64
KINDS = {"sliding_attention": "S", "full_attention": "L"}


# ---------------------------------------------------------------- theirs -> ours
def read_windows(keys: Keys, family: Family, model: dict[str, Any], notes: list[str]) -> dict[str, Any] | None:
    """`model.window`: the same kind of layer everywhere, or as `layer_types` lists them."""
    n_layer = model["n_layer"]
    kinds = keys.take("layer_types", None)
    if family.windows == "none":
        size = None
    elif family.model_type.startswith("qwen") and not keys.flag("use_sliding_window", False):
        keys.take("sliding_window", None)
        size = None
    else:
        size = keys.whole("sliding_window", 4096 if family.model_type in ("mistral", "qwen2", "qwen3") and
                          "sliding_window" not in keys.values else None)  # fmt: skip
    if family.windows == "layers" and kinds is None:
        first = keys.whole("max_window_layers", 28)
        kinds = ["sliding_attention" if size and i >= first else "full_attention" for i in range(n_layer)]
    if kinds is None:
        kinds = ["sliding_attention" if size else "full_attention"] * n_layer
    if not isinstance(kinds, list) or len(kinds) != n_layer or any(str(kind) not in KINDS for kind in kinds):
        raise refuse(keys.source, "layer_types", kinds, f"it must list {' or '.join(KINDS)} for each layer")
    layers = "".join(KINDS[kind] for kind in kinds)
    if family.windows != "layers" and layers not in ("L" * n_layer, "S" * n_layer if size else ""):
        raise refuse(
            keys.source, "layer_types", kinds, f"{family.title} has one kind of layer; model_type is not right"
        )
    if "S" not in layers:
        return None
    if size is None:
        raise refuse(keys.source, "sliding_window", None, "layer_types lists layers that slide")
    if size >= model["block_size"]:
        notes.append(f"The window of {size} tokens is left out: the context of {model['block_size']} is no longer.")
        return None
    return {"size": size, "pattern": _shortest(layers, keys)}


def _shortest(layers: str, keys: Keys) -> str:
    """The shortest pattern that, repeated, gives these layers."""
    for n in range(1, min(len(layers), MAX_PATTERN) + 1):
        if (layers[:n] * -(-len(layers) // n))[: len(layers)] == layers:
            return layers[:n]
    raise refuse(keys.source, "layer_types", layers, f"no pattern of at most {MAX_PATTERN} layers repeats in it")


def read_experts(keys: Keys, family: Family, model: dict[str, Any]) -> dict[str, Any] | None:
    """`model.moe`."""
    if family.experts == "none":
        return None
    k = keys.whole("num_experts_per_tok", 2 if family.experts == "every" else 8)
    e = keys.take("num_local_experts", None) or keys.whole("num_experts")
    keys.taken.add("num_experts")
    moe = {
        "n_expert": e,
        "n_expert_per_token": k,
        # Theirs counts each of the k choices, ours their shares: at even balance k against 1.
        "aux_loss_weight": keys.number("router_aux_loss_coef", 0.001) * k,
    }
    if family.experts == "every":
        return moe | {"renormalize_single": k == 1}
    every = keys.whole("decoder_sparse_step", 1)
    dense = keys.take("mlp_only_layers", [])
    if dense:
        raise refuse(keys.source, "mlp_only_layers", dense, "experts are in every n-th layer or in none")
    renormalize = keys.flag("norm_topk_prob", False)
    width = keys.whole("moe_intermediate_size", 768)
    moe |= {"every": every, "renormalize": renormalize, "renormalize_single": renormalize and k == 1}
    dense_width = model["mlp_hidden"]
    if every == 1:  # no layer is dense: one width says it all
        model["mlp_hidden"] = width
    elif width != dense_width:
        moe["expert_hidden"] = width
    return moe


# ---------------------------------------------------------------- ours -> theirs
def write_windows(model: ModelConfig, family: Family) -> dict[str, Any]:
    """Keys for `model.window`."""
    sliding = [windows[0] is not None for windows in layer_windows(model)]
    if family.windows == "none":
        return {}
    size = model.window.size if model.window and any(sliding) else None
    told: dict[str, Any] = {"sliding_window": size}
    if family.model_type.startswith("qwen"):
        told["use_sliding_window"] = size is not None
    if family.windows == "layers":
        told["max_window_layers"] = sliding.index(True) if size else model.n_layer
        told["layer_types"] = ["sliding_attention" if s else "full_attention" for s in sliding]
    return told


def write_experts(model: ModelConfig, family: Family) -> dict[str, Any]:
    """Keys for `model.moe`."""
    moe = model.moe
    if moe is None:
        return {}
    told = {
        "num_experts_per_tok": moe.n_expert_per_token,
        "router_aux_loss_coef": moe.aux_loss_weight / moe.n_expert_per_token,
        "output_router_logits": False,
    }
    if family.experts == "every":
        return told | {"num_local_experts": moe.n_expert, "intermediate_size": model.expert_hidden}
    return told | {
        "num_experts": moe.n_expert,
        "moe_intermediate_size": model.expert_hidden,
        "norm_topk_prob": renormalizes(model),
        "decoder_sparse_step": moe.every,
        "mlp_only_layers": [],
    }
