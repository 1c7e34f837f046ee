"""Rotary positions in config.json, old and new: `rope_theta` with `rope_scaling`, or both in `rope_parameters`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dgsgpt.config import ModelConfig, RopeScalingConfig
from dgsgpt.interop.hf_keys import Keys, refuse

KINDS = ("linear", "yarn", "llama3")
COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"})
OWN = {
    "linear": frozenset({"original_max_position_embeddings"}),  # written by some, read by none
    "yarn": frozenset(
        {"original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
         "truncate", "finetuned"}
    ),
    "llama3": frozenset({"original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
}  # fmt: skip


# ---------------------------------------------------------------- theirs -> ours
def read_rope(keys: Keys, default_theta: float, block_size: int) -> dict[str, Any]:
    """Values of `model.rope`.

    Raises:
        CheckpointError: a kind of scaling that dgsgpt does not have, or a value it cannot take.
    """
    theta = keys.number("rope_theta", default_theta)
    scaling = keys.take("rope_scaling", None)
    told = keys.take("rope_parameters", None)
    original = keys.whole("original_max_position_embeddings", None)
    given = scaling or told or {}  # transformers lets the old key win where a file has both
    name = "rope_scaling" if scaling else "rope_parameters"
    if not isinstance(given, dict) or any(isinstance(v, Mapping) for v in given.values()):
        raise refuse(keys.source, name, given, "only one setting for all layers is read")
    theta = Keys(given, keys.source, name + ".").number("rope_theta", theta)
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        factor = given["partial_rotary_factor"]
        raise refuse(keys.source, f"{name}.partial_rotary_factor", factor, "all channels of a head are turned")
    if kind in ("default", None):
        return {"theta": theta, "scaling": None}
    if kind not in KINDS:
        raise refuse(keys.source, f"{name}.rope_type", kind, f"known are default, {', '.join(KINDS)}")
    unknown = sorted(set(given) - COMMON - OWN[kind])
    if unknown:
        raise refuse(keys.source, f"{name}.{unknown[0]}", given[unknown[0]], f"not known for rope_type {kind}")
    inner = Keys(given, keys.source, name + ".")
    return {"theta": theta, "scaling": _scaling(inner, str(kind), original, block_size)}


def _scaling(given: Keys, kind: str, outer: Any, block_size: int) -> dict[str, Any]:
    if kind == "linear":
        return {"kind": kind, "factor": given.number("factor")}
    original = outer or given.whole("original_max_position_embeddings", block_size)
    values: dict[str, Any] = {"kind": kind, "original_block_size": original}
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        return values | {name: given.number(name) for name in names}
    if given.take("truncate", True) is not True:
        raise refuse(given.source, f"{given.prefix}truncate", False, "only the rounded bounds of the paper are read")
    factor = given.take("factor", None)
    factor = block_size / max(1, original) if factor is None else given.number("factor")
    return values | {
        "factor": factor,
        "beta_fast": given.number("beta_fast", 32.0),
        "beta_slow": given.number("beta_slow", 1.0),
        "attention_factor": _attention_factor(given, factor),
    }


def _attention_factor(given: Keys, factor: float) -> float | None:
    """What multiplies queries and keys; None is the paper's own value."""
    told = given.take("attention_factor", None)
    low, high = given.number("mscale", None), given.number("mscale_all_dim", None)
    if told is not None or not (low and high):
        return None if told is None else given.number("attention_factor")
    if low < 0 or high < 0:
        raise refuse(given.source, f"{given.prefix}mscale", min(low, high), "it must not be negative")
    # DeepSeek's two scales, as transformers combines them.
    over, under = (1.0 if factor <= 1 else 0.1 * given.number(n) * math.log(factor) + 1 for n in
                   ("mscale", "mscale_all_dim"))  # fmt: skip
    return over / under


# ---------------------------------------------------------------- ours -> theirs
def write_rope(model: ModelConfig) -> dict[str, Any]:
    """Keys of config.json: `rope_parameters`, and the two older keys that say the same to older programs."""
    assert model.rope is not None
    theta, scaling = model.rope.theta, model.rope.scaling
    if scaling is None:
        return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    told = _parameters(scaling, model.block_size)
    return {"rope_theta": theta, "rope_scaling": told, "rope_parameters": {**told, "rope_theta": theta}}


def _parameters(scaling: RopeScalingConfig, block_size: int) -> dict[str, Any]:
    told: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return told
    original = scaling.original_block_size or max(1, round(block_size / scaling.factor))
    told["original_max_position_embeddings"] = original
    names = ("low_freq_factor", "high_freq_factor") if scaling.kind == "llama3" else ("beta_fast", "beta_slow")
    told.update({name: getattr(scaling, name) for name in names})
    if scaling.kind == "yarn" and scaling.attention_factor is not None:
        told["attention_factor"] = scaling.attention_factor
    return told
