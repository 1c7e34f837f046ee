"""Weights in safetensors files of others, one or many: headers checked first, tensors read one after another.

The format itself accepts what a model never has (a key twice, thousands of empty tensors, outsized headers), so the
header is read here before anything else. Many files are joined by an index, whose names must lie in its own folder.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgsgpt.checkpoint import MAX_HEADER_BYTES
from dgsgpt.data.text import shown
from dgsgpt.errors import CheckpointError
from dgsgpt.interop.hf_keys import parse_object, read_object, shorten

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_TENSORS, MAX_FILES = 200_000, 2_000
MAX_INDEX_BYTES = 32_000_000
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F32", "F16", "BF16")
_AGAIN = "get the file again"


@dataclass(frozen=True)
class Spec:
    """A tensor as a header describes it."""

    shape: tuple[int, ...]
    dtype: str
    path: Path

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class Weights(ABC):
    """Tensors by name, read when they are asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.specs: dict[str, Spec] = {}

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, in the type it is stored in."""


class SafetensorsWeights(Weights):
    """Weights in safetensors files; each file stays mapped, a tensor is in memory only once it is read."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(paths)
        for path in paths:
            for name, spec in read_header(path).items():
                if name in self.specs:
                    raise CheckpointError(
                        f"{shown(path)}: tensor {shorten(name)} is also in {self.specs[name].path.name}"
                    )
                self.specs[name] = spec
        self._open: dict[Path, Any] = {}

    def read(self, name: str) -> Tensor:
        """One tensor, in the type it is stored in.

        Raises:
            CheckpointError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self.specs[name].path
        try:
            if path not in self._open:
                self._open[path] = safe_open(str(path), framework="pt")
            tensor: Tensor = self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise CheckpointError(f"{shown(path)}: tensor {shorten(name)} cannot be read: {e}; {_AGAIN}") from e
        return tensor


class TorchWeights(Weights):
    """Weights of `pytorch_model.bin` files, which only the sandbox opens."""

    def __init__(self, paths: list[Path]) -> None:
        from dgsgpt.interop.sandbox import read_torch_file

        names = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
        super().__init__(paths)
        self._tensors: dict[str, Tensor] = {}
        for path in paths:
            tensors = read_torch_file(path).tensors
            twice = sorted(set(tensors) & set(self._tensors))
            if twice:
                raise CheckpointError(f"{shown(path)}: tensor {shorten(twice[0])} is also in another of the files")
            self._tensors.update(tensors)
            for name, tensor in tensors.items():
                kind = names.get(str(tensor.dtype), str(tensor.dtype))
                self.specs[name] = Spec(tuple(tensor.shape), kind, path)

    def read(self, name: str) -> Tensor:
        """One tensor, in the type it is stored in."""
        return self._tensors[name]


def open_weights(folder: Path) -> Weights:
    """The weights of a model folder.

    Raises:
        CheckpointError: there are none, a part is missing, or a file is not what it should be.
    """
    kinds: tuple[tuple[str, str, Callable[[list[Path]], Weights]], ...] = (
        (SINGLE, INDEX, SafetensorsWeights),
        (BIN, BIN_INDEX, TorchWeights),
    )
    for single, index, kind in kinds:
        if (folder / single).is_file():
            return kind([folder / single])
        if (folder / index).is_file():
            wanted = read_index(folder / index, Path(single).suffix)
            weights = kind([folder / name for name in sorted(set(wanted.values()))])
            _match_index(weights, wanted, folder / index)
            return weights
    raise CheckpointError(f"{shown(folder)}: has no weights; a Hugging Face model has {SINGLE}, {INDEX} or {BIN}")


def read_index(path: Path, suffix: str) -> dict[str, str]:
    """Which file each tensor is in.

    Raises:
        CheckpointError: the index is damaged, or names a file that is missing or not in its folder.
    """
    listed = read_object(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(listed, dict) or not listed or len(listed) > MAX_TENSORS:
        raise CheckpointError(f"{shown(path)}: weight_map must list a file for each of at most {MAX_TENSORS:,} tensors")
    for name in sorted({str(value) for value in listed.values()}):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) or not name.endswith(suffix):
            raise CheckpointError(
                f"{shown(path)}: names the file {shorten(name)}, which is not a {suffix} file in its folder"
            )
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{shown(path.parent)}: {name} is missing, which {path.name} lists; {_AGAIN}")
    if len(set(listed.values())) > MAX_FILES:
        raise CheckpointError(f"{shown(path)}: names over {MAX_FILES:,} files")
    return listed


def _match_index(weights: Weights, wanted: Mapping[str, str], index: Path) -> None:
    for name, file in wanted.items():
        spec = weights.specs.get(name)
        if spec is None or spec.path.name != file:
            raise CheckpointError(
                f"{shown(index)}: tensor {shorten(name)} is not in {file}, where the index has it; {_AGAIN}"
            )
    extra = sorted(set(weights.specs) - set(wanted))
    if extra:
        raise CheckpointError(f"{shown(index)}: does not list tensor {shorten(extra[0])}, which a file has; {_AGAIN}")


def read_header(path: Path) -> dict[str, Spec]:
    """Names, shapes and types of a safetensors file.

    Raises:
        CheckpointError: the file is cut, the header outsized, damaged, or at odds with the file's size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{shown(path)}: a header of {length:,} bytes is over the limit of {MAX_HEADER_BYTES:,}"
                )
            if size < 8 + length:
                raise CheckpointError(f"{shown(path)}: the file ends within its header; {_AGAIN}")
            header = parse_object(f.read(length), path)
    except OSError as e:
        raise CheckpointError(f"{shown(path)}: cannot be read: {e.strerror or e}") from e
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{shown(path)}: lists {len(header):,} tensors, over the limit of {MAX_TENSORS:,}")
    return {name: _spec(name, entry, path, size - 8 - length) for name, entry in header.items()}


def _spec(name: str, entry: Any, path: Path, room: int) -> Spec:
    """One entry of a header, whose bytes must be as many as its shape asks for, and lie in the file."""
    damaged = CheckpointError(f"{shown(path)}: the entry of tensor {shorten(name)} is damaged; {_AGAIN}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise damaged
    if len(offsets) != 2 or len(shape) > 8 or not isinstance(dtype, str):
        raise damaged
    span = offsets[1] - offsets[0]
    if offsets[1] > room:
        raise CheckpointError(f"{shown(path)}: the file ends before tensor {shorten(name)} does; {_AGAIN}")
    numel = math.prod(shape)  # types that are not known here have a bit at least for each number
    if numel * ITEM_BYTES[dtype] != span if dtype in ITEM_BYTES else numel > 8 * span:
        raise damaged
    return Spec(tuple(shape), dtype, path)


def fingerprint(paths: list[Path], told: Callable[[float], None]) -> tuple[str, dict[str, str]]:
    """sha256 of all files together, and of each by name; of a single file they are the same."""
    whole, done = sum(path.stat().st_size for path in paths) or 1, 0
    each: dict[str, str] = {}
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
                done += len(block)
                told(done / whole)
        each[path.name] = digest.hexdigest()
    if len(each) == 1:
        return next(iter(each.values())), each
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(each.items()))
    return hashlib.sha256(lines.encode()).hexdigest(), each
