"""The optimizer and its weight-decay groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dgsgpt.config import TrainConfig

if TYPE_CHECKING:
    from dgsgpt.model import GPT


def parameter_groups(model: GPT, weight_decay: float) -> list[dict[str, object]]:
    """Matrices (and expert stacks) decay; vectors, that is norms and biases, do not, as in GPT-2 and Llama training."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: GPT, train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), in its fused form, which does one pass over memory."""
    groups = parameter_groups(model, train.weight_decay)
    return torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=1e-8, fused=True)


def optimizer_tensors(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as `{"exp_avg.blocks.0.attn.q.weight": …}`, by parameter name."""
    return {
        f"{kind}.{name}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if torch.is_tensor(value)
    }


def restore_optimizer(model: GPT, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    for name, parameter in model.named_parameters():
        kinds = {key.partition(".")[0] for key in tensors if key.partition(".")[2] == name}
        if kinds:
            optimizer.state[parameter] = {kind: tensors[f"{kind}.{name}"].clone() for kind in sorted(kinds)}
