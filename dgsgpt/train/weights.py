"""How weights are stored: all in float32, or matrices in bfloat16."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dgsgpt.config import ModelConfig
from dgsgpt.model import GPT


def is_router(name: str) -> bool:
    """Whether a parameter is the router of an MoE layer, whose rounding would change which experts are chosen."""
    return name.endswith("router.weight")


def is_vector(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a vector (norms, biases, shares of shortcuts) or a stack of them, as experts' biases are.

    Vectors do not decay, are no matter for Muon and stay in float32.
    """
    return parameter.ndim < 2 or name.endswith("bias")


def is_stored_narrow(name: str, parameter: Tensor) -> bool:
    """Whether `weight_precision=bf16` stores a parameter in bfloat16: matrices and stacks, but no router.

    Vectors (norms, biases, shares of shortcuts) are few, and a gain near one would move in steps of a 128th.
    """
    return not is_vector(name, parameter) and not is_router(name)


def build_model(config: ModelConfig, precision: Literal["fp32", "bf16"], device: torch.device) -> GPT:
    """A model with fresh weights, stored as `precision` says, on `device`.

    With bf16 its matrices are never there in float32: they are drawn where they stay, so that a model fits into a
    device, and past a computer's own memory, that would not hold it twice.
    """
    if precision == "fp32":
        return GPT(config).to(device)
    with torch.device("meta"):
        model = GPT(config)
    store_weights(model, precision)
    model.to_empty(device=device)
    for buffer in model.buffers():  # the experts' biases
        buffer.zero_()
    model.init_weights()
    return model


@torch.no_grad()
def store_weights(model: GPT, precision: Literal["fp32", "bf16"]) -> None:
    """Store the weights of `model` as `train.weight_precision` says, in place; before an optimizer is built on them.

    Under bf16 the forward pass belongs into bfloat16 autocast; the residual stream is then bfloat16 too.
    """
    if precision == "fp32":
        return
    for name, parameter in model.named_parameters():
        if is_stored_narrow(name, parameter):
            parameter.data = parameter.data.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            # The method is replaced, not the module: names in the state dict stay.
            module.forward = partial(_look_up, module)  # type: ignore[method-assign]


def _look_up(table: nn.Embedding, index: Tensor) -> Tensor:
    rows: Tensor = LookUp.apply(table.weight, index)
    return rows


class LookUp(torch.autograd.Function):
    """Rows of a table, whose gradient is summed in float32 and then rounded once.

    torch sums it in the table's type. In bfloat16 a sum stands still at 256 times what is added, and a frequent token
    occurs more often than that in a batch.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor) -> Tensor:
        """`weight` [V, C] and `index` [...] -> [..., C]."""
        ctx.save_for_backward(index)
        ctx.rows, ctx.dtype = weight.size(0), weight.dtype
        return torch.nn.functional.embedding(index, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient of `weight`."""
        (index,) = ctx.saved_tensors
        grad = torch.ops.aten.embedding_dense_backward(grads[0].float(), index, ctx.rows, -1, False)
        return grad.to(ctx.dtype), None
