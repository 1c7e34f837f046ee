"""Measures training steps for `dgsgpt.calibrate`: `python -m dgsgpt.train.speed DEVICE SECONDS`, lines of JSON out."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import psutil
import torch

from dgsgpt.calibrate import Rate, pass_flops
from dgsgpt.config import RunConfig, build_config
from dgsgpt.costs import count_params
from dgsgpt.data.loader import Batch
from dgsgpt.train.advice import is_out_of_memory
from dgsgpt.train.optim import build_updates
from dgsgpt.train.precision import has_native_bf16
from dgsgpt.train.stepper import Stepper, pick_device
from dgsgpt.train.weights import build_model

if TYPE_CHECKING:
    from dgsgpt.data.loader import Batches

WARM_UP, LEAST, MOST = 2, 3, 500  # steps; fewer where they are so slow that the time is over before
_VOCABULARY = 4096
# name -> layers, heads, width, context, micro-batch; small ones are bound by overhead, medium ones by matrix products
SHAPES = {
    "cpu": {"small": (4, 4, 128, 128, 8), "medium": (4, 8, 512, 256, 4)},
    "cuda": {"small": (8, 8, 512, 512, 8), "medium": (12, 16, 1024, 1024, 4)},
}


class RandomBatches:
    """Batches of random tokens, the same for each number: speed does not depend on what is read."""

    def __init__(self, config: RunConfig) -> None:
        shape = (config.train.micro_batch_size, config.model.block_size + 1)
        generator = torch.Generator().manual_seed(0)
        self._rows = torch.randint(0, _VOCABULARY, shape, generator=generator)

    def get(self, step: int) -> Batch:
        """Batch number `step`."""
        return Batch(self._rows[:, :-1].contiguous(), self._rows[:, 1:].contiguous())


def shape_config(device: str, size: str, precision: str) -> RunConfig:
    """The config of one of the two models."""
    n_layer, n_head, n_embd, block_size, micro_batch_size = SHAPES[device][size]
    return build_config(
        {
            "data": {"tokenizer": {"kind": "bpe", "vocab_size": _VOCABULARY}},
            "model": {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size},
            "train": {"micro_batch_size": micro_batch_size, "precision": precision, "device": device},
        }
    )


def precisions(device: torch.device) -> list[str]:
    """Those a device computes in natively."""
    if has_native_bf16(device):
        return ["fp32", "bf16"]
    return ["fp32", "fp16"] if device.type == "cuda" else ["fp32"]


def time_steps(config: RunConfig, device: torch.device, seconds: float, warm_up: int = WARM_UP) -> list[float]:
    """Times of single optimizer steps in seconds, after some that warm up: at least one, three in twice `seconds`."""
    torch.manual_seed(0)
    model = build_model(config.model, "fp32", device)
    batches = cast("Batches", RandomBatches(config))
    stepper = Stepper(model, build_updates(model, config.train), batches, config.train, device)
    for index in range(warm_up):
        if _step(stepper, index) > seconds:
            break
    taken: list[float] = []
    while len(taken) < MOST and (not taken or sum(taken) < (seconds if len(taken) >= LEAST else 2 * seconds)):
        taken.append(_step(stepper, warm_up + len(taken)))
    return taken


def _step(stepper: Stepper, index: int) -> float:
    before = time.perf_counter()
    stepper.step(index)
    stepper.wait()
    return time.perf_counter() - before


def rate_of(size: str, config: RunConfig, times: list[float]) -> Rate:
    """What these step times amount to."""
    flops = pass_flops(config) * config.train.grad_accum_steps
    ordered = sorted(times)
    tenth = len(ordered) // 10
    return Rate(
        model=size,
        precision=config.train.precision,
        params=count_params(config.model),
        pass_flops=pass_flops(config),
        flops_per_s=flops / statistics.median(ordered),
        slow=flops / ordered[-1 - tenth],
        fast=flops / ordered[tenth],
        steps=len(ordered),
    )


def measure(device_name: str, seconds: float, say: Callable[[dict[str, Any]], None]) -> None:
    """Measure each model in each precision, saying what goes on; the rates last."""
    load = psutil.cpu_percent(interval=0.3) / 100
    device = pick_device(device_name)
    torch.set_float32_matmul_precision("high")  # as a run has it
    jobs = [(size, precision) for precision in precisions(device) for size in SHAPES[device.type]]
    rates = []
    for done, (size, precision) in enumerate(jobs):
        say({"message": f"{size} model in {precision}", "share": done / len(jobs)})
        config = shape_config(device.type, size, precision)
        try:
            rates.append(rate_of(size, config, time_steps(config, device, seconds)))
        except Exception as e:
            if not is_out_of_memory(e) or not rates:  # a small device tells its speed by the small model alone
                raise
    facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "load": load}
    say({**facts, "rates": [rate.__dict__ for rate in rates]})


def main() -> int:
    """Measure for the command line's device and seconds."""
    measure(sys.argv[1], float(sys.argv[2]), lambda value: print(json.dumps(value), flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
