"""Weights rounded to 8 or 4 bits by torchao, and an account of every byte: which weights, and which were left and why.

Rounding is to the nearest, symmetric about zero, by the largest weight of a group (Dettmers et al. 2022, LLM.int8(),
section 2.1): a scale is that weight over 127.5 or 7.5. For 8 bits a group is by default a whole row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgsgpt.config import ModelConfig
from dgsgpt.errors import CheckpointError, DgsgptError
from dgsgpt.model import GPT
from dgsgpt.model.quantized import BITS, GROUP_SIZES, SCALES, Plan, install, pack, padded, quantizable

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_GROUP = 32  # of integers of 4 bits: with its scale each weight then has 4.5
_INT4_RANGE = (-8, 7)

_KEPT = (
    ("embed.", "token embedding", "looked up, not multiplied"),
    ("head.", "output layer", "every token's probability hangs on it"),
    ("ngram.", "n-gram tables", "looked up, not multiplied"),
    ("positions.", "position embedding", "looked up, not multiplied"),
)


@dataclass(frozen=True)
class Part:
    """Weights of one kind: how many, their bytes as they were stored and as they are, and why they are so."""

    name: str
    weights: int
    before_bytes: int
    after_bytes: int
    quantized: bool
    note: str

    def joined(self, other: Part) -> Part:
        """Two parts of one kind as one."""
        return Part(
            self.name, self.weights + other.weights, self.before_bytes + other.before_bytes,
            self.after_bytes + other.after_bytes, self.quantized, self.note,
        )  # fmt: skip


@dataclass(frozen=True)
class Quantized:
    """What quantizing has made: the plan, all tensors as they are stored, and the account of their bytes."""

    plan: Plan
    group_size: int | None
    tensors: Mapping[str, Tensor]
    parts: tuple[Part, ...]

    @property
    def before_bytes(self) -> int:
        """Bytes of all weights as they were stored."""
        return sum(part.before_bytes for part in self.parts)

    @property
    def after_bytes(self) -> int:
        """Bytes of all weights as they are now, scales included."""
        return sum(part.after_bytes for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the tensors."""
        return {
            "kind": self.plan.kind,
            "group_size": self.group_size,
            "before_bytes": self.before_bytes,
            "after_bytes": self.after_bytes,
            "parts": [asdict(part) for part in self.parts],
        }


# ---------------------------------------------------------------- quantizing
def quantize_model(model: GPT, kind: str, group_size: int | None = None) -> Quantized:
    """Quantize the weights of `model` in place; from then on it can be used, not trained.

    Raises:
        DgsgptError: see `quantize_tensors`.
    """
    made = quantize_tensors(model.state_dict(), model.config, kind, group_size)
    install(model, made.plan)
    model.load_state_dict(dict(made.tensors))
    return made


def quantize_tensors(
    tensors: Mapping[str, Tensor], config: ModelConfig, kind: str, group_size: int | None = None
) -> Quantized:
    """Quantize stored weights of a network of `config` to `kind`, int8 or int4; `tensors` stay as they are.

    `group_size` columns share a scale; None is a whole row for int8 and 32 for int4. Rows are filled up with zeros to
    whole 32; where that is no multiple of the group, the largest half, quarter, … that divides it is taken.

    Raises:
        CheckpointError: a weight is not of finite numbers.
        DgsgptError: torchao is missing, or `kind` or `group_size` is none that there is.
    """
    size = check_choice(kind, group_size)
    round_to = _rounding()
    with torch.device("meta"):
        network = GPT(config)
    plan: dict[str, int] = {}
    made: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], Part] = {}
    known = quantizable(network)
    for name, tensor in tensors.items():
        new = {name: tensor}
        group = fit_group(tensor.size(-1), size) if name in known else None
        if group is not None:
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{name} holds NaN or infinite numbers; the model is damaged, use an earlier one")
            plan[name] = group
            filled = F.pad(tensor.float(), (0, padded(tensor.size(-1)) - tensor.size(-1)))
            values, scales = round_to(filled, kind, group)
            new = {f"{name}.values": values, f"{name}.scales": scales}
        made |= new
        title = _title(name, group is not None)
        note = _of_matrix(tensor.size(-1), group, size) if group else _why_kept(name, config.tie_embeddings)
        part = Part(title, tensor.numel(), tensor.nbytes, sum(t.nbytes for t in new.values()), group is not None, note)
        parts[title, note] = parts[title, note].joined(part) if (title, note) in parts else part
    ordered = sorted(parts.values(), key=lambda part: (not part.quantized, -part.before_bytes))
    return Quantized(Plan(kind, plan), size, made, tuple(ordered))


def check_choice(kind: str, group_size: int | None) -> int | None:
    """The size of a group, with its default for `kind`.

    Raises:
        DgsgptError: there is no such kind or size.
    """
    if kind not in BITS:
        raise DgsgptError(f"quantization={kind!r} must be {' or '.join(BITS)}")
    if group_size is None:
        return None if kind == "int8" else DEFAULT_GROUP
    if group_size not in GROUP_SIZES:
        raise DgsgptError(f"group_size={group_size} must be one of {', '.join(map(str, GROUP_SIZES))}")
    return group_size


def fit_group(columns: int, size: int | None) -> int:
    """The group for rows of `columns`: all of them without a `size`, else it or the largest half, quarter, … that fits.

    What counts is the length of the row once it is filled up.
    """
    filled = padded(columns)
    while size is not None and filled % size:
        size //= 2
    return size or filled


def _title(name: str, matrix: bool) -> str:
    """Of which kind a tensor is."""
    if matrix:
        return "attention" if ".attn." in name else "experts" if ".experts." in name else "feed-forward"
    if ".router." in name:
        return "routers"
    return next((title for begin, title, _ in _KEPT if name.startswith(begin)), "norms and biases")


def _of_matrix(columns: int, group: int, size: int | None) -> str:
    """How the rows of a weight are divided."""
    per = "a scale a row" if size is None else f"a scale for {group} weights"
    return per if padded(columns) == columns else f"{per}; rows of {columns} filled up to {padded(columns)}"


def _why_kept(name: str, tied: bool) -> str:
    """Why a tensor is not quantized."""
    for begin, _, note in _KEPT:
        if name.startswith(begin):
            return f"also the output layer: {_KEPT[1][2]}" if tied and begin == "embed." else note
    return "rounding would change which experts are chosen" if ".router." in name else "hardly any bytes"


# ---------------------------------------------------------------- torchao
def _rounding() -> Callable[[Tensor, str, int], tuple[Tensor, Tensor]]:
    """What rounds a float32 matrix or stack to values and scales.

    Raises:
        DgsgptError: torchao is missing.
    """
    try:
        with _quiet():
            from torchao.quantization import (
                Int8Tensor,
                IntxUnpackedToInt8Tensor,
                MappingType,
                PerGroup,
                choose_qparams_affine,
            )
    except ImportError as e:
        raise DgsgptError('quantizing needs torchao, which is not here; pip install "dgsgpt[lowbit]"') from e
    least = torch.finfo(torch.float32).eps

    def round_to(weight: Tensor, kind: str, group: int) -> tuple[Tensor, Tensor]:
        if kind == "int8":
            rounded = Int8Tensor.from_hp(weight, PerGroup(group))
            return rounded.qdata, rounded.scale.to(SCALES[kind])
        block = (*(1 for _ in weight.shape[:-1]), group)
        scales, _ = choose_qparams_affine(
            weight, MappingType.SYMMETRIC, block, torch.int8, *_INT4_RANGE, eps=least, keepdim=True
        )
        # Rounded before they are used: the integers are then the best ones for the scales that are stored.
        scales = scales.to(SCALES[kind])
        rounded = IntxUnpackedToInt8Tensor.from_hp(
            weight,
            block,
            torch.int4,  # type: ignore[attr-defined]
            intx_choose_qparams_algorithm=None,
            custom_scale=scales.float(),
            custom_zero_point=torch.zeros_like(scales, dtype=torch.int8),
        )
        return pack(rounded.qdata), scales

    return round_to


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torchao's warnings of kernels for other machines, which it gives when it is imported."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


__all__ = ["DEFAULT_GROUP", "GROUP_SIZES", "Part", "Quantized", "check_choice", "fit_group", "quantize_model",
           "quantize_tensors"]  # fmt: skip
