"""Windows that overlap, so that every token is judged with much of the text before it (Press et al. 2022, section 2).

Windows of `context` tokens begin every `stride` tokens. The first judges all its predictions; each later one only its
last `stride`, because those before them are judged already. Each token is thus judged once, with at least
`context - stride + 1` tokens before it, or all there are. A stride as long as the context gives windows that do not
overlap; a stride of 1 gives every token all the context a model can read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dgsgpt.data.loader import IGNORED, Batch, windows
from dgsgpt.errors import DataError

Integers = npt.NDArray[np.int64]


def check_stride(stride: int | None, context: int) -> int:
    """`stride`, or the whole context where none is given.

    Raises:
        DataError: it is not within 1 and `context`.
    """
    if stride is None:
        return context
    if not 1 <= stride <= context:
        raise DataError(
            f"stride={stride} must be 1 to {context} tokens, the context; leave it out for windows without overlap"
        )
    return stride


def window_count(predictions: int, context: int, stride: int) -> int:
    """Windows that judge `predictions` tokens."""
    return 1 + max(0, -(-(predictions - context) // stride))


def forward_tokens(predictions: int, context: int, stride: int) -> int:
    """Tokens that a model reads to judge `predictions` of them: about `predictions * context / stride`."""
    before = window_count(predictions, context, stride) - 1
    return before * context + predictions - before * stride


def window_of(at: Integers, context: int, stride: int) -> Integers:
    """The number of the window that judges the token at each place [n] of the text; number k begins at k * stride."""
    return np.maximum(0, -(-(at - context) // stride))


def sliding_windows(
    tokens: npt.NDArray[Any],
    context: int,
    stride: int,
    max_tokens: int | None = None,
    *,
    batch_size: int = 8,
    document_starts: Integers | None = None,
) -> Iterator[tuple[Batch, int]]:
    """Batches [B, context] and how many of their targets count; the others are -100.

    With `stride` equal to `context` these are the batches of `dgsgpt.data.loader.windows`, whose rules hold here too:
    of a long text `max_tokens` are judged in windows spread evenly over it.
    """
    if stride == context:
        yield from windows(tokens, context, max_tokens, batch_size=batch_size, document_starts=document_starts)
        return
    predictions = len(tokens) - 1
    budget = predictions if max_tokens is None else min(max_tokens, predictions)
    wanted, count = window_count(budget, context, stride), window_count(predictions, context, stride)
    for first in range(0, wanted, batch_size):
        numbers = np.arange(first, min(first + batch_size, wanted)) * count // wanted
        starts = numbers * stride
        judged_before = np.where(numbers > 0, context - stride, 0)
        new = np.minimum(context, predictions - starts) - judged_before
        new = np.clip(budget - np.concatenate(([0], np.cumsum(new)[:-1])), 0, new)
        budget -= int(new.sum())
        if new.any():
            yield _batch(tokens, starts, judged_before, new, context, document_starts), int(new.sum())


def _batch(
    tokens: npt.NDArray[Any], starts: Integers, judged_before: Integers, new: Integers, context: int,
    document_starts: Integers | None,
) -> Batch:  # fmt: skip
    """Rows that read from `starts` [B] and judge `new` [B] targets after the first `judged_before` [B]."""
    places = starts[:, None] + np.arange(context + 1)
    rows = tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64)
    place, end = np.arange(context), (judged_before + new)[:, None]
    x = np.where(place < end, rows[:, :-1], 0)
    y = np.where((place >= judged_before[:, None]) & (place < end), rows[:, 1:], IGNORED)
    documents = None
    if document_starts is not None:
        documents = torch.from_numpy(np.searchsorted(document_starts, places[:, :-1], side="right") - 1)
    return Batch(torch.from_numpy(x), torch.from_numpy(y), documents)


__all__ = ["check_stride", "forward_tokens", "sliding_windows", "window_count", "window_of"]
