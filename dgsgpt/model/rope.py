"""Where a token stands: rotary positions, or a learned embedding for each position.

Both kinds have the same two methods, so the network holds one of them and never asks which:
`embed` adds to the token embedding, `rotation` gives what turns queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgsgpt.config import ModelConfig, RopeConfig

Rotation = tuple[Tensor, Tensor] | None


class RotaryPositions(nn.Module):
    """Rotary positions (Su et al. 2021, eq. 34), half-split as in Llama; they have no parameters and no last position.

    Angles are computed at each call, in float32: no buffer that `.to(bfloat16)` could blunt or a checkpoint must carry.
    """

    def __init__(self, rope: RopeConfig, head_dim: int) -> None:
        super().__init__()
        self.theta = rope.theta
        self.head_dim = head_dim
        # Linear scaling (Chen et al. 2023, eq. 4) divides positions, so a longer context fits the trained range.
        self.stretch = rope.scaling.factor if rope.scaling else 1.0

    def embed(self, x: Tensor, start: int) -> Tensor:
        """The token embedding [B, T, C], unchanged: rotary positions act in attention."""
        return x

    def rotation(self, x: Tensor, start: int) -> Rotation:
        """Cosines and sines [T, D] of positions `start` to `start + T - 1`, for tokens embedded as `x` [B, T, C]."""
        pairs = torch.arange(0, self.head_dim, 2, device=x.device, dtype=torch.float32)
        frequencies = self.theta ** (-pairs / self.head_dim)
        positions = torch.arange(start, start + x.size(1), device=x.device, dtype=torch.float32) / self.stretch
        angles = torch.outer(positions, frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()


class LearnedPositions(nn.Module):
    """One trained vector per position (Radford et al. 2019); there are `block_size` of them and no more."""

    def __init__(self, block_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(block_size, width))

    def embed(self, x: Tensor, start: int) -> Tensor:
        """The token embedding `x` [B, T, C] plus the vectors of positions `start` to `start + T - 1`.

        Raises:
            ValueError: a position lies past the last one the model has.
        """
        end, last = start + x.size(1), self.weight.size(0)
        if end > last:
            raise ValueError(
                f"{end} tokens do not fit a model with {last} learned positions; "
                "shorten the text, or train with model.rope, which has no last position"
            )
        return x + self.weight[start:end]

    def rotation(self, x: Tensor, start: int) -> Rotation:
        """None: learned positions leave queries and keys as they are."""
        return None


def build_positions(config: ModelConfig) -> RotaryPositions | LearnedPositions:
    """Rotary positions where `model.rope` is on, else learned ones."""
    if config.rope is not None:
        return RotaryPositions(config.rope, config.head_dim)
    return LearnedPositions(config.block_size, config.n_embd)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (i, i + D/2) of `x` [B, T, heads, D] by the angles of their positions."""
    assert rotation is not None, "a rotary model passes the angles"
    cos, sin = rotation
    left, right = x.float().chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    return (x * cos[:, None] + turned * sin[:, None]).to(x.dtype)


def leave(x: Tensor, rotation: Rotation) -> Tensor:
    """What takes the place of `rotate` in a model with learned positions."""
    return x
