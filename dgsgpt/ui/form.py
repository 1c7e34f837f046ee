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
from dgsgpt.ui.labels import LABELS as LABELS
from dgsgpt.ui.labels import NAMES as NAMES
from dgsgpt.ui.labels import label_of as label_of
from dgsgpt.ui.labels import name_of as name_of

Draft = dict[str, Any]
SETTINGS: dict[str, Setting] = {s.path: s for s in list_settings(RunConfig) if s.path != "schema_version"}


# ---------------------------------------------------------------- reading and changing a draft
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
    return [s for s in SETTINGS.values() if all(word in _searched(s) for word in words)]


def _searched(setting: Setting) -> str:
    names = (*setting.choices, *map(name_of, setting.choices))
    return f"{setting.path} {label_of(setting.path)} {setting.help} {' '.join(names)}".lower()


# ---------------------------------------------------------------- sections that are off
def off_section(draft: Draft, path: str) -> str | None:
    """The outermost section around a setting that is off, or None when all are on."""
    parts = path.split(".")
    sections = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((section for section in sections if get(draft, section) is None), None)


def is_shown(draft: Draft, path: str) -> bool:
    """Whether the sections around a setting are on."""
    return off_section(draft, path) is None
