"""Causal self-attention: grouped-query, over all earlier tokens or over a sliding window.

A layer's kind is one function, chosen when the layer is built. Each takes queries [B, H, T, D], keys and values
[B, G, S, D] with S >= T, the queries being the last T of the S positions, and gives [B, H, T, D]. So one
function serves training (S = T) and a cache (S > T).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.config import ModelConfig
from dgsgpt.model.cache import Past
from dgsgpt.model.norm import RMSNorm
from dgsgpt.model.rope import Rotation, leave, rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# A block of queries is at least this long: with a window of 4, blocks of 4 would be all overhead.
MIN_BLOCK = 64


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023); keys and values are G heads wide, not H.

    Attention weights are not dropped out in training: fused kernels without T x T memory have no dropout on CPU.
    """

    def __init__(self, config: ModelConfig, window: int | None) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        narrow = config.n_kv_head * config.head_dim
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.k = nn.Linear(config.n_embd, narrow, bias=config.bias)
        self.v = nn.Linear(config.n_embd, narrow, bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        # Normalised before they are turned, with one gain per channel shared by all heads (Qwen3; Henry et al. 2020).
        self.q_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.place = leave if config.rope is None else rotate
        self.attend: Attend = attend_all if window is None else partial(attend_window, window=window)

    def forward(self, x: Tensor, rotation: Rotation, past: Past | None) -> Tensor:
        """Attend from `x` [B, T, C] to itself and to what `past` holds."""
        q = self.place(self.q_norm(self._heads(self.q(x))), rotation).transpose(1, 2)
        k = self.place(self.k_norm(self._heads(self.k(x))), rotation).transpose(1, 2)
        v = self._heads(self.v(x)).transpose(1, 2)
        if past is not None:
            k, v = past.extend(k, v)
        y = self.attend(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


def attend_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to every earlier token (Vaswani et al. 2017, eq. 1)."""
    T, S = q.size(2), k.size(2)
    grouped = k.size(1) != q.size(1)
    if grouped and q.is_cuda and q.dtype == torch.float32:
        # On CUDA only the half-precision kernels group heads; float32 would fall back to a T x T matrix.
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        grouped = False
    if S == T:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    # One new token sees all that the cache holds; several see each other causally.
    mask = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def attend_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attend to the last `window` tokens, the current one included (Beltagy et al. 2020), in time linear in T.

    Queries are cut into blocks; each block meets its own keys and those of the block before, under one small mask
    that all blocks share. No T x T mask or score matrix exists.
    """
    B, H, T, D = q.shape
    S = k.size(2)
    if window >= S:
        return attend_all(q, k, v)
    size = -(-max(window, min(MIN_BLOCK, S)) // 8) * 8  # CUDA's masked kernels want multiples of 8
    # Queries are right-aligned with the keys; what fills up the last block lies in the future of every real query.
    fill = -S % size
    q = _blocks(F.pad(q, (0, 0, S - T, fill)), k.size(1), size)
    k, v = (_blocks(F.pad(x, (0, 0, 0, fill)), k.size(1), size) for x in (k, v))
    band = _band(size, window, q.device)
    parts = [_attend_blocks(q[:, :, :1], k[:, :, :1], v[:, :, :1], band[:, size:])]
    if q.size(2) > 1:
        k, v = (torch.cat((x[:, :, :-1], x[:, :, 1:]), dim=-2) for x in (k, v))
        parts.append(_attend_blocks(q[:, :, 1:], k, v, band))
    y = torch.cat(parts, dim=2).transpose(2, 3).reshape(B, H, S + fill, D)
    return y[:, :, S - T : S]


def _blocks(x: Tensor, groups: int, size: int) -> Tensor:
    """[B, heads, S, D] as [B, G, S / size, heads / G, size, D]."""
    return x.unflatten(2, (-1, size)).unflatten(1, (groups, -1)).transpose(2, 3)


def _attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend within blocks [B, G, blocks, heads, size, D]; the heads of a group share its keys without a copy."""
    # Copies, where these are views: what is kept for the backward pass is then the blocks, not the whole beside them.
    shape = q.shape
    q, k, v = (x.flatten(0, 2).contiguous() for x in (q, k, v))
    k, v = (x.expand(-1, q.size(1), -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).view(shape)


def _band(size: int, window: int, device: torch.device) -> Tensor:
    """Which of 2 `size` keys (the block before, then its own) each of `size` queries sees: bool [size, 2 size]."""
    age = torch.arange(size, device=device)[:, None] - torch.arange(-size, size, device=device)
    return (age >= 0) & (age < window)
