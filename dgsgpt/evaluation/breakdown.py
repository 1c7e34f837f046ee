"""Where in a text a model does well and badly, from what each of its tokens cost: no second pass.

Standard errors are those of a ratio estimator over blocks of text (Cochran 1977, section 6.3), because tokens near each
other are alike: taken token by token they would be too small.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dgsgpt.evaluation.scores import Floats, Integers, Scores, window_blocks

DECILES = 10
BINS = 10
PASSAGE_BYTES = 200
PASSAGES = 5


@dataclass(frozen=True)
class Group:
    """Tokens that have something in common: from `low` to `high` of it.

    `loss` is their mean in nats, with its standard error: None where they all are in one block of the text.
    """

    low: int
    high: int
    tokens: int
    loss: float
    standard_error: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


@dataclass(frozen=True)
class Bin:
    """Tokens whose likeliest prediction had a probability of `low` to `high`.

    `confidence` is the mean of that probability, `accuracy` the share in which this prediction was right.
    """

    low: float
    high: float
    tokens: int
    confidence: float
    accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


@dataclass(frozen=True)
class Passage:
    """A stretch of the text, by its place in bytes, and what it cost in bits per byte.

    It holds whole characters, unless only parts of the text were judged and one of them begins or ends within.
    """

    begin_byte: int
    end_byte: int
    bpb: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


# ---------------------------------------------------------------- groups of tokens
def by_position(scores: Scores) -> tuple[Group, ...]:
    """The loss by how many tokens the model had read before, in buckets that double: 1, 2, 3-4, 5-8 and so on.

    If it falls until the last of them, the model uses all of its context. Windows that overlap judge few tokens with
    little before them, and a stride of 1 only those at the text's beginning.
    """
    number = np.frexp(scores.seen - 1)[1].astype(np.int64)  # the place of the highest bit: exact, unlike a logarithm
    highs = 1 << np.arange(int(number.max()) + 1)
    lows = np.concatenate(([1], highs[:-1] + 1))
    return _groups(scores, number, lows, np.minimum(highs, scores.block_size))


def by_frequency(scores: Scores, counts: Integers) -> tuple[Group, ...]:
    """The loss by how often a token occurs in the text that `counts` [V] are of, the rarest first.

    Each group stands for about a tenth of that text. Tokens that occur equally often are never parted, so there may be
    fewer groups; those that never occur are one of their own.
    """
    often, kind = np.unique(counts, return_inverse=True)
    mass = often * np.bincount(kind)
    middle = np.cumsum(mass) - mass / 2
    decile = np.minimum(DECILES - 1, DECILES * middle // max(1, mass.sum())).astype(np.int64) + 1
    decile[often == 0] = 0
    edges = [often[decile == d] for d in range(DECILES + 1)]
    lows = np.array([part.min() if len(part) else 0 for part in edges])
    highs = np.array([part.max() if len(part) else 0 for part in edges])
    return _groups(scores, decile[kind.reshape(-1)[scores.ids]], lows, highs)


def _groups(scores: Scores, number: Integers, lows: Integers, highs: Integers) -> tuple[Group, ...]:
    """The groups that tokens with `number` [n] make; those without any are left out."""
    blocks = window_blocks([scores])
    size = len(lows) * blocks.count
    cell = number * blocks.count + blocks.of[0]
    sums = np.bincount(cell, weights=scores.nats, minlength=size).reshape(-1, blocks.count)
    counts = np.bincount(cell, minlength=size).reshape(-1, blocks.count)
    return tuple(
        Group(int(lows[g]), int(highs[g]), int(counts[g].sum()), *_mean(sums[g], counts[g]))
        for g in range(len(lows))
        if counts[g].any()
    )


def _mean(sums: Floats, counts: npt.NDArray[Any]) -> tuple[float, float | None]:
    """The mean of all from sums and counts by block [K], and its standard error."""
    kept = counts > 0
    total, n_blocks = counts.sum(), int(kept.sum())
    mean = float(sums.sum() / total)
    if n_blocks < 2:
        return mean, None
    spread = float(np.square(sums[kept] - mean * counts[kept]).sum())
    return mean, math.sqrt(n_blocks / (n_blocks - 1) * spread) / float(total)


# ---------------------------------------------------------------- calibration
def calibration(scores: Scores) -> tuple[tuple[Bin, ...], float]:
    """How sure the model is beside how often it is right, and the expected calibration error, 0 to 1.

    The error is the mean distance of the two, over ten bins of equal width (Guo et al. 2017, equation 3).
    """
    top = scores.top.astype(np.float64)
    number = np.minimum(BINS - 1, (top * BINS).astype(np.int64))
    counts = np.bincount(number, minlength=BINS)
    confidence = np.bincount(number, weights=top, minlength=BINS)
    right = np.bincount(number, weights=scores.right, minlength=BINS)
    error = float(np.abs(right - confidence).sum() / len(top))
    return tuple(
        Bin(i / BINS, (i + 1) / BINS, int(counts[i]), float(confidence[i] / counts[i]), float(right[i] / counts[i]))
        for i in range(BINS)
        if counts[i]
    ), error


# ---------------------------------------------------------------- passages
def passages(scores: Scores) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """The hardest and the easiest stretches of about 200 bytes, at most five of each and none in both."""
    number = _stretches(scores)
    begins = scores.begins[np.unique(number, return_index=True)[1]]
    ends = np.append(scores.ends[np.flatnonzero(np.diff(number))], scores.ends[-1])
    sizes = ends - begins
    bits = np.bincount(number, weights=scores.nats) / math.log(2)
    full = np.flatnonzero(sizes >= min(PASSAGE_BYTES // 2, int(sizes.max())))
    full = full[sizes[full] > 0]  # nothing but special tokens
    ordered = full[np.argsort(-bits[full] / sizes[full], kind="stable")]
    few = min(PASSAGES, len(ordered) // 2)

    def shown(which: Integers) -> tuple[Passage, ...]:
        return tuple(
            Passage(
                int(begins[i]), int(ends[i]), float(bits[i] / sizes[i]),
                scores.data[begins[i] : ends[i]].decode("utf-8", "replace"),
            )
            for i in which
        )  # fmt: skip

    return shown(ordered[: max(few, 1)]), shown(ordered[::-1][:few])


def _stretches(scores: Scores) -> Integers:
    """Of each token [n] the number of its stretch: one ends at a token that begins a character, or at a gap."""
    raw = np.frombuffer(scores.data + b"a", np.uint8)
    whole = raw[scores.begins] & 0xC0 != 0x80  # a byte 10xxxxxx goes on with a character
    gap = np.append(True, scores.begins[1:] != scores.ends[:-1])
    start = np.maximum.accumulate(np.where(whole | gap, np.arange(len(whole)), 0))  # the token it goes with
    bucket = scores.begins[start] // PASSAGE_BYTES
    new = np.append(False, (np.diff(bucket) != 0) | gap[1:])
    numbers: Integers = np.cumsum(new, dtype=np.int64)
    return numbers


__all__ = ["Bin", "Group", "Passage", "by_frequency", "by_position", "calibration", "passages"]
