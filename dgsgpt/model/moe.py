"""Sparse mixture of experts: each token passes the few networks that a router chooses for it.

Nothing is stored on the module: the layer returns its output, its auxiliary loss and its statistics, so that
recomputation under gradient checkpointing counts nothing twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.config import ModelConfig, MoEConfig
from dgsgpt.model.mlp import ACTIVATIONS, GATED, build_mlp
from dgsgpt.model.norm import compute_dtype

Multiply = Callable[[Tensor, Tensor, Tensor], Tensor]


class RouterStats(NamedTuple):
    """What one MoE layer did with a batch; detached."""

    load: Tensor  # [E] share of all assignments that chose each expert; 1/E is even
    dropped: Tensor  # [] share of assignments dropped for want of capacity


class Experts(nn.Module):
    """E plain feed-forward networks, each matrix stacked over the experts; they have no biases (as in Mixtral)."""

    def __init__(self, width: int, hidden: int, n_expert: int, kind: str) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(n_expert, hidden, width))
        self.down = nn.Parameter(torch.empty(n_expert, width, hidden))
        self.act = ACTIVATIONS[kind]
        # Grouped kernels want rows of whole 16 bytes; multiples of 8 give them in every dtype.
        aligned = width % 8 == 0 and hidden % 8 == 0
        self.multiply: Multiply = grouped_matmul if aligned and hasattr(F, "grouped_mm") else looped_matmul

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Rows `x` [M, C] sorted by expert, expert e's ending at `ends[e]` (int32) -> [M, C]; it computes M rows."""
        return self._network(x.to(compute_dtype(x)), lambda x, w: self.multiply(x, w.to(x.dtype), ends))

    def forward_batched(self, x: Tensor) -> Tensor:
        """`x` [E, M, C], M rows for every expert -> [E, M, C]."""
        return self._network(x, lambda x, w: torch.bmm(x, w.transpose(1, 2)))

    def _network(self, x: Tensor, times: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return times(self.act(times(x, self.up)), self.down)


class GatedExperts(Experts):
    """Experts with a gate (Shazeer 2020, eq. 6)."""

    def __init__(self, width: int, hidden: int, n_expert: int, kind: str) -> None:
        super().__init__(width, hidden, n_expert, kind)
        self.gate = nn.Parameter(torch.empty(n_expert, hidden, width))

    def _network(self, x: Tensor, times: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return times(self.act(times(x, self.gate)) * times(x, self.up), self.down)


def grouped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """`x` [M, in] sorted by expert times `weight` [E, out, in] -> [M, out], in one kernel."""
    return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)


def looped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same as `grouped_matmul`, expert by expert: for torch or widths without the grouped kernel."""
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    return torch.cat([F.linear(rows, w) for rows, w in zip(x.split(counts), weight, strict=True)])


class Choice(NamedTuple):
    """The K experts chosen for each of N rows."""

    experts: Tensor  # [N, K] int64
    scores: Tensor  # [N, K] their probabilities among all experts
    weights: Tensor  # [N, K] what their outputs are multiplied by


class MoE(nn.Module):
    """Routed experts in place of the dense network (Shazeer et al. 2017; Fedus et al. 2021)."""

    def __init__(self, config: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.n_expert, self.k = moe.n_expert, moe.n_expert_per_token
        self.balance_weight, self.z_weight = moe.aux_loss_weight, moe.z_loss_weight
        self.router = nn.Linear(config.n_embd, moe.n_expert, bias=False)
        kind = GatedExperts if config.mlp in GATED else Experts
        self.experts = kind(config.n_embd, config.expert_hidden, moe.n_expert, config.mlp)
        # With one expert a token, renormalised weights are all 1 and the loss gives the router no gradient.
        self.weigh = renormalized if moe.renormalize and self.k > 1 else as_scored

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, RouterStats]:
        """`x` [B, T, C] -> ([B, T, C], weighted auxiliary loss [], statistics)."""
        rows = x.flatten(0, -2)
        logits = self._score(rows)
        probabilities = logits.softmax(-1)
        scores, experts = probabilities.topk(self.k, dim=-1)
        y, load, dropped = self._dispatch(rows, Choice(experts, scores, self.weigh(scores)))
        # Balance: Fedus et al. 2021, eq. 4, which is 1 at its best. z: Zoph et al. 2022 (ST-MoE), eq. 5.
        balance = self.n_expert * (load * probabilities.mean(0)).sum()
        z = logits.logsumexp(-1).square().mean()
        return y.view_as(x), self.balance_weight * balance + self.z_weight * z, RouterStats(load, dropped)

    def _score(self, rows: Tensor) -> Tensor:
        """Router logits [N, E], always in float32: rounding them would change which experts are chosen."""
        with torch.autocast(rows.device.type, enabled=False):
            return F.linear(rows.float(), self.router.weight.float())

    def _dispatch(self, rows: Tensor, choice: Choice) -> tuple[Tensor, Tensor, Tensor]:
        """Send `rows` [N, C] to their experts, however many go to one -> ([N, C], load [E], dropped [])."""
        flat = choice.experts.flatten()
        order = flat.argsort(stable=True)
        ends = self._ends(flat[order])
        y = self.experts(rows.index_select(0, order // self.k), ends)
        y = y.index_select(0, order.argsort()).unflatten(0, (-1, self.k))
        y = (y * choice.weights.to(y.dtype)[..., None]).sum(1)
        return y, shares(ends), y.new_zeros((), dtype=torch.float32)

    def _ends(self, experts: Tensor) -> Tensor:
        """Where each expert's run ends in the sorted `experts` [N K] -> int32 [E]."""
        ids = torch.arange(self.n_expert, device=experts.device)
        return torch.searchsorted(experts, ids, right=True, out_int32=True)


class CapacityMoE(MoE):
    """Experts that take no more than their capacity in training, the highest scores first; in use none is dropped.

    Ranking by score, not by place in the batch, keeps late tokens and rows from being dropped more often
    (Riquelme et al. 2021, Batch Prioritized Routing). A dropped token passes by on the residual stream.
    """

    def __init__(self, config: ModelConfig, moe: MoEConfig) -> None:
        super().__init__(config, moe)
        assert moe.capacity_factor is not None
        self.capacity_factor = moe.capacity_factor

    def _dispatch(self, rows: Tensor, choice: Choice) -> tuple[Tensor, Tensor, Tensor]:
        if not self.training:
            return super()._dispatch(rows, choice)
        N, flat = len(rows), choice.experts.flatten()
        capacity = min(N, math.ceil(self.capacity_factor * N * self.k / self.n_expert))
        order = choice.scores.flatten().argsort(descending=True, stable=True)
        order = order[flat[order].argsort(stable=True)]  # by expert; within one, still by falling score
        ends = self._ends(flat[order])
        starts = F.pad(ends[:-1], (1, 0))
        slots = starts[:, None] + torch.arange(capacity, device=ends.device)  # [E, capacity]: shapes stay static
        filled = slots < ends[:, None]
        taken = order[slots.clamp(max=len(order) - 1)]
        weights = (choice.weights.flatten()[taken] * filled)[..., None]
        origin = (taken // self.k).flatten()
        x = rows.index_select(0, origin).unflatten(0, slots.shape)
        y = self.experts.forward_batched(x)
        y = (y * weights.to(y.dtype)).flatten(0, 1)
        y = y.new_zeros(rows.shape).index_add(0, origin, y)
        return y, shares(ends), 1 - filled.sum() / len(order)


def shares(ends: Tensor) -> Tensor:
    """Share of all assignments that each expert received, from where its run ends [E] -> [E]."""
    return torch.diff(ends, prepend=ends.new_zeros(1)) / ends[-1]


def renormalized(scores: Tensor) -> Tensor:
    """The chosen scores [N, K], scaled to sum to one (as in Mixtral)."""
    return scores / scores.sum(-1, keepdim=True)


def as_scored(scores: Tensor) -> Tensor:
    """The chosen scores [N, K] as they are (Fedus et al. 2021, eq. 2)."""
    return scores


class SharedExperts(nn.Module):
    """An MoE layer beside experts that every token passes (DeepSeekMoE, Dai et al. 2024, eq. 9)."""

    def __init__(self, config: ModelConfig, moe: MoEConfig, routed: MoE) -> None:
        super().__init__()
        self.routed = routed
        # Experts that all tokens pass are one network of their joint width.
        self.shared = build_mlp(config, moe.n_shared_expert * config.expert_hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, RouterStats]:
        """`x` [B, T, C] -> ([B, T, C], weighted auxiliary loss [], statistics)."""
        y, aux, stats = self.routed(x)
        return y + self.shared(x)[0], aux, stats


def build_moe(config: ModelConfig, moe: MoEConfig) -> MoE | SharedExperts:
    """The experts that `model.moe` describes."""
    routed = (MoE if moe.capacity_factor is None else CapacityMoE)(config, moe)
    return SharedExperts(config, moe, routed) if moe.n_shared_expert else routed
