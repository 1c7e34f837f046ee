"""Where a token stands: rotary positions, a learned embedding for each position, or nothing at all.

Every kind has the same two methods, so the network holds one of them and never asks which:
`embed` adds to the token embedding, `rotation` gives what turns queries and keys.

Context extension slows rotations down. Each pair of channels keeps its speed, turns `factor` times slower, or
something between; the kinds of `rope.scaling` differ in that share alone. Frequencies and attention factor equal
those of transformers' `ROPE_INIT_FUNCTIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.config import ModelConfig, RopeConfig, RopeScalingConfig

Rotation = tuple[Tensor, Tensor] | None

# Of the frequencies [D/2] before stretching, in which share (0 to 1) each is slowed down.
Share = Callable[[Tensor], Tensor]


def frequencies(rope: RopeConfig, head_dim: int, block_size: int) -> Callable[[torch.device | str], Tensor]:
    """What gives, on a device, how far each pair of channels turns per token: [D/2] float32, in radians.

    All choices are made here; what is returned only computes. `block_size` is the stretched context: where
    `original_block_size` is null, the context before stretching is `round(block_size / factor)` tokens.
    """
    scaling = rope.scaling or RopeScalingConfig()  # by default a factor of one, which changes nothing
    original = scaling.original_block_size or max(1, round(block_size / scaling.factor))
    share = SHARES[scaling.kind](scaling, rope.theta, head_dim, original)
    return partial(_frequencies, rope.theta, head_dim, scaling.factor, share)


def _frequencies(theta: float, head_dim: int, factor: float, share: Share, device: torch.device | str) -> Tensor:
    pairs = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    unstretched = theta ** (-pairs / head_dim)
    slowed = share(unstretched)
    return unstretched * (1.0 - slowed + slowed / factor)


def attention_factor(rope: RopeConfig) -> float:
    """What multiplies queries and keys alike: for yarn `0.1 ln(factor) + 1` unless given, for the others 1.

    Logits so grow by its square, which Peng et al. 2023 call `1 / t` (section 3.4).
    """
    scaling = rope.scaling
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0


def linear_share(scaling: RopeScalingConfig, theta: float, head_dim: int, original: int) -> Share:
    """All of every pair, which is to divide positions by the factor (Chen et al. 2023, eq. 4)."""
    return torch.ones_like


def yarn_share(scaling: RopeScalingConfig, theta: float, head_dim: int, original: int) -> Share:
    """NTK-by-parts (Peng et al. 2023, arXiv 2309.00071, section 3.2), as the authors' code has it.

    The share rises over the index of the pair, from the one that turns `beta_fast` times within `original` tokens
    to the one that turns `beta_slow` times. Both indices are rounded outwards to whole ones, which transformers
    calls `truncate=True`, its default; checkpoints trained with `truncate=False` differ in the pairs between.
    """

    def pair(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair(scaling.beta_fast)), 0)
    high = min(math.ceil(pair(scaling.beta_slow)), head_dim - 1)
    # Where both bounds fall on one pair the ramp is a step.
    return partial(_ramp_over_pairs, low=low, width=high - low or 0.001)


def _ramp_over_pairs(unstretched: Tensor, low: int, width: float) -> Tensor:
    index = torch.arange(len(unstretched), device=unstretched.device, dtype=torch.float32)
    return ((index - low) / width).clamp(0.0, 1.0)


def llama3_share(scaling: RopeScalingConfig, theta: float, head_dim: int, original: int) -> Share:
    """The scaling of Llama 3.1 (Dubey et al. 2024): published as code, `apply_scaling`, with the weights.

    The share falls with the number of turns within `original` tokens: all at `low_freq_factor` turns or fewer,
    none at `high_freq_factor` or more.
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return partial(_ramp_over_turns, original=original, high=high, width=high - low)


def _ramp_over_turns(unstretched: Tensor, original: int, high: float, width: float) -> Tensor:
    turns = original * unstretched / (2 * math.pi)
    return ((high - turns) / width).clamp(0.0, 1.0)


SHARES: dict[str, Callable[[RopeScalingConfig, float, int, int], Share]] = {
    "linear": linear_share,
    "yarn": yarn_share,
    "llama3": llama3_share,
}


class RotaryPositions(nn.Module):
    """Rotary positions (Su et al. 2021, eq. 34), half-split as in Llama; they have no parameters and no last position.

    Angles are computed at each call: no buffer that `.to(bfloat16)` could blunt or a checkpoint must carry. In float64,
    because a text may grow for ever where all layers have a window: at position a million float32 is off by 0.06 rad.
    """

    def __init__(self, rope: RopeConfig, head_dim: int, block_size: int) -> None:
        super().__init__()
        self.frequencies = frequencies(rope, head_dim, block_size)
        self.attention_factor = attention_factor(rope)

    def embed(self, x: Tensor, start: int, places: Tensor | None = None) -> Tensor:
        """The token embedding [B, T, C], unchanged: rotary positions act in attention."""
        return x

    def rotation(self, x: Tensor, start: int) -> Rotation:
        """What `rotate` multiplies by at positions `start` to `start + T - 1`, for tokens embedded as `x` [B, T, C].

        These are cosines [T, 1, D] and sines [T, 1, D], the sines of each first half with the sign turned.
        Packed documents share them: a score depends only on the distance of query and key, which within a document
        is the same wherever it begins, so positions need no restart.
        """
        positions = torch.arange(start, start + x.size(1), device=x.device, dtype=torch.float64)
        angles = torch.outer(positions, self.frequencies(x.device).double())[:, None]
        cos = (angles.cos() * self.attention_factor).float()
        sin = (angles.sin() * self.attention_factor).float()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class LearnedPositions(nn.Module):
    """One trained vector per position (Radford et al. 2019); there are `block_size` of them and no more."""

    def __init__(self, block_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(block_size, width))

    def embed(self, x: Tensor, start: int, places: Tensor | None = None) -> Tensor:
        """The token embedding `x` [B, T, C] plus the vectors of positions `start` to `start + T - 1`.

        With `places` [B, T] int64, all below `start + T`, token by token those of its position within its document.

        Raises:
            ValueError: a position lies past the last one the model has.
        """
        # By the count of tokens, also with places: to look at these would make the processor wait for a GPU.
        end, last = start + x.size(1), self.weight.size(0)
        if end > last:
            raise ValueError(
                f"{end} tokens do not fit a model with {last} learned positions; "
                "shorten the text, or train with model.rope, which has no last position"
            )
        return x + (self.weight[start:end] if places is None else F.embedding(places, self.weight))

    def rotation(self, x: Tensor, start: int) -> Rotation:
        """None: learned positions leave queries and keys as they are."""
        return None


class NoPositions(nn.Module):
    """Nothing tells where a token is but causality: each token sees one more than the last (Kazemnejad et al. 2023)."""

    def embed(self, x: Tensor, start: int, places: Tensor | None = None) -> Tensor:
        """The token embedding [B, T, C], unchanged."""
        return x

    def rotation(self, x: Tensor, start: int) -> Rotation:
        """None: queries and keys stay as they are."""
        return None


Positions = RotaryPositions | LearnedPositions | NoPositions


def build_positions(config: ModelConfig) -> Positions:
    """Rotary positions where `model.rope` is on, else what `model.positions` names."""
    if config.rope is not None:
        return RotaryPositions(config.rope, config.head_dim, config.block_size)
    if config.positions == "none":
        return NoPositions()
    return LearnedPositions(config.block_size, config.n_embd)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (i, i + D/2) of `x` [B, T, heads, D] by the angles of their positions."""
    assert rotation is not None, "a rotary model passes the angles"
    cos, sin = rotation
    left, right = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((right, left), dim=-1) * sin).to(x.dtype)


def leave(x: Tensor, rotation: Rotation) -> Tensor:
    """What takes the place of `rotate` in a model without rotary positions."""
    return x
