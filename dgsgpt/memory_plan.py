"""Memory of a training step: what is alive together at its highest moment.

The moments are those of `dgsgpt/train/stepper.py` from the second step on: the loss, the backward pass of each block,
last to first, and the embedding's, after which all gradients are there; the optimizer then works in place. Checked
against torch's memory tracker in `tests/test_planner.py`. The tracker does not see memory inside kernels, nor the plan
compiled blocks, which keep less. Pure arithmetic, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from dgsgpt.architecture import layer_is_moe, layer_windows, loss_chunk_rows
from dgsgpt.config import RunConfig
from dgsgpt.costs import (
    compute_bytes,
    count_buffers,
    network_matrices,
    ngram_rows,
    runtime_bytes,
    settled_device,
    vocab_size,
)
from dgsgpt.micro_batch import MicroBatch
from dgsgpt.tape import Kind, Op, block_ops, norm_op
from dgsgpt.update_groups import Weight, list_weights, state_bytes, update_bytes, weight_bytes

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

    Parts: weights, gradients, optimizer, activations, logits, workspace; the last with `runtime_bytes` for torch.
    """
    peak = max(StepMemory(config, device).moments(), key=sum)
    return {
        "weights": weight_bytes(config) + 4 * count_buffers(config.model),
        "gradients": round(peak.gradients),
        "optimizer": state_bytes(config),
        "activations": round(peak.activations),
        "logits": round(peak.logits),
        "workspace": round(peak.workspace) + runtime_bytes(config, device),
    }


class StepMemory:
    """The moments of one training step."""

    def __init__(self, config: RunConfig, device: str) -> None:
        train = config.train
        self.config, self.model, self.mode = config, config.model, train.gradient_checkpointing
        self.e = compute_bytes(config, device)
        self.device = "cuda" if settled_device(config, device) == "cuda" else "cpu"
        half = train.weight_precision == "bf16"
        self.g = 2 if half else 4  # bytes of a number of a matrix's gradient
        self.copied = 2.0 if self.e < self.g else 0.0  # bytes of the copy of a weight's number that products read
        self.batch = MicroBatch(self.model, train.micro_batch_size, self.e, self.device == "cpu", self.g)
        # Gradients of the micro-batches before lie there all the time; new ones are added to them and freed.
        self.accumulates = train.grad_accum_steps > 1
        self.in_backward = train.optimizer_in_backward  # each gradient is used and freed when it has come
        self.gradients = float(weight_bytes(config))
        self.table = vocab_size(self.model) * self.model.n_embd  # elements of the output matrix
        layers = enumerate(zip(layer_windows(self.model), layer_is_moe(self.model), strict=True))
        kinds = [Kind(windows, moe, first=i == 0) for i, (windows, moe) in layers]
        by_kind = {kind: self._block(kind) for kind in set(kinds)}
        self.blocks = [by_kind[kind] for kind in kinds]

    def moments(self) -> Iterator[Moment]:
        """All that may be the highest."""
        model, batch = self.model, self.batch
        held_batches = self.config.train.grad_accum_steps if self.device == "cpu" else 1  # a GPU is given one at a time
        tokens = 16 * batch.tokens * held_batches  # inputs and targets
        tokens += 8 * batch.tokens * len(ngram_rows(model))  # rows looked up
        angles = 8 * model.block_size * model.head_dim if model.rope else 0
        ends = tokens + angles + (batch.stream if model.dropout else 0)  # the embedding's dropout
        ends += batch.stream if model.x0_shortcut and self.g < 4 else 0  # the first; norms keep copies
        beneath = list(accumulate((block.kept for block in self.blocks), initial=float(ends)))
        held, copies = self._held_logits(), sum(block.copies for block in self.blocks)
        yield from self._loss(beneath[-1], held, copies)
        # The output layer's gradient is there from now on; a tied one waits for the embedding's before it is added.
        table = float(self.g * self.table)
        waiting = table if model.tie_embeddings else 0.0
        done = self.gradients + waiting if self.accumulates else waiting if self.in_backward else table
        norm = norm_op(batch, residual=False)
        yield Moment(done, beneath[-1] + norm.kept, held, norm.passing + copies)
        mixed = 0.0  # gradients of the first stream and the first values, from the last block that mixes them in
        for block, below in zip(reversed(self.blocks), reversed(beneath[:-1]), strict=True):
            copies -= block.copies
            gradients, activations, _, workspace = block.high
            yield Moment(done + gradients, below + activations, held, workspace + copies + mixed)
            done += 0 if self.accumulates or self.in_backward else self.g * block.weights
            mixed = batch.stream * model.x0_shortcut + batch.narrow * model.value_residual
        yield from self._embedding(done, ends, held, mixed)
        yield from self._update()

    def _embedding(self, done: float, ends: float, held: float, mixed: float) -> Iterator[Moment]:
        """Tables of n-grams, then the token embedding; `done` are gradients that are there before."""
        model, table, stream = self.model, float(self.g * self.table), self.batch.stream
        for rows in reversed(ngram_rows(model).values()):
            gradient = float(self.g * rows * model.n_embd)
            # Its rows' gradients are those of the stream, but where no n-gram ends.
            yield Moment(done + gradient, ends, held, mixed + 2 * stream)
            done += 0 if self.accumulates or self.in_backward else gradient
        # The embedding's gradient, for a tied one that of the output layer and a third for their sum.
        tables = 2 * model.tie_embeddings + self.accumulates
        begun = table if self.in_backward else self.gradients
        yield Moment(begun + tables * table, ends, held, mixed)
        yield Moment(begun + max(0, tables - 1) * table, ends, held, mixed + stream)
        if self.in_backward:
            for weight in list_weights(model):
                if weight.is_matrix and not weight.name.startswith("blocks."):
                    yield Moment(self.g * weight.numbers, ends, held, self._updating([weight]))

    def _update(self) -> Iterator[Moment]:
        """The update rules at work, when all gradients are there and nothing else."""
        if not self.in_backward:
            yield Moment(self.gradients, 0.0, 0.0, self._updating(list_weights(self.model)))

    def _updating(self, weights: Sequence[Weight]) -> int:
        return update_bytes(weights, self.config, self.device)

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
        table_copy = self.copied * self.table
        cached = table_copy + sum(block.cached for block in self.blocks)
        cached += batch.stream if self.g < 4 else 0  # what the last norm has copied in float32
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
        yield Moment(before + self.g * self.table, kept, held + gradient, copies + table_copy + batch.wide)

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
        copied = self.copied
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
        multiplied = 0.0
        kept = float(self.batch.stream) if self.g < 4 and self.mode != "none" else 0.0  # its input; norms keep copies
        moments = []
        for op in ops:
            multiplied, later = multiplied + op.weights, later - op.weights
            copies = copied * multiplied
            if op.rising and self.mode != "none":
                waiting = self.batch.stream + self.batch.branch  # gradients, which have come as far as this block
                rising = waiting + op.rising + max(ahead, op.product - op.pending)
                moments.append(Moment(0.0, kept + op.kept, 0.0, rising + copies))
            ahead -= op.product
            # Gradients of later operators' weights are there, unless they have been added to those before.
            done = 0 if self.accumulates or self.in_backward else self.g * later
            own = self.g * (op.largest if self.in_backward else op.weights)
            passing = op.passing + copies + unread
            if copied:
                # That of this one comes in bf16, and when its input is free is cast; by then the copy is, too.
                moments.append(Moment(done, kept + op.kept, 0.0, passing + copied * op.weights))
                moments.append(Moment(done + own, kept, 0.0, passing))
            else:
                moments.append(Moment(done + own, kept + op.kept, 0.0, passing))
            if self.in_backward and op.weights:
                moments.append(Moment(own, kept, 0.0, passing + self._update_in_block(op.largest)))
            kept += op.kept
        return max(moments, key=sum)

    def _update_in_block(self, numbers: int) -> int:
        """Temporaries of a weight's update while the backward pass waits."""
        found = (w for w in list_weights(self.model) if w.in_block and w.numbers == numbers)
        return max(self._updating([weight]) for weight in found)

    def _unread(self, ops: list[Op], kind: Kind) -> float:
        """Kept results that no recomputation asks for: the last product's, where nothing after it needs its value."""
        read = self.model.dropout or (kind.moe and not self.model.shared_hidden)
        return 0.0 if self.mode != "selective" or read else ops[-1].product
