"""Reading config.json: bounded, an object without duplicate keys, every key either used, known to be harmless, or told.

What the file says and dgsgpt does not have is refused by key and value. Nothing that it names is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dgsgpt.data.text import shown
from dgsgpt.errors import CheckpointError
from dgsgpt.interop.hf_families import HARMLESS, ONLY_NEUTRAL

MAX_CONFIG_BYTES = 4_000_000
MAX_TOLD = 20  # unknown keys
LARGEST = 1e300  # a larger number is none, or infinity
_NEEDED: Any = object()


def refuse(source: Path, key: str, value: Any, why: str) -> CheckpointError:
    """The error for a value that dgsgpt does not have."""
    return CheckpointError(f"{shown(source)}: {key}={shorten(value)} cannot be imported: {why}")


def shorten(value: Any) -> str:
    """A value of someone else's file, for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def read_object(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a JSON file of someone else's.

    Raises:
        CheckpointError: the file is missing, too large, not JSON, not an object, or names a key twice.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{shown(path)}: no such file; a Hugging Face model has one beside its weights")
        if path.stat().st_size > limit:
            raise CheckpointError(f"{shown(path)}: {path.stat().st_size:,} bytes are over the limit of {limit:,}")
        return parse_object(path.read_bytes(), path)
    except OSError as e:
        raise CheckpointError(f"{shown(path)}: cannot be read: {e.strerror or e}") from e


def parse_object(data: bytes, source: Path) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        CheckpointError: it is not JSON, not an object, or names a key twice.
    """
    try:
        value = json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        reason = str(e) if isinstance(e, ValueError) else "nested too deeply"
        raise CheckpointError(f"{shown(source)}: is not JSON as it should be: {reason}; get the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{shown(source)}: is not a JSON object; get the file again")
    return value


def _without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shorten(key)} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number JSON has")


class Keys:
    """A JSON object whose keys are taken one by one; what nobody took is told at the end."""

    def __init__(self, values: dict[str, Any], source: Path, prefix: str = "") -> None:
        self.values, self.source, self.prefix = values, source, prefix
        self.taken: set[str] = set()

    def take(self, key: str, default: Any = _NEEDED) -> Any:
        """The value of `key`; null counts as missing where there is a default.

        Raises:
            CheckpointError: it is missing and needed.
        """
        self.taken.add(key)
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _NEEDED:
            raise CheckpointError(f"{shown(self.source)}: {self.prefix}{key} is missing; the file is not complete")
        return default

    def whole(self, key: str, default: Any = _NEEDED) -> Any:
        """A whole number, or the default."""
        return self._number(key, default, "a whole number", isinstance(self.values.get(key), int))

    def number(self, key: str, default: Any = _NEEDED) -> Any:
        """A number as float, or the default."""
        value = self._number(key, default, "a number", True)
        return float(value) if isinstance(value, int) else value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise refuse(self.source, self.prefix + key, value, "it must be true or false")
        return value

    def _number(self, key: str, default: Any, rule: str, of_kind: bool) -> Any:
        value = self.take(key, default)
        if value is default:
            return value
        if not of_kind or isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
            raise refuse(self.source, self.prefix + key, value, f"it must be {rule}")
        return value

    def finish(self) -> list[str]:
        """Refuse what changes the network, and describe what is left over.

        Raises:
            CheckpointError: a key that dgsgpt has nothing for, at a value that matters.
        """
        unknown: list[str] = []
        for key in sorted(set(self.values) - self.taken):
            value = self.values[key]
            neutral, why = ONLY_NEUTRAL.get(key, ((), ""))
            if key in ONLY_NEUTRAL:
                if not any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral):
                    raise refuse(self.source, self.prefix + key, value, why)
            elif key not in HARMLESS and value is not None:
                unknown.append(f"{shown(key)}={shorten(value)}")
        notes = [f"config.json: {said} is not known here and was left out of account." for said in unknown[:MAX_TOLD]]
        if len(unknown) > MAX_TOLD:
            notes.append(f"config.json: {len(unknown) - MAX_TOLD:,} more keys are not known here either.")
        return notes
