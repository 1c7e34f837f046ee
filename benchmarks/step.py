"""P3: tokens a second of a whole training step, compiled, in bfloat16 and as `auto` chooses, against eager float32."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch

from benchmarks.measure import Setup, Side, Timing
from benchmarks.report import Case, Target
from benchmarks.training import TINY_SHAKESPEARE_CHARS, RandomBatches, TrainingStep, training_config
from dgsgpt.config import RunConfig
from dgsgpt.data.loader import Batches
from dgsgpt.format import si
from dgsgpt.model import GPT
from dgsgpt.planner import plan
from dgsgpt.train.parallel import apply_gradient_checkpointing
from dgsgpt.train.precision import has_native_bf16
from dgsgpt.train.settle import Settled, settle

EAGER = "eager fp32"
SIDES = {EAGER: ("off", "fp32"), "compiled fp32": ("on", "fp32"), "compiled bf16": ("on", "bf16")}
SIDES |= {"eager bf16": ("off", "bf16")}
NEVER_BELOW = Target("P3", at_least=1.0)  # what does not help is to be switched off by itself


@dataclass(frozen=True)
class _Size:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch: int
    target: Target | None


SIZES = (
    _Size(6, 6, 384, 256, 16, Target("P3", at_least=2.0)),
    _Size(4, 4, 128, 64, 12, Target("P3", at_least=1.3)),
)
QUICK_SIZES = (_Size(1, 2, 32, 16, 2, None),)


def run(setup: Setup) -> Iterator[Case]:
    """One case for each size of model."""
    for size in QUICK_SIZES if setup.quick else SIZES:
        yield _case(setup, size)


def _case(setup: Setup, size: _Size) -> Case:
    able = has_native_bf16(setup.device)
    settings = {name: chosen for name, chosen in SIDES.items() if chosen[1] == "fp32" or able}
    steps = {name: TrainingStep(_config(size, *chosen), setup.device) for name, chosen in settings.items()}
    problems = {step.compiler_problem for step in steps.values()} - {None}
    steps = {name: step for name, step in steps.items() if step.compiler_problem is None}
    first_s = {name: _first_step_s(setup, step) for name, step in steps.items()}
    auto = settled(size, setup.device)  # after the first steps, since trying compiles too
    choice = side_name(auto)
    if choice not in settings:  # float16, on GPUs without bfloat16
        settings[choice] = (auto.compile, auto.precision)
        steps[choice] = TrainingStep(_config(size, *settings[choice]), setup.device)
        first_s[choice] = _first_step_s(setup, steps[choice])
    times = setup.time([Side(name, step) for name, step in steps.items()])
    case = _describe(setup, size, times)
    case.notes = [f"left out: {problem}" for problem in sorted(map(str, problems))]
    if not able:
        case.notes.append(f"left out: bfloat16, which this {setup.device.type} only emulates")
    case.notes += [f"auto chooses {choice} for a long run", *(f"  {sentence}" for sentence in auto.why)]
    for name, timing in times.items():
        if settings[name][0] == "on":
            case.facts[name]["compile_s"] = max(0.0, first_s[name] - timing.median_s)
    _add_speeds(case, size, choice, None if setup.quick else NEVER_BELOW)
    return case


def _describe(setup: Setup, size: _Size, times: dict[str, Timing]) -> Case:
    config = _config(size, *SIDES[EAGER])
    params = plan(config, setup.device.type).params
    case = Case(f"{si(params)} parameters", {**config.model.model_dump(mode="json"), "batch": size.batch}, times)
    case.facts = {name: {"tokens_per_s": config.tokens_per_step / timing.median_s} for name, timing in times.items()}
    return case


def _add_speeds(case: Case, size: _Size, choice: str, never_below: Target | None) -> None:
    """Each side's speed in units of eager float32's, and that of what `auto` chooses."""
    best = "compiled bf16" if "compiled bf16" in case.times else "compiled fp32"
    for name in case.times:
        if name != EAGER:
            case.add_ratio(f"speed, {name} / {EAGER}", EAGER, name, size.target if name == best else None)
    if choice in case.times:  # else the sides' compiler failed where that of the trial did not; a note says so
        case.add_ratio(f"speed, auto's choice / {EAGER}", EAGER, choice, never_below)


def settled(size: _Size, device: torch.device) -> Settled:
    """What the trainer's `auto` comes to here, for a run so long that trying and compiling pay."""
    config = _config(size, "auto", "auto")
    torch.manual_seed(config.train.seed)
    model = GPT(config.model).to(device)
    apply_gradient_checkpointing(model, config.train.gradient_checkpointing)
    batches = cast(Batches, RandomBatches(config))  # of them `get` alone is asked
    return settle(config, model, lambda micro_batch_size: batches, device, free_bytes=0)  # the batch is not fitted


def side_name(chosen: Settled) -> str:
    """The side that computes with what was chosen."""
    return f"{'compiled' if chosen.compile == 'on' else 'eager'} {chosen.precision}"


def _config(size: _Size, compile_: str, precision: str) -> RunConfig:
    """The default block at this size, with the characters of tiny Shakespeare."""
    model = {
        "n_layer": size.n_layer,
        "n_head": size.n_head,
        "n_embd": size.n_embd,
        "block_size": size.block_size,
        "vocab_size": TINY_SHAKESPEARE_CHARS,
    }
    return training_config(model, micro_batch_size=size.batch, compile=compile_, precision=precision)


def _first_step_s(setup: Setup, step: TrainingStep) -> float:
    """Seconds of the first step, in which blocks are compiled; less where the compiler's cache knows them."""
    before = time.perf_counter()
    step()
    setup.synchronize()
    return time.perf_counter() - before
