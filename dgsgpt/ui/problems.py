"""What is wrong with a draft, setting by setting, and changes that mend it: pure functions, nothing is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from dgsgpt import strict_yaml
from dgsgpt.config import RunConfig, build_config
from dgsgpt.errors import ConfigError
from dgsgpt.ui.form import SETTINGS, Draft, apply, get, label_of, name_of

_SETTING, _VALUE = r"\b([a-z_]+(?:\.[a-z_0-9]+)+)", r"([^\s,;]+)"
_SWITCHED = {"true": "on", "false": "off"}
_AT_MOST = {
    "model.window.size": "model.block_size",
    "model.moe.n_expert_per_token": "model.moe.n_expert",
    "model.moe.every": "model.n_layer",
}


@dataclass(frozen=True)
class Fix:
    """A change that mends a problem, offered as a button."""

    label: str
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What is wrong with one setting, in words for people, and how it can be mended."""

    path: str
    message: str
    fixes: tuple[Fix, ...] = ()


@dataclass(frozen=True)
class Check:
    """A draft read as a config: the config, or the problems by dotted setting."""

    config: RunConfig | None
    problems: dict[str, Problem]


def check(draft: Draft) -> Check:
    """Read the draft as a config; a draft that breaks rules gives its problems, each with its fixes."""
    try:
        return Check(build_config(draft, "draft"), {})
    except ConfigError as e:
        messages = e.problems or {"": str(e)}
    return Check(None, {p: Problem(p, plain_words(m), find_fixes(draft, p, m)) for p, m in messages.items()})


def plain_words(message: str) -> str:
    """An error's text with settings by their plain names: `model.n_head=5` becomes `Heads 5`."""

    def name(match: re.Match[str]) -> str:
        path, value = match.groups()
        said = _SWITCHED.get(value.lower(), value) if value else ""
        return f"{label_of(path)} {said}".rstrip() if path in SETTINGS else match.group(0)

    return re.sub(rf"{_SETTING}(?:={_VALUE})?", name, message)


def of_text(draft: Draft, message: str) -> Problem:
    """Why a text cannot serve: a problem of the corpus, or of the setting that the message says disagrees with it."""
    path = "data.document_separator"
    if f"{path}=" not in message:
        return Problem("data.corpus", plain_words(message))
    return Problem(path, plain_words(message), find_fixes(draft, path))


def find_fixes(draft: Draft, path: str, message: str = "") -> tuple[Fix, ...]:
    """Changes after which the setting has no problem, nearest first; each is tried before it is offered.

    What the problem's own `message` advises is among them.
    """
    fixes = []
    for value in _candidates(draft, path):
        changed = apply(draft, {path: value})
        if path not in _problem_paths(changed):
            fixes.append(Fix(_label(path, value), {path: value}))
        if len(fixes) == 2:
            break
    fixes += [
        f for f in _advised(path, message) if f not in fixes and path not in _problem_paths(apply(draft, f.overrides))
    ]
    heads, width = get(draft, "model.n_head"), get(draft, "model.n_embd")
    if path == "model.n_head" and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        unit = 2 * heads if get(draft, "model.rope") else heads  # RoPE needs heads of even width
        wider = {"model.n_embd": max(1, round(width / unit)) * unit}
        if path not in _problem_paths(apply(draft, wider)):
            fixes.append(Fix(f"Width {wider['model.n_embd']}", wider))
    return tuple(fixes)


def make_way(draft: Draft, path: str) -> Fix | None:
    """The changes of other settings after which `path` may stay as it is; None where nothing stands in its way."""
    overrides: dict[str, Any] = {}
    while True:
        problems = check(apply(draft, overrides)).problems.values()
        barred = [p for p in problems if label_of(path) in p.message and p.path not in (path, *overrides)]
        steps = [fix.overrides for p in barred for fix in p.fixes if set(fix.overrides) == {p.path}]
        if not steps:
            break
        overrides |= steps[0]
    said = [f"{label_of(p)} {'null' if v is None else _SWITCHED.get(str(v).lower(), v)}" for p, v in overrides.items()]
    return Fix(", ".join(said), overrides) if overrides else None


def _advised(path: str, message: str) -> Iterator[Fix]:
    """The settings that the remedy at the end of an error names, e.g. `…; set train.grad_clip=null or …`."""
    for other, written in re.findall(f"{_SETTING}={_VALUE}", message.rpartition("; ")[2]):
        if other not in SETTINGS:
            continue
        value = strict_yaml.parse(written, other)
        label = _label(other, value)
        yield Fix(
            label if other == path or isinstance(value, bool) else f"{label_of(other)} {name_of(value)}", {other: value}
        )


def _label(path: str, value: Any) -> str:
    """What the button of a new value says."""
    if isinstance(value, bool):
        return f"Turn {'on' if value else 'off'} {label_of(path)}"
    return f"Use {'null' if value is None else name_of(value)}"


def _problem_paths(draft: Draft) -> set[str]:
    try:
        build_config(draft, "draft")
    except ConfigError as e:
        return set(e.problems)
    return set()


def _candidates(draft: Draft, path: str) -> list[Any]:
    """Values worth trying: what the rule between fields suggests first, then bounds, then the default."""
    setting, value = SETTINGS.get(path), get(draft, path)
    if setting is None:
        return []
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = setting.minimum, setting.maximum
        if low is not None and value < low:
            return [setting.type(low), setting.default]
        if high is not None and value > high:
            return [setting.type(high), setting.default]
    if isinstance(value, int) and (whole := _divided_by(draft, path)):
        divisors = [d for d in range(1, min(whole, 4096) + 1) if whole % d == 0]
        below = [d for d in reversed(divisors) if d < value]
        above = [d for d in divisors if d > value]
        return [d for pair in zip_longest(below, above) for d in pair if d is not None]
    if path in _AT_MOST:
        return [get(draft, _AT_MOST[path])]
    return [setting.default] if setting.default is not None or setting.optional else []


def _divided_by(draft: Draft, path: str) -> int | None:
    whole = {"model.n_head": "model.n_embd", "model.n_kv_head": "model.n_head"}.get(path)
    value = get(draft, whole) if whole else None
    return value if isinstance(value, int) and value > 0 else None
