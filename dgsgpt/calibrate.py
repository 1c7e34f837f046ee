"""How fast this machine trains: measured once by a process of its own, kept beside the runs, read to estimate times.

Two models of very different size take real training steps, in each precision that the device computes natively. What
lies between them is interpolated; what lies outside is said to be as fast as the nearer one.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgsgpt import files
from dgsgpt.config import RunConfig
from dgsgpt.costs import count_flops_per_token, settled_device
from dgsgpt.errors import RunError
from dgsgpt.hardware import Hardware
from dgsgpt.heap import keep_memory
from dgsgpt.supervise import child_environment
from dgsgpt.threads import wait_politely

FILE = ".calibration.json"
SECONDS = 2.0  # of steps for each model and precision
WORKER = (sys.executable, "-m", "dgsgpt.train.speed")
_ENDING_S = 5.0


# ---------------------------------------------------------------- what was measured
@dataclass(frozen=True)
class Rate:
    """FLOPs per second of training steps of one model: the median step, and the 10th and 90th percentile."""

    model: str
    precision: str
    params: int
    pass_flops: float  # of one micro-batch, forward and backward
    flops_per_s: float
    slow: float
    fast: float
    steps: int


@dataclass(frozen=True)
class Calibration:
    """All rates of one machine, and when and with what they were measured; `load` is the share others used before."""

    measured_at: float
    device: str  # cpu or cuda
    name: str
    threads: int
    torch: str
    load: float
    rates: tuple[Rate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "rates": [asdict(rate) for rate in self.rates]}


@dataclass(frozen=True)
class Band:
    """FLOPs per second that may be expected: the likely one, and how slow and fast it may be."""

    flops_per_s: float
    slow: float
    fast: float


def read_calibration(root: Path, machine: Hardware) -> Calibration | None:
    """The calibration of this machine's training device; None where there is none, or only one of another device."""
    found = _from_dict(files.read_json(root / FILE))
    return found if found is not None and (found.device, found.name) == (machine.device, machine.name) else None


def _from_dict(values: dict[str, Any] | None) -> Calibration | None:
    try:
        rates = tuple(Rate(**rate) for rate in (values or {})["rates"])
        found = Calibration(**{**(values or {}), "rates": rates})
        numbers = [n for r in rates for n in (r.pass_flops, r.flops_per_s, r.slow, r.fast)]
    except (KeyError, TypeError):  # of an older version, or damaged: as good as none
        return None
    sound = all(isinstance(n, int | float) and math.isfinite(n) and n > 0 for n in numbers)
    return found if rates and sound else None


# ---------------------------------------------------------------- what it says of a config
def pass_flops(config: RunConfig) -> float:
    """FLOPs of one micro-batch, forward and backward, by which the efficiency of a device is told."""
    tokens = config.train.micro_batch_size * config.model.block_size
    return float(count_flops_per_token(config.model)) * tokens


def expected(calibration: Calibration, config: RunConfig) -> Band | None:
    """The speed to expect for a config; None where its device or precision was not measured.

    Between the two models the rates are interpolated by the logarithm of a pass's FLOPs; the band reaches from the
    slow steps of the slower one to the fast steps of the faster one.
    """
    if settled_device(config, calibration.device) != calibration.device:
        return None
    rates = sorted(_of_precision(calibration, config), key=lambda rate: rate.pass_flops)
    if not rates:
        return None
    wanted = pass_flops(config)
    below = [rate for rate in rates if rate.pass_flops <= wanted]
    above = [rate for rate in rates if rate.pass_flops > wanted]
    if not below or not above:
        nearest = below[-1] if below else above[0]
        return Band(nearest.flops_per_s, nearest.slow, nearest.fast)
    low, high = below[-1], above[0]
    share = math.log(wanted / low.pass_flops) / math.log(high.pass_flops / low.pass_flops)
    likely = math.exp((1 - share) * math.log(low.flops_per_s) + share * math.log(high.flops_per_s))
    return Band(likely, min(low.slow, high.slow), max(low.fast, high.fast))


def _of_precision(calibration: Calibration, config: RunConfig) -> list[Rate]:
    """The rates in the precision that the config will have; `auto` takes the one that was faster on the larger."""
    asked: str = "bf16" if config.train.weight_precision == "bf16" else config.train.precision
    if asked == "auto":
        largest = max(calibration.rates, key=lambda rate: (rate.pass_flops, rate.flops_per_s))
        asked = largest.precision
    return [rate for rate in calibration.rates if rate.precision == asked]


# ---------------------------------------------------------------- measuring
def measure(root: Path, machine: Hardware, seconds: float = SECONDS) -> Generator[tuple[str, float]]:
    """Measure in a process of its own, saying what goes on and the share done; the end writes the file.

    Closing the iterator ends the process.

    Raises:
        RunError: the process failed, or the result cannot be kept.
    """
    with _child([*WORKER, machine.device, f"{seconds:g}"]) as child:
        assert child.stdout is not None
        yield "loading torch", 0.0
        said = result = None
        for line in child.stdout:
            said = _object(line)
            if said is not None and "rates" in said:
                result = said
            elif said is not None:
                yield str(said.get("message", "")), float(said.get("share", 0.0))
        code = child.wait()
    if code != 0 or result is None:
        raise RunError(f"the calibration failed with exit code {code}; `dgsgpt calibrate` shows what it printed")
    found = _from_dict({**result, "measured_at": time.time(), "name": machine.name, "device": machine.device})
    if found is None:
        raise RunError("the calibration gave no usable figures; run `dgsgpt calibrate` again")
    try:
        root.mkdir(parents=True, exist_ok=True)
        files.write_json(root / FILE, found.to_dict())
    except OSError as e:
        raise RunError(f"{root / FILE}: cannot be written: {e.strerror or e}; choose another --runs-dir") from e


@contextmanager
def _child(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    environment = child_environment()
    keep_memory(environment)  # this and the next as a run of the dashboard has it
    wait_politely(environment)
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment, encoding="utf-8"
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _object(line: str) -> dict[str, Any] | None:
    """The JSON object of a line; None for what libraries print beside."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
