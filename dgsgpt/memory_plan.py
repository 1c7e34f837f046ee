"""Memory of a training step: what is alive together at its highest moment.

The moments are those of `dgsgpt/train/stepper.py` from the second step on: the loss, the backward pass of each block,
last to first, and the embedding's, after which all gradients are there; the optimizer then works in place. Checked
against torch's memory tracker in `tests/test_planner.py`. The tracker does not see memory inside kernels, nor the plan
compiled blocks, which keep less. Pure arithmetic, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from dgsgpt.architecture import layer_is_moe, layer_windows, loss_chunk_rows
from dgsgpt.config import RunConfig
from dgsgpt.costs import (
    RUNTIME_BYTES,
    compute_bytes,
    count_buffers,
    count_params,
    network_matrices,
    settled_device,
    vocab_size,
)
from dgsgpt.tape import Kind, MicroBatch, Op, block_ops, norm_op

# Bytes to a logit of a chunk where a cap rules torch's operator out: logits, their gradient and two temporaries; three
# tensors on the way through the cap, while logits and gradient of the chunk before are still there.
CHUNK_GRADIENT, CHUNK_CAP = 16, 12
# The same without a cap in half precision: no temporaries but the gradient's cast; logits before and after their cast.
CHUNK_HALF_GRADIENT, CHUNK_HALF = 10, 6


class Moment(NamedTuple):
    """Bytes alive at one moment, beside weights and optimizer state."""

    gradients: float = 0.0  # of parameters
    activations: float = 0.0  # kept for the backward pass
    logits: float = 0.0  # and what the loss makes of them
    workspace: float = 0.0  # gradients of activations, temporaries, bf16 copies of weights


@dataclass(frozen=True)
class BlockMemory:
    """What one block adds; bytes, but for `weights`."""

    kept: float  # between the passes, in the chosen mode of checkpointing
    copies: float  # bf16 copies of weights kept as long
    cached: float  # those that autocast holds until the forward pass ends
    weights: int  # elements of its matrices
    high: Moment  # the highest moment of its backward pass, above what is alive for other blocks


def plan_memory(config: RunConfig, device: str) -> dict[str, int]:
    """Bytes by part at the highest moment of a training step on `device` (cpu or cuda).

    Parts: weights, gradients, optimizer, activations, logits, workspace; the last with `RUNTIME_BYTES` for torch.
    """
    numbers = count_params(config.model)
    peak = max(StepMemory(config, device).moments(), key=sum)
    return {
        "weights": 4 * (numbers + count_buffers(config.model)),
        "gradients": round(peak.gradients),
        "optimizer": 8 * numbers,  # AdamW: the gradient's mean and square, in float32
        "activations": round(peak.activations),
        "logits": round(peak.logits),
        "workspace": round(peak.workspace) + RUNTIME_BYTES,
    }


class StepMemory:
    """The moments of one training step."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self.model, self.mode = config.model, config.train.gradient_checkpointing
        self.e = compute_bytes(config, device)
        self.device = "cuda" if settled_device(config, device) == "cuda" else "cpu"
        self.batch = MicroBatch(self.model, config.train.micro_batch_size, self.e, self.device == "cpu")
        # Gradients of the micro-batches before lie there all the time; new ones are added to them and freed.
        self.accumulates = config.train.grad_accum_steps > 1
        self.gradients = 4.0 * count_params(self.model)
        self.table = vocab_size(self.model) * self.model.n_embd  # elements of the output matrix
        layers = enumerate(zip(layer_windows(self.model), layer_is_moe(self.model), strict=True))
        kinds = [Kind(windows, moe, first=i == 0) for i, (windows, moe) in layers]
        by_kind = {kind: self._block(kind) for kind in set(kinds)}
        self.blocks = [by_kind[kind] for kind in kinds]

    def moments(self) -> Iterator[Moment]:
        """All that may be the highest."""
        model, batch = self.model, self.batch
        tokens = 16 * batch.tokens  # inputs and targets
        angles = 8 * model.block_size * model.head_dim if model.rope else 0
        ends = tokens + angles + (batch.stream if model.dropout else 0)  # the embedding's dropout
        beneath = list(accumulate((block.kept for block in self.blocks), initial=float(ends)))
        held, copies = self._held_logits(), sum(block.copies for block in self.blocks)
        yield from self._loss(beneath[-1], held, copies)
        # The output layer's gradient is there from now on; a tied one waits for the embedding's before it is added.
        table = 4.0 * self.table
        done = self.gradients + (table if model.tie_embeddings else 0) if self.accumulates else table
        norm = norm_op(batch, residual=False)
        yield Moment(done, beneath[-1] + norm.kept, held, norm.passing + copies)
        mixed = 0.0  # gradients of the first stream and the first values, from the last block that mixes them in
        for block, below in zip(reversed(self.blocks), reversed(beneath[:-1]), strict=True):
            copies -= block.copies
            gradients, activations, _, workspace = block.high
            yield Moment(done + gradients, below + activations, held, workspace + copies + mixed)
            done += 0 if self.accumulates else 4 * block.weights
            mixed = batch.stream * model.x0_shortcut + batch.narrow * model.value_residual
        # The embedding's gradient, for a tied one that of the output layer and a third for their sum.
        tables = 2 * model.tie_embeddings + self.accumulates
        yield Moment(self.gradients + tables * table, ends, held, mixed)

    # ------------------------------------------------------------ the loss
    def _held_logits(self) -> int:
        """Logits that the caller holds until the next micro-batch; none where the loss is computed in chunks."""
        rows = loss_chunk_rows(self.model, self.batch.tokens, self.device)
        size = 4 if self.model.logit_softcap is not None else self.e  # the cap is applied in float32
        return size * self.batch.tokens * vocab_size(self.model) if rows is None else 0

    def _loss(self, kept: float, held: int, copies: float) -> Iterator[Moment]:
        """Forward and backward, from the last norm to the logits."""
        batch, model = self.batch, self.model
        kept += norm_op(batch, residual=False).kept + batch.wide
        table_copy = 2.0 * self.table if self.e < 4 else 0.0
        cached = table_copy + sum(block.cached for block in self.blocks)
        before = self.gradients if self.accumulates else 0.0
        rows = loss_chunk_rows(model, batch.tokens, self.device)
        if rows is not None:
            yield from self._chunked_loss(min(rows, batch.tokens), Moment(before, kept, 0.0, cached))
            return
        one = 4 * batch.tokens * vocab_size(model)  # logits in float32
        capped = model.logit_softcap is not None
        # Forward: logits, their float32 copy if they are not, log-softmax; with a cap its tanh; those held from before.
        forward = held + one + (one if capped or self.e < 4 else 0)
        yield Moment(before, kept, forward + (held if self.accumulates else 0), cached)
        # Backward: logits, log-softmax and the gradients of both; with a cap its tanh.
        yield Moment(before, kept, held + (4 if capped else 3) * one, copies + table_copy)
        # Then the matrix: the gradients of logits, matrix and input.
        gradient = batch.tokens * vocab_size(model) * self.e
        yield Moment(before + 4 * self.table, kept, held + gradient, copies + table_copy + batch.wide)

    def _chunked_loss(self, rows: int, start: Moment) -> Iterator[Moment]:
        """Within the operator: gradients of input and matrix, and the logits of one chunk."""
        before, kept, _, cached = start
        chunk, matrix, batch = rows * vocab_size(self.model), self.e * self.table, self.batch
        if self.model.logit_softcap is not None or self.e < 4:
            following = min(rows, batch.tokens - rows) * vocab_size(self.model)
            capped = self.model.logit_softcap is not None
            gradient, fresh = (CHUNK_GRADIENT, CHUNK_CAP) if capped else (CHUNK_HALF_GRADIENT, CHUNK_HALF)
            logits = max(gradient * chunk, (4 + self.e) * chunk + fresh * following)
            yield Moment(before + 4 * self.table, kept, logits, cached + batch.wide)
            # Scaled by the loss's gradient into new tensors.
            yield Moment(before + 8 * self.table, kept, 0.0, 2 * batch.wide)
        elif self.device == "cpu":
            # The matrix's rows of the chunk's labels are gathered.
            gathered = rows * self.e * self.model.n_embd
            yield Moment(before + matrix, kept, chunk * self.e, cached + batch.wide + gathered)
        else:
            # By the source of torch's operator, unmeasured: the same without rows gathered.
            yield Moment(before + matrix, kept, chunk * self.e, cached + batch.wide)

    # ------------------------------------------------------------ one block
    def _block(self, kind: Kind) -> BlockMemory:
        ops = block_ops(self.batch, kind)
        weights = sum(op.weights for op in ops)
        copied = 2.0 if self.e < 4 else 0.0  # bytes of an element's copy
        moe = self.model.moe
        routed = (
            moe.n_expert * network_matrices(self.model) * self.model.n_embd * self.model.expert_hidden if moe else 0
        )
        # Experts are cast beside autocast, which does not hold their copies.
        cached = copied * (weights - (routed if kind.moe else 0))
        high = self._highest(ops, self._unread(ops, kind), copied)
        if self.mode == "none":
            return BlockMemory(sum(op.kept for op in ops), copied * weights, copied * weights, weights, high)
        # What enters the block, and the choice of experts (weights and numbers), which is never made twice.
        kept = float(self.batch.stream)
        kept += 12 * self.batch.tokens * moe.n_expert_per_token if moe else 0
        if self.mode == "selective":
            kept += sum(op.product for op in ops)
        elif self.model.value_residual and kind.first and self.model.n_layer > 1:
            kept += self.batch.narrow  # the values are a result of the block; selective mode keeps them anyway
        return BlockMemory(kept, 0.0, cached, weights, high)

    def _highest(self, ops: list[Op], unread: float, copied: float) -> Moment:
        """The highest moment of a block's backward pass, with its forward pass where that is repeated."""
        later = sum(op.weights for op in ops)
        ahead = sum(op.product for op in ops) if self.mode == "selective" else 0.0  # kept and not yet asked for
        kept = multiplied = 0.0
        moments = []
        for op in ops:
            multiplied, later = multiplied + op.weights, later - op.weights
            copies = copied * multiplied
            if op.rising and self.mode != "none":
                waiting = self.batch.stream + self.batch.branch  # gradients, which have come as far as this block
                rising = waiting + op.rising + max(ahead, op.product)
                moments.append(Moment(0.0, kept + op.kept, 0.0, rising + copies))
            ahead -= op.product
            # Gradients of later operators' weights are there, unless they have been added to those before.
            done, own, passing = 0 if self.accumulates else 4 * later, 4 * op.weights, op.passing + copies + unread
            if copied:
                # That of this one comes in bf16, and when its input is free is cast; by then the copy is, too.
                moments.append(Moment(done, kept + op.kept, 0.0, passing + copied * op.weights))
                moments.append(Moment(done + own, kept, 0.0, passing))
            else:
                moments.append(Moment(done + own, kept + op.kept, 0.0, passing))
            kept += op.kept
        return max(moments, key=sum)

    def _unread(self, ops: list[Op], kind: Kind) -> float:
        """Kept results that no recomputation asks for: the last product's, where nothing after it needs its value."""
        read = self.model.dropout or (kind.moe and not self.model.shared_hidden)
        return 0.0 if self.mode != "selective" or read else ops[-1].product
