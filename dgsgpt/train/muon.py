"""Muon: momentum whose matrices are made nearly orthogonal before they are applied (Jordan et al. 2024).

torch's own takes matrices only, one after another. Here all matrices of one shape, those of an expert stack among
them, go through the iteration as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from dgsgpt.train.precision import has_native_bf16

# Of the quintic a x + b x^3 + c x^5, chosen by Jordan for its slope at zero: singular values end within about 0.3
# of 1, which trains no worse than exactly 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7
# Matrices of more numbers than this altogether go through the iteration in several batches, to bound its memory.
BATCH_NUMBERS = 1 << 25


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Parameters are matrices [rows, columns] or stacks of them [E, rows, columns], rows being the fan-out. The step is
    `lr sqrt(max(1, rows / columns))` for each matrix, as in `torch.optim.Muon` with `adjust_lr_fn="original"`, whose
    results these are.

    Args:
        params: parameters of two or more dimensions, or groups of them.
        lr: rate; an orthogonal update has root-mean-square `1 / sqrt(max(rows, columns))`, so it suits any width.
        weight_decay: share of the weights taken away at rate one.
        momentum: memory of the gradient's mean.
        dtype: of the iteration; None is the fastest that the parameter's device has natively.
        momentum_dtype: of the state; None is the parameter's.
    """

    # [] float32 on the parameters' device where the step shall be skipped if it is one; as torch's fused optimizers.
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype | None = None,
        momentum_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype, self.momentum_dtype = dtype, momentum_dtype

    def fresh_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""
        return {"momentum_buffer": torch.zeros_like(parameter, dtype=self.momentum_dtype or parameter.dtype)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient; `closure` is not supported."""
        assert closure is None, "Muon evaluates no closure"
        for group in self.param_groups:
            for batch in batches([p for p in group["params"] if p.grad is not None]):
                updates = [self._momentum(p, group["momentum"]) for p in batch]
                orthogonalize(updates, self.dtype)
                for p, update in zip(batch, updates, strict=True):
                    self._apply(p, update, group["lr"], group["weight_decay"])

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """Move the mean of the gradients of `p` and give Nesterov's look ahead, in the gradient's dtype."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state.update(self.fresh_state(p))
        mean = state["momentum_buffer"]
        moved = mean.to(p.grad.dtype).lerp(p.grad, 1 - momentum)
        mean.copy_(moved if self.found_inf is None else torch.where(self.found_inf > 0, mean, moved.to(mean.dtype)))
        return p.grad.lerp(moved, momentum)

    def _apply(self, p: Tensor, update: Tensor, lr: float, weight_decay: float) -> None:
        """Take the orthogonal `update` and the decay from `p`."""
        new = p if self.found_inf is None else p.clone()
        new.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * math.sqrt(max(1.0, p.size(-2) / p.size(-1))))
        if self.found_inf is not None:
            p.copy_(torch.where(self.found_inf > 0, p, new))


def batches(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """`parameters` in lists of one shape, wide and tall alike, of at most `BATCH_NUMBERS` numbers or one parameter."""
    shapes: dict[tuple[int, ...], list[Tensor]] = {}
    for p in parameters:
        shapes.setdefault(tuple(sorted(p.shape[-2:])), []).append(p)
    for alike in shapes.values():
        batch: list[Tensor] = []
        for p in alike:
            if batch and sum(x.numel() for x in batch) + p.numel() > BATCH_NUMBERS:
                yield batch
                batch = []
            batch.append(p)
        yield batch


def orthogonalize(matrices: list[Tensor], dtype: torch.dtype | None = None) -> None:
    """Put in place of each matrix, or each of a stack, U S' V^T: its singular vectors, its singular values near one.

    All have the same two sides. Tall ones are turned, so that the products have the smaller side. Five Newton-Schulz
    iterations of Jordan et al. 2024 (kellerjordan.github.io/posts/muon), in `dtype` or the device's fastest.
    """
    turned = [x.mT if x.size(-2) > x.size(-1) else x for x in matrices]
    views = [view for x in turned for view in x.view(-1, *x.shape[-2:]).unbind()]
    count = max(1, BATCH_NUMBERS // views[0].numel())  # a stack of experts alone may be more than one batch
    for begin in range(0, len(views), count):
        part = views[begin : begin + count]
        result = newton_schulz(torch.stack(part).to(dtype or iteration_dtype(part[0].device)))
        torch._foreach_copy_(part, list(result.unbind()))


def newton_schulz(x: Tensor) -> Tensor:
    """Batch `x` [N, rows, columns], rows <= columns, after the iteration; computed in its dtype."""
    a, b, c = QUINTIC
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)  # no singular value is then above one
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32: a CPU that emulates it is many times slower."""
    return torch.bfloat16 if device.type not in ("cpu", "cuda") or has_native_bf16(device) else torch.float32
