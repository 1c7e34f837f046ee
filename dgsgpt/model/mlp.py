"""The dense feed-forward network, plain or gated."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.config import ModelConfig

Activation = Callable[[Tensor], Tensor]


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form (Hendrycks & Gimpel 2016, section 2), which is GPT-2's `gelu_new`."""
    return F.gelu(x, approximate="tanh")


def relu_squared(x: Tensor) -> Tensor:
    """ReLU, squared (So et al. 2021, Primer)."""
    return F.relu(x).square()


# swiglu gates with SiLU; which kinds are gated at all is told by GATED.
ACTIVATIONS: dict[str, Activation] = {"gelu": gelu, "relu": F.relu, "relu2": relu_squared, "swiglu": F.silu}
GATED = frozenset({"swiglu"})


class MLP(nn.Module):
    """Two matrices and an activation between them: C -> F -> C."""

    def __init__(self, width: int, hidden: int, kind: str, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.act = ACTIVATIONS[kind]

    def forward(self, x: Tensor) -> tuple[Tensor, None, None]:
        """`x` [..., C] -> ([..., C], no auxiliary loss, no router statistics)."""
        return self.down(self.act(self.up(x))), None, None


class GatedMLP(nn.Module):
    """Three matrices, one of which gates another (Shazeer 2020, eq. 6): C -> F -> C."""

    def __init__(self, width: int, hidden: int, kind: str, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.act = ACTIVATIONS[kind]

    def forward(self, x: Tensor) -> tuple[Tensor, None, None]:
        """`x` [..., C] -> ([..., C], no auxiliary loss, no router statistics)."""
        return self.down(self.act(self.gate(x)) * self.up(x)), None, None


def build_mlp(config: ModelConfig, hidden: int) -> MLP | GatedMLP:
    """The dense network that `model.mlp` names, `hidden` wide."""
    kind = GatedMLP if config.mlp in GATED else MLP
    return kind(config.n_embd, hidden, config.mlp, config.bias)
