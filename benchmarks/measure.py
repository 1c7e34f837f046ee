"""Measuring: sides run in turn, their times and ratios, the memory that one of them needs."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

MIN_ROUNDS = 3  # a median with its minimum and maximum takes as many


def _nothing() -> None:
    """No preparation, nothing to clear up."""


@dataclass(frozen=True)
class Side:
    """One of the things compared; `run` does it once. What is done `before` and `after` it is not timed."""

    name: str
    run: Callable[[], None]
    before: Callable[[], None] = _nothing
    after: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Timing:
    """Seconds that a side took in each round, in the order measured."""

    times_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.times_s)

    @property
    def min_s(self) -> float:
        """The fastest round."""
        return min(self.times_s)

    @property
    def max_s(self) -> float:
        """The slowest round."""
        return max(self.times_s)


@dataclass(frozen=True)
class Ratio:
    """How many times as long one side took as another."""

    value: float  # median of the ratios of single rounds: what slows a whole round down cancels out
    low: float  # smallest of them
    high: float  # largest of them
    of_medians: float  # the one side's median over the other's


def compare(of: Timing, to: Timing) -> Ratio:
    """The time of `of` in units of `to`, round by round."""
    rounds = [a / b for a, b in zip(of.times_s, to.times_s, strict=True)]
    return Ratio(statistics.median(rounds), min(rounds), max(rounds), of.median_s / to.median_s)


def interleave(
    sides: Sequence[Side],
    seconds: float,
    *,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    min_rounds: int = MIN_ROUNDS,
) -> dict[str, Timing]:
    """Run the sides in turn, A B A B …, after one round that is not counted, until `seconds` are used up.

    A round that has begun is ended, and there are at least `min_rounds`. `synchronize` waits for what a side has
    left running on a GPU, so that it is counted as its own time.
    """
    for side in sides:
        _seconds(side, synchronize, clock)
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    assert len(times) == len(sides), "two sides have one name"
    rounds, begun = 0, clock()
    while rounds < min_rounds or clock() - begun < seconds:
        for side in sides:
            times[side.name].append(_seconds(side, synchronize, clock))
        rounds += 1
    return {name: Timing(tuple(taken)) for name, taken in times.items()}


def _seconds(side: Side, synchronize: Callable[[], None], clock: Callable[[], float]) -> float:
    """What one run of `side` takes; nothing else is left running on a GPU when it begins."""
    side.before()
    synchronize()
    begun = clock()
    side.run()
    synchronize()
    seconds = clock() - begun
    side.after()
    return seconds


@dataclass(frozen=True)
class Setup:
    """Where and how long a benchmark measures."""

    device: torch.device
    seconds: float  # for each pair that is compared
    quick: bool = False  # tiny shapes, to see that it runs

    def time(self, sides: Sequence[Side]) -> dict[str, Timing]:
        """Times of all sides; the budget grows with the number of pairs, each side against the first."""
        gc.collect()
        return interleave(sides, self.seconds * max(1, len(sides) - 1), synchronize=self.synchronize)

    def synchronize(self) -> None:
        """Wait until the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Most bytes that torch allocates at once during `run`, beside what was there before."""
        return self.memory(run)[0]

    def memory(self, run: Callable[[], object]) -> tuple[int, int]:
        """Peak bytes during `run`, and bytes still there after it while its result is; beside what was there before.

        As torch's allocators count them: tensors and what operators use inside themselves.
        """
        gc.collect()
        return _cuda_memory(run, self.device) if self.device.type == "cuda" else _cpu_memory(run)


def _cuda_memory(run: Callable[[], object], device: torch.device) -> tuple[int, int]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    torch.cuda.synchronize(device)
    after = torch.cuda.memory_allocated(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before, after - before


def _cpu_memory(run: Callable[[], object]) -> tuple[int, int]:
    """From the profiler's record of every allocation and release: a CPU's allocator keeps no peak."""
    # The profiler announces its start and stop on stderr; this is above the level of these messages.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        result = run()
    del result
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    changes = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    levels = list(accumulate(e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())))
    return max(levels, default=0), levels[-1] if levels else 0
