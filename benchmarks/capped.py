"""Training steps of a config in a process of its own whose GPU memory is capped: `python -m benchmarks.capped`.

It reads one JSON object from stdin, `{"config", "budget_bytes", "steps"}`, and prints an `Outcome` as its last line.
A process of its own, because what CUDA and torch's allocator hold is not given back before a process ends.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dgsgpt.config import RunConfig, build_config
from dgsgpt.costs import CUDA_RUNTIME_BYTES
from dgsgpt.data.loader import Batch, Batches
from dgsgpt.errors import DgsgptError
from dgsgpt.train.optim import build_updates
from dgsgpt.train.parallel import apply_gradient_checkpointing
from dgsgpt.train.stepper import Stepper
from dgsgpt.train.weights import build_model

USED_TOKENS = 64  # of the vocabulary: that these are few is quickly learned, so that losses fall within some steps
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Outcome:
    """What some steps came to."""

    losses: list[float]  # nats per token
    seconds: list[float]  # of each step
    peak_bytes: int  # most that tensors took at once in these steps; 0 on a CPU
    reserved_bytes: int  # most that torch took from the GPU since the process began, first weights included

    @property
    def fell(self) -> float:
        """By how many nats the loss fell from the first step to the last."""
        return self.losses[0] - self.losses[-1]


class FewTokens:
    """Batches of random tokens out of a few; a function of the step, as those of a text."""

    def __init__(self, config: RunConfig) -> None:
        self._shape = (config.train.micro_batch_size, config.model.block_size + 1)

    def get(self, step: int) -> Batch:
        """Batch number `step`."""
        tokens = torch.randint(USED_TOKENS, self._shape, generator=torch.Generator().manual_seed(step))
        return Batch(tokens[:, :-1], tokens[:, 1:])


def take_steps(config: RunConfig, steps: int, device: torch.device) -> Outcome:
    """Steps of the trainer's own kind, from fresh weights; eager, as memory is planned."""
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, config.train.weight_precision, device)
    apply_gradient_checkpointing(model, config.train.gradient_checkpointing)
    batches = cast(Batches, FewTokens(config))  # the stepper asks of them `get` alone
    stepper = Stepper(model, build_updates(model, config.train), batches, config.train, device)
    on_gpu = device.type == "cuda"
    reserved = torch.cuda.max_memory_reserved(device) if on_gpu else 0
    if on_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)  # of the steps, which is what is planned
    losses, seconds = [], []
    for index in range(steps):
        begun = time.perf_counter()
        losses.append(stepper.step(index).read().loss)  # reading waits for the GPU
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    reserved = max(reserved, torch.cuda.max_memory_reserved(device)) if on_gpu else 0
    return Outcome(losses, seconds, peak, reserved)


def cap_memory(budget_bytes: int, device: torch.device) -> None:
    """Let torch take no more of the GPU than the budget leaves beside what CUDA itself takes.

    Raises:
        DgsgptError: the GPU has less than the budget.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    if budget_bytes > total:
        raise DgsgptError(f"this GPU has {total / 1e9:.0f} GB, less than the budget of {budget_bytes / 1e9:.0f} GB")
    torch.cuda.set_per_process_memory_fraction((budget_bytes - CUDA_RUNTIME_BYTES) / total, device)


def run_capped(config: RunConfig, budget_bytes: int, steps: int) -> Outcome:
    """`take_steps` in a process of its own that may use `budget_bytes` of the GPU.

    Raises:
        DgsgptError: it failed, most likely because the memory did not suffice.
    """
    asked = json.dumps({"config": config.to_dict(), "budget_bytes": budget_bytes, "steps": steps})
    command, root = [sys.executable, "-m", "benchmarks.capped"], Path(__file__).parent.parent
    try:
        ended = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=root, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as e:
        raise DgsgptError(f"training within {budget_bytes / 1e9:g} GB took more than {TIMEOUT_S} s; ended") from e
    if ended.returncode != 0:
        lines = (ended.stderr.strip() or ended.stdout.strip() or "no output").splitlines()
        raise DgsgptError(f"training within {budget_bytes / 1e9:g} GB failed: {lines[-1]}")
    return Outcome(**json.loads(ended.stdout.splitlines()[-1]))


def main() -> int:
    """Do what stdin asks; gives the exit code."""
    asked: dict[str, Any] = json.load(sys.stdin)
    if not torch.cuda.is_available():
        print("error: torch finds no GPU here, so there is no memory to cap", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    try:
        cap_memory(asked["budget_bytes"], device)
        torch.set_float32_matmul_precision("high")  # as the trainer does
        outcome = take_steps(build_config(asked["config"], "stdin"), asked["steps"], device)
    except DgsgptError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
