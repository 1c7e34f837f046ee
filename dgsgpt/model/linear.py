"""Matrix products; of single rows, as they are when text is written token by token, by a kernel of our own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.model.kernels import kernels_for

# The kernel has one thread; larger matrices are worth several, which torch's product has on some processors.
_MOST_NUMBERS = 2**22


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., in] times `weight` [out, in], plus the bias [out] if there is one -> [..., out]."""
    rows, columns = weight.shape
    kernels = kernels_for(x, weight) if x.numel() == columns and rows * columns <= _MOST_NUMBERS else None
    if kernels is None:
        return F.linear(x, weight, bias)
    y = x.new_empty(*x.shape[:-1], rows)
    kernels.multiply(weight.data_ptr(), x.data_ptr(), y.data_ptr(), rows, columns)
    return y if bias is None else y.add_(bias)


class Linear(nn.Linear):
    """torch's linear layer, with the kernel for single rows where nothing is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] -> [..., out]."""
        return multiply(x, self.weight, self.bias)


__all__ = ["Linear", "multiply"]
