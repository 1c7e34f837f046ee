"""What the weights of a checkpoint are like, tensor by tensor and layer by layer, from its file alone.

One tensor is in memory at a time, whatever the size of the model; no model is built. Statistics are of the finite
numbers, in double precision; how many are not finite is told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgsgpt.checkpoint import MAX_HEADER_BYTES, MODEL, refuse_quantized
from dgsgpt.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_ITERATIONS = 12
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_SLICE = 1 << 22  # numbers that are turned into float64 at once: 32 MiB


# ---------------------------------------------------------------- what comes out
@dataclass(frozen=True)
class Statistics:
    """Of one tensor or of all in a layer; None where there is no finite number, or for norms no matrix.

    `spectral_norm` is the largest singular value, estimated from below by power iteration, the largest of them where
    there are several matrices. `stable_rank` is ||W||_F^2 / ||W||_2^2 (Rudelson & Vershynin 2007) of one matrix.
    """

    parameters: int
    mean: float | None
    std: float | None
    rms: float | None
    max_abs: float | None
    zeros: float  # share of exact zeros, 0 to 1
    non_finite: int
    spectral_norm: float | None
    stable_rank: float | None


@dataclass(frozen=True)
class TensorStatistics:
    """One tensor, by the name it has in the file; a stack of experts' matrices [E, rows, columns] is one tensor."""

    name: str
    layer: str
    shape: tuple[int, ...]
    dtype: str
    statistics: Statistics


@dataclass(frozen=True)
class LayerStatistics:
    """All tensors of a block (`block 0`, …), or of what is outside the blocks (`embed`, `norm`, `head`, …)."""

    layer: str
    statistics: Statistics


@dataclass(frozen=True)
class WeightReport:
    """A file's tensors and layers, in the order of the network."""

    tensors: tuple[TensorStatistics, ...]
    layers: tuple[LayerStatistics, ...]


@dataclass(frozen=True)
class LayerDistance:
    """How far the weights B of a layer are from A: `distance` ||A - B|| / ||A||, `cosine` of the angle between them.

    Both are None where a number is not finite, or where ||A|| (for the cosine: or ||B||) is 0 and B is not A.
    """

    layer: str
    parameters: int
    distance: float | None
    cosine: float | None


# ---------------------------------------------------------------- reading
def layer_of(name: str) -> str:
    """The layer a tensor belongs to: `blocks.3.attn.q.weight` to `block 3`, `embed.weight` to `embed`."""
    block = _BLOCK.match(name)
    return f"block {int(block[1])}" if block else name.partition(".")[0]


def weight_report(path: Path) -> WeightReport:
    """Statistics of a checkpoint's directory or of a safetensors file.

    Raises:
        CheckpointError: the file cannot be read as safetensors.
    """
    tensors: list[TensorStatistics] = []
    sums: dict[str, list[_Sums]] = {}
    with _opened(path) as file:
        for name in _ordered(file.keys()):
            tensor = file.get_tensor(name)
            found = _Sums.of(tensor)
            found.spectral_norm, rank = _spectrum(tensor) if found.non_finite == 0 else (None, None)
            layer = layer_of(name)
            sums.setdefault(layer, []).append(found)
            dtype = str(tensor.dtype).removeprefix("torch.")
            tensors.append(TensorStatistics(name, layer, tuple(tensor.shape), dtype, found.statistics(rank)))
    layers = [LayerStatistics(layer, _Sums.together(parts).statistics(None)) for layer, parts in sums.items()]
    return WeightReport(tuple(tensors), tuple(layers))


def layer_distances(a: Path, b: Path) -> list[LayerDistance]:
    """Distance and angle between two checkpoints, layer by layer.

    Raises:
        CheckpointError: a file cannot be read, or the two differ in a tensor's name or shape.
    """
    sums: dict[str, list[tuple[int, float, float, float, float]]] = {}
    with _opened(a) as first, _opened(b) as second:
        _check_same(a, b, first, second)
        for name in _ordered(first.keys()):
            sums.setdefault(layer_of(name), []).append(_products(first.get_tensor(name), second.get_tensor(name)))
    return [_distance(layer, [sum(column) for column in zip(*parts, strict=True)]) for layer, parts in sums.items()]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        refuse_quantized(path, "measured weight by weight")
    file = path / MODEL if path.is_dir() else path
    try:
        with file.open("rb") as f:
            header = int.from_bytes(f.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{file}: a header of {header:,} bytes is over the limit of {MAX_HEADER_BYTES:,}; use a whole file"
            )
        with safe_open(str(file), framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{file}: cannot be read as safetensors: {e}; use another checkpoint") from e


def _ordered(names: Iterable[str]) -> list[str]:
    """Embeddings first, then the blocks by number, then the rest, as data flows through the network."""

    def place(name: str) -> tuple[int, int, str]:
        block = _BLOCK.match(name)
        if block:
            return 1, int(block[1]), name
        return (0 if name.startswith(("embed", "ngram", "positions")) else 2), -name.startswith("norm"), name

    return sorted(names, key=place)


def _check_same(a: Path, b: Path, first: Any, second: Any) -> None:
    mine, others = set(first.keys()), set(second.keys())
    for name in sorted(mine ^ others):
        owner, other = (a, b) if name in mine else (b, a)
        raise CheckpointError(f"{other}: has no tensor {name}, which {owner} has; compare two of one architecture")
    for name in _ordered(mine):
        x, y = (tuple(file.get_slice(name).get_shape()) for file in (first, second))
        if x != y:
            raise CheckpointError(f"{b}: tensor {name} is {y}, in {a} it is {x}; compare two of one shape")


# ---------------------------------------------------------------- sums
@dataclass
class _Sums:
    """What statistics are made of; those of several tensors add up."""

    parameters: int = 0
    finite: int = 0
    zeros: int = 0
    total: float = 0.0
    squares: float = 0.0  # about zero
    deviations: float = 0.0  # squares about the mean
    max_abs: float = 0.0
    spectral_norm: float | None = None

    @property
    def non_finite(self) -> int:
        return self.parameters - self.finite

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Sums:
        parts = []
        for part in tensor.flatten().split(_SLICE):
            known = part.double()
            known = known[known.isfinite()]
            if not known.numel():
                parts.append(cls(parameters=part.numel()))
                continue
            mean = known.mean()
            parts.append(
                cls(
                    parameters=part.numel(),
                    finite=known.numel(),
                    zeros=int((known == 0).sum()),
                    total=float(known.sum()),
                    squares=float(known.square().sum()),
                    deviations=float((known - mean).square().sum()),
                    max_abs=float(known.abs().max()),
                )
            )
        return cls.together(parts)

    @classmethod
    def together(cls, parts: Iterable[_Sums]) -> _Sums:
        whole = cls()
        for part in parts:
            n, m = whole.finite, part.finite
            gap = part.total / m - whole.total / n if n and m else 0.0
            whole.deviations += part.deviations + (gap * gap * n * m / (n + m) if n and m else 0.0)  # Chan et al. 1983
            whole.parameters += part.parameters
            whole.finite += m
            whole.zeros += part.zeros
            whole.total += part.total
            whole.squares += part.squares
            whole.max_abs = max(whole.max_abs, part.max_abs)
            norms = [norm for norm in (whole.spectral_norm, part.spectral_norm) if norm is not None]
            whole.spectral_norm = max(norms, default=None)
        return whole

    def statistics(self, stable_rank: float | None) -> Statistics:
        n = self.finite
        return Statistics(
            parameters=self.parameters,
            mean=self.total / n if n else None,
            std=math.sqrt(self.deviations / n) if n else None,
            rms=math.sqrt(self.squares / n) if n else None,
            max_abs=self.max_abs if n else None,
            zeros=self.zeros / self.parameters if self.parameters else 0.0,
            non_finite=self.non_finite,
            spectral_norm=self.spectral_norm,
            stable_rank=stable_rank,
        )


def _spectrum(tensor: torch.Tensor) -> tuple[float | None, float | None]:
    """The largest spectral norm of a matrix, or of a stack of them, and the stable rank (their mean)."""
    import torch

    if tensor.ndim not in (2, 3) or min(tensor.shape[-2:], default=0) < 2 or not tensor.numel():
        return None, None
    norms, ranks = [], []
    for matrix in tensor if tensor.ndim == 3 else tensor[None]:
        w = matrix.float()
        size = float(torch.linalg.vector_norm(w, dtype=torch.float64))
        norm = _spectral_norm(w)
        norms.append(norm)
        if norm > 0:
            ranks.append((size / norm) ** 2)
    return max(norms), sum(ranks) / len(ranks) if ranks else None


def _spectral_norm(w: torch.Tensor) -> float:
    """Power iteration on W^T W from a fixed start (Golub & Van Loan, section 8.2), [rows, columns]."""
    import torch

    v = torch.randn(w.size(1), generator=torch.Generator().manual_seed(0))
    norm = 0.0
    for _ in range(_ITERATIONS):
        length = float(torch.linalg.vector_norm(v, dtype=torch.float64))
        if length == 0:
            return 0.0
        u = w @ (v / length)
        norm = float(torch.linalg.vector_norm(u, dtype=torch.float64))
        if norm == 0:
            return 0.0
        v = w.T @ (u / norm)  # the direction alone: the square of a large norm would not be finite
    return norm


# ---------------------------------------------------------------- distances
def _products(a: torch.Tensor, b: torch.Tensor) -> tuple[int, float, float, float, float]:
    """Parameters, and the sums of A A, B B, A B and (A - B)^2."""
    aa = bb = ab = gap = 0.0
    for x, y in zip(a.flatten().split(_SLICE), b.flatten().split(_SLICE), strict=True):
        x, y = x.double(), y.double()
        aa += float(x @ x)
        bb += float(y @ y)
        ab += float(x @ y)
        gap += float((x - y).square().sum())
    return a.numel(), aa, bb, ab, gap


def _distance(layer: str, sums: list[float]) -> LayerDistance:
    count, aa, bb, ab, gap = sums
    if not math.isfinite(sum(sums)):
        return LayerDistance(layer, int(count), None, None)
    distance = math.sqrt(gap / aa) if aa > 0 else 0.0 if gap == 0 else None
    cosine = min(1.0, max(-1.0, ab / math.sqrt(aa) / math.sqrt(bb))) if aa > 0 and bb > 0 else None
    return LayerDistance(layer, int(count), distance, cosine)


__all__ = [
    "LayerDistance", "LayerStatistics", "Statistics", "TensorStatistics", "WeightReport", "layer_distances", "layer_of",
    "weight_report",
]  # fmt: skip
