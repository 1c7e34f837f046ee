"""Causal self-attention: grouped-query, over all earlier tokens, over a sliding window, or both side by side.

A layer's kind is one function for each of its windows, chosen when the layer is built. Each takes queries
[B, H, T, D], keys and values [B, G, S, D] with S >= T, the queries being the last T of the S positions, and gives
[B, H, T, D]. So one function serves training (S = T) and a cache (S > T). Where texts are packed into one row,
`starts` [B, T] holds the index at which each token's document begins; there S = T.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.architecture import MIN_WINDOW_BLOCK, SHORT_ATTENTION, Windows
from dgsgpt.config import ModelConfig
from dgsgpt.model.cache import Past
from dgsgpt.model.norm import RMSNorm
from dgsgpt.model.rope import Rotation, leave, rotate
from dgsgpt.model.shortcuts import build_mix

# Queries of packed documents meet their keys in blocks of this length, so that no T x T mask exists.
DOCUMENT_BLOCK = 256


class Attend(Protocol):
    """One way to attend; see the module's docstring for shapes."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
        """[B, H, T, D] of queries that see the last T of S keys."""
        ...


class Surroundings(NamedTuple):
    """What every block reads beside the residual stream."""

    rotation: Rotation = None
    starts: Tensor | None = None  # [B, T] where each token's document begins; None is one document a row
    first: Tensor | None = None  # [B, T, C] what entered the first block
    values: Tensor | None = None  # [B, T, G, D] values of the first layer, in models that pass them on


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023); keys and values are G heads wide, not H.

    Heads are `head_dim` wide, which need not be C / H: queries and results have H * D channels.
    With two `windows` the first half of the heads has one and the second half the other (a layer of kind B).
    Attention weights are not dropped out in training: fused kernels without T x T memory have no dropout on CPU.
    """

    def __init__(self, config: ModelConfig, windows: Windows, mixes_values: bool = False) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        wide, narrow = config.attention_width, config.n_kv_head * config.head_dim
        self.q = nn.Linear(config.n_embd, wide, bias=config.has_qkv_bias)
        self.k = nn.Linear(config.n_embd, narrow, bias=config.has_qkv_bias)
        self.v = nn.Linear(config.n_embd, narrow, bias=config.has_qkv_bias)
        self.out = nn.Linear(wide, config.n_embd, bias=config.bias)
        # Normalised before they are turned, with one gain per channel shared by all heads (Qwen3; Henry et al. 2020).
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.place = leave if config.rope is None else rotate
        self.value_mix = build_mix(mixes_values, 0.5, 0.5)
        self.windows = windows
        self.attends: list[Attend] = [build_attend(window) for window in windows]

    def forward(self, x: Tensor, around: Surroundings, past: list[Past] | None) -> tuple[Tensor, Tensor]:
        """Attend from `x` [B, T, C] to itself and to what `past` holds -> ([B, T, C], own values [B, T, G, D])."""
        q = self.place(self.q_norm(self._heads(self.q(x))), around.rotation).transpose(1, 2)
        k = self.place(self.k_norm(self._heads(self.k(x))), around.rotation).transpose(1, 2)
        values = self._heads(self.v(x))
        v = self.value_mix(values, around.values).transpose(1, 2)
        parts = []
        for i, (attend, part) in enumerate(zip(self.attends, self._split(q, k, v), strict=True)):
            queries, keys, held = part
            if past is not None:
                keys, held = past[i].extend(keys, held)
            parts.append(attend(queries, keys, held, around.starts))
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.out(y.transpose(1, 2).flatten(2)), values

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def _split(self, q: Tensor, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Queries, keys and values of each window; a single key/value head serves them all."""
        n = len(self.attends)
        ks, vs = ([x] * n if x.size(1) == 1 else x.chunk(n, dim=1) for x in (k, v))
        return list(zip(q.chunk(n, dim=1), ks, vs, strict=True))


def build_attend(window: int | None) -> Attend:
    """The function for heads that see `window` tokens, the current one included; None is all of them."""
    return attend_all if window is None else partial(attend_window, window=window)


def attend_all(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
    """Attend to every earlier token (Vaswani et al. 2017, eq. 1), of the same document where `starts` tells them."""
    T, S = q.size(2), k.size(2)
    grouped = k.size(1) != q.size(1)
    if grouped and q.is_cuda and (q.dtype == torch.float32 or starts is not None):
        # On CUDA only the half-precision kernels without a mask group heads; others would fall back to T x T scores.
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        grouped = False
    if starts is not None:
        return _attend_documents(q, k, v, starts, grouped)
    if S == T:
        attend = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=grouped)
        return _scaled_dot_product(q, k, v, attend)
    # One new token sees all that the cache holds; several see each other causally.
    mask = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def _scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """`attend`, one of torch's; short bfloat16 queries on CPUs in float32: 1.3 to 3 times as fast below 256 of them."""
    if q.dtype != torch.bfloat16 or q.is_cuda or q.size(2) >= SHORT_ATTENTION:
        return attend(q, k, v)
    with torch.autocast(q.device.type, enabled=False):  # it would turn them back
        return attend(q.float(), k.float(), v.float()).to(q.dtype)


def _attend_documents(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, grouped: bool) -> Tensor:
    """Attend within documents, a block of queries at a time, to the keys from the earliest of their documents on."""
    parts = []
    for begin in range(0, q.size(2), DOCUMENT_BLOCK):
        end = min(begin + DOCUMENT_BLOCK, q.size(2))
        # Documents only grow along a row. A GPU would have to be waited for to learn where they begin.
        low = int(starts[:, begin].min()) if q.device.type == "cpu" else 0
        query = torch.arange(begin, end, device=q.device)[:, None]
        key = torch.arange(low, end, device=q.device)
        mask = (key <= query) & (key >= starts[:, begin:end, None])
        part = (q[:, :, begin:end], k[:, :, low:end], v[:, :, low:end])
        parts.append(F.scaled_dot_product_attention(*part, attn_mask=mask[:, None], enable_gqa=grouped))
    return torch.cat(parts, dim=2)


def attend_window(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None, *, window: int) -> Tensor:
    """Attend to the last `window` tokens, the current one included (Beltagy et al. 2020), in time linear in T.

    Queries are cut into blocks; each block meets its own keys and those of the block before, under one small mask
    that all blocks share (but for packed documents, which need one each). No T x T mask or score matrix exists.
    """
    B, H, T, D = q.shape
    S, G = k.size(2), k.size(1)
    if window >= S:
        return attend_all(q, k, v, starts)
    size = -(-max(window, min(MIN_WINDOW_BLOCK, S)) // 8) * 8  # CUDA's masked kernels want multiples of 8
    # Queries are right-aligned with the keys; what fills up the last block lies in the future of every real query.
    fill = -S % size
    q = _blocks(_padded(q, S - T, fill), G, size)
    k, v = (_blocks(_padded(x, 0, fill), G, size) for x in (k, v))
    band = _band(size, window, q.device)
    if starts is not None:
        band = band & _same_document(F.pad(starts, (0, fill)), size, G)
    parts = [_attend_blocks(q[:, :, :1], k[:, :, :1], v[:, :, :1], _of_blocks(band, slice(0, 1))[..., size:])]
    if q.size(2) > 1:
        k, v = (torch.cat((x[:, :, :-1], x[:, :, 1:]), dim=-2) for x in (k, v))
        parts.append(_attend_blocks(q[:, :, 1:], k, v, _of_blocks(band, slice(1, None))))
    y = torch.cat(parts, dim=2).transpose(2, 3).reshape(B, H, S + fill, D)
    return y[:, :, S - T : S]


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    """`x` [B, heads, S, D] with that many empty positions around it; torch would copy it for none, too."""
    return F.pad(x, (0, 0, before, after)) if before or after else x


def _blocks(x: Tensor, groups: int, size: int) -> Tensor:
    """[B, heads, S, D] as [B, G, S / size, heads / G, size, D]."""
    return x.unflatten(2, (-1, size)).unflatten(1, (groups, -1)).transpose(2, 3)


def _attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend within blocks [B, G, blocks, heads, size, D]; the heads of a group share its keys without a copy."""
    # Copies, where these are views: what is kept for the backward pass is then the blocks, not the whole beside them.
    shape = q.shape
    q, k, v = (x.flatten(0, 2).contiguous() for x in (q, k, v))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.expand(-1, q.size(1), -1, -1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return _scaled_dot_product(q, k, v, attend).view(shape)


def _band(size: int, window: int, device: torch.device) -> Tensor:
    """Which of 2 `size` keys (the block before, then its own) each of `size` queries sees: bool [size, 2 size]."""
    age = torch.arange(size, device=device)[:, None] - torch.arange(-size, size, device=device)
    return (age >= 0) & (age < window)


def _same_document(starts: Tensor, size: int, groups: int) -> Tensor:
    """Which keys of a block and the one before lie in the query's document: bool [B, G, blocks, 1, size, 2 size]."""
    first = torch.arange(0, starts.size(1), size, device=starts.device)[:, None, None]
    key = first + torch.arange(-size, size, device=starts.device)
    same = key >= starts.unflatten(1, (-1, size))[..., None]
    return same[:, None, :, None].expand(-1, groups, -1, -1, -1, -1)


def _of_blocks(mask: Tensor, blocks: slice) -> Tensor:
    """The part of a mask for these blocks: the one they share, or [B G blocks, 1, size, 2 size] of their own."""
    return mask if mask.ndim == 2 else mask[:, :, blocks].flatten(0, 2)
