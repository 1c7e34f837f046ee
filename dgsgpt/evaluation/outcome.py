"""What a paired comparison gives: figures, differences with their intervals, and what they come to in words."""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dgsgpt import format as fmt
from dgsgpt.evaluation.scores import Floats, Scores

DRAWS = 10_000
LEAST_BLOCKS = 6
_DRAWN_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Figures:
    """One model's figures; None where they would mean nothing beside the others'.

    `loss`, `rare` and `late` are means in nats per token, of all tokens, of rare ones, and of those in the last quarter
    of their window; `bpb` are bits per byte. `context_bytes` is what a window of `block_size` tokens holds on average.
    """

    letter: str
    name: str
    loss: float | None
    ppl: float | None
    bpb: float | None
    rare: float | None
    late: float | None
    tokens: int
    block_size: int
    context_bytes: float


@dataclass(frozen=True)
class Difference:
    """The first model minus another, and its 95 % interval: below zero the first is better."""

    value: float
    low: float
    high: float
    blocks: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Pair:
    """The first model against another: differences by figure (bpb, loss, rare, late), and what they come to."""

    letter: str
    differences: Mapping[str, Difference | None]
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison found. `sha256` is over what `hashed` says; `scores` are for colouring."""

    models: tuple[Figures, ...]
    pairs: tuple[Pair, ...]
    same_tokenizer: bool
    sha256: str
    hashed: str
    tokens: int
    bytes: int
    blocks: int
    block_rule: str
    text_rule: str
    window_rule: str
    rare_rule: str | None
    draws: int
    seed: int
    warnings: tuple[str, ...]
    caveat: str
    scores: tuple[Scores, ...]

    @property
    def data(self) -> builtins.bytes:
        """The text's UTF-8 bytes, which the places of spans count."""
        return self.scores[0].data

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the scores of single tokens."""
        plain = asdict(replace(self, scores=()))
        del plain["scores"]
        plain["models"] = [{key: _finite(value) for key, value in model.items()} for model in plain["models"]]
        return plain


@dataclass(frozen=True)
class Span:
    """Bytes of the text and what each of two models paid for them, in nats."""

    start_byte: int
    end_byte: int
    nats_a: float
    nats_b: float


# ---------------------------------------------------------------- the interval
def bootstrap(differences: Floats, sizes: Floats, draws: int = DRAWS, seed: int = 0) -> tuple[Floats, Floats]:
    """95 % percentile intervals of sum(differences) / sum(sizes) over blocks drawn with replacement.

    `differences` [n, k] and `sizes` [n] are sums by block, n blocks and k quantities that share the draws. Returns the
    lower and the upper ends [k]: order statistics that leave out as many draws below as above, so that changing the
    sign of a difference changes the sign of its interval and nothing else.
    """
    generator = np.random.default_rng(seed)
    n = len(sizes)
    values = np.empty((draws, differences.shape[1]))
    at_once = max(1, _DRAWN_AT_ONCE // n)
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        drawn = generator.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        values[first : first + rows] = (times @ differences) / (times @ sizes)[:, None]
    values.sort(axis=0)
    outside = max(1, int(0.025 * draws))
    return values[outside - 1], values[draws - outside]


def differences_of(sums: Floats, sizes: Floats, draws: int, seed: int) -> list[Difference | None]:
    """The first model minus each other; None where too few blocks have anything of the kind."""
    kept = sizes > 0
    gaps = (sums[:, :1] - sums[:, 1:])[kept]
    if len(gaps) < LEAST_BLOCKS:
        return [None] * gaps.shape[1]
    low, high = bootstrap(gaps, sizes[kept], draws, seed)
    means = gaps.sum(0) / sizes.sum()
    return [Difference(float(m), float(a), float(b), len(gaps)) for m, a, b in zip(means, low, high, strict=True)]


# ---------------------------------------------------------------- in words
def verdict_of(letter: str, main: Difference | None, figure: str, identical: bool) -> tuple[str, str]:
    """A verdict in three words and in a sentence, by the loss or, where tokenizers differ, by bits per byte."""
    assert main is not None, "every block has tokens and bytes"
    if identical:
        return "identical", f"A and {letter} are identical here: both give every token the same probability."
    unit = "nats per token" if figure == "loss" else "bits per byte"
    digits = 4 if max(abs(main.low), abs(main.high)) >= 0.01 else 6
    if not main.shown:
        interval = f"{fmt.signed(main.low, digits)} to {fmt.signed(main.high, digits)}"
        return "no difference shown", (
            f"No difference between A and {letter} is shown: A minus {letter} is {fmt.signed(main.value, digits)} "
            f"{unit}, and the 95 % interval, {interval}, holds zero."
        )
    better, worse = ("A", letter) if main.value < 0 else (letter, "A")
    ends = sorted((abs(main.low), abs(main.high)))
    return f"{better} is better", (
        f"{better} is better than {worse} by {fmt.number(abs(main.value), digits)} {unit} "
        f"(95 % interval {fmt.number(ends[0], digits)} to {fmt.number(ends[1], digits)})."
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
