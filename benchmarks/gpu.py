"""P12 and P9 on a GPU: speed and FLOPs utilisation of GPT-2's shapes, and the VRAM profiles within their budgets."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.capped import Outcome, run_capped
from benchmarks.measure import Setup, Side, Timing
from benchmarks.plain import PlainStep
from benchmarks.report import Case, Figure, Target
from benchmarks.training import TrainingStep, training_config
from dgsgpt.config import RunConfig
from dgsgpt.costs import CUDA_RUNTIME_BYTES
from dgsgpt.errors import DgsgptError
from dgsgpt.fitting import override
from dgsgpt.hardware import peak_flops
from dgsgpt.planner import plan
from dgsgpt.profiles import load_profile
from dgsgpt.train.precision import has_native_bf16

GB = 10**9
OURS, PLAIN = "ours, compiled bf16", "nanoGPT's way, compiled bf16"
SLOWER = {"ours, compiled TF32": ("on", "fp32"), "ours, eager TF32": ("off", "fp32")}


@dataclass(frozen=True)
class _Size:
    name: str
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    utilisation: Target | None  # on an H200
    speed: Target | None  # against nanoGPT's way


VOCAB_SIZE = 50_304  # GPT-2's 50,257, rounded up to whole tiles of 64 as nanoGPT does
SIZES = (
    _Size("124M", 12, 12, 768, 1024, VOCAB_SIZE, Target("P12", at_least=0.5), Target("P12", at_least=1.3)),
    _Size("350M", 24, 16, 1024, 1024, VOCAB_SIZE, Target("P12", at_least=0.55), None),
)
QUICK_SIZES = (_Size("tiny", 2, 2, 64, 64, 256, None, None),)
MOST_SEQUENCES, ACCUMULATED = 32, 4  # in a micro-batch; micro-batches in a step, so that the update is a small part
# Of each profile: its budget, and steps enough for the loss to fall.
PROFILES = {"low": (15 * GB, 12), "medium": (40 * GB, 6), "high": (100 * GB, 5)}
PROFILE_VOCAB_SIZE = 4096  # of the profiles' tokenizer, which is known once the text is prepared


def run(setup: Setup) -> Iterator[Case]:
    """One case for each shape of GPT-2, then one for each profile."""
    for size in QUICK_SIZES if setup.quick else SIZES:
        yield _speed(setup, size)
        torch.compiler.reset()  # it holds models, and counts how often one function was compiled
        gc.collect()
        torch.cuda.empty_cache()
    for name in ("low",) if setup.quick else PROFILES:
        yield _profile(name, setup)


# ---------------------------------------------------------------- P12: speed
def _speed(setup: Setup, size: _Size) -> Case:
    free_bytes, _ = torch.cuda.mem_get_info(setup.device)
    batch = micro_batch(size, free_bytes)
    settings = {OURS: ("on", "bf16"), **SLOWER}
    configs = {name: speed_config(size, batch, *chosen) for name, chosen in settings.items()}
    steps = {name: TrainingStep(config, setup.device) for name, config in configs.items()}
    problems = sorted({step.compiler_problem for step in steps.values() if step.compiler_problem})
    if problems:
        raise DgsgptError(f"this benchmark compiles, but {problems[0]}; install what is missing")
    plain = PlainStep(configs[OURS], setup.device, compiled=True)
    times = setup.time([Side(OURS, steps[OURS]), Side(PLAIN, plain), *(Side(name, steps[name]) for name in SLOWER)])
    return judge_speed(size, configs[OURS], times, torch.cuda.get_device_name(setup.device), setup)


def judge_speed(size: _Size, config: RunConfig, times: dict[str, Timing], gpu: str, setup: Setup) -> Case:
    """The case that comes of the sides' times for a step of `config` on the GPU of the name `gpu`."""
    planned = plan(config, "cuda")
    settings = {**config.model.model_dump(mode="json"), "batch": config.train.micro_batch_size}
    case = Case(f"GPT-2 {size.name}, context {size.block_size}", {**settings, "accumulated": ACCUMULATED}, times)
    tokens = config.tokens_per_step
    case.facts = {name: {"tokens_per_s": tokens / timing.median_s} for name, timing in times.items()}
    for name in (PLAIN, *SLOWER):
        case.add_ratio(f"speed, {OURS} / {name}", name, OURS, size.speed if name == PLAIN else None)
    peak = peak_flops(gpu)
    if peak is None:
        case.notes = [f"no FLOPs utilisation: the peak of a {gpu} is not in dgsgpt/hardware.py"]
        return case
    target = size.utilisation if "H200" in gpu and not setup.quick else None
    shares = [utilisation(tokens / t, planned.flops_per_token, peak) for t in sorted(times[OURS].times_s)]
    value = utilisation(tokens / times[OURS].median_s, planned.flops_per_token, peak)
    case.figures.append(Figure("model FLOPs utilisation", value, shares[-1], shares[0], target=target))
    case.notes = [
        f"utilisation of {peak / 1e12:g} TFLOPS, dense bf16 of a {gpu}; {planned.flops_per_token / 1e9:.3g} GFLOP a "
        "token: 6 per weight, 12 n_embd per layer and token in sight"
    ]
    return case


def utilisation(tokens_per_s: float, flops_per_token: float, peak_flops_per_s: float) -> float:
    """Share of the peak that the model's own arithmetic makes up (Chowdhery et al. 2022, appendix B)."""
    return tokens_per_s * flops_per_token / peak_flops_per_s


def speed_config(size: _Size, batch: int, compile_: str, precision: str) -> RunConfig:
    """GPT-2's block at this size, with AdamW, which nanoGPT's way has too."""
    model = {
        "n_layer": size.n_layer,
        "n_head": size.n_head,
        "n_embd": size.n_embd,
        "block_size": size.block_size,
        "vocab_size": size.vocab_size,
        "norm": "layernorm",
        "mlp": "gelu",
        "rope": None,
        "positions": "learned",
    }
    train = {"micro_batch_size": batch, "grad_accum_steps": ACCUMULATED, "weight_decay": 0.1, "grad_clip": 1.0}
    return training_config(model, **train, compile=compile_, precision=precision)


def micro_batch(size: _Size, free_bytes: int) -> int:
    """The largest power of two whose eager float32 step, with all logits at once, takes half of what is free.

    The other half is for the weights of four sides. 1 where even that does not fit.
    """
    batch = MOST_SEQUENCES
    while batch > 1:
        config = speed_config(size, batch, "off", "fp32")
        logits = 12 * batch * size.block_size * size.vocab_size  # bf16, fp32, and the gradients of both
        if plan(config, "cuda").total_bytes + logits <= free_bytes // 2:
            break
        batch //= 2
    return batch


# ---------------------------------------------------------------- P9: the profiles
def profile_config(name: str, accumulated: int = 2) -> RunConfig:
    """A profile at its full rate from the first step, with no more accumulation than memory notices."""
    config = load_profile(name).config
    return steady(config, min(accumulated, config.train.grad_accum_steps))


def steady(config: RunConfig, accumulated: int) -> RunConfig:
    """`config` at its full rate from the first step, in the precision that `auto` means on a GPU, not compiled."""
    return override(
        config,
        {
            "model.vocab_size": PROFILE_VOCAB_SIZE,
            "train.grad_accum_steps": accumulated,
            "train.schedule.kind": "constant",
            "train.schedule.warmup_steps": 0,
            "train.compile": "off",
        },
    )


def _profile(name: str, setup: Setup) -> Case:
    budget, steps = PROFILES[name]
    config, total = profile_config(name), torch.cuda.get_device_properties(setup.device).total_memory
    title = f"profile {name}, {budget / GB:g} GB"
    if total < budget:
        notes = [f"left out: this GPU has {total / GB:.0f} GB"]
        return Case(title, config.model.model_dump(mode="json"), {}, notes=notes)
    if not has_native_bf16(setup.device):
        return Case(title, config.model.model_dump(mode="json"), {}, notes=["left out: this GPU has no bfloat16"])
    try:
        outcome = run_capped(config, budget, steps)
    except DgsgptError as e:  # a finding, not an end: the other profiles are still of interest
        figure = Figure("trains within its budget", 0.0, target=Target("P9", at_least=1.0))
        return Case(title, config.model.model_dump(mode="json"), {}, figures=[figure], notes=[str(e)])
    return judge_profile(title, config, budget, outcome, quick=setup.quick)


def judge_profile(title: str, config: RunConfig, budget: int, outcome: Outcome, *, quick: bool) -> Case:
    """The case that comes of a profile's steps within `budget` bytes."""
    planned = plan(config, "cuda").total_bytes - CUDA_RUNTIME_BYTES
    times = {"step": Timing(tuple(outcome.seconds[1:]))}  # kernels are loaded in the first
    case = Case(title, {**config.model.model_dump(mode="json"), "train": config.train.model_dump(mode="json")}, times)
    case.facts = {
        "step": {
            "peak_bytes": outcome.peak_bytes,
            "planned_bytes": planned,
            "reserved_bytes": outcome.reserved_bytes,
            "tokens_per_s": config.tokens_per_step / times["step"].median_s,
        }
    }
    used = (outcome.peak_bytes + CUDA_RUNTIME_BYTES) / budget
    bounds = {
        "trains within its budget": (1.0, Target("P9", at_least=1.0)),
        "peak bytes with CUDA's own / budget": (used, Target("P9", at_most=1.0)),
        "nats that the loss fell": (outcome.fell, Target("P9", at_least=0.1)),
        "peak bytes, planned / measured": (planned / outcome.peak_bytes, Target("P8", at_least=0.95, at_most=1.05)),
    }
    case.figures = [Figure(what, value, target=None if quick else bound) for what, (value, bound) in bounds.items()]
    case.notes = [f"loss {outcome.losses[0]:.3f} -> {outcome.losses[-1]:.3f} in {len(outcome.losses)} steps"]
    return case
