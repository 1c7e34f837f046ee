"""What `auto` means on this machine: precision, compiling and the size of a micro-batch, found by trying.

Trying runs forward and backward passes of the real model on real batches; weights, gradients and random states are
afterwards as before. The outcome is written into the run and used again when it goes on, so that a resumed run
computes as the first part did.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from dgsgpt import files
from dgsgpt.config import RunConfig, TrainConfig
from dgsgpt.fitting import largest_micro_batch
from dgsgpt.format import duration
from dgsgpt.planner import plan
from dgsgpt.runs import Run
from dgsgpt.train.parallel import apply_gradient_checkpointing, compile_blocks, uncompile_blocks
from dgsgpt.train.precision import autocast, has_native_bf16

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dgsgpt.data.loader import Batches
    from dgsgpt.model import GPT

PROBE_S = 2.0  # of measuring, beside the passes that warm up
PASSES = (3, 15)  # timed of each kind: at least, at most
SHORT_RUN_FLOPS = 3e12  # about a minute on a laptop: whatever `auto` chose, trying would cost more than it gains
GAIN = 1.05  # how much faster something must be to be chosen
# Compiling takes 20 to 45 s on two CPU cores and makes steps 1.1 to 1.3 times as fast (`dgsgpt bench step`).
LONG_RUN_S = 300.0

# Settings that decide what is settled; `train.steps` does too, but a longer run shall go on as it began.
ASKED = (
    "precision", "weight_precision", "compile", "micro_batch_size", "grad_accum_steps", "fit_micro_batch",
    "gradient_checkpointing", "device",
)  # fmt: skip
SETTLED, BEFORE = "settled", "settled_before"  # in run.json

MakeBatches = Callable[[int], "Batches"]  # by micro-batch size


@dataclass(frozen=True)
class Settled:
    """What a run computes with, and in a sentence each why."""

    precision: str
    compile: str
    micro_batch_size: int
    grad_accum_steps: int
    why: tuple[str, ...] = ()
    asked: dict[str, Any] = field(default_factory=dict)  # the settings that this answers

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return {**asdict(self), "why": list(self.why)}

    def applied(self, train: TrainConfig) -> TrainConfig:
        """The settings with every `auto` replaced."""
        values = {k: v for k, v in asdict(self).items() if k not in ("why", "asked")}
        return train.model_copy(update=values)


def recall(facts: Mapping[str, Any]) -> Settled | None:
    """What was settled when the run began, from its `run.json`."""
    found = facts.get(SETTLED)
    return Settled(**{**found, "why": tuple(found["why"])}) if isinstance(found, dict) else None


def renew(run: Run) -> Run:
    """The run, without what was settled for other settings than it has now.

    That is kept aside, and counts again when these settings come back: a run whose change was refused then goes on as
    it began.
    """
    facts = files.read_json(run.path / "run.json") or {}
    current, asked = facts.get(SETTLED), _asked(run.config.train)
    if not isinstance(current, dict) or current.get("asked", asked) == asked:
        return run
    known = [*facts.get(BEFORE, []), current]
    again = [settled for settled in known if settled["asked"] == asked]
    facts = {k: v for k, v in facts.items() if k != SETTLED}
    facts[BEFORE] = [settled for settled in known if settled["asked"] != asked]
    files.write_json(run.path / "run.json", {**facts, SETTLED: again[0]} if again else facts)
    return Run(run.path)


def _asked(train: TrainConfig) -> dict[str, Any]:
    return {name: getattr(train, name) for name in ASKED}


def settle(config: RunConfig, model: GPT, make_batches: MakeBatches, device: torch.device, free_bytes: int) -> Settled:
    """Decide for a run that begins. `model` is on `device`, with gradient checkpointing applied."""
    train = config.train
    settled = Settled(train.precision, train.compile, train.micro_batch_size, train.grad_accum_steps)
    if train.fit_micro_batch:
        settled = _fit_micro_batch(settled, config, model, make_batches, device, free_bytes)
    probe = _Probe(model, make_batches(settled.micro_batch_size), device)
    short = plan(config, device.type).train_flops < SHORT_RUN_FLOPS
    if settled.precision == "auto":
        settled = _settle_precision(settled, train, probe, device, short)
    if settled.compile == "auto":
        settled = _settle_compile(settled, train, probe, short)
    return replace(settled, asked=_asked(train))


# ---------------------------------------------------------------- precision
def _settle_precision(
    settled: Settled, train: TrainConfig, probe: _Probe, device: torch.device, short: bool
) -> Settled:
    def to(precision: str, why: str) -> Settled:
        return replace(settled, precision=precision, why=(*settled.why, f"{precision}: {why}"))

    if train.weight_precision == "bf16":
        return to("bf16", "the weights are stored so")
    if device.type == "cuda":
        if has_native_bf16(device):
            return to("bf16", "this GPU computes in it")
        if torch.cuda.get_device_capability(device) >= (7, 0):
            return to("fp16", "this GPU has no bf16, but tensor cores for fp16")
        return to("fp32", "this GPU has no fast half precision")
    if not has_native_bf16(device):
        return to("fp32", "this CPU would only emulate bf16")
    if short:
        return to("fp32", "the run is too short to try bf16")
    times = probe.compare("fp32", "bf16")
    ratio = times["fp32"] / times["bf16"]
    if ratio >= GAIN:
        return to("bf16", f"{ratio:.2f} times as fast as fp32 in a trial")
    return to("fp32", f"bf16 was {ratio:.2f} times as fast in a trial")


# ---------------------------------------------------------------- compiling
def _settle_compile(settled: Settled, train: TrainConfig, probe: _Probe, short: bool) -> Settled:
    def to(choice: str, why: str) -> Settled:
        return replace(settled, compile=choice, why=(*settled.why, f"compile {choice}: {why}"))

    if short:
        return to("off", "the run is too short to win it back")
    eager_s = probe.time(settled.precision)
    planned_s = eager_s * train.steps * settled.grad_accum_steps
    if planned_s < LONG_RUN_S:
        return to("off", f"a run of about {duration(planned_s)} would not win it back")
    problem = compile_blocks(probe.model)
    if problem is not None:
        return to("off", problem)
    try:
        ratio = eager_s / probe.time(settled.precision)
    finally:
        uncompile_blocks(probe.model)
        apply_gradient_checkpointing(probe.model, train.gradient_checkpointing)
    if ratio >= GAIN:
        return to("on", f"{ratio:.2f} times as fast in a trial")
    return to("off", f"{ratio:.2f} times as fast in a trial")


# ---------------------------------------------------------------- micro-batch
def _fit_micro_batch(
    settled: Settled, config: RunConfig, model: GPT, make_batches: MakeBatches, device: torch.device, free_bytes: int
) -> Settled:
    """The largest divisor of the batch that the plan says fits, and on a GPU really does."""
    batch = settled.micro_batch_size * settled.grad_accum_steps
    size = max(1, largest_micro_batch(config, free_bytes, device.type))
    tried: list[int] = []
    while device.type == "cuda" and size > 1 and not _runs(model, make_batches(size), device, config.train):
        tried.append(size)
        size = max(d for d in range(1, size) if batch % d == 0)
    why = f"micro-batch {size} of {batch}: the largest that fits {free_bytes / 2**30:.1f} GiB free"
    if tried:
        why += f" (tried in vain: {', '.join(map(str, tried))})"
    return replace(settled, micro_batch_size=size, grad_accum_steps=batch // size, why=(*settled.why, why))


def _runs(model: GPT, batches: Batches, device: torch.device, train: TrainConfig) -> bool:
    try:
        with _unchanged_random(device):
            _Probe(model, batches, device).once(train.precision)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


# ---------------------------------------------------------------- trying
class _Probe:
    """Times forward and backward passes of one micro-batch."""

    def __init__(self, model: GPT, batches: Batches, device: torch.device) -> None:
        self.model, self._device = model, device
        self._batch = batches.get(0)

    def once(self, precision: str) -> float:
        """Seconds of one pass, to the end of what the device has been given."""
        x, y, documents = (None if t is None else t.to(self._device) for t in self._batch)
        begun = time.perf_counter()
        try:
            with autocast(self._device, precision)():
                out = self.model(x, y, documents=documents)
            (out.loss + out.aux_loss).backward()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            return time.perf_counter() - begun
        finally:  # also where memory ran out half-way
            for p in self.model.parameters():
                p.grad = None

    def time(self, precision: str) -> float:
        """Median seconds of a pass."""
        return self.compare(precision)[precision]

    def compare(self, *precisions: str) -> dict[str, float]:
        """Median seconds of a pass in each precision, measured in turn."""
        with _unchanged_random(self._device):
            for precision in precisions:
                self.once(precision)
            times: dict[str, list[float]] = {precision: [] for precision in precisions}
            begun = time.perf_counter()
            for done in range(PASSES[1]):
                if done >= PASSES[0] and time.perf_counter() - begun > PROBE_S:
                    break
                for precision in precisions:
                    times[precision].append(self.once(precision))
        return {precision: statistics.median(taken) for precision, taken in times.items()}


@contextmanager
def _unchanged_random(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
