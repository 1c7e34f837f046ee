"""config.json and `ModelConfig`, in both directions side by side.

`read_config` gives the network that a config.json describes, `write_config` the config.json of a network of ours. A
family may always have biases where ours has none: `write_config` then describes the larger network, whose extra biases
are zero (`larger` gives it). An export also keeps our own settings under the key `dgsgpt`, since config.json has no
words for some; `own_config` believes them only while they describe the same network as all the other keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import dgsgpt
from dgsgpt.config import ModelConfig
from dgsgpt.data.text import shown
from dgsgpt.errors import CheckpointError, ConfigError
from dgsgpt.interop.hf_choose import choose_family
from dgsgpt.interop.hf_families import ACTIVATIONS, FAMILIES, Family, supported
from dgsgpt.interop.hf_keys import Keys, refuse, shorten
from dgsgpt.interop.hf_layers import read_experts, read_windows, write_experts, write_windows
from dgsgpt.interop.hf_rope import read_rope, write_rope
from dgsgpt.rules import explain

OWN = "dgsgpt"
MAX_LAYERS = 512


@dataclass(frozen=True)
class Described:
    """What a config.json says."""

    family: Family
    model: ModelConfig
    unbiased: tuple[str, ...] = ()  # ends of names of ours that have no tensor of theirs: biases, which are then zero
    warnings: tuple[str, ...] = ()


# ---------------------------------------------------------------- theirs -> ours
def read_config(values: dict[str, Any], source: Path) -> Described:
    """The network that a config.json describes.

    Raises:
        CheckpointError: names the key, its value, and why dgsgpt cannot express it.
    """
    kind = values.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise CheckpointError(
            f"{shown(source)}: model_type={shorten(kind)} is not supported; supported are {supported()}"
        )
    keys = Keys(values, source)
    notes: list[str] = []
    model = _sizes(keys, family)
    model["tie_embeddings"] = keys.flag("tie_word_embeddings", family.tied)
    model["norm_eps"] = keys.number(*family.norm_eps)
    unbiased = _read_biases(keys, family, model, notes)
    if family.rotary:
        model["rope"] = read_rope(keys, family.theta, model["block_size"])
    else:
        model |= {"rope": None, "positions": "learned"}
    model["window"] = read_windows(keys, family, model, notes)
    model["moe"] = read_experts(keys, family, model)
    notes += keys.finish()
    if values.get("auto_map") is not None:
        notes.append(f"config.json names code of its own (auto_map); it is never run: read as plain {family.title}.")
    try:
        return Described(family, _plainest(ModelConfig.model_validate(model)), unbiased, tuple(notes))
    except ValidationError as e:
        raise CheckpointError(f"{explain(e, ModelConfig, str(source))}: this model cannot be expressed here") from None


def _sizes(keys: Keys, family: Family) -> dict[str, Any]:
    """The widths and counts."""
    gpt2 = not family.rotary
    n_head = keys.whole("n_head" if gpt2 else "num_attention_heads")
    n_embd = keys.whole("n_embd" if gpt2 else "hidden_size")
    activation = "activation_function" if gpt2 else "hidden_act"
    told = keys.take(activation, next(iter(family.activations.values())))
    mlp = {ACTIVATIONS[theirs]: ours for ours, theirs in family.activations.items()}.get(ACTIVATIONS.get(str(told), ""))
    if mlp is None:
        known = ", ".join(sorted(name for name, kind in ACTIVATIONS.items() if kind in _functions(family)))
        raise refuse(keys.source, activation, told, f"for {family.title} known are {known}")
    dropout = keys.number("resid_pdrop", 0.1) if gpt2 else keys.number("residual_dropout", 0.0)
    sizes = {
        "n_layer": keys.whole("n_layer" if gpt2 else "num_hidden_layers"),
        "n_head": n_head,
        "n_kv_head": n_head if gpt2 else keys.whole("num_key_value_heads", family.n_kv_head or n_head),
        "n_embd": n_embd,
        "block_size": keys.whole("n_positions" if gpt2 else "max_position_embeddings"),
        "vocab_size": keys.whole("vocab_size"),
        "mlp_hidden": keys.whole("n_inner", 4 * n_embd) if gpt2 else keys.whole("intermediate_size"),
        "mlp": mlp,
        "norm": family.norm,
        "qk_norm": family.qk_norm,
        "dropout": dropout,
    }
    if not 0 < sizes["n_layer"] <= MAX_LAYERS:  # lists of layers are made of it
        raise refuse(
            keys.source,
            "n_layer" if gpt2 else "num_hidden_layers",
            sizes["n_layer"],
            f"it must be from 1 to {MAX_LAYERS}",
        )
    if not gpt2:
        sizes["head_size"] = keys.whole("head_dim", family.head_dim)
    return sizes


def _plainest(model: ModelConfig) -> ModelConfig:
    """The same network without widths that are the usual ones anyway."""
    if model.head_dim * model.n_head == model.n_embd:
        model = model.model_copy(update={"head_size": None})
    usual = model.model_copy(update={"mlp_hidden": None})
    return usual if usual.hidden == model.hidden else model


def _functions(family: Family) -> set[str]:
    return {ACTIVATIONS[theirs] for theirs in family.activations.values()}


def _read_biases(keys: Keys, family: Family, model: dict[str, Any], notes: list[str]) -> tuple[str, ...]:
    """Set `bias` and `qkv_bias`; gives ends of names that are biases of ours but not of theirs."""
    linear = (".attn.q.bias", ".attn.k.bias", ".attn.v.bias", ".attn.out.bias")
    mlp = (".mlp.gate.bias", ".mlp.up.bias", ".mlp.down.bias")
    zero: tuple[str, ...] = ()
    model["bias"] = family.biases in ("always", "all")
    if family.biases == "qkv":
        model["qkv_bias"] = "with"
    elif family.biases == "all":
        zero = () if keys.flag("use_bias", True) else linear + mlp
    elif family.biases in ("attention", "switches"):
        attention = keys.flag("attention_bias", False)
        network = family.biases == "switches" and keys.flag("mlp_bias", False)
        model["bias"] = attention or network
        if network and not attention:
            model["qkv_bias"], zero = "without", linear[3:]
        elif attention and not network:
            zero = mlp
    if zero:
        places = " and ".join(sorted({name.split(".")[1] for name in zero}))
        notes.append(
            f"The model has no biases in {places}, where the network here does: zeros, which training would move."
        )
    return zero


# ---------------------------------------------------------------- ours -> theirs
def write_config(model: ModelConfig) -> dict[str, Any]:
    """The config.json of a network, without what only its weights and tokenizer tell.

    Raises:
        ConfigError: no family has this network; names the settings that stand in the way.
    """
    family = choose_family(model)
    if not family.rotary:
        told = _gpt2(model)
    else:
        told = {
            "hidden_size": model.n_embd,
            "num_hidden_layers": model.n_layer,
            "num_attention_heads": model.n_head,
            "num_key_value_heads": model.n_kv_head,
            "head_dim": model.head_dim,
            "intermediate_size": model.hidden,
            "hidden_act": family.activations[model.mlp],
            "max_position_embeddings": model.block_size,
            "attention_dropout": 0.0,
            **write_rope(model),
            **write_windows(model, family),
            **write_experts(model, family),
            **_write_biases(model, family),
        }
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": model.vocab_size,
        family.norm_eps[0]: model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        **told,
        OWN: {"version": dgsgpt.__version__, "model": model.model_dump(mode="json")},
    }


def _write_biases(model: ModelConfig, family: Family) -> dict[str, Any]:
    attention = model.has_qkv_bias or model.bias
    if family.biases == "all":
        return {"use_bias": attention, "residual_dropout": model.dropout, "embedding_dropout": model.dropout}
    if family.biases == "switches":
        return {"attention_bias": attention, "mlp_bias": model.bias}
    return {"attention_bias": attention} if family.biases == "attention" else {}


def _gpt2(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_positions": model.block_size,
        "n_ctx": model.block_size,
        "n_inner": model.hidden,
        "activation_function": FAMILIES["gpt2"].activations[model.mlp],
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": 0.0,
    }


# ---------------------------------------------------------------- both
def larger(model: ModelConfig) -> Described:
    """The network that stands in config.json for one of ours: equal but for biases that are zero.

    Raises:
        ConfigError: no family has this network.
    """
    return read_config(write_config(model), Path("config.json"))


def own_config(values: dict[str, Any], described: Described) -> ModelConfig | None:
    """The settings that an export of ours left in config.json, if they still describe the same network."""
    own = values.get(OWN)
    told = own.get("model") if isinstance(own, dict) else None
    if not isinstance(told, dict):
        return None
    try:
        model = ModelConfig.model_validate(told)
        same = larger(model).model.model_dump() == described.model.model_dump()
    except (ValidationError, ConfigError, CheckpointError):  # made by another version, or edited
        return None
    return model if same else None
