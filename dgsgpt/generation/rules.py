"""The rules that change a distribution before a token is drawn, each a pure function on logits [V] in float64.

A token that is out has the logit -inf. Every rule keeps at least one token that it was given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [V] of the tokens marked in `seen` [V] (bool) made less likely, or more so by a penalty below 1.

    Positive ones are divided by `penalty`, negative ones multiplied (Keskar et al. 2019, CTRL, section 4.1, with the
    sign taken into account as in transformers).
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_likeliest(logits: Tensor) -> Tensor:
    """0 for the likeliest token, the lowest id among equals; -inf for all others."""
    kept = torch.full_like(logits, -torch.inf)
    kept[int(torch.argmax((logits == logits.max()).to(torch.uint8)))] = 0.0
    return kept


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Logits [V] divided by `temperature`, above 0, and moved so that the largest is 0: tiny ones cannot overflow."""
    return (logits - logits.max()) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The `k` largest of logits [V], exactly: among equals those of the lower ids. All if V is no larger than k."""
    if k >= len(logits):
        return logits
    last = torch.topk(logits, k).values[-1]
    below = logits < last
    if int(below.sum()) == len(logits) - k:  # nothing ties with the last one
        return logits.masked_fill(below, -torch.inf)
    kept = logits > last
    ties = torch.nonzero(logits == last).flatten()[: k - int(kept.sum())]
    kept[ties] = True
    return logits.masked_fill(~kept, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The likeliest tokens until their probability reaches `p`, the one that crosses it included.

    Nucleus sampling (Holtzman et al. 2020, section 3.1).
    """
    if p >= 1:
        return logits
    ordered, ids = torch.sort(logits, descending=True, stable=True)
    probabilities = torch.softmax(ordered, 0)
    before = torch.cumsum(probabilities, 0) - probabilities
    before[0] = 0.0  # whatever rounding does, the likeliest token stays
    return logits.index_fill(0, ids[before >= p], -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least `p` times as likely as the likeliest one (Nguyen et al. 2024, section 3); 0 keeps all."""
    if p <= 0:
        return logits
    return logits.masked_fill(logits < logits.max() + math.log(p), -torch.inf)


__all__ = ["keep_likeliest", "keep_min_p", "keep_top_k", "keep_top_p", "penalize_repetition", "scale"]
