"""What a model makes of each target of a batch: its nats, and what it would have said itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dgsgpt.architecture import loss_chunk_rows
from dgsgpt.data.loader import Batch

if TYPE_CHECKING:
    from dgsgpt.model import GPT

Floats = npt.NDArray[np.float64]


class Judged(NamedTuple):
    """Of each target: its nats, the probability of the likeliest token, and whether that was the target."""

    nats: Floats
    top: npt.NDArray[np.float32]
    right: npt.NDArray[np.bool_]


NONE_JUDGED = Judged(np.zeros(0), np.zeros(0, np.float32), np.zeros(0, np.bool_))


def judge_batch(model: GPT, batch: Batch, device: torch.device) -> tuple[float, Judged]:
    """The model's mean loss over a batch, and what it makes of each of its targets, in the text's order."""
    x, y, documents = (None if t is None else t.to(device) for t in batch)
    assert x is not None
    assert y is not None
    with _last_states(model) as states:
        out = model(x, y, documents=documents)
    real = y >= 0
    labels = y[real]
    if out.logits is not None:
        parts = [_judge_rows(out.logits[real], labels)]
    else:  # the loss was computed in chunks of rows, because all logits at once would be large: so are these
        rows = loss_chunk_rows(model.config, y.numel(), device.type) or y.numel()
        matrix = model.head.matrix(model.embed.weight)
        pairs = zip(states[-1][real].split(rows), labels.split(rows), strict=True)
        parts = [_judge_rows(model.head.logits(x, matrix), y) for x, y in pairs]
    nats, top, right = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return float(out.loss.double()), Judged(nats.astype(np.float64), top, right)


def _judge_rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `logits` [N, V] and `labels` [N]: nats, the highest probability, and whether it is the label's; each [N]."""
    logits = logits.float()
    nats = F.cross_entropy(logits, labels, reduction="none")
    highest, likeliest = logits.max(-1)
    top = (highest - logits.gather(1, labels[:, None])[:, 0] - nats).exp()  # -nats is the label's logit, normalised
    return nats, top, likeliest == labels


@contextmanager
def _last_states(model: GPT) -> Iterator[list[Tensor]]:
    """What leaves the last norm, [B, T, C], of each forward pass within."""
    kept: list[Tensor] = []
    handle = model.norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def judging(model: GPT) -> Iterator[None]:
    """Without dropout and gradients; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


__all__ = ["NONE_JUDGED", "Judged", "judge_batch", "judging"]
