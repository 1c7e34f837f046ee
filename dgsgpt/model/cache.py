"""Keys and values of the tokens already read, so that generation computes each token once.

Buffers are G heads wide and allocated once. A sliding layer keeps only the `window - 1` latest tokens, oldest
first; in that order no position wraps around, and any number of tokens can follow in one call.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dgsgpt.config import ModelConfig, layer_windows


class LayerCache(Protocol):
    """Keys and values of one layer."""

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Append `k`, `v` [B, G, T, D] at position `start`; give all that the T queries may see [B, G, S, D]."""
        ...


class FullLayer:
    """Every token, in one buffer [B, G, max_tokens, D]."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Append `k`, `v` [B, G, T, D] at position `start`; give all tokens so far [B, G, start + T, D]."""
        end = start + k.size(2)
        self.k[:, :, start:end] = k.detach()
        self.v[:, :, start:end] = v.detach()
        return self.k[:, :, :end].to(k.dtype), self.v[:, :, :end].to(v.dtype)


class SlidingLayer:
    """The latest tokens that a window still sees, in one buffer [B, G, window - 1, D]."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Append `k`, `v` [B, G, T, D] at position `start`; give them after the tokens kept [B, G, kept + T, D]."""
        return self._extend(self.k, k, start), self._extend(self.v, v, start)

    def _extend(self, kept: Tensor, new: Tensor, start: int) -> Tensor:
        held, room = min(start, kept.size(2)), kept.size(2)
        both = torch.cat((kept[:, :, :held].to(new.dtype), new.detach()), dim=2)
        stay = min(room, both.size(2))
        kept[:, :, :stay] = both[:, :, both.size(2) - stay :]
        return both


class Past(NamedTuple):
    """One layer's cache and how many tokens it has read."""

    layer: LayerCache
    start: int

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append `k`, `v` [B, G, T, D]; give all that their queries may see [B, G, S, D]."""
        return self.layer.extend(k, v, self.start)


class KVCache:
    """The caches of all layers; `model(new_tokens, cache=cache)` reads and fills them. No gradient flows through it."""

    def __init__(
        self, config: ModelConfig, batch_size: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.max_tokens = max_tokens
        self.length = 0
        self.layers: list[LayerCache] = []
        for window in layer_windows(config):
            sliding = window is not None and window - 1 < max_tokens
            room = window - 1 if sliding and window is not None else max_tokens
            kind = SlidingLayer if sliding else FullLayer
            self.layers.append(kind((batch_size, config.n_kv_head, room, config.head_dim), dtype, device))

    def begin(self, new_tokens: int) -> int:
        """The position that the first of `new_tokens` takes; they must fit.

        Raises:
            ValueError: they do not fit.
        """
        if self.length + new_tokens > self.max_tokens:
            raise ValueError(
                f"{self.length} cached + {new_tokens} new tokens exceed the cache's max_tokens={self.max_tokens}; "
                "make a larger cache with model.make_cache"
            )
        return self.length

    def past(self, layer: int) -> Past:
        """What block `layer` reads and extends."""
        return Past(self.layers[layer], self.length)

    def advance(self, new_tokens: int) -> None:
        """Count `new_tokens` as read, once every layer has appended them."""
        self.length += new_tokens

    @property
    def n_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(
            x.numel() * x.element_size()
            for layer in self.layers
            if isinstance(layer, FullLayer | SlidingLayer)
            for x in (layer.k, layer.v)
        )
