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
# Of products [M, out] of rows sorted by expert, biases [E, out] where there are some, and the ends [E] of the experts'.
Shift = Callable[[Tensor, Tensor | None, Tensor], Tensor]
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of rows, matrices [E, out, in] and biases [E, out]


class RouterStats(NamedTuple):
    """What one MoE layer did with a batch; detached."""

    load: Tensor  # [E] share of all assignments that chose each expert; 1/E is even
    dropped: Tensor  # [] share of assignments dropped for want of capacity
    entropy: Tensor  # [] how undecided the router was, 0 to 1, mean over tokens; 0 out of training


class Experts(nn.Module):
    """E plain feed-forward networks: each matrix, and each bias where there are biases, stacked over the experts."""

    def __init__(self, width: int, hidden: int, n_expert: int, kind: str, bias: bool = False) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(n_expert, hidden, width))
        self.down = nn.Parameter(torch.empty(n_expert, width, hidden))
        self.up_bias = nn.Parameter(torch.zeros(n_expert, hidden)) if bias else None
        self.down_bias = nn.Parameter(torch.zeros(n_expert, width)) if bias else None
        self.act = ACTIVATIONS[kind]
        self.shift: Shift = add_biases if bias else leave_products
        # Grouped kernels want rows of whole 16 bytes; multiples of 8 give them in every dtype.
        aligned = width % 8 == 0 and hidden % 8 == 0
        self.multiply: Multiply = grouped_matmul if aligned and hasattr(F, "grouped_mm") else looped_matmul

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Rows `x` [M, C] sorted by expert, expert e's ending at `ends[e]` (int32) -> [M, C].

        Rows past the last end are not computed: their results, and the gradients of their inputs, are undefined.
        """

        def times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return self.shift(self.multiply(x, weight.to(x.dtype), ends), bias, ends)

        return self._network(x.to(compute_dtype(x)), times)

    def _network(self, x: Tensor, times: Linear) -> Tensor:
        return times(self.act(times(x, self.up, self.up_bias)), self.down, self.down_bias)


class GatedExperts(Experts):
    """Experts with a gate (Shazeer 2020, eq. 6)."""

    def __init__(self, width: int, hidden: int, n_expert: int, kind: str, bias: bool = False) -> None:
        super().__init__(width, hidden, n_expert, kind, bias)
        self.gate = nn.Parameter(torch.empty(n_expert, hidden, width))
        self.gate_bias = nn.Parameter(torch.zeros(n_expert, hidden)) if bias else None

    def _network(self, x: Tensor, times: Linear) -> Tensor:
        gate = self.act(times(x, self.gate, self.gate_bias))
        return times(gate * times(x, self.up, self.up_bias), self.down, self.down_bias)


def grouped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """`x` [M, in] sorted by expert times `weight` [E, out, in] -> [M, out], in one kernel."""
    return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)


def looped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same as `grouped_matmul`, expert by expert: for torch or widths without the grouped kernel."""
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    *groups, rest = x.split([*counts, len(x) - sum(counts)])
    products = [F.linear(rows, w) for rows, w in zip(groups, weight, strict=True)]
    return torch.cat([*products, rest.new_zeros(len(rest), weight.size(1))])


def add_biases(y: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """`y` [M, out] plus, row by row, the bias [E, out] of the expert whose rows end at `ends` [E].

    Rows past the last end stay undefined: a spare row behind the biases is theirs and takes their gradients. The sum
    over an expert's rows is in float32, like that of any bias: in bfloat16 it would stand still after 256 of them.
    """
    assert bias is not None, "experts with biases pass them"
    rows = torch.arange(len(y), device=y.device, dtype=ends.dtype)
    experts = torch.searchsorted(ends, rows, right=True, out_int32=True)
    return y + F.embedding(experts, F.pad(bias.float(), (0, 0, 0, 1))).to(y.dtype)


def leave_products(y: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """What takes the place of `add_biases` in experts without biases."""
    return y


class Choice(NamedTuple):
    """The K experts chosen for each of N rows."""

    experts: Tensor  # [N, K] int64
    scores: Tensor  # [N, K] their probabilities among all experts
    weights: Tensor  # [N, K] what their outputs are multiplied by


class PlainSelection(nn.Module):
    """The experts with the highest probabilities; a loss keeps them equally busy (Fedus et al. 2021, eq. 4)."""

    def __init__(self, moe: MoEConfig) -> None:
        super().__init__()
        self.k, self.n_expert, self.weight = moe.n_expert_per_token, moe.n_expert, moe.aux_loss_weight

    def forward(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """`probabilities` [N, E] -> (those of the chosen experts [N, K], which these are [N, K])."""
        scores, experts = probabilities.topk(self.k, dim=-1)
        return scores, experts

    def loss(self, load: Tensor, probabilities: Tensor) -> Tensor:
        """Weighted balance loss [] of shares `load` [E]; unweighted it is 1 at its best."""
        return self.weight * self.n_expert * (load * probabilities.mean(0)).sum()

    def balance(self, load: Tensor) -> None:
        """Nothing to do: the loss has moved the router itself."""


class BiasedSelection(nn.Module):
    """The same choice with a bias for each expert, raised while it gets too few tokens and lowered while too many.

    Loss-free balancing (Wang et al. 2024, arXiv 2408.15664, algorithm 1): the bias only moves the choice, the outputs
    keep the unbiased probabilities as weights, so no gradient pulls against the language model.
    """

    bias: Tensor

    def __init__(self, moe: MoEConfig) -> None:
        super().__init__()
        self.k, self.rate = moe.n_expert_per_token, moe.bias_update_rate
        self.register_buffer("bias", torch.zeros(moe.n_expert))

    def forward(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """`probabilities` [N, E] -> (those of the chosen experts [N, K], which these are [N, K])."""
        experts = (probabilities + self.bias.float()).topk(self.k, dim=-1).indices
        return probabilities.gather(-1, experts), experts

    def loss(self, load: Tensor, probabilities: Tensor) -> Tensor:
        """0: no loss is needed."""
        return load.new_zeros(())

    @torch.no_grad()
    def balance(self, load: Tensor) -> None:
        """One step of the bias against shares `load` [E], once for each optimizer step."""
        self.bias += self.rate * (load.mean() - load).sign()


class MoE(nn.Module):
    """Routed experts in place of the dense network, or after it (Shazeer et al. 2017; Fedus et al. 2021)."""

    def __init__(self, config: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.n_expert, self.k = moe.n_expert, moe.n_expert_per_token
        self.z_weight = moe.z_loss_weight
        self.router = nn.Linear(config.n_embd, moe.n_expert, bias=moe.bias)
        self.selection = BiasedSelection(moe) if moe.balance == "bias" else PlainSelection(moe)
        kind = GatedExperts if config.mlp in GATED else Experts
        self.experts = kind(config.n_embd, config.expert_hidden, moe.n_expert, config.mlp, moe.bias)
        # With one expert a token, renormalised weights are all 1 and the loss gives the router no gradient.
        several = self.k > 1 or moe.renormalize_single
        self.weigh = renormalized if moe.renormalize and several else as_scored

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, RouterStats]:
        """`x` [B, T, C] -> ([B, T, C], weighted auxiliary loss [], statistics)."""
        rows = x.flatten(0, -2)
        logits = self._score(rows)
        probabilities = logits.softmax(-1)
        scores, experts = self.selection(probabilities)
        y, load, dropped = self._dispatch(rows, Choice(experts, scores, self.weigh(scores)))
        total = logits.logsumexp(-1)
        # z: Zoph et al. 2022 (ST-MoE), eq. 5.
        aux = self.selection.loss(load, probabilities) + self.z_weight * total.square().mean()
        return y.view_as(x), aux, RouterStats(load, dropped, self._entropy(logits, probabilities, total))

    def balance(self, load: Tensor) -> None:
        """After an optimizer step that sent the shares `load` [E] of its tokens to the experts."""
        self.selection.balance(load)

    @torch.no_grad()
    def _entropy(self, logits: Tensor, probabilities: Tensor, total: Tensor) -> Tensor:
        """How undecided the router is, 0 to 1, from its logits [N, E], their softmax and their logsumexp [N]."""
        if not self.training or self.n_expert == 1:
            return total.new_zeros(())
        return (total - (probabilities * logits).sum(-1)).mean() / math.log(self.n_expert)

    def _score(self, rows: Tensor) -> Tensor:
        """Router logits [N, E], always in float32: rounding them would change which experts are chosen."""
        with torch.autocast(rows.device.type, enabled=False):
            bias = None if self.router.bias is None else self.router.bias.float()
            return F.linear(rows.float(), self.router.weight.float(), bias)

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
        N, E, flat = len(rows), self.n_expert, choice.experts.flatten()
        capacity = min(N, math.ceil(self.capacity_factor * N * self.k / E))
        order = choice.scores.flatten().argsort(descending=True, stable=True)
        order = order[flat[order].argsort(stable=True)]  # by expert; within one, by falling score
        ends = self._ends(flat[order])
        starts = F.pad(ends[:-1], (1, 0))
        kept = torch.arange(len(order), device=ends.device) - starts[flat[order]] < capacity
        # What is dropped goes behind the last expert, and what certainly is, away: shapes do not depend on the routing.
        order = order[(~kept).to(torch.int8).argsort(stable=True)[: E * capacity]]
        kept_ends = torch.diff(ends, prepend=ends.new_zeros(1)).clamp(max=capacity).cumsum(0, dtype=ends.dtype)
        inside = torch.arange(len(order), device=ends.device) < kept_ends[-1]
        # Rows behind the last expert are undefined, forward and backward. One spare row takes them all.
        origin = torch.where(inside, order // self.k, N)
        weights = torch.where(inside, choice.weights.flatten()[order], 0.0)
        y = self.experts(F.pad(rows, (0, 0, 0, 1)).index_select(0, origin), kept_ends)
        y = y * weights.to(y.dtype)[:, None]
        y = y.new_zeros(N + 1, rows.size(1)).index_add(0, origin, y)[:N]
        return y, shares(ends), 1 - kept_ends[-1] / len(flat)


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
    """An MoE layer beside a network that every token passes: shared experts, a dense residual, or both as one.

    Shared experts: DeepSeekMoE (Dai et al. 2024, eq. 9). Dense residual: Residual-MoE (Rajbhandari et al. 2022,
    DeepSpeed-MoE, section 4.1.2).
    """

    def __init__(self, config: ModelConfig, routed: MoE) -> None:
        super().__init__()
        self.routed = routed
        self.shared = build_mlp(config, config.shared_hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, RouterStats]:
        """`x` [B, T, C] -> ([B, T, C], weighted auxiliary loss [], statistics)."""
        y, aux, stats = self.routed(x)
        return y + self.shared(x)[0], aux, stats


def build_moe(config: ModelConfig, moe: MoEConfig) -> MoE | SharedExperts:
    """The experts that `model.moe` describes."""
    routed = (MoE if moe.capacity_factor is None else CapacityMoE)(config, moe)
    return SharedExperts(config, routed) if config.shared_hidden else routed
