"""Batches of token windows. A batch is a pure function of (seed, step): resuming needs no state and replays nothing.

Shapes: B batch, T tokens (block_size).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgsgpt.data.dataset import Dataset, open_dataset
from dgsgpt.errors import DataError

IGNORED = -100


class Batch(NamedTuple):
    """What a model reads and should say."""

    inputs: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64; targets[:, t] follows inputs[:, t], -100 is none
    documents: Tensor | None = None  # [B, T] int64, the number of each input's document; None where all are one


class Batches:
    """Random training batches over a split.

    The split is cut into windows of `block_size` predictions that share no target. Each epoch visits every window
    once, in a permutation drawn from [seed, epoch]; batches run on across the end of an epoch, so windows need not
    divide evenly. Nothing but (seed, step) decides a batch.

    Raises:
        DataError: the split has fewer than `block_size` + 1 tokens.
    """

    def __init__(
        self, dataset: Dataset | Path | str, split: str = "train", *, block_size: int, batch_size: int, seed: int
    ) -> None:
        opened = _open(dataset)
        self._tokens, self._document_starts = opened.tokens(split), opened.document_starts(split)
        self.windows = (len(self._tokens) - 1) // block_size
        if self.windows < 1:
            raise DataError(
                f"the {split} split has {len(self._tokens):,} tokens, but block_size={block_size} needs "
                f"{block_size + 1:,}; lower block_size or use a longer text"
            )
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def get(self, step: int) -> Batch:
        """Batch number `step` (from 0); every target is valid, a document's first one follows the document before."""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = numbers // self.windows, numbers % self.windows
        starts = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            starts[chosen] = self._order(int(epoch))[places[chosen]] * self.block_size
        rows = torch.from_numpy(_gather(self._tokens, starts, self.block_size + 1))
        documents = _documents(self._document_starts, starts, self.block_size)
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), documents)

    def epoch(self, step: int) -> float:
        """How many times the split has been gone through before batch `step`."""
        return step * self.batch_size / self.windows

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            # Two epochs at most: a batch may touch the end of one and the start of the next.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.windows)
        return self._orders[epoch]


def val_windows(
    dataset: Dataset | Path | str,
    block_size: int,
    max_tokens: int | None = None,
    *,
    batch_size: int = 8,
    split: str = "val",
) -> Iterator[tuple[Batch, int]]:
    """`windows` over a split of a dataset, with its documents if it has any."""
    opened = _open(dataset)
    starts = opened.document_starts(split)
    yield from windows(opened.tokens(split), block_size, max_tokens, batch_size=batch_size, document_starts=starts)


def windows(
    tokens: npt.NDArray[Any],
    block_size: int,
    max_tokens: int | None = None,
    *,
    batch_size: int = 8,
    document_starts: npt.NDArray[np.int64] | None = None,
) -> Iterator[tuple[Batch, int]]:
    """Deterministic windows in which each token but the first is predicted exactly once.

    Yields batches [B, T] and how many of their targets are real: the last window may be short, and is padded with
    token 0, target -100 and the last document. `document_starts` are the places where documents begin. With
    `max_tokens` only that many predictions are made, in whole windows spread evenly over the text (the last one is
    cut), which judges it better than its beginning would.
    """
    predictions = len(tokens) - 1
    if predictions < 1:
        return
    count = -(-predictions // block_size)
    budget = predictions if max_tokens is None else min(max_tokens, predictions)
    chosen = np.arange(count)
    if budget < predictions:
        wanted = -(-budget // block_size)
        chosen = np.arange(wanted) * count // wanted
    for first in range(0, len(chosen), batch_size):
        starts = chosen[first : first + batch_size] * block_size
        lengths = np.minimum(block_size, predictions - starts)
        lengths = np.clip(budget - np.concatenate(([0], np.cumsum(lengths)[:-1])), 0, lengths)
        budget -= int(lengths.sum())
        if lengths.any():
            inputs, targets = _padded(tokens, starts, lengths, block_size)
            yield Batch(inputs, targets, _documents(document_starts, starts, block_size)), int(lengths.sum())


def _padded(
    tokens: npt.NDArray[Any], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], block_size: int
) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(_gather(tokens, starts, block_size + 1))
    x, y = rows[:, :-1].clone(), rows[:, 1:].clone()
    empty = torch.arange(block_size) >= torch.from_numpy(lengths)[:, None]
    return x.masked_fill_(empty, 0), y.masked_fill_(empty, IGNORED)


def _gather(tokens: npt.NDArray[Any], starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Rows of `length` tokens from `starts`, [B, length]; past the end the last token is repeated."""
    places = np.minimum(starts[:, None] + np.arange(length), len(tokens) - 1)
    return tokens[places].astype(np.int64)


def _documents(
    document_starts: npt.NDArray[np.int64] | None, starts: npt.NDArray[np.int64], length: int
) -> Tensor | None:
    """The number of the document at each of `length` places from `starts`, [B, length]."""
    if document_starts is None:
        return None
    places = starts[:, None] + np.arange(length)
    return torch.from_numpy(np.searchsorted(document_starts, places, side="right") - 1)


def _open(dataset: Dataset | Path | str) -> Dataset:
    return dataset if isinstance(dataset, Dataset) else open_dataset(dataset)


__all__ = ["Batch", "Batches", "val_windows", "windows"]
