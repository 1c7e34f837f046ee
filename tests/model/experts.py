"""An MoE layer for tests, and the same written out as a loop."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgsgpt.model.moe import build_moe
from tests.model.tiny import tiny_config


def layer(seed: int = 0, mlp: str = "swiglu", **moe: Any) -> Any:
    config = tiny_config(mlp=mlp, moe={"n_expert": 4, **moe})
    assert config.moe is not None
    torch.manual_seed(seed)
    built = build_moe(config, config.moe)
    for p in built.parameters():
        torch.nn.init.normal_(p, 0.0, 0.3)
    return built


def inputs(rows: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(2, rows // 2, 32, generator=torch.Generator().manual_seed(seed))


def expert(moe: Any, e: int, x: Tensor) -> Tensor:
    """One expert's network written out."""

    def bias(name: str) -> Any:
        biases = getattr(moe.experts, f"{name}_bias")
        return 0.0 if biases is None else biases[e]

    up = x @ moe.experts.up[e].T + bias("up")
    gated = hasattr(moe.experts, "gate")
    hidden = F.silu(x @ moe.experts.gate[e].T + bias("gate")) * up if gated else moe.experts.act(up)
    return hidden @ moe.experts.down[e].T + bias("down")


def plain_loop(moe: Any, x: Tensor, k: int, renormalize: bool, capacity: float = math.inf) -> Tensor:
    """Every row through each of its experts, one after the other; each expert takes its best-scored rows."""
    rows = x.flatten(0, 1)
    logits = rows @ moe.router.weight.T
    scores = (logits if moe.router.bias is None else logits + moe.router.bias).softmax(-1)
    y = torch.zeros_like(rows)
    chosen = [scores[n].topk(k).indices.tolist() for n in range(len(rows))]
    for e in range(scores.size(1)):
        applicants = sorted((n for n in range(len(rows)) if e in chosen[n]), key=lambda n: -scores[n, e].item())
        for n in applicants[: int(min(capacity, len(rows)))]:
            weight = scores[n, e] / (scores[n, chosen[n]].sum() if renormalize else 1.0)
            y[n] += weight * expert(moe, e, rows[n])
    return y.view_as(x)
