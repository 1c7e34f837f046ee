"""Normalisation, computed in float32 and returned in the dtype that the next matrix product uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.config import ModelConfig


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype a linear layer will use for `x`: autocast's where it is on, else that of `x`.

    Casting once here spares q, k and v (or gate and up) a copy each, which would all be kept for the backward pass.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., width]."""
        y = F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)
        return y.to(compute_dtype(x))


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension (Ba et al. 2016, eq. 4); the bias is optional."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., width]."""
        bias = None if self.bias is None else self.bias.float()
        y = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), bias, self.eps)
        return y.to(compute_dtype(x))


def build_norm(config: ModelConfig) -> nn.Module:
    """The normalisation of the residual stream that `model.norm` names."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.n_embd, config.norm_eps)
    return LayerNorm(config.n_embd, config.norm_eps, config.bias)
