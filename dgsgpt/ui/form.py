"""The draft of a configuration: nested plain values that a form edits, valid or not.

Everything here is a pure function of the draft and the schema; `fields` draws widgets from it and
`draft` keeps it for the session. A *base* is the config the draft began as: a profile or another run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from dgsgpt.config import RunConfig, build_config
from dgsgpt.rules import Setting, differences, list_settings, put, section_of

Draft = dict[str, Any]
SETTINGS: dict[str, Setting] = {s.path: s for s in list_settings(RunConfig) if s.path != "schema_version"}

# Names for people; a setting without one is shown by its own name.
LABELS = {
    "data.corpus": "Data",
    "data.tokenizer.kind": "Tokenizer",
    "data.tokenizer.vocab_size": "Vocabulary",
    "data.val_fraction": "Validation share",
    "model.block_size": "Context",
    "model.n_layer": "Layers",
    "model.n_embd": "Width",
    "model.n_head": "Heads",
    "model.n_kv_head": "KV heads",
    "model.bias": "Biases",
    "model.mlp": "Feed-forward",
    "model.mlp_hidden": "Feed-forward width",
    "model.norm_eps": "Norm epsilon",
    "model.qk_norm": "QK norm",
    "model.logit_softcap": "Logit softcap",
    "model.zero_init": "Zero initialisation",
    "model.x0_shortcut": "Embedding shortcut (x0)",
    "model.rope": "Rotary positions (RoPE)",
    "model.rope.theta": "Base",
    "model.rope.scaling": "Context scaling",
    "model.rope.scaling.kind": "Scaling",
    "model.rope.scaling.original_block_size": "Original context",
    "model.rope.scaling.low_freq_factor": "Low-frequency factor",
    "model.rope.scaling.high_freq_factor": "High-frequency factor",
    "model.window": "Sliding window",
    "model.window.size": "Window",
    "model.window.pattern": "Pattern",
    "model.moe": "Sparse mixture of experts",
    "model.moe.n_expert": "Experts",
    "model.moe.n_expert_per_token": "Per token",
    "model.moe.capacity_factor": "Capacity",
    "model.moe.n_shared_expert": "Shared experts",
    "model.moe.every": "Every n-th layer",
    "model.moe.expert_hidden": "Expert width",
    "model.moe.renormalize": "Renormalise weights",
    "model.moe.aux_loss_weight": "Balancing loss weight",
    "model.moe.z_loss_weight": "Router z-loss weight",
    "train.micro_batch_size": "Batch",
    "train.grad_accum_steps": "Accumulation",
    "train.lr": "Learning rate",
    "train.steps": "Steps",
    "train.schedule.kind": "Schedule",
    "train.schedule.warmup_steps": "Warm-up",
    "train.gradient_checkpointing": "Gradient checkpointing",
}

# Values of the schema as the field writes them; any other is shown as it is.
NAMES = {
    "rmsnorm": "RMSNorm",
    "layernorm": "LayerNorm",
    "gelu": "GELU",
    "relu": "ReLU",
    "relu2": "ReLU²",
    "swiglu": "SwiGLU",
    "yarn": "YaRN",
    "llama3": "Llama 3",
    "aux_loss": "aux loss",
}


# ---------------------------------------------------------------- reading and changing a draft
def name_of(value: object) -> str:
    """A value as people write it."""
    return NAMES.get(str(value), str(value))


def label_of(path: str) -> str:
    """The plain name of a setting in forms."""
    return LABELS.get(path) or path.rsplit(".", 1)[-1].replace("_", " ").capitalize()


def draft_of(config: RunConfig) -> Draft:
    """The draft of a config; a vocabulary size that only repeats the tokenizer's becomes null again.

    So changing the tokenizer later does not leave the old size behind.
    """
    values = config.to_dict()
    values["model"]["vocab_size"] = None
    if config.data.tokenizer.kind != "char" and build_config(values).model.vocab_size != config.model.vocab_size:
        values["model"]["vocab_size"] = config.model.vocab_size
    return values


def get(draft: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None when it is null or its section is off."""
    node: Any = draft
    for name in path.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(name)
    return node


def apply(draft: Draft, overrides: Mapping[str, Any]) -> Draft:
    """A copy with dotted overrides applied; an override inside a section that is off switches it on whole.

    While every head has keys of its own (`n_kv_head == n_head`), the KV heads follow the heads.
    """
    follows = get(draft, "model.n_head") == get(draft, "model.n_kv_head")
    for path, value in overrides.items():
        parts = path.split(".")
        for end in range(1, len(parts)):
            section = ".".join(parts[:end])
            if get(draft, section) is None:
                draft = put(draft, section, section_defaults(section))
        draft = put(draft, path, value)
    if follows and "model.n_head" in overrides and "model.n_kv_head" not in overrides:
        draft = put(draft, "model.n_kv_head", get(draft, "model.n_head"))
    return draft


def section_defaults(section: str) -> dict[str, Any]:
    """The plain default values of a section of the schema, e.g. `model.window`."""
    kind: type[BaseModel] = RunConfig
    for name in section.split("."):
        inner = section_of(kind.model_fields[name].annotation)
        if inner is None:
            raise KeyError(section)
        kind = inner
    return kind().model_dump(mode="json")


def toggle(draft: Draft, section: str, on: bool, parked: Mapping[str, Any] | None = None) -> Draft:
    """Switch an optional section; `parked` holds the values it had before it was switched off."""
    if not on:
        return put(draft, section, None)
    if get(draft, section) is not None:
        return draft
    return put(draft, section, dict(parked) if parked else starting_values(draft, section))


def starting_values(draft: Draft, section: str) -> dict[str, Any]:
    """What a section begins with when it is switched on: its defaults, but for two that would do nothing."""
    values = section_defaults(section)
    if section == "model.window":  # a window as long as the context would limit nothing
        values["size"] = max(1, min(values["size"], (get(draft, "model.block_size") or 2) // 2))
    if section == "model.rope.scaling":  # factor 1 would stretch nothing
        values["factor"] = 2.0
    return values


def kinds_of_layers(draft: Draft) -> set[str]:
    """The letters of the window's pattern that some layer really has; empty while there is no window."""
    pattern, n_layer = get(draft, "model.window.pattern"), get(draft, "model.n_layer")
    return set(pattern[:n_layer]) if isinstance(pattern, str) and isinstance(n_layer, int) and n_layer > 0 else set()


# ---------------------------------------------------------------- against the base
def differs(draft: Draft, base: Draft) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from the base, as `{path: (base's value, the draft's)}`."""
    return differences(base, draft)


def changes(draft: Draft, base: Draft) -> dict[str, tuple[Any, Any]]:
    """The same differences, with a section that was switched on or off as one of them, by its telling settings."""
    found: dict[str, tuple[Any, Any]] = {}
    for path, (was, now) in differs(draft, base).items():
        section = _switched(draft, base, path)
        if section is None:
            found[path] = (was, now)
        else:
            found[section] = (_telling(base, section), _telling(draft, section))
    return found


def _switched(draft: Draft, base: Draft, path: str) -> str | None:
    """The outermost section around a setting that is on in only one of the two."""
    parts = path.split(".")
    sections = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return next(
        (
            s
            for s in sections
            if s in SETTINGS and SETTINGS[s].section and (get(draft, s) is None) != (get(base, s) is None)
        ),
        None,
    )


def _telling(draft: Draft, section: str) -> dict[str, Any] | None:
    """Of a section's settings those of the first tier, and those that are not at their default."""
    values, defaults = get(draft, section), section_defaults(section)
    if values is None:
        return None
    tiers = {name: SETTINGS[f"{section}.{name}"].tier for name in values}
    return {name: v for name, v in values.items() if tiers[name] == "basic" or v != defaults[name]} or values


def differs_within(changed: Iterable[str], *paths: str) -> bool:
    """Whether any changed setting is one of `paths` or lies inside one."""
    return any(c == p or c.startswith(p + ".") for c in changed for p in paths)


def reset(draft: Draft, base: Draft, path: str) -> Draft:
    """A copy with one setting back at the base's value; its section too, where the base has that off."""
    parts = path.split(".")
    for end in range(1, len(parts)):
        section = ".".join(parts[:end])
        if get(base, section) is None:
            return put(draft, section, None)
        if get(draft, section) is None:
            return put(draft, section, get(base, section))
    follows = path == "model.n_head" and get(draft, "model.n_kv_head") == get(draft, path)
    draft = put(draft, path, get(base, path))
    return put(draft, "model.n_kv_head", get(base, path)) if follows else draft


def origin(draft: Draft, base: Draft, path: str) -> Any:
    """What a setting goes back to: the base's value, or where the base has its section off, what that begins with."""
    if is_shown(base, path):
        return get(base, path)
    section, _, name = path.rpartition(".")
    return starting_values(draft, section)[name]


# ---------------------------------------------------------------- search
def find_settings(query: str) -> list[Setting]:
    """Settings whose name, path or help has every word of the query."""
    words = query.lower().split()
    return [
        s
        for s in SETTINGS.values()
        if all(w in f"{s.path} {label_of(s.path)} {s.help} {' '.join(s.choices)}".lower() for w in words)
    ]


# ---------------------------------------------------------------- settings without effect
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
    "train.schedule.min_lr_ratio": ("train.schedule.kind", ("cosine", "linear")),
}


def off_section(draft: Draft, path: str) -> str | None:
    """The outermost section around a setting that is off, or None when all are on."""
    parts = path.split(".")
    sections = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((section for section in sections if get(draft, section) is None), None)


def is_shown(draft: Draft, path: str) -> bool:
    """Whether the sections around a setting are on."""
    return off_section(draft, path) is None


def why_idle(draft: Draft, path: str) -> str:
    """Why a setting whose section is on changes nothing in this draft, for people; empty when it does."""
    if path in _READ_WHILE:
        other, values = _READ_WHILE[path]
        idle, reason = (
            get(draft, other) not in values,
            f"unless {label_of(other)} is {' or '.join(map(name_of, values))}",
        )
    elif path == "model.positions":
        idle, reason = get(draft, "model.rope") is not None, "while rotary positions are on"
    elif path == "model.moe.renormalize":
        idle, reason = get(draft, "model.moe.n_expert_per_token") == 1, "with one expert per token"
    elif path == "model.window.size":
        idle, reason = kinds_of_layers(draft) == {"L"}, "while every layer is of kind L"
    elif path in ("train.sample_prompt", "train.sample_tokens"):
        idle, reason = get(draft, "train.sample_every") == 0, "while Sample every is 0"
    else:
        return ""
    return f"No effect {reason}." if idle else ""
