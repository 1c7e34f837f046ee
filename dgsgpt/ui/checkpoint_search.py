"""Which checkpoints a filter and a search leave: by run, name, tag, note, or a setting such as `n_layer=12`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dgsgpt.config import RunConfig
from dgsgpt.rules import flatten, known_paths, nearest

if TYPE_CHECKING:
    from dgsgpt.ui.checkpoint_list import Entry

FILTERS = {
    "all": "All",
    "best": "Best of run",
    "starred": "Starred",
    "week": "This week",
    "imported": "Imported",
    "quantized": "Quantized",
    "damaged": "Damaged",
}
WEEK_S = 7 * 86_400.0
_ON = frozenset({"on", "true", "yes"})
_OFF = frozenset({"off", "none", "null", "false", "no", ""})


def kept_by(entry: Entry, which: str, now: float) -> bool:
    """Whether a filter of `FILTERS` keeps an entry; `now` in Unix seconds."""
    return {
        "all": True,
        "best": entry.best,
        "starred": entry.star,
        "week": now - entry.info.saved_at < WEEK_S,
        "imported": entry.imported is not None,
        "quantized": entry.quantized is not None,
        "damaged": not entry.info.complete,
    }[which]


def filters(found: Sequence[Entry], now: float) -> list[str]:
    """The filters that would keep some of the entries but not all of them, after `all`."""
    counts = {which: sum(kept_by(entry, which, now) for entry in found) for which in FILTERS}
    return [which for which, count in counts.items() if which == "all" or 0 < count < len(found)]


def choose(
    found: Sequence[Entry], which: str, query: str, configs: Mapping[str, RunConfig | None], now: float
) -> list[Entry]:
    """The entries that the filter and the query leave; `configs` by run id."""
    return [e for e in found if kept_by(e, which, now) and matches(e, query, configs.get(e.run.id))]


def matches(entry: Entry, query: str, config: RunConfig | None) -> bool:
    """Whether every word of the query fits: part of the run's id, a name, a tag, the note, or `n_layer=12`."""
    settings = flatten(config.model_dump()) if config and "=" in query else {}
    return all(_word_matches(entry, word.lower(), settings) for word in query.split())


def _word_matches(entry: Entry, word: str, settings: Mapping[str, Any]) -> bool:
    name, eq, value = word.partition("=")
    if any(word in said.lower() for said in entry.words):
        return True
    if not eq:
        return False
    if value in _ON and any(f".{name}." in path for path in settings):  # a section that is on, e.g. moe=on
        return True
    return any(same_value(v, value) for path, v in settings.items() if path == name or path.endswith("." + name))


def same_value(actual: Any, written: str) -> bool:
    """Whether a setting has the value a person wrote: `6e-4` is 0.0006, `off` is None or False."""
    if actual is None or actual is False:
        return written in _OFF
    if actual is True:
        return written in _ON
    if isinstance(actual, int | float):
        try:
            return float(written) == float(actual)
        except ValueError:
            return False
    return str(actual).lower() == written


def unknown_setting(query: str) -> str | None:
    """What is wrong with a query's `name=value` when there is no such setting; None when they all exist."""
    known = {part for path in known_paths(RunConfig) for part in (path, path.rpartition(".")[2])}
    for word in query.lower().split():
        name, eq, _ = word.partition("=")
        if eq and name not in known:
            guess = nearest(name, RunConfig)
            return f"{name} is not a setting" + (f"; did you mean {guess}?" if guess else "")
    return None
