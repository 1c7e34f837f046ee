"""The output layer and its loss: all logits at once where they are few, else in chunks of rows.

Logits are the largest tensor of a small model with a large vocabulary. In chunks each row's gradient is computed
with its loss and its logits are let go, so that only one chunk of them ever exists.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.architecture import loss_chunk_rows
from dgsgpt.config import ModelConfig
from dgsgpt.model.norm import compute_dtype

IGNORED = -100


class OutputLayer(nn.Module):
    """Logits and loss from what leaves the last norm; the matrix is the model's own or its token embedding.

    With a matrix of its own it may have a bias. `logit_softcap` squashes logits to `cap * tanh(logits / cap)` (Gemma 2,
    Gemma Team 2024, section 2).
    """

    bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.cap = config.logit_softcap
        self.register_parameter("bias", None)

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        """`x` [..., C] times `weight` [V, C], plus the bias [V] if there is one -> [..., V]."""
        return softcap(F.linear(x, weight, self.bias), self.cap)

    def loss(self, x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor]:
        """`x` [B, T, C], `targets` [B, T] -> (logits [B, T, V], None in chunks; mean loss [] in nats per token).

        Targets of -100 are ignored; where all are, the loss is 0, with no gradient.
        """
        rows = loss_chunk_rows(self.config, targets.numel(), x.device.type)
        if rows is None:
            logits = self.logits(x, weight)
            return logits, _mean(cross_entropy(logits.flatten(0, 1), targets.flatten()), targets)
        dtype = compute_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        inputs = (x.flatten(0, 1).to(dtype), weight.to(dtype), targets.flatten())
        return None, _mean(chunked_cross_entropy(*inputs, rows, self.cap, bias), targets)


class Head(OutputLayer):
    """An output layer with a matrix of its own, and a bias with `head_bias`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.vocab_size is not None
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))
        if config.head_bias:
            self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def matrix(self, embedding: Tensor) -> Tensor:
        """Its own matrix [V, C]."""
        return self.weight


class TiedHead(OutputLayer):
    """An output layer that is the token embedding (Press & Wolf 2017); it holds no parameter of its own."""

    def matrix(self, embedding: Tensor) -> Tensor:
        """The token embedding [V, C]."""
        return embedding


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """Logits within plus or minus `cap`; None leaves them."""
    return logits if cap is None else cap * torch.tanh(logits.float() / cap)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats, in float32, of `logits` [N, V] over `targets` [N] that are not -100."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, rows: int, cap: float | None, bias: Tensor | None = None
) -> Tensor:
    """The same from `x` [N, C], `weight` [V, C] and `bias` [V], with at most `rows` rows of logits alive at once.

    torch's own operator where there is one (from 2.13) and it can: it neither caps logits nor, in half precision,
    gives the sum in float32, and 16 bits of a sum over thousands of tokens are two or three digits.
    """
    if cap is None and x.dtype == torch.float32 and hasattr(F, "linear_cross_entropy"):
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
        return F.linear_cross_entropy(
            x, weight, targets, linear_bias=bias, reduction="sum", ignore_index=IGNORED, options=options
        )
    total: Tensor = ChunkedCrossEntropy.apply(x, weight, bias, targets, rows, cap)
    return total


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear layer whose gradients are computed beside the loss, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int, cap: float | None
    ) -> Tensor:
        """Summed loss [] in float32; see `chunked_cross_entropy`."""
        wanted = any(ctx.needs_input_grad[:3])
        grad_x = torch.empty_like(x) if wanted else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted and bias is not None else None
        total = torch.zeros((), device=x.device)
        for begin in range(0, len(x), rows):
            part, labels = x[begin : begin + rows], targets[begin : begin + rows]
            logits = softcap(F.linear(part, weight, bias).float(), cap)
            nats, grad = _loss_and_gradient(logits, labels, wanted)
            total += nats
            if grad is None or grad_x is None or grad_weight is None:
                continue
            if cap is not None:  # the slope of cap * tanh(z / cap) is 1 - tanh(z / cap)^2
                grad *= 1 - (logits / cap).square()
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(x.dtype)
            torch.mm(grad, weight, out=grad_x[begin : begin + rows])
            grad_weight += grad.T @ part
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        """Gradients of `x`, `weight` and `bias`, scaled by that of the loss."""
        grad_x, grad_weight, grad_bias = ctx.saved_tensors
        by_x, by_weight = grad_x * grads[0].to(grad_x.dtype), (grad_weight * grads[0]).to(ctx.weight_dtype)
        by_bias = None if grad_bias is None else (grad_bias * grads[0]).to(ctx.weight_dtype)
        return by_x, by_weight, by_bias, None, None, None


def _loss_and_gradient(logits: Tensor, labels: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Summed cross-entropy [] of `logits` [N, V] and its gradient by them: softmax minus the one-hot label."""
    valid = labels != IGNORED
    index = labels.clamp(min=0)[:, None]
    normaliser = logits.logsumexp(-1, keepdim=True)
    nats = ((normaliser - logits.gather(1, index))[:, 0] * valid).sum()
    if not gradient:
        return nats, None
    grad = (logits - normaliser).exp_()
    grad.scatter_add_(1, index, grad.new_full(index.shape, -1.0))
    return nats, grad.mul_(valid[:, None])


def _mean(total: Tensor, targets: Tensor) -> Tensor:
    """A sum over the targets that count, as their mean; 0 if none does."""
    return total / (targets != IGNORED).sum().clamp(min=1)
