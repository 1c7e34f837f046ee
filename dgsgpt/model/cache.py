"""Keys and values of the tokens already read, so that generation computes each token once.

Of the tokens themselves the last few are kept, where embeddings of n-grams reach back to them.

Buffers are G heads wide and allocated once. Heads with a sliding window keep only its tokens, in a ring: a new token
takes the place of the one that has just fallen out of sight, and nothing is moved.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgsgpt.config import ModelConfig, layer_windows
from dgsgpt.model.rope import Positions, Rotation

_AHEAD = 128  # positions whose rotations are computed at once while text is written token by token


def is_endless(config: ModelConfig) -> bool:
    """Whether a text may grow for ever: all heads see a window only, and there is no last position."""
    windowed = all(window is not None for windows in layer_windows(config) for window in windows)
    return windowed and (config.rope is not None or config.positions == "none")


class FullBuffer:
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


class RingBuffer(FullBuffer):
    """The latest tokens that a window sees, in one buffer [B, G, window, D]; position p lies in slot p mod window."""

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Append `k`, `v` [B, G, T, D] at position `start`; give all that the T queries may see [B, G, S, D].

        Several tokens come after the earlier ones in order, as a mask needs them. A single one sees every slot that
        is filled, whatever their order, since positions are already in the keys: the buffer is given as it lies.
        """
        return self._extend(self.k, k, start), self._extend(self.v, v, start)

    def _extend(self, ring: Tensor, new: Tensor, start: int) -> Tensor:
        window, end = ring.size(2), start + new.size(2)
        if end == start + 1:
            ring[:, :, start % window] = new[:, :, 0].detach()
            return ring[:, :, : min(end, window)].to(new.dtype)
        earlier = _slots(start - min(start, window - 1), start, window, ring.device)
        seen = torch.cat((ring.index_select(2, earlier).to(new.dtype), new.detach()), dim=2)
        stay = min(new.size(2), window)
        latest = new[:, :, new.size(2) - stay :].detach().to(ring.dtype)
        ring.index_copy_(2, _slots(end - stay, end, window, ring.device), latest)
        return seen


def _slots(begin: int, end: int, window: int, device: torch.device) -> Tensor:
    """Where positions `begin` to `end - 1` lie in a ring."""
    return torch.arange(begin, end, device=device) % window


class Past(NamedTuple):
    """What the heads of one window have read, and how many tokens that were."""

    buffer: FullBuffer
    start: int

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append `k`, `v` [B, G, T, D]; give all that their queries may see [B, G, S, D]."""
        return self.buffer.extend(k, v, self.start)


class KVCache:
    """The caches of all layers; `model(new_tokens, cache=cache)` reads and fills them. No gradient flows through it.

    `max_tokens` None is no bound, for models that never look back further than a window (`is_endless`).

    Raises:
        ValueError: no bound, and some heads see all tokens, or positions have an end.
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, max_tokens: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        if max_tokens is None and not is_endless(config):
            raise ValueError("max_tokens=None needs a window in every layer and no learned positions; give a number")
        self.max_tokens = max_tokens
        self.length = 0
        self.recent = torch.empty(batch_size, 0, dtype=torch.long, device=device)  # [B, S], what n-grams reach back to
        self._reach = config.ngram.max_order - 1 if config.ngram else 0
        self._ahead: tuple[int, Rotation] = (0, None)  # rotations of the next positions, from the first one on
        self.layers: list[list[FullBuffer]] = []
        for windows in layer_windows(config):
            # A layer of kind B halves its key/value heads between its two windows; a single one serves both.
            heads = max(1, config.n_kv_head // len(windows))
            buffers: list[FullBuffer] = []
            for window in windows:
                room = min(size for size in (window, max_tokens) if size is not None)
                shape = (batch_size, heads, room, config.head_dim)
                buffers.append((RingBuffer if room != max_tokens else FullBuffer)(shape, dtype, device))
            self.layers.append(buffers)

    def begin(self, new_tokens: int) -> int:
        """The position that the first of `new_tokens` takes; they must fit.

        Raises:
            ValueError: they do not fit.
        """
        if self.max_tokens is not None and self.length + new_tokens > self.max_tokens:
            raise ValueError(
                f"{self.length} cached + {new_tokens} new tokens exceed the cache's max_tokens={self.max_tokens}; "
                "make a larger cache with model.make_cache"
            )
        return self.length

    def rotation(self, positions: Positions, x: Tensor) -> Rotation:
        """`positions.rotation` for new tokens embedded as `x` [B, T, C]; for single ones it is computed ahead."""
        if x.size(1) > 1:
            return positions.rotation(x, self.length)
        first, known = self._ahead
        if known is None or not first <= self.length < first + _AHEAD:
            first, known = self.length, positions.rotation(x.expand(-1, _AHEAD, -1), self.length)
            self._ahead = (first, known)
        if known is None:
            return None
        place = self.length - first
        return known[0][place : place + 1], known[1][place : place + 1]

    def past(self, layer: int) -> list[Past]:
        """What block `layer` reads and extends, one for each of its windows."""
        return [Past(buffer, self.length) for buffer in self.layers[layer]]

    def advance(self, tokens: Tensor) -> None:
        """Count `tokens` [B, T] as read, once every layer has appended them."""
        self.length += tokens.size(1)
        if not self._reach:
            return
        seen = torch.cat((self.recent, tokens), dim=1) if tokens.size(1) < self._reach else tokens
        self.recent = seen[:, max(0, seen.size(1) - self._reach) :].clone()  # the caller may reuse its own

    def clear(self) -> None:
        """Forget all tokens and keep the buffers; what they hold is overwritten before it is read."""
        self.length = 0
        self.recent = self.recent[:, :0]

    def join(self, other: KVCache) -> None:
        """Add the rows of another cache of the same model, room and length below one's own.

        Raises:
            ValueError: its length or room differs.
        """
        if (other.length, other.max_tokens) != (self.length, self.max_tokens):
            raise ValueError(
                f"a cache of {other.length} of {other.max_tokens} tokens cannot join one of {self.length} of "
                f"{self.max_tokens}; only rows of one length go on together"
            )
        self.recent = torch.cat((self.recent, other.recent))
        for own, more in zip(self.buffers(), other.buffers(), strict=True):
            own.k, own.v = torch.cat((own.k, more.k)), torch.cat((own.v, more.v))

    def select(self, rows: Tensor) -> None:
        """Go on with these rows [B'] of the batch, in this order and as often as named, as a beam search does.

        Only where their number changes are there new buffers; else what has been read is moved within them.
        """
        same = len(rows) == len(self.recent)
        self.recent = self.recent.index_select(0, rows)
        for buffer in self.buffers():
            if same:
                used = (slice(None), slice(None), slice(0, self.length))  # of a ring, which may be shorter, all
                buffer.k[used] = buffer.k[used].index_select(0, rows)
                buffer.v[used] = buffer.v[used].index_select(0, rows)
            else:
                buffer.k, buffer.v = buffer.k.index_select(0, rows), buffer.v.index_select(0, rows)

    def buffers(self) -> list[FullBuffer]:
        """All buffers, layer by layer."""
        return [buffer for layer in self.layers for buffer in layer]

    @property
    def n_bytes(self) -> int:
        """Bytes of all buffers of keys and values."""
        return sum(x.numel() * x.element_size() for buffer in self.buffers() for x in (buffer.k, buffer.v))
