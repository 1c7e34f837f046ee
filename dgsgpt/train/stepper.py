"""One optimizer step: batch, loss, backward, clip, step."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dgsgpt.config import TrainConfig
from dgsgpt.errors import RunError
from dgsgpt.model import RouterStats
from dgsgpt.train.schedule import learning_rate

if TYPE_CHECKING:
    from dgsgpt.data.loader import Batches
    from dgsgpt.model import GPT


@dataclass(frozen=True)
class StepResult:
    """Figures of one step; `loss` is the mean cross-entropy in nats per token, without auxiliary terms."""

    loss: float
    lr: float
    grad_norm: float
    extra: dict[str, float] = field(default_factory=dict)


def pick_device(choice: str) -> torch.device:
    """The device `train.device` means here.

    Raises:
        RunError: cuda is asked for and there is none.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise RunError("train.device='cuda', but torch finds no GPU here; set it to auto or cpu")
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(choice)


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[object]]:
    """A context for the forward pass: bf16 arithmetic where asked for, or where `auto` finds a GPU that has it."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    if bf16:
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext


class Stepper:
    """Advances a model by optimizer steps; which batch and which rate depend on the step's number alone."""

    def __init__(
        self, model: GPT, optimizer: torch.optim.Optimizer, batches: Batches, train: TrainConfig, device: torch.device
    ) -> None:
        self.model, self.optimizer, self.batches, self.train, self.device = model, optimizer, batches, train, device
        self._autocast = autocast(device, train.precision)

    def step(self, index: int) -> StepResult:
        """Optimizer step `index` (0 is the first).

        Raises:
            RunError: loss or gradients are not finite; the weights are then unchanged.
        """
        lr = learning_rate(index, self.train)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, router = self._accumulate(index)
        norm = self._clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient norm"
            raise RunError(
                f"the {what} is not finite at step {index + 1}, the weights were left as they were; "
                f"lower train.lr={self.train.lr:g} or lengthen "
                f"train.schedule.warmup_steps={self.train.schedule.warmup_steps}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.balance_experts(router)
        return StepResult(loss, lr, norm, router_figures(router))

    def _accumulate(self, index: int) -> tuple[float, list[RouterStats]]:
        """Forward and backward of all micro-batches; gradients end up as those of one large batch."""
        n = self.train.grad_accum_steps
        total = torch.zeros((), device=self.device)
        routers: list[list[RouterStats]] = []
        for micro in range(n):
            x, y = (t.to(self.device, non_blocking=True) for t in self.batches.get(index * n + micro))
            with self._autocast():
                out = self.model(x, y)
            # Every micro-batch holds equally many tokens, so the mean of means is the mean.
            ((out.loss + out.aux_loss) / n).backward()
            total += out.loss.detach() / n
            routers.append(out.router or [])
        return float(total), [average(layers) for layers in zip(*routers, strict=True)]

    def _clip(self) -> float:
        """The gradients' global norm; where it is above `train.grad_clip` they are scaled down to it."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        limit = math.inf if self.train.grad_clip is None else self.train.grad_clip
        if float(norm) > limit:  # most steps need no pass over all gradients
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return float(norm)


def average(stats: tuple[RouterStats, ...]) -> RouterStats:
    """What one MoE layer did in all micro-batches of a step; these have equally many tokens."""
    return RouterStats(*(torch.stack(figures).mean(0) for figures in zip(*stats, strict=True)))


def router_figures(router: list[RouterStats]) -> dict[str, float]:
    """What the mixture-of-experts layers did in a step: largest load of an expert and share dropped."""
    if not router:
        return {}
    return {
        "moe/max_load": max(float(stats.load.max()) for stats in router),
        "moe/dropped": sum(float(stats.dropped) for stats in router) / len(router),
    }
