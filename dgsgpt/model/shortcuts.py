"""Shortcuts from the first layer to later ones, mixed in by learned shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mix(nn.Module):
    """`w0 own + w1 first`, with two learned scalars.

    For values this is ResFormer's learnable form (Zhou et al. 2024, eq. 6); for the residual stream it is the x0
    connection of the modded-nanogpt speed records.
    """

    def __init__(self, own: float, first: float) -> None:
        super().__init__()
        self.start = (own, first)
        self.weight = nn.Parameter(torch.tensor(self.start))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Back to the shares it was built with."""
        self.weight.copy_(torch.tensor(self.start))

    def forward(self, own: Tensor, first: Tensor | None) -> Tensor:
        """Mix two tensors of one shape."""
        assert first is not None, "a model with shortcuts passes the first layer's tensors on"
        share = self.weight.to(own.dtype)
        return share[0] * own + share[1] * first


class OwnOnly(nn.Module):
    """What takes the place of `Mix` where there is no shortcut."""

    def forward(self, own: Tensor, first: Tensor | None) -> Tensor:
        """`own`, unchanged."""
        return own


def build_mix(on: bool, own: float, first: float) -> Mix | OwnOnly:
    """A mix that starts with these two shares, or none."""
    return Mix(own, first) if on else OwnOnly()
