"""Kernels for sliding windows that are faster than blocked attention, where the device has them.

Each candidate is believed only after it has agreed with `attend_window`, forward and backward, on this very device:
kernels differ in whether a window counts the current token, and a build can lack what its version promises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgsgpt.model.attention import Attend, Attention, attend_window
from dgsgpt.model.gpt import GPT

# What a kernel that does not work here may raise; anything else is a defect of ours and shall be seen.
_UNUSABLE = (RuntimeError, ImportError, OSError, TypeError, ValueError, AssertionError)


class Backend(NamedTuple):
    """One way to compute sliding windows in training; a cache and packed documents go the reference's way."""

    name: str
    build: Callable[[int], Attend]  # from a window
    lacks: Callable[[torch.device, torch.dtype], str | None]  # what keeps it from being tried, in a few words


class Choice(NamedTuple):
    """The backend taken, and why those before it were not."""

    backend: Backend
    passed_over: dict[str, str]


def use_fast_windows(model: GPT, device: torch.device, dtype: torch.dtype) -> Choice:
    """Let every sliding layer of `model` use the best backend for queries of `dtype` on `device`."""
    choice = choose(device, dtype, model.config.head_dim, model.config.n_head // model.config.n_kv_head)
    for module in model.modules():
        if isinstance(module, Attention):
            for i, window in enumerate(module.windows):
                if window is not None and window < model.config.block_size:
                    module.attends[i] = choice.backend.build(window)
    return choice


def choose(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    group: int,
    candidates: tuple[Backend, ...] | None = None,
) -> Choice:
    """The first candidate that works here; the reference always does.

    Args:
        device: where the model trains.
        dtype: of queries, keys and values there.
        head_dim: D.
        group: query heads to a key/value head.
        candidates: best first; None is all that are known.
    """
    passed_over: dict[str, str] = {}
    for backend in BACKENDS if candidates is None else candidates:
        reason = backend.lacks(device, dtype) or _disagreement(backend, device, dtype, head_dim, group)
        if reason is None:
            return Choice(backend, passed_over)
        passed_over[backend.name] = reason
    return Choice(BLOCKED, passed_over)


def _disagreement(backend: Backend, device: torch.device, dtype: torch.dtype, D: int, group: int) -> str | None:
    """What is wrong with a backend's result or gradients on a small problem; None if nothing is."""
    window, heads = 70, 2 * group
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 320, D), (2, 2, 320, D), (2, 2, 320, D), (2, heads, 320, D)]
    exact = [torch.randn(s, generator=generator).to(device) for s in shapes]
    expected = _run(partial(attend_window, window=window), exact)
    try:
        actual = _run(backend.build(window), [x.to(dtype) for x in exact])
    except _UNUSABLE as e:
        return (str(e).strip() or type(e).__name__).splitlines()[0][:200]
    limit = 1e-3 if dtype == torch.float32 else 3e-2  # a wrong window shows as 0.1 and more
    for name, a, b in zip(("result", "dq", "dk", "dv"), actual, expected, strict=True):
        error = float((a.float() - b).norm() / b.norm())
        if not error <= limit:
            return f"its {name} is off by {error:.2g}"
    return None


def _run(attend: Attend, tensors: list[Tensor]) -> list[Tensor]:
    """A result and the gradients of q, k and v."""
    q, k, v, upstream = (x.detach().requires_grad_() for x in tensors)
    y = attend(q, k, v)
    return [y.detach(), *torch.autograd.grad(y, (q, k, v), upstream.detach())]


# ---------------------------------------------------------------- blocked: the reference, everywhere
def _nothing(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


BLOCKED = Backend("blocked", lambda window: partial(attend_window, window=window), _nothing)


# ---------------------------------------------------------------- varlen: FlashAttention's own window
def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None, *, window: int) -> Tensor:
    if starts is not None or q.size(2) != k.size(2):
        return attend_window(q, k, v, starts, window=window)
    from torch.nn.attention.varlen import varlen_attn

    B, H, T, D = q.shape
    ends = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q.device)
    # Only then: an option that torch 2.11 does not have.
    attend = partial(varlen_attn, enable_gqa=True) if k.size(1) != H else varlen_attn
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    # FlashAttention's left window does not count the current token.
    y = attend(q, k, v, ends, ends, T, T, window_size=(window - 1, 0))
    assert isinstance(y, Tensor)
    return y.view(B, T, H, D).transpose(1, 2)


def _varlen_lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return "it needs a GPU"
    return None if dtype in (torch.bfloat16, torch.float16) else "it needs half precision"


# ---------------------------------------------------------------- flex: a compiled kernel that skips hidden blocks
def _attend_flex(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None, *, window: int) -> Tensor:
    if starts is not None or q.size(2) != k.size(2):
        return attend_window(q, k, v, starts, window=window)
    mask = _flex_mask(window, q.size(2), q.device)
    y = _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=q.size(1) != k.size(1))
    assert isinstance(y, Tensor)
    return y


@lru_cache(maxsize=16)
def _flex_mask(window: int, length: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - window)

    return create_block_mask(visible, None, None, length, length, device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _flex_lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if device.type == "cuda" else "it has no backward pass on CPUs"


BACKENDS = (
    Backend("varlen", lambda window: partial(_attend_varlen, window=window), _varlen_lacks),
    Backend("flex", lambda window: partial(_attend_flex, window=window), _flex_lacks),
)
