"""How long a config will take on this machine: from the best that was measured here, never from a guess.

In order: a dry run of exactly these steps, a run like it, the calibration, another run on the same device that is not
of quite another size.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dgsgpt import dry_run
from dgsgpt.calibrate import Calibration, expected, pass_flops, read_calibration
from dgsgpt.config import RunConfig
from dgsgpt.costs import count_flops_per_token, settled_device
from dgsgpt.errors import ConfigError
from dgsgpt.hardware import Hardware
from dgsgpt.metrics import MetricsTail
from dgsgpt.runs import Run

_RECENT_RUNS = 8
_RECENT_READINGS = 20
_ALIKE = 4.0  # times more or less arithmetic in a pass
_FAR = 30.0  # beyond it a run tells nothing: tiny passes are all overhead
_SAME = ("optimizer", "precision", "weight_precision", "gradient_checkpointing", "compile", "device")
Readings = Callable[[Run], Iterable[float]]  # tokens per second that a run logged


@dataclass(frozen=True)
class Speed:
    """FLOPs per second to expect, how slow and fast it may be, and where that is from."""

    flops_per_s: float
    slow: float
    fast: float
    kind: str  # dry run, run, calibration or other run
    source: str  # in words, after "by" or "at the speed of"
    at: float | None = None  # when it was measured, in Unix seconds


@dataclass(frozen=True)
class Duration:
    """Seconds a run may take, and the band."""

    seconds: float
    low: float
    high: float


# ---------------------------------------------------------------- arithmetic
def arithmetic_per_token(config: RunConfig) -> float:
    """FLOPs a training token costs, with what full gradient checkpointing computes a second time."""
    flops = float(count_flops_per_token(config.model))
    if config.train.gradient_checkpointing == "full":
        flops += count_flops_per_token(config.model, blocks_only=True) / 3  # forward is a third of forward and backward
    return flops


def step_flops(config: RunConfig) -> float:
    """FLOPs of one optimizer step."""
    return arithmetic_per_token(config) * config.tokens_per_step


def run_flops(config: RunConfig) -> float:
    """FLOPs of the whole run, validations on the way among them: a forward pass each over `eval_tokens`."""
    train = config.train
    judged = train.steps // train.eval_every * train.eval_tokens if train.eval_every else 0
    return step_flops(config) * train.steps + judged * count_flops_per_token(config.model) / 3


def duration_of(config: RunConfig, speed: Speed) -> Duration:
    """How long the run may take at this speed: steps and validations, without saving."""
    flops = run_flops(config)
    return Duration(flops / speed.flops_per_s, flops / speed.fast, flops / speed.slow)


def report(config: RunConfig, speed: Speed | None) -> dict[str, Any] | None:
    """What `dgsgpt plan --json` gives as `time`; None where nothing was measured."""
    if speed is None:
        return None
    found = duration_of(config, speed)
    return {
        "seconds": found.seconds,
        "low_s": found.low,
        "high_s": found.high,
        "step_s": step_flops(config) / speed.flops_per_s,
        "source": speed.source,
    }


# ---------------------------------------------------------------- where a speed is from
def readings_of(run: Run) -> Sequence[float]:
    """Tokens per second that a run logged, from its file."""
    tail = MetricsTail(run.path)
    tail.refresh()
    frame = tail.frame
    return [float(v) for v in frame["perf/tokens_per_s"].dropna()] if "perf/tokens_per_s" in frame else []


@dataclass(frozen=True)
class Evidence:
    """All that was measured on this machine: dry runs, runs (both the newest first) and its calibration."""

    machine: Hardware
    past: Sequence[dry_run.DryRun]
    measured: Sequence[tuple[RunConfig, Speed]]
    calibration: Calibration | None

    def speed_of(self, config: RunConfig) -> Speed | None:
        """The best speed known for a config, or None: then no time is claimed."""
        return choose(config, tried(config, self.machine, self.past), self.measured, self.calibration)


def gather(machine: Hardware, root: Path, runs: Iterable[Run], readings: Readings = readings_of) -> Evidence:
    """Everything that was measured here."""
    measured = list(_measured(runs, machine, readings))
    return Evidence(machine, dry_run.history(root), measured, read_calibration(root, machine))


def choose(
    config: RunConfig, tried: Speed | None, measured: Sequence[tuple[RunConfig, Speed]], known: Calibration | None
) -> Speed | None:
    """The first that there is: a dry run, a run like it (the newest first), the calibration, a run not far off."""
    if tried is not None:
        return tried
    like = next((speed for other, speed in measured if alike(config, other)), None)
    if like is not None:
        return like
    band = expected(known, config) if known is not None else None
    if known is not None and band is not None:
        return Speed(band.flops_per_s, band.slow, band.fast, "calibration", "the calibration", known.measured_at)
    return next((speed for other, speed in measured if 1 / _FAR <= _times(config, other) <= _FAR), None)


def tried(config: RunConfig, machine: Hardware, past: Sequence[dry_run.DryRun]) -> Speed | None:
    """The speed of the newest dry run of exactly these steps on this device."""
    wanted, device = dry_run.fingerprint(config), settled_device(config, machine.device)
    name = machine.name if device == machine.device else machine.cpu_name
    for run in past:
        if run.fingerprint == wanted and run.step_s and run.name == name:
            flops = step_flops(config)
            return Speed(
                flops / run.step_s, flops / max(run.timed), flops / min(run.timed), "dry run", "a dry run", run.at
            )
    return None


def alike(config: RunConfig, other: RunConfig) -> bool:
    """Whether two configs compute in the same way, on passes of about the same size."""
    ratio = _times(config, other)
    same = all(getattr(config.train, name) == getattr(other.train, name) for name in _SAME)
    return same and (config.model.moe is None) == (other.model.moe is None) and 1 / _ALIKE <= ratio <= _ALIKE


def _times(config: RunConfig, other: RunConfig) -> float:
    """How many times the arithmetic of a pass of `other` one of `config` takes."""
    return pass_flops(config) / pass_flops(other)


def _measured(runs: Iterable[Run], machine: Hardware, readings: Readings) -> Iterable[tuple[RunConfig, Speed]]:
    """The newest runs on the same device that measured their speed, the newest first."""
    for run in islice(runs, _RECENT_RUNS):
        if run.facts.get("hardware", {}).get("name") != machine.name:
            continue
        found = [float(r) for r in list(readings(run))[-_RECENT_READINGS:] if r > 0]
        try:
            config = run.config
        except ConfigError:  # of another version
            continue
        if found:
            ordered, flops = sorted(found), arithmetic_per_token(config)
            tenth = len(ordered) // 10
            # The middle of the last readings: validations and saves make single ones slow.
            middle = statistics.median(ordered)
            yield (
                config,
                Speed(
                    flops * middle, flops * ordered[tenth], flops * ordered[-1 - tenth], "run", run.id, run.created_at
                ),
            )
