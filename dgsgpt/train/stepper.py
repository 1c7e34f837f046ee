"""One optimizer step: batch, loss, backward, clip, update. On a GPU nothing in it waits for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgsgpt.config import TrainConfig
from dgsgpt.data.loader import IGNORED
from dgsgpt.errors import RunError
from dgsgpt.model import RouterStats
from dgsgpt.train.loss_scale import LossScale
from dgsgpt.train.precision import autocast
from dgsgpt.train.schedule import rate_share

if TYPE_CHECKING:
    from dgsgpt.data.loader import Batch, Batches
    from dgsgpt.model import GPT
    from dgsgpt.train.optim import Updates


MAX_LOADS = 256  # numbers of experts' load in one line of metrics


@dataclass(frozen=True)
class Figures:
    """Figures of one step; `loss` is the mean cross-entropy in nats per token, without auxiliary terms."""

    loss: float
    lr: float
    grad_norm: float | None  # None where no moment had all gradients
    finite: bool  # otherwise the weights were left as they were
    extra: dict[str, float] = field(default_factory=dict)
    expert_load: tuple[tuple[float, ...], ...] | None = None  # share of the tokens, by MoE layer and expert


@dataclass(frozen=True)
class StepResult:
    """A step as the device left it; reading it waits for the device."""

    loss: Tensor  # []
    lr: float
    grad_norm: Tensor | None  # []
    finite: Tensor  # [] bool
    router: list[RouterStats]

    def blame(self, step: int, in_backward: bool) -> str:
        """What was not finite at `step`, or in one before that nobody has looked at, and what became of the weights."""
        kept = "the weights were left as they were"
        if bool(self.finite):
            return f"loss or gradient was not finite before step {step}, {kept}"
        if not bool(self.loss.isfinite()):
            return f"the loss is not finite at step {step}, {kept}"
        if in_backward:
            kept = "only weights whose gradients came before it were updated"
        return f"the gradient is not finite at step {step}, {kept}"

    def read(self) -> Figures:
        """The figures."""
        norm = None if self.grad_norm is None else float(self.grad_norm)
        load = tuple(tuple(stats.load.tolist()) for stats in self.router) or None
        return Figures(float(self.loss), self.lr, norm, bool(self.finite), router_figures(self.router), load)


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


class Stepper:
    """Advances a model by optimizer steps; which batch and which rate depend on the step's number alone.

    `decides_here` is whether a step that is not finite is found out on this side, which on a GPU means waiting for
    it; else the device itself leaves everything as it was, and `skipped` counts how often.
    """

    def __init__(
        self,
        model: GPT,
        updates: Updates,
        batches: Batches,
        train: TrainConfig,
        device: torch.device,
        decides_here: bool | None = None,
    ) -> None:
        self.model, self.updates, self.batches, self.train, self.device = model, updates, batches, train, device
        self.loss_scale = LossScale() if train.precision == "fp16" else None
        self.rate_scale = 1.0  # below 1 after going back to a checkpoint
        if decides_here is None:
            decides_here = device.type == "cpu" or self.loss_scale is not None or updates.in_backward
        self.decides_here = decides_here
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._autocast = autocast(device, train.precision)

    def step(self, index: int) -> StepResult:
        """Optimizer step `index` (0 is the first). If loss or gradients are not finite, nothing changes."""
        share = rate_share(index, self.train) * self.rate_scale
        self.updates.set_rates(share)
        if self.updates.in_backward:
            self.updates.nonfinite = False
        loss, router = self._accumulate(index)
        norm = None if self.updates.in_backward else self._clip()
        finite = loss.isfinite() if norm is None else loss.isfinite() & norm.isfinite()
        if self.updates.in_backward and self.updates.nonfinite:
            finite = torch.zeros_like(finite)
        if self.decides_here:
            if bool(finite):
                self._update(router, None)
            if self.loss_scale is not None and bool(loss.isfinite()):  # the loss itself has no scale
                self.loss_scale.update(bool(finite))
        else:
            self._update(router, (~finite).float())
        self._skipped += ~finite
        self.updates.zero_grad()
        return StepResult(loss, share * self.train.lr, norm, finite, router)

    def wait(self) -> None:
        """Let a GPU finish what it has been given, so that a clock read next has seen it all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def skipped(self) -> int:
        """Steps since this was last asked that were not finite; waits for the device."""
        count = int(self._skipped)
        self._skipped.zero_()
        return count

    def _update(self, router: list[RouterStats], skip: Tensor | None) -> None:
        if not self.updates.in_backward:
            self.updates.step(skip)
        if skip is not None:  # without load there is nothing to balance
            router = [stats._replace(load=torch.where(skip > 0, 0.0, stats.load)) for stats in router]
        self.model.balance_experts(router)

    def _accumulate(self, index: int) -> tuple[Tensor, list[RouterStats]]:
        """Forward and backward of all micro-batches; gradients end up as those of one large batch.

        Each loss counts by its share of the step's valid tokens, so it does not matter how these are spread.
        """
        n = self.train.grad_accum_steps
        micro_batches = [self.batches.get(index * n + micro) for micro in range(n)]
        valid = [int((batch.targets != IGNORED).sum()) for batch in micro_batches]
        total = torch.zeros((), device=self.device)
        routers: list[list[RouterStats]] = []
        for batch, count in zip(micro_batches, valid, strict=True):
            if count == 0:  # its mean would be 0 / 0
                continue
            with self._autocast():
                out = self.model(*self._moved(batch), documents=self._to_device(batch.documents))
            share = count / sum(valid)
            loss = out.loss * share
            total += loss.detach()
            routers.append(out.router or [])
            if self.updates.in_backward and not bool(total.isfinite()):
                break  # nothing could be taken back later
            objective = loss + out.aux_loss / n
            (objective if self.loss_scale is None else objective * self.loss_scale.scale).backward()
        return total, [average(layers) for layers in zip(*routers, strict=True)]

    def _moved(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        return self._to_device(batch.inputs), self._to_device(batch.targets)

    def _to_device(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)  # a copy from pinned memory runs beside the rest

    def _clip(self) -> Tensor:
        """The gradients' global norm; where it is above `train.grad_clip` they are scaled down to it."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.loss_scale is not None:
            torch._foreach_div_(gradients, self.loss_scale.scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        limit = math.inf if self.train.grad_clip is None else self.train.grad_clip
        # Most steps need no pass over all gradients; asking whether costs nothing here, but a wait on a GPU.
        if (float(norm) > limit) if self.decides_here else (limit < math.inf):
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm


def average(stats: tuple[RouterStats, ...]) -> RouterStats:
    """What one MoE layer did in all micro-batches of a step; these have equally many tokens."""
    return RouterStats(*(torch.stack(figures).mean(0) for figures in zip(*stats, strict=True)))


def router_figures(router: list[RouterStats]) -> dict[str, float]:
    """What the mixture-of-experts layers did in a step: load of each expert, the largest, share dropped, entropy.

    `moe/load/LAYER/EXPERT` counts MoE layers and experts from 0; of very many, only some layers are told (see
    `told_layers`), so that a line of metrics stays short.
    """
    if not router:
        return {}
    loads = [stats.load.tolist() for stats in router]
    return {
        "moe/max_load": max(map(max, loads)),
        "moe/dropped": sum(float(stats.dropped) for stats in router) / len(router),
        "moe/entropy": sum(float(stats.entropy) for stats in router) / len(router),
        **{
            f"moe/load/{layer}/{expert}": round(load, 5)
            for layer in told_layers(len(loads), len(loads[0]))
            for expert, load in enumerate(loads[layer])
        },
    }


def told_layers(layers: int, experts: int) -> list[int]:
    """The MoE layers whose loads are logged: all, or, if they are too many, evenly spaced ones from first to last."""
    fit = MAX_LOADS // experts
    if layers <= fit:
        return list(range(layers))
    return sorted({round(i * (layers - 1) / (fit - 1)) for i in range(fit)}) if fit > 1 else [0] * fit
