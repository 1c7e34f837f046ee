"""Weights kept as integers of 8 or 4 bits with a scale for each group of them; what they multiply stays in 16 bits.

Only matrices of the blocks are quantized: those of attention, of dense networks and of experts. Embeddings, the output
layer, n-gram tables, routers, norms and biases stay as they are. torchao does the rounding (`dgsgpt.quantization`);
opening and using what it has made needs torch alone.

A weight `NAME` becomes two tensors: `NAME.values`, int8, or uint8 with two integers of 4 bits in a byte (the first in
the low half, each 8 higher than it is), and `NAME.scales`. Of M rows `x` [M, in] at most `FEW_ROWS`, as there are when
text is written token by token, torch's packed kernels for CPUs read the integers themselves; they take 16-bit inputs,
so inputs and results are rounded to bfloat16 for many rows, too: a text is judged by the arithmetic it is written with.
They also want rows of whole 32 integers: shorter ones are filled up with zeros, which are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.errors import CheckpointError
from dgsgpt.model.moe import Experts, GatedExperts
from dgsgpt.model.norm import compute_dtype

if TYPE_CHECKING:
    from dgsgpt.model.gpt import GPT

BITS = {"int8": 8, "int4": 4}
SCALES = {"int8": torch.float32, "int4": torch.bfloat16}
FEW_ROWS = 16  # from there on unpacking a matrix once and multiplying by it is as fast
GROUP_SIZES = (32, 64, 128, 256)  # which the kernel for integers of 4 bits knows
COLUMNS, _KERNEL_ROWS = 32, 16  # what the kernels can be given multiples of; with other widths they read astray


@dataclass(frozen=True)
class Plan:
    """Which weights are quantized, and to what: the size of a group, in columns, by the weight's name."""

    kind: str
    groups: Mapping[str, int]

    @classmethod
    def read(cls, metadata: Mapping[str, Any], source: Path) -> Plan:
        """What a checkpoint's metadata tell of its weights.

        Raises:
            CheckpointError: they do not tell it.
        """
        kind, told = metadata.get("quantized"), metadata.get("quantization")
        groups = told.get("groups") if isinstance(told, dict) else None
        if kind not in BITS or not isinstance(groups, dict):
            raise CheckpointError(
                f"{source}: quantized={kind!r} in its metadata must be {' or '.join(BITS)}, with the groups of each "
                "weight; quantize its origin again"
            )
        if any(type(size) is not int or size < 1 for size in groups.values()):
            raise CheckpointError(f"{source}: a group in its metadata is no size; quantize its origin again")
        return cls(kind, groups)


def padded(columns: int) -> int:
    """The columns of a matrix once it is filled up."""
    return -(-columns // COLUMNS) * COLUMNS


def pack(values: Tensor) -> Tensor:
    """Integers [..., n] from -8 to 7, two in a byte: uint8 [..., n / 2]."""
    raised = (values + 8).to(torch.uint8)
    return raised[..., ::2] | raised[..., 1::2] << 4


def unpack(packed: Tensor) -> Tensor:
    """The opposite of `pack`, as int8."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).to(torch.int8) - 8


class QuantizedMatrix(nn.Module):
    """A matrix [out, in], or a stack of them [E, out, in], as integers and scales [..., out, groups]."""

    values: Tensor
    scales: Tensor

    def __init__(self, like: Tensor, kind: str, group: int) -> None:
        super().__init__()
        *rows, self.columns = like.shape
        self.kind, self.group = kind, group
        filled = padded(self.columns)
        stored, dtype = (filled, torch.int8) if kind == "int8" else (filled // 2, torch.uint8)
        self.register_buffer("values", torch.zeros(*rows, stored, dtype=dtype, device=like.device))
        scales = torch.zeros(*rows, filled // group, dtype=SCALES[kind], device=like.device)
        self.register_buffer("scales", scales)
        self._ready: dict[int | None, tuple[Tensor, Tensor]] = {}  # what the kernel reads, made at first use
        self.register_load_state_dict_post_hook(_forget)

    def dense(self, index: int | None = None) -> Tensor:
        """The matrix [out, in], or number `index` of a stack, in float32."""
        return self._filled(index)[:, : self.columns]

    def times(self, x: Tensor, index: int | None = None) -> Tensor:
        """`x` [M, in] times the matrix, or number `index` of a stack -> [M, out] in the type of `x`."""
        rows = F.pad(x.to(torch.bfloat16), (0, padded(self.columns) - self.columns))
        few = len(rows) <= FEW_ROWS and rows.device.type == "cpu"
        if self.kind == "int4" or self.scales.size(-1) > 1:
            packed = few and self.kind == "int4"
            y = self._few(rows, index) if packed else F.linear(rows.float(), self._filled(index)).bfloat16()
            return y.to(x.dtype)
        values, scales = self._part(index)  # one scale a row: it comes after the product
        y = _times_integers(rows, values) if few else F.linear(rows.float(), values.float()).bfloat16()
        return (y.float() * scales.flatten()).to(x.dtype)

    def times_sorted(self, x: Tensor, ends: Tensor) -> Tensor:
        """`x` [M, in] sorted by expert, expert e's rows ending at `ends[e]`, times a stack -> [M, out]."""
        counts = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
        *groups, rest = x.split([*counts, len(x) - sum(counts)])
        products = [self.times(rows, e) for e, rows in enumerate(groups) if len(rows)]
        return torch.cat([*products, rest.new_zeros(len(rest), self.values.size(-2))])

    def _filled(self, index: int | None) -> Tensor:
        values, scales = self._part(index)
        grouped = values.float().unflatten(-1, (-1, self.group))
        return (grouped * scales.float()[..., None]).flatten(-2)

    def _part(self, index: int | None) -> tuple[Tensor, Tensor]:
        values, scales = (t if index is None else t[index] for t in (self.values, self.scales))
        return (values if self.kind == "int8" else unpack(values)), scales

    def _few(self, rows: Tensor, index: int | None) -> Tensor:
        """Few rows times integers of 4 bits."""
        if index not in self._ready:
            self._ready[index] = self._prepare(*self._part(index))
        packed, pairs = self._ready[index]
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, self.group, pairs)
        return found[:, : self.values.size(-2)]

    def _prepare(self, values: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Integers and scales in the order that the kernel reads, with rows of zeros behind them."""
        spare = (0, 0, 0, -len(values) % _KERNEL_ROWS)
        values, scales = F.pad(values, spare), F.pad(scales, spare)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu((values + 8).int(), 1)
        pairs = torch.stack((scales.T, torch.zeros_like(scales.T)), dim=-1)  # [groups, out, scale and zero]
        return packed, pairs.contiguous()


def _times_integers(rows: Tensor, values: Tensor) -> Tensor:
    """Few `rows` [M, in] in bfloat16 times int8 `values` [out, in] -> [M, out], rounded once."""
    ones = torch.ones(len(values), dtype=rows.dtype)  # the kernel's own scales would have to be in bfloat16
    return torch._weight_int8pack_mm(rows, values, ones)


def _forget(matrix: nn.Module, incompatible: object) -> None:
    """Other integers were loaded: what was prepared of the old ones is of no use."""
    assert isinstance(matrix, QuantizedMatrix)
    matrix._ready.clear()


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is quantized; its bias is not."""

    def __init__(self, weight: QuantizedMatrix, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] -> [..., out]."""
        y = self.weight.times(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _QuantizedStacks(Experts):
    """Experts of which some stacks are quantized: each expert that has rows is multiplied by itself."""

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """As that of `Experts`."""

        def times(x: Tensor, weight: Tensor | QuantizedMatrix, bias: Tensor | None) -> Tensor:
            if isinstance(weight, QuantizedMatrix):
                return self.shift(weight.times_sorted(x, ends), bias, ends)
            return self.shift(self.multiply(x, weight.to(x.dtype), ends), bias, ends)

        return self._network(x.to(compute_dtype(x)), times)


class QuantizedExperts(_QuantizedStacks):
    """Plain ones."""


class QuantizedGatedExperts(_QuantizedStacks, GatedExperts):
    """Gated ones."""


def quantizable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that can be quantized, by name: matrices of linear layers but routers, and stacks of experts."""
    found: dict[str, Tensor] = {}
    for place, module in model.named_modules():
        if isinstance(module, nn.Linear) and not place.endswith("router"):
            found[f"{place}.weight"] = module.weight
        elif isinstance(module, Experts):
            stacks = module.named_parameters(place, recurse=False)
            found |= {name: p for name, p in stacks if p.ndim == 3}
    return found


def install(model: GPT, plan: Plan, source: Path | str = "the plan") -> None:
    """Put empty quantized weights in the places that `plan` names; `load_state_dict` fills them.

    Raises:
        CheckpointError: a place does not exist, is quantized already, or its width is no whole number of groups.
    """
    known = quantizable(model)
    for name, group in plan.groups.items():
        weight = known.get(name)
        if weight is None or padded(weight.size(-1)) % group:
            raise CheckpointError(
                f"{source}: {name} in groups of {group} is no weight of the configured model that can be quantized so; "
                "the weights belong to another config"
            )
        _replace(model, name, QuantizedMatrix(weight, plan.kind, group))


def _replace(model: nn.Module, name: str, matrix: QuantizedMatrix) -> None:
    place, _, attribute = name.rpartition(".")
    owner = model.get_submodule(place)
    if isinstance(owner, nn.Linear):
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantizedLinear(matrix, owner.bias))
        return
    delattr(owner, attribute)
    setattr(owner, attribute, matrix)
    if not isinstance(owner, _QuantizedStacks):  # in place, so that every weight keeps its name
        owner.__class__ = QuantizedGatedExperts if isinstance(owner, GatedExperts) else QuantizedExperts


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers, and of what the kernels were given of them in an order of their own."""
    held = [*model.parameters(), *model.buffers()]
    held += [t for m in model.modules() if isinstance(m, QuantizedMatrix) for pair in m._ready.values() for t in pair]
    own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(own.values())


__all__ = [
    "BITS", "FEW_ROWS", "GROUP_SIZES", "SCALES", "Plan", "QuantizedLinear", "QuantizedMatrix", "install", "pack",
    "padded", "quantizable", "resident_bytes", "unpack",
]  # fmt: skip
