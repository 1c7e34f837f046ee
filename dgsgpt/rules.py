"""What the schema needs beside itself: errors a person can act on, overrides, the list of settings.

Nothing here knows a particular field; everything is read off the schema's classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from dgsgpt import strict_yaml
from dgsgpt.errors import ConfigError

Tier = Literal["basic", "advanced", "expert"]


class Section(BaseModel):
    """A group of settings: unchangeable, with no unknown keys, no NaN and no guessed types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def setting(default: Any, help: str, *, tier: Tier = "advanced", unit: str | None = None, **bounds: Any) -> Any:
    """A field of the schema: its default, one sentence of help, tier, unit and bounds."""
    return Field(default, description=help, json_schema_extra={"tier": tier, "unit": unit}, **bounds)


@dataclass(frozen=True)
class Setting:
    """One leaf or optional section of the schema, as forms and documentation see it."""

    path: str
    type: type
    default: Any
    help: str
    tier: Tier
    unit: str | None
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    optional: bool
    section: bool


# ---------------------------------------------------------------- reading the schema
def section_of(annotation: Any) -> type[BaseModel] | None:
    """The sub-config class behind `X` or `X | None`, or None for a plain value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def list_settings(schema: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Every setting of the schema, depth first, in the order written."""
    for name, field in schema.model_fields.items():
        path = prefix + name
        sub = section_of(field.annotation)
        optional = NoneType in get_args(field.annotation)
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        plain = field.annotation
        if get_origin(plain) not in (None, Literal):
            plain = next(a for a in get_args(plain) if a is not NoneType)
        bounds = {
            k: getattr(m, k)
            for m in field.metadata
            for k in ("ge", "gt", "le", "lt")
            if getattr(m, k, None) is not None
        }
        default = field.default if field.default is not PydanticUndefined else None
        if sub is None or optional:
            yield Setting(
                path=path,
                type=str if get_origin(plain) is Literal else plain if isinstance(plain, type) else str,
                default=default,
                help=field.description or "",
                tier=extra.get("tier", "advanced"),  # type: ignore[arg-type]
                unit=extra.get("unit"),  # type: ignore[arg-type]
                choices=tuple(str(a) for a in get_args(plain)) if get_origin(plain) is Literal else (),
                minimum=bounds.get("ge", bounds.get("gt")),
                maximum=bounds.get("le", bounds.get("lt")),
                optional=optional,
                section=sub is not None,
            )
        if sub is not None:
            yield from list_settings(sub, path + ".")


def known_paths(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of every section and leaf."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        sub = section_of(field.annotation)
        if sub is not None:
            yield from known_paths(sub, prefix + name + ".")


def nearest(path: str, schema: type[BaseModel]) -> str | None:
    """The known setting a person most likely meant by `path`, or None."""
    paths = list(known_paths(schema))
    leaf = path.rsplit(".", 1)[-1]
    leaves = {p.rsplit(".", 1)[-1]: p for p in reversed(paths)}
    if leaf in leaves:  # a right name in the wrong section is the commonest slip: `train.n_layer`
        return leaves[leaf]
    close = difflib.get_close_matches(path, paths, 1, 0.7)
    if close:
        return close[0]
    close = difflib.get_close_matches(leaf, list(leaves), 1, 0.7)
    return leaves[close[0]] if close else None


def unknown_key(path: str, schema: type[BaseModel]) -> str:
    """The message for a key the schema does not have."""
    guess = nearest(path, schema)
    return f"{path} is not a setting" + (f"; did you mean {guess}?" if guess else "")


# ---------------------------------------------------------------- values between plain dicts
def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as `{"model.n_layer": 4, …}`; an off section stays as `{"model.moe": None}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings in which two nested configs differ, as `{path: (in a, in b)}`; absent counts as None."""
    fa, fb = flatten(a), flatten(b)
    return {k: (fa.get(k), fb.get(k)) for k in sorted({*fa, *fb}) if fa.get(k) != fb.get(k)}


def nest_override(values: Mapping[str, Any], override: str, schema: type[BaseModel]) -> dict[str, Any]:
    """A copy of `values` with one `section.key=value` applied; the value is read as YAML.

    Raises:
        ConfigError: no `=`, or a setting the schema does not have.
    """
    path, eq, text = override.partition("=")
    path = path.strip()
    if not eq or not path:
        raise ConfigError(f"--set {override!r} must look like section.key=value, e.g. model.n_layer=6")
    if path not in set(known_paths(schema)):
        raise ConfigError(f"--set {unknown_key(path, schema)}", {path: "unknown"})
    return put(values, path, strict_yaml.parse(text, f"--set {path}"))


def put(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of nested `values` with `path` set; sections on the way that are off are switched on."""
    head, dot, rest = path.partition(".")
    copy = dict(values)
    if not dot:
        copy[head] = value
    else:
        inner = copy.get(head)
        copy[head] = put(inner if isinstance(inner, Mapping) else {}, rest, value)
    return copy


# ---------------------------------------------------------------- errors
def explain(error: ValidationError, schema: type[BaseModel], source: str) -> ConfigError:
    """pydantic's report as one line: first problem in full, how many more, all of them in `.problems`."""
    messages: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        path, message = _message(detail, schema)
        messages.setdefault(path, message)
    lines = list(messages.values())
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return ConfigError(f"{source}: {lines[0]}{more}", messages)


def _message(detail: ErrorDetails, schema: type[BaseModel]) -> tuple[str, str]:
    path = ".".join(str(p) for p in detail["loc"])
    ctx = detail.get("ctx", {})
    value = detail["input"]
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "…"
    kind = detail["type"]
    if kind == "extra_forbidden":
        return path, unknown_key(path, schema)
    if kind == "value_error":  # a rule between fields: its text names the field first
        text = str(ctx.get("error", detail["msg"]))
        return text.partition("=")[0].strip() or path, text
    if kind == "literal_error":
        return path, f"{path}={shown} must be {ctx['expected']}"
    if kind == "string_pattern_mismatch":
        return path, f"{path}={shown} must be 1 to 64 letters S (sliding), L (long) or B (both), e.g. SSSL"
    rules = {
        "greater_than_equal": "at least {ge}",
        "greater_than": "greater than {gt}",
        "less_than_equal": "at most {le}",
        "less_than": "less than {lt}",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "string_too_short": "text that is not empty",
        "string_too_long": "text of at most {max_length} characters",
        "model_type": "a section with settings of its own, or null",
        "model_attributes_type": "a section with settings of its own",
    }
    rule = rules.get(kind)
    return path, f"{path}={shown} must be {rule.format(**ctx)}" if rule else f"{path}={shown}: {detail['msg']}"


def nearby_divisors(n: int, wanted: int) -> str:
    """The divisors of `n` just below and above `wanted`, for an error's remedy."""
    divisors = [d for d in range(1, min(n, 4096) + 1) if n % d == 0]
    below = max((d for d in divisors if d < wanted), default=None)
    above = min((d for d in divisors if d > wanted), default=None)
    return " or ".join(str(d) for d in (below, above) if d is not None)


__all__ = [
    "Section",
    "Setting",
    "Tier",
    "differences",
    "explain",
    "flatten",
    "known_paths",
    "list_settings",
    "nearest",
    "nest_override",
    "put",
    "setting",
]
