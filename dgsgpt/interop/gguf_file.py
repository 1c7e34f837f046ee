"""The GGUF file format, versions 2 and 3: settings, then a table of tensors, then their data.

Everything a header promises is measured against the file before it is believed, and nothing is made larger than the
file itself says it is. The layout of quantised blocks, and how they become numbers, is the `gguf` package's.

Format: ggml's `docs/gguf.md`.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from dgsgpt.data.text import shown
from dgsgpt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_SETTINGS, MAX_TENSORS, MAX_ITEMS, MAX_DIMS = 10_000, 100_000, 1 << 22, 4
_AGAIN = "copy or download it again"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DTYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file; `shape` has the rows first, as in PyTorch."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """An open GGUF file; `settings` are its metadata, `tensors` what can be read with `load`.

    Raises:
        CheckpointError: the file is no GGUF, of an unknown version, truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        if not path.is_file():  # a pipe would never end
            raise CheckpointError(f"{shown(path)}: no such file; give the path of a .gguf file")
        try:
            with path.open("rb") as f:
                self._bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # ValueError: an empty file
            raise CheckpointError(f"{shown(path)}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; tensors that were read stay valid."""
        self._bytes.close()

    def load(self, name: str) -> Tensor:
        """The tensor `name` in float32, in its PyTorch shape.

        Raises:
            CheckpointError: it is not there, cut off, or of a type that cannot be read.
        """
        import torch
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        try:
            kind = GGMLQuantizationType(tensor.kind)
            numbers = dequantize(self._raw(tensor, kind), kind)
        except (NotImplementedError, ValueError) as e:
            raise CheckpointError(
                f"{shown(self._path)}: tensor {name} is of type {tensor.kind}, which cannot be read ({e}); "
                "use a file in F16, Q8_0 or Q4_K"
            ) from None
        flat: npt.NDArray[np.float32] = np.array(numbers, dtype=np.float32)  # a copy: the file may be closed
        return torch.from_numpy(flat.reshape(tensor.shape))

    def _raw(self, tensor: StoredTensor, kind: Any) -> npt.NDArray[Any]:
        from gguf.constants import GGML_QUANT_SIZES
        from gguf.quants import quant_shape_to_byte_shape

        shape = quant_shape_to_byte_shape(tensor.shape, kind)
        size = int(np.prod(shape, dtype=object))
        if GGML_QUANT_SIZES[kind][0] == 1 and kind.name in _DTYPES:
            size = int(np.prod(tensor.shape, dtype=object)) * np.dtype(_DTYPES[kind.name]).itemsize
        if tensor.offset + size > len(self._bytes):
            raise CheckpointError(
                f"{shown(self._path)}: is cut off: tensor {tensor.name} ends at byte {tensor.offset + size:,} of "
                f"{len(self._bytes):,}; {_AGAIN}"
            )
        data = np.frombuffer(self._bytes[tensor.offset : tensor.offset + size], dtype=np.uint8)
        return data.view(_DTYPES[kind.name]).reshape(tensor.shape) if kind.name in _DTYPES else data.reshape(shape)

    # ------------------------------------------------------------ header
    def _read_header(self) -> None:
        if self._take(4) != MAGIC:
            raise CheckpointError(f"{shown(self._path)}: is no GGUF file (it does not begin with GGUF); {_AGAIN}")
        version = self._number("I")
        if version not in VERSIONS:
            hint = "it is of a big-endian machine" if version % 65_536 == 0 else "convert it with llama.cpp"
            raise CheckpointError(f"{shown(self._path)}: GGUF version {version} is not 2 or 3; {hint}")
        n_tensors = self._count("Q", MAX_TENSORS, "tensors")
        n_settings = self._count("Q", MAX_SETTINGS, "settings")
        self.settings: dict[str, Any] = {}
        for _ in range(n_settings):
            key = self._string()
            value = self._value(self._number("I"))
            if key in self.settings:
                raise self._damaged(f"the setting {shown(key)} twice")
            self.settings[key] = value
        found = [self._tensor() for _ in range(n_tensors)]
        self.tensors = {tensor.name: tensor for tensor in self._placed(found)}
        if len(self.tensors) != len(found):
            raise self._damaged("two tensors of one name")

    def _placed(self, found: list[StoredTensor]) -> list[StoredTensor]:
        """The tensors with their offsets from the start of the file: data begins at the next multiple of alignment."""
        alignment = self.settings.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
            raise self._damaged(f"general.alignment {str(alignment)[:20]}")
        start = -(-self._at // alignment) * alignment
        return [StoredTensor(t.name, t.shape, t.kind, start + t.offset) for t in found]

    def _tensor(self) -> StoredTensor:
        name = self._string()
        n_dims = self._count("I", MAX_DIMS, f"dimensions of {shown(name)}")
        shape = tuple(reversed([self._number("Q") for _ in range(n_dims)]))
        if not shape or any(not 0 < size < 1 << 32 for size in shape):
            raise self._damaged(f"tensor {shown(name)} of shape {shape}")
        return StoredTensor(name, shape, self._number("I"), self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._damaged(f"a setting of unknown type {kind}")
        inner = self._number("I")
        length = self._count("Q", MAX_ITEMS, "items of a setting")
        if inner == _STRING:
            return [self._string() for _ in range(length)]
        if inner not in _SCALARS:
            raise self._damaged(f"a list of unknown type {inner}")
        code = _SCALARS[inner]
        return list(struct.unpack(f"<{length}{code}", self._take(length * struct.calcsize(f"<{code}"))))

    def _string(self) -> str:
        raw = self._take(self._number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a text that is not UTF-8") from None

    def _count(self, code: str, most: int, what: str) -> int:
        count = self._number(code)
        if count > most:
            raise self._damaged(f"{count:,} {what}, more than {most:,}")
        return count

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _take(self, size: int) -> bytes:
        if size > len(self._bytes) - self._at:
            raise CheckpointError(
                f"{shown(self._path)}: is cut off or damaged: byte {self._at:,} promises {size:,} more, the file has "
                f"{len(self._bytes):,} in all; {_AGAIN}"
            )
        self._at += size
        return self._bytes[self._at - size : self._at]

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{shown(self._path)}: is damaged: its header gives {what}; {_AGAIN}")
