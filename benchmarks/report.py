"""What a benchmark found: cases of sides and figures, as JSON values and as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.measure import Timing, compare
from dgsgpt.format import number, si, size


@dataclass(frozen=True)
class Target:
    """The bound that a figure is held to."""

    id: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        """Whether `value` keeps within the bounds."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        low = [] if self.at_least is None else [f"at least {self.at_least:g}"]
        high = [] if self.at_most is None else [f"at most {self.at_most:g}"]
        return f"{self.id} {' and '.join(low + high)}"


@dataclass(frozen=True)
class Figure:
    """One number that a case ends in; a ratio of times has the extremes of its rounds."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    of_medians: float | None = None
    sides: tuple[str, str] | None = None  # of a ratio of times: whose time, in units of whose
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.target.met(self.value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the recorded JSON."""
        return {**asdict(self), "met": self.met}

    def __str__(self) -> str:
        spread = "" if self.low is None or self.high is None else f" ({self.low:.2f} to {self.high:.2f})"
        verdict = "" if self.target is None else f", target {self.target}: {'met' if self.met else 'not met'}"
        return f"{self.name}: {self.value:.2f}{spread}{verdict}"


@dataclass
class Case:
    """One comparison: what was set, each side's times and facts, and the figures drawn from them."""

    name: str
    settings: dict[str, Any]
    times: dict[str, Timing]
    facts: dict[str, dict[str, float]] = field(default_factory=dict)  # by side: peak_bytes, tokens_per_s, …
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_ratio(self, name: str, of: str, to: str, target: Target | None = None) -> None:
        """Add the time of the side `of` in units of that of the side `to` to the figures."""
        ratio = compare(self.times[of], self.times[to])
        self.figures.append(Figure(name, ratio.value, ratio.low, ratio.high, ratio.of_medians, (of, to), target))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the recorded JSON."""
        return {
            "case": self.name,
            "settings": self.settings,
            "sides": {name: self._side(name) for name in self.times},
            "figures": [figure.to_dict() for figure in self.figures],
            "notes": self.notes,
        }

    def _side(self, name: str) -> dict[str, Any]:
        t = self.times[name]
        return {
            "median_s": t.median_s,
            "min_s": t.min_s,
            "max_s": t.max_s,
            "rounds": len(t.times_s),
            "times_s": list(t.times_s),
            **self.facts.get(name, {}),
        }

    def lines(self) -> Iterator[str]:
        """The case as text: a line for each side, then for each figure and note."""
        rounds = {len(t.times_s) for t in self.times.values()}  # one number, unless the sides ran apart
        yield f"{self.name} ({rounds.pop()} rounds)" if len(rounds) == 1 else self.name
        width = max((len(name) for name in self.times), default=0)
        for name, t in self.times.items():
            spread = f"({milliseconds(t.min_s)} to {milliseconds(t.max_s)})"
            facts = "".join(f"  {_fact(key, value)}" for key, value in self.facts.get(name, {}).items())
            yield f"  {name:{width}}  {milliseconds(t.median_s):>9} ms  {spread}{facts}"
        yield from (f"  {figure}" for figure in self.figures)
        yield from (f"  {note}" for note in self.notes)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, to a hundredth where they are few."""
    return number(1000 * seconds, 2 if seconds < 0.1 else 0)


def _fact(key: str, value: float) -> str:
    """A side's fact by the unit in its name, e.g. `peak 12 MiB`, `1.2k tokens/s`."""
    if key.endswith("_bytes"):
        return f"{key.removesuffix('_bytes').replace('_', ' ')} {size(value)}"
    if key.endswith("_per_s"):
        return f"{si(value)} {key.removesuffix('_per_s')}/s"
    if key.endswith("_s"):
        return f"{key.removesuffix('_s').replace('_', ' ')} {number(value, 1)} s"
    return f"{key.replace('_', ' ')} {number(value)}"
