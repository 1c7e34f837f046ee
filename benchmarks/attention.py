"""P4: sliding-window attention against full causal attention, forward and backward, by length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Setup, Side, compare
from benchmarks.report import Case, Figure, Target
from dgsgpt.model.attention import attend_all
from dgsgpt.model.fast_attention import BACKENDS, BLOCKED, choose

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

WINDOW, LENGTHS, N_HEAD, HEAD_DIM = 256, (1024, 4096, 16_384), 4, 64
QUICK_WINDOW, QUICK_LENGTHS = 64, (128, 512)
LONGEST_MASK = 4096  # a T x T mask beyond it takes minutes and gigabytes
SPEED = {4096: Target("P4", at_least=3.0), 16_384: Target("P4", at_least=12.0)}
# The exponent of T. The first block of a sequence has no block before it, so that it is a little above 1 at best.
LINEAR = Target("P4", at_most=1.1)


def run(setup: Setup) -> Iterator[Case]:
    """One case for each length T, and one on how the window's time and memory grow with it."""
    lengths = QUICK_LENGTHS if setup.quick else LENGTHS
    for T in lengths:
        yield _at_length(setup, T)
    yield _growth(setup, lengths)


def _at_length(setup: Setup, T: int) -> Case:
    window = _window(setup)
    windowed = _window_backends(setup)
    others: dict[str, Attend] = {"full causal": attend_all}
    if T <= LONGEST_MASK:
        others["dense mask"] = _masked(T, window, setup.device)
    sides = _sides(setup, {**windowed, **others}, T)
    times = setup.time(sides)
    case = Case(f"T={T}", _settings(setup, T), times)
    case.facts = {side.name: {"peak_bytes": setup.peak_bytes(side.run)} for side in sides}
    for name in windowed:
        for other in others:
            target = SPEED.get(T) if other == "full causal" and not setup.quick else None
            case.add_ratio(f"time, {other} / {name}", other, name, target)
    return case


def _growth(setup: Setup, lengths: tuple[int, ...]) -> Case:
    """The window at all lengths in turn: as a power of T, time and memory have the exponent 1 when they are linear."""
    name, attend = next(iter(_window_backends(setup).items()))
    sides = [Side(f"{name}, T={T}", _sides(setup, {name: attend}, T)[0].run) for T in lengths]
    times = setup.time(sides)
    case = Case(f"growth with T, {name}", _settings(setup, *lengths), times)
    case.facts = {side.name: {"peak_bytes": setup.peak_bytes(side.run)} for side in sides}
    (small, large), steps = sides[-2:], lengths[-1] / lengths[-2]
    span = f"from T={lengths[-2]} to T={lengths[-1]}"
    ratio = compare(times[large.name], times[small.name])
    peaks = case.facts[large.name]["peak_bytes"] / case.facts[small.name]["peak_bytes"]
    time, low, high, of_medians, memory = (math.log(growth, steps) for growth in (*astuple(ratio), peaks))
    target = None if setup.quick else LINEAR
    case.figures += [
        Figure(f"exponent of time {span}", time, low, high, of_medians, target=target),
        Figure(f"exponent of peak memory {span}", memory, target=target),
    ]
    return case


def _window_backends(setup: Setup) -> dict[str, Attend]:
    """Every way to compute the window that agrees with the model's own on this device; that one comes first."""
    window = _window(setup)
    backends = {f"window {window}": BLOCKED}
    for backend in BACKENDS:
        if choose(setup.device, _dtype(setup), HEAD_DIM, 1, (backend,)).backend is backend:
            backends[f"window {window}, {backend.name}"] = backend
    return {name: backend.build(window) for name, backend in backends.items()}


def _masked(T: int, window: int, device: torch.device) -> Attend:
    """The window as one T x T mask, as it is commonly written."""
    age = torch.arange(T, device=device)[:, None] - torch.arange(T, device=device)
    mask = (age >= 0) & (age < window)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _sides(setup: Setup, attends: dict[str, Attend], T: int) -> list[Side]:
    """Forward and backward passes of `attends`, all on the same queries, keys and values [1, H, T, D]."""
    torch.manual_seed(0)
    shape = (1, N_HEAD, T, HEAD_DIM)
    q, k, v = (torch.randn(shape, device=setup.device, dtype=_dtype(setup), requires_grad=True) for _ in range(3))
    dy = torch.randn(shape, device=setup.device, dtype=_dtype(setup))

    def passes(attend: Attend) -> None:
        torch.autograd.grad(attend(q, k, v), (q, k, v), dy)

    return [Side(name, partial(passes, attend)) for name, attend in attends.items()]


def _window(setup: Setup) -> int:
    return QUICK_WINDOW if setup.quick else WINDOW


def _dtype(setup: Setup) -> torch.dtype:
    """What training uses there by default."""
    return torch.bfloat16 if setup.device.type == "cuda" else torch.float32


def _settings(setup: Setup, *lengths: int) -> dict[str, object]:
    return {
        "T": list(lengths),
        "batch": 1,
        "n_head": N_HEAD,
        "head_dim": HEAD_DIM,
        "window": _window(setup),
        "dtype": str(_dtype(setup)).removeprefix("torch."),
    }
