"""Weights stored in bfloat16: updated through a float32 copy, and rounded up or down at random.

bfloat16 keeps 8 bits of a number. An update smaller than a 256th of its weight would be rounded away at every step;
rounded at random, it is applied in full on average (Gupta et al. 2015, section 3; Zamirai et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# float32 has 16 more bits of mantissa than bfloat16; the rest of the two formats is the same.
DROPPED_BITS = 16
LARGEST = torch.finfo(torch.bfloat16).max
# Numbers rounded at once: the random bits of a whole expert stack would take as much memory as its float32 copy.
CHUNK_NUMBERS = 1 << 24


class Rounder:
    """Rounds float32 to bfloat16 at random, by a sequence that depends on `seed` alone.

    Every call seeds its generator anew, with the seed and the number of calls before it. That `count` is all there is
    to save for an exact resume, on any device.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.count = seed, 0
        self._generator = torch.Generator(device)

    @torch.no_grad()
    def round_into(self, stored: Tensor, value: Tensor) -> None:
        """Write `value`, float32, into `stored`, bfloat16 of the same shape, both contiguous.

        Each number becomes one of its two neighbours in bfloat16, the nearer one more often: the expectation is the
        value. What bfloat16 holds exactly stays, and nothing finite becomes infinite.
        """
        # The generator of a CPU looks at 32 bits of its seed; an odd factor keeps the seeds of two runs apart.
        self._generator.manual_seed((self.seed * 0x9E3779B1 + self.count) & 0xFFFFFFFF)
        self.count += 1
        parts = zip(stored.view(-1).split(CHUNK_NUMBERS), value.view(-1).split(CHUNK_NUMBERS), strict=True)
        for to, numbers in parts:
            self._round_part(to, numbers)

    def _round_part(self, stored: Tensor, value: Tensor) -> None:
        # As integers, floats of one sign are in order of size: what is added to the dropped bits carries into the
        # kept ones as often as these are far from zero.
        bits = torch.randint(
            1 << DROPPED_BITS, value.shape, dtype=torch.int32, device=value.device, generator=self._generator
        )
        bits.add_(value.view(torch.int32)).bitwise_and_(-1 << DROPPED_BITS)
        rounded = bits.view(torch.float32).clamp_(-LARGEST, LARGEST)
        stored.copy_(torch.where(value.isfinite(), rounded, value))


class Shadow:
    """A float32 parameter that stands in for one in bfloat16, and has memory only while that is updated.

    An optimizer built on `parameter` computes as it would on float32 weights, and keeps float32 state.
    """

    def __init__(self, stored: nn.Parameter) -> None:
        self.stored = stored
        self._nothing = torch.empty(0, device=stored.device)
        self.parameter = nn.Parameter(self._nothing)

    @contextmanager
    def filled(self) -> Iterator[nn.Parameter]:
        """The parameter with the stored weight's value and gradient in float32, for as long as the context lasts."""
        self.parameter.data = self.stored.detach().float()
        if self.stored.grad is not None:
            self.parameter.grad = self.stored.grad.float()
        try:
            yield self.parameter
        finally:
            self.parameter.grad = None
            self.parameter.data = self._nothing
