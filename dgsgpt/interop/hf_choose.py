"""Which family of transformers has a network of ours, or which settings stand in the way of all of them."""

from __future__ import annotations

from dgsgpt.config import ModelConfig, layer_windows
from dgsgpt.errors import ConfigError
from dgsgpt.interop.hf_families import FAMILIES, Family

KIND = ("model.moe", "model.norm", "model.mlp", "model.rope")  # what makes another kind of network
Settings = dict[str, object]  # what stands in the way: dotted setting -> its value


def choose_family(model: ModelConfig) -> Family:
    """The first family that has exactly this network.

    Preferably one that takes our tokenizer as it is, then one without biases that ours has not.

    Raises:
        ConfigError: there is none; the message and `.problems` name every setting in the way of the nearest one.
    """
    nowhere = _nowhere(model)
    missing = {name: _missing(model, family) for name, family in FAMILIES.items()}
    if not nowhere:
        fitting = [FAMILIES[name] for name, settings in missing.items() if not settings]
        if fitting:
            return min(fitting, key=lambda family: (family.own_splitting, _adds_biases(model, family)))
    nearest = min(missing, key=lambda name: sum(3 if path in KIND else 1 for path in missing[name]))
    settings = nowhere | missing[nearest]
    listed = ", ".join(f"{path}={_shown(value)}" for path, value in settings.items())
    verb = "stand" if len(settings) > 1 else "stands"
    near = f" (the nearest is {FAMILIES[nearest].title})" if missing[nearest] else ""
    raise ConfigError(
        f"{listed} {verb} in the way: no model of transformers has this network{near}; use it with dgsgpt, or train "
        "one without",
        dict.fromkeys(settings, "exists in no model of transformers"),
    )


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _nowhere(model: ModelConfig) -> Settings:
    """Settings that no family has."""
    found: Settings = {
        f"model.{name}": getattr(model, name)
        for name in ("head_bias", "logit_softcap", "value_residual", "x0_shortcut")
        if getattr(model, name)
    }
    if model.ngram:
        found["model.ngram"] = f"up to {model.ngram.max_order} tokens"
    if model.rope is None and model.positions == "none":
        found["model.positions"] = "none"
    if model.window and any(len(windows) > 1 for windows in layer_windows(model)):
        found["model.window.pattern"] = model.window.pattern
    if model.moe:
        found |= {
            f"model.moe.{name}": getattr(model.moe, name)
            for name in ("after_dense", "n_shared_expert", "dense_residual", "bias")
            if getattr(model.moe, name)
        }
        if model.moe.balance == "bias":  # it also moves the choice when the model is used
            found["model.moe.balance"] = "bias"
    return found


def _missing(model: ModelConfig, family: Family) -> Settings:
    """Settings that this family does not have."""
    found: Settings = {}
    if model.norm != family.norm:
        found["model.norm"] = model.norm
    if model.mlp not in family.activations:
        found["model.mlp"] = model.mlp
    if (model.rope is not None) != family.rotary:
        found["model.rope"] = f"theta {model.rope.theta:g}" if model.rope else None
    if model.qk_norm != family.qk_norm:
        found["model.qk_norm"] = model.qk_norm
    return found | _missing_biases(model, family) | _missing_heads(model, family) | _missing_layers(model, family)


def _missing_biases(model: ModelConfig, family: Family) -> Settings:
    """Biases that the family has nowhere to put; those it has and ours has not are written as zeros."""
    found: Settings = {}
    if model.bias and family.biases in ("none", "qkv", "attention"):
        found["model.bias"] = True
    if model.has_qkv_bias and not model.bias and family.biases == "none":
        found["model.qkv_bias"] = model.qkv_bias
    return found


def _adds_biases(model: ModelConfig, family: Family) -> bool:
    """Whether some biases of the family would have to be zeros."""
    with_qkv = model.has_qkv_bias
    if family.biases in ("always", "all"):
        return not (model.bias and with_qkv)
    if family.biases == "qkv":
        return not with_qkv
    return family.biases != "none" and with_qkv != model.bias


def _missing_heads(model: ModelConfig, family: Family) -> Settings:
    found: Settings = {}
    if family.heads == "equal" and model.n_kv_head != model.n_head:
        found["model.n_kv_head"] = model.n_kv_head
    natural = model.attention_width == model.n_embd
    divides = model.n_embd % model.n_head == 0
    if (family.heads == "equal" and not natural) or (family.heads == "divide" and not divides):
        found["model.head_size"] = model.head_dim
    return found


def _missing_layers(model: ModelConfig, family: Family) -> Settings:
    found: Settings = {}
    kinds = {windows[0] for windows in layer_windows(model)}
    if model.window and ((family.windows == "none" and kinds != {None}) or
                         (family.windows == "all" and len(kinds) > 1)):  # fmt: skip
        found["model.window.pattern"] = model.window.pattern
    if (model.moe is None) != (family.experts == "none"):
        found["model.moe"] = f"{model.moe.n_expert} experts" if model.moe else None
    elif model.moe and family.experts == "every":
        if model.moe.every != 1:
            found["model.moe.every"] = model.moe.every
        if not renormalizes(model):
            name = "renormalize_single" if model.moe.renormalize else "renormalize"
            found[f"model.moe.{name}"] = False
    return found


def renormalizes(model: ModelConfig) -> bool:
    """Whether the weights of a token's experts always sum to one."""
    moe = model.moe
    return moe is not None and moe.renormalize and (moe.n_expert_per_token > 1 or moe.renormalize_single)
