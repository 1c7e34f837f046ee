"""What the operators of a block keep between the forward and the backward pass, and what passes by on the way back.

A block is a list of operators in the order of its forward pass. The backward pass goes through it from the end, and
each operator then frees what it kept. What is differentiated in one go, a norm say, is one operator here, taken at its
highest point. The operators are those torch runs on CPUs. Fused kernels of a GPU keep the same tensors, but for two
that cannot be seen from here: other windowed kernels, and keys repeated for grouped heads in float32. Pure arithmetic.
"""

# ruff: noqa: N806 - shapes are written B, T, C as in the papers; the legend is in dgsgpt/model/__init__.py

from __future__ import annotations

import math
from typing import NamedTuple

from dgsgpt.architecture import MIN_WINDOW_BLOCK, ModelConfig, MoEConfig, Windows
from dgsgpt.costs import network_matrices
from dgsgpt.micro_batch import MicroBatch

# Gradients and temporaries of one backward pass, in units of the tensor that is differentiated.
RMSNORM_PASSING = 4  # d(x^2) is 2 * x^1 * gradient, each factor a tensor, beside what has come another way
LAYERNORM_PASSING = 2  # one kernel: the gradient that comes and the one that goes
RELU2_PASSING = 4  # the square again, written as a power
GATE_PASSING = 3  # the product's gradient and those of both factors
ROPE_RISING = 4  # halves exchanged, the products with cosine and sine, their sum; all in float32


class Op(NamedTuple):
    """One operator as its backward pass sees it; bytes, but for `weights`."""

    kept: float  # what it keeps for its backward pass and no other operator does
    passing: float  # gradients and temporaries at the highest point of its backward pass
    weights: int = 0  # elements of the matrices it multiplies by
    product: float = 0.0  # results that selective checkpointing keeps: of matrix products and attention
    rising: float = 0.0  # temporaries of its forward pass, where one that is repeated may be higher than the way back
    pending: float = 0.0  # of its results, what comes after those
    single: int = 0  # elements of the largest of several matrices

    @property
    def largest(self) -> int:
        """Elements of its largest matrix."""
        return self.single or self.weights


class Kind(NamedTuple):
    """What tells the blocks of one network apart."""

    windows: Windows
    moe: bool
    first: bool  # the first block has nothing earlier to mix in, and others mix its values in


class Flow(NamedTuple):
    """What is alive around a feed-forward network; bytes."""

    kept_input: float  # its input, unless something else keeps that
    waiting: float  # gradients of other ways through the block
    incoming: float  # gradient of its result, unless that is one of these


def block_ops(batch: MicroBatch, kind: Kind) -> list[Op]:
    """The operators of a block; what they keep includes what enters it."""
    model = batch.model
    ops = []
    if model.x0_shortcut and not kind.first:
        # It keeps what it mixes; the first stream is kept by the first block. Two gradients, and one for the shares.
        ops.append(Op(batch.stream, 3 * batch.stream))
    ops += [norm_op(batch, residual=True), *_attention_ops(batch, kind), *_dropout_ops(batch)]
    ops.append(norm_op(batch, residual=True))
    dense = _network_ops(batch, batch.tokens, model.hidden, Flow(batch.wide, batch.stream, batch.branch))
    if not kind.moe or model.moe is None:
        return [*ops, *dense, *_dropout_ops(batch)]
    if model.moe.after_dense:
        ops += [*dense, *_dropout_ops(batch), norm_op(batch, residual=True)]
    return [*ops, *_moe_ops(batch, model.moe), *_dropout_ops(batch)]


def norm_op(batch: MicroBatch, residual: bool) -> Op:
    """A norm of the stream; what it gives is counted with the product that reads it.

    RMSNorm keeps its input, a root for each token, and the value before the gain; LayerNorm its input, mean and
    deviation; both in float32, a copy where the stream is not. In a block (`residual`) the gradient that goes past a
    norm waits for it.
    """
    waiting = batch.stream if residual else 0
    if batch.model.norm == "layernorm":
        return Op(batch.exact + 8 * batch.tokens, waiting + LAYERNORM_PASSING * batch.exact)
    # What has come another way is one of the tensors counted: the norm adds to it half way, but for one of its copy.
    passing = RMSNORM_PASSING * batch.exact + (0 if batch.stream_e == 4 else waiting)
    return Op(2 * batch.exact + 4 * batch.tokens, passing)


def _dropout_ops(batch: MicroBatch) -> list[Op]:
    """Dropout keeps its noise, in the dtype of what it thins out."""
    return [Op(batch.wide, batch.stream + 2 * batch.wide)] if batch.model.dropout else []


# ---------------------------------------------------------------- attention
def _attention_ops(batch: MicroBatch, kind: Kind) -> list[Op]:
    model, C = batch.model, batch.model.n_embd
    wide, narrow = model.attention_width, model.n_kv_head * model.head_dim
    heads = batch.queries + 2 * batch.narrow
    # Queries, keys and values; what rotary positions then turn need not be kept.
    ops = [Op(batch.wide, batch.stream + heads + 2 * batch.wide, C * (wide + 2 * narrow), heads, single=C * wide)]
    if model.qk_norm:
        ops.append(_qk_norm_op(batch))
    if model.rope:
        copies = ROPE_RISING + (1 if batch.e < 4 else 0)  # of the queries; one more to make them float32
        # Queries are turned before there are keys, and keys, which may be as wide, before there are values.
        pending = batch.narrow * (1 if narrow == wide else 2)
        ops[-1] = ops[-1]._replace(rising=copies * 4 * batch.tokens * wide, pending=pending)
    if model.value_residual and not kind.first:
        ops.append(Op(batch.narrow, batch.stream + heads + 2 * batch.narrow))
    cut = [_blocks(model, window) for window in kind.windows]
    ops.append(_attend_op(batch, cut))
    cast = batch.attention_bytes(model.block_size) != batch.e
    if model.value_residual and kind.first and model.n_layer > 1 and (all(cut) or cast):
        ops.append(Op(batch.narrow, batch.stream + heads))  # values for later layers; attention keeps copies of them
    # Blocks and halves of heads are joined in a new tensor, a result in float32 is cast to one; else the output layer
    # keeps attention's own.
    joined = len(cut) > 1 or cut[0] is not None or cast
    passing = batch.stream + batch.wide + batch.queries
    ops.append(Op(batch.queries if joined else 0, passing, C * wide, batch.wide))
    return ops


def _qk_norm_op(batch: MicroBatch) -> Op:
    """RMSNorm of queries and keys in float32: inputs, their values before the gain, a root for each head."""
    model, N = batch.model, batch.tokens
    queries, keys = 4 * N * model.attention_width, 4 * N * model.n_kv_head * model.head_dim
    kept = 2 * (queries + keys) + 4 * N * (model.n_head + model.n_kv_head)
    return Op(kept, batch.stream + batch.narrow + RMSNORM_PASSING * queries)


def _blocks(model: ModelConfig, window: int | None) -> tuple[int, int] | None:
    """Into how many blocks of which length `attend_window` cuts the context; None where all is in sight."""
    T = model.block_size
    if window is None or window >= T:
        return None
    size = math.ceil(max(window, min(MIN_WINDOW_BLOCK, T)) / 8) * 8
    return math.ceil(T / size), size


def _attend_op(batch: MicroBatch, cut: list[tuple[int, int] | None]) -> Op:
    """Attention keeps queries, keys, values, its result and the logarithm of each row's sum.

    `cut` has the blocks of each window of the layer; with two, each has its half of the query heads.
    """
    model = batch.model
    wide, H, narrow = model.attention_width, model.n_head, model.n_kv_head * model.head_dim
    share = 1 / len(cut)
    kv_share = 1.0 if model.n_kv_head == 1 else share  # a single key/value head serves both halves
    kept = product = cast = joining = splitting = 0.0
    given = float(batch.queries + 2 * batch.narrow)
    if not all(cut) and batch.attention_bytes(model.block_size) == batch.e:
        kept, given = given, 0.0  # also where half of them is needed: a view keeps all
    for blocks in cut:
        count, size = blocks or (1, model.block_size)
        padded = batch.sequences * count * size
        e = batch.attention_bytes(size)
        product += share * padded * (e * wide + 4 * H)
        if e != batch.e:  # gradients in float32 beside those in the dtype of matrix products
            cast += padded * e * (2 * share * wide + 2 * kv_share * narrow)
            kept += 0 if blocks else padded * e * (share * wide + 2 * kv_share * narrow)
        if blocks:
            # Copies; all blocks but the first hold the keys of two. One mask for the first, a wider for the others.
            kept += padded * e * (share * wide + 2 * kv_share * narrow * (2 - 1 / count))
            kept += e * size**2 * (3 if count > 1 else 1)
            # Gradients of queries, result and, with a head for each query head, keys and values: of the first block or
            # of the others, which have two blocks of keys; beside that of the blocks joined.
            splitting = max(splitting, padded * share * wide * (e * max(4 / count, 6 - 6 / count) + batch.e))
        joining = max(joining, _joining(batch, blocks, share * wide, kv_share * narrow))
    rising = max(0.0, joining + given - product) if joining else 0.0  # results are counted with what is kept
    passing = max(cast, splitting, 2 * batch.queries + 2 * batch.narrow)
    return Op(kept + product, batch.stream + passing, 0, product, rising)


def _joining(batch: MicroBatch, blocks: tuple[int, int] | None, wide: float, narrow: float) -> float:
    """What lies there beside what is kept while the results of a window's blocks are joined, in heads so wide."""
    count, size = blocks or (1, batch.model.block_size)
    padded = batch.sequences * count * size
    cast = batch.attention_bytes(size) != batch.e
    if not blocks:
        return padded * batch.e * wide if cast else 0.0
    # Queries that had to be padded, the blocks joined, these in order; before a cast also blocks of all three.
    copies = wide * (2 + cast + (padded > batch.tokens)) + (4 * narrow * (1 - 1 / count) if cast else 0)
    return padded * batch.e * copies


# ---------------------------------------------------------------- feed-forward networks
def _network_ops(batch: MicroBatch, rows: float, hidden: int, flow: Flow, copies: int = 1) -> list[Op]:
    """A network `hidden` wide on `rows` rows, shared out among `copies` of its matrices."""
    kind, C = batch.model.mlp, batch.model.n_embd
    inner, outer, matrix = rows * batch.e * hidden, rows * batch.e * C, copies * C * hidden
    if kind == "swiglu":
        # Kept: the gate before and after SiLU, and what it gates.
        first = Op(flow.kept_input, flow.waiting + 2 * inner + 2 * outer, 2 * matrix, 2 * inner, single=matrix)
        middle = Op(3 * inner, flow.waiting + GATE_PASSING * inner)
    else:
        # Kept: GELU's input; ReLU's result, which the next product reads; with its square both.
        first = Op(flow.kept_input, flow.waiting + inner + outer, matrix, inner)
        middle = Op(inner, flow.waiting + (RELU2_PASSING if kind == "relu2" else 2) * inner)
    read = 0 if kind == "relu" else inner
    return [first, middle, Op(read, flow.waiting + flow.incoming + inner, matrix, outer)]


def _biased(ops: list[Op], batch: MicroBatch, rows: int, flow: Flow, held: float) -> list[Op]:
    """Experts with biases that each row looks up: in float32, as their gradients are summed, then cast.

    Each sum keeps the numbers of the rows' experts, in 4 bytes; `held` lies there on the way forward.
    """
    first, middle, last = ops
    adds, e = network_matrices(batch.model) - 1, batch.e
    inner, outer = rows * batch.model.expert_hidden, rows * batch.model.n_embd
    exact = 4 if e < 4 else 0  # bytes of a gradient's number that is cast before it is summed
    return [
        first,
        Op(4 * adds * rows, flow.waiting + (adds * e + exact) * inner),
        middle._replace(rising=(4 + e) * inner + held),
        last,
        Op(4 * rows, flow.waiting + flow.incoming + exact * outer, rising=(4 + 2 * e) * outer + held),
    ]


def _moe_ops(batch: MicroBatch, moe: MoEConfig) -> list[Op]:
    """Router, rows gathered for the experts, these, their results put back; then the network beside them."""
    model, N = batch.model, batch.tokens
    E, K = moe.n_expert, moe.n_expert_per_token
    # Logits and probabilities in float32; weights, numbers of experts and orders of rows, most in 8 bytes.
    if moe.capacity_factor is None:
        slots, results = N * K, 1  # results in the order of the tokens
        routing, incoming = N * (8 * E + 36 * K), batch.branch
    else:
        slots = min(N * K, E * min(N, math.ceil(moe.capacity_factor * N * K / E)))
        results = 2  # and after they are weighted
        routing, incoming = N * (8 * E + 16 * K) + 21 * slots, 0  # gathered, and one of the two is free again
    outer = slots * batch.e * model.n_embd
    # On the way forward what attention has given lies there until the network after it returns, and what that reads.
    held = batch.cast + (0 if moe.after_dense else batch.wide)
    # While results are added up: them weighted and their sum, or zeros and what is added to them.
    adding = (outer + batch.wide if results == 1 else 2 * batch.wide) + held
    # The network beside the experts comes first on the way back: the gradient of its input waits.
    waiting = batch.stream + (batch.wide if model.shared_hidden else 0)
    flow = Flow(0, waiting, outer)
    experts = _network_ops(batch, slots, model.expert_hidden, flow, copies=E)
    # The router reads float32: a copy, unless the norm gives that. Its small matrix is never cast and counts for none.
    ops = [
        Op(batch.exact + routing, waiting + 2 * batch.exact, 0, 4 * N * E),
        Op(outer, waiting + batch.wide + 2 * outer),
        *(_biased(experts, batch, slots, flow, held) if moe.bias else experts),
        Op(results * outer, waiting + incoming + 2 * outer, rising=adding),
    ]
    if model.shared_hidden:
        # The gradient of the sum goes to both and waits for the experts.
        flow = Flow(batch.cast, batch.stream + batch.branch, 0)
        ops += _network_ops(batch, N, model.shared_hidden, flow)
    return ops
