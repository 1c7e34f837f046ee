"""Cross-entropy of the output layer in chunks of rows, against all logits at once; it has no target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Setup, Side
from benchmarks.report import Case, Figure
from dgsgpt.architecture import loss_chunk_rows
from dgsgpt.config import ModelConfig
from dgsgpt.model.loss import chunked_cross_entropy, cross_entropy
from dgsgpt.train.precision import has_native_bf16

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

N_TOKENS, N_EMBD, VOCABULARIES = 2048, 384, (4096, 16_384, 50_257)
QUICK_N_TOKENS, QUICK_N_EMBD, QUICK_VOCABULARIES = 64, 32, (200,)
PLAIN, CHUNKED = "all at once", "in chunks"


def run(setup: Setup) -> Iterator[Case]:
    """One case for each vocabulary, in float32 and, where the device has it, in bfloat16."""
    for dtype in [torch.float32, torch.bfloat16] if has_native_bf16(setup.device) else [torch.float32]:
        for vocab_size in QUICK_VOCABULARIES if setup.quick else VOCABULARIES:
            yield _case(setup, vocab_size, dtype)


def _case(setup: Setup, vocab_size: int, dtype: torch.dtype) -> Case:
    n_tokens, n_embd = (QUICK_N_TOKENS, QUICK_N_EMBD) if setup.quick else (N_TOKENS, N_EMBD)
    # What the model takes; where it would take all at once, a quarter shows what chunks would cost.
    rows = loss_chunk_rows(ModelConfig(n_embd=n_embd, vocab_size=vocab_size), n_tokens, setup.device.type)
    rows = n_tokens // 4 if rows is None else min(rows, n_tokens)
    losses: dict[str, Loss] = {
        PLAIN: lambda x, weight, targets: cross_entropy(F.linear(x, weight), targets),
        CHUNKED: lambda x, weight, targets: chunked_cross_entropy(x, weight, targets, rows, None),
    }
    sides = _sides(losses, (n_tokens, n_embd, vocab_size), dtype, setup.device)
    name = str(dtype).removeprefix("torch.")
    settings = {"tokens": n_tokens, "n_embd": n_embd, "vocab_size": vocab_size, "chunk_rows": rows, "dtype": name}
    case = Case(f"V={vocab_size}, {name}", settings, setup.time(sides))
    case.facts = {side.name: {"peak_bytes": setup.peak_bytes(side.run)} for side in sides}
    peaks = case.facts[CHUNKED]["peak_bytes"] / case.facts[PLAIN]["peak_bytes"]
    case.add_ratio(f"time, {CHUNKED} / {PLAIN}", CHUNKED, PLAIN)
    case.figures.append(Figure(f"peak bytes, {CHUNKED} / {PLAIN}", peaks))
    return case


def _sides(
    losses: dict[str, Loss], shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> list[Side]:
    """Forward and backward passes, all on the same rows [N, C], matrix [V, C] and targets [N]."""
    n_tokens, n_embd, vocab_size = shape
    torch.manual_seed(0)
    x = torch.randn(n_tokens, n_embd, device=device).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(vocab_size, n_embd, device=device)).to(dtype).requires_grad_()
    targets = torch.randint(vocab_size, (n_tokens,), device=device)

    def passes(loss: Loss) -> None:
        torch.autograd.grad(loss(x, weight, targets), (x, weight))

    return [Side(name, partial(passes, loss)) for name, loss in losses.items()]
