"""The child that opens other people's torch files, run as `python -I unpickle.py FOLDER JOB` with the file as stdin.

It is one file because it imports nothing of dgsgpt, only torch, safetensors and the standard library. It limits itself,
checks the container before torch sees it, then loads with `weights_only=True` and nothing else, and takes from the
result only tensors and plain values. FOLDER receives `tensors.safetensors` and `result.json`.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

TENSORS, RESULT = "tensors.safetensors", "result.json"
AGAIN = "copy or download it again"
NOT_TORCH = "is not a file torch.save wrote; give a .pth, .pt or .bin file"
# The number that begins files of torch before 1.6, as pickle writes it.
LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
ZIP_MAGIC = b"PK\x03\x04"
DTYPES = frozenset(("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"))
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}")
_GLOBAL = re.compile(r"(?:GLOBAL|class|function)s? ([\w.]{1,100})")
# What torch raises where the structure of a file is not what it was.
DAMAGE = (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
CUT_OFF = (EOFError, OSError, struct.error)
_LEFT_OUT = object()  # stands where a tensor was


class RefusedError(Exception):
    """Why a file is not opened, without its name."""


@dataclass(frozen=True)
class Limits:
    """What opening a file may cost, and what may be in it.

    Without damage or malice no file of a model comes near them: they are far above the largest, and what grows with a
    model grows with the file.
    """

    file_bytes: int = 64 << 30
    members: int = 200_000  # files in a zip archive: one for each tensor
    pickle_bytes: int = 64 << 20
    values: int = 1_000_000  # entries of dicts and lists, tensors included
    depth: int = 32
    text_bytes: int = 8_000_000  # all plain values together, as JSON
    # Address space beyond what importing torch takes (640 MB on Linux without CUDA, measured after the import because
    # CUDA adds gigabytes): the storages, copies of shared ones and, with older safetensors, the bytes to be written.
    memory_factor: float = 4.0
    spare_bytes: int = 512 << 20
    # Importing torch takes most of it. What torch does when it refuses may take time quadratic in what it refuses.
    cpu_s: int = 40
    wall_s: int = 150
    bytes_per_s: int = 20_000_000  # adds to both times, for large files on slow disks


def seconds_for(base: int, size: int, limits: Limits) -> int:
    """The time limit for a file of `size` bytes."""
    return base + size // limits.bytes_per_s


# ---------------------------------------------------------------- before torch
def limit_self(size: int, limits: Limits) -> None:
    """Bound processor time and the size of written files, and leave no core dump.

    Windows has no `resource` module: there the file is opened without these limits and that of memory, but still in
    this child, with all checks, and under the parent's timeout.
    """
    if sys.platform == "win32":
        return
    import resource

    cpu = seconds_for(limits.cpu_s, size, limits)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes(size) + (64 << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_memory(size: int, limits: Limits) -> None:
    """Bound the address space from what is mapped now on; a later call may raise the bound.

    Only Linux tells what is mapped, and macOS does not enforce the bound; there the checks of the content remain.
    """
    mapped = Path("/proc/self/statm")
    if sys.platform == "win32" or not mapped.exists():
        return
    import resource

    most = int(mapped.read_text().split()[0]) * resource.getpagesize() + memory_bytes(size, limits)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def import_torch() -> None:
    """Import torch, which maps more than any file may need, without the bound; then forbid new processes."""
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    import safetensors.torch
    import torch

    torch.set_num_threads(1)
    assert safetensors.torch  # not needed before the end, but not to be imported then
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def memory_bytes(size: int, limits: Limits) -> int:
    """Bytes that opening a file of `size` bytes may take."""
    return limits.spare_bytes + int(limits.memory_factor * size)


def output_bytes(size: int) -> int:
    """Bytes of tensors that a file of `size` may hold: a tied matrix, stored once, is written under both names."""
    return 2 * size + (1 << 20)


def check_container(file: BinaryIO, size: int, limits: Limits) -> None:
    """Check everything that can be known of the file without unpickling it.

    Raises:
        RefusedError: not a file of torch.save, cut off, damaged, or packed so that it grows when it is opened.
    """
    file.seek(0)
    head = file.read(64)
    if head.startswith(ZIP_MAGIC):
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive, size, limits)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, *CUT_OFF) as e:
            raise RefusedError(f"is cut off or damaged ({_one_line(e)}); {AGAIN}") from None
    elif LEGACY_MAGIC not in head:
        raise RefusedError(NOT_TORCH if size else f"is empty; {AGAIN}")
    file.seek(0)


def _check_members(archive: zipfile.ZipFile, size: int, limits: Limits) -> None:
    members = archive.infolist()
    names = [m.filename for m in members]
    if len(members) > limits.members:
        raise RefusedError(f"has {len(members):,} members, more than {limits.members:,}: refused")
    if len(set(names)) < len(names):
        raise RefusedError(
            "has two members of one name, which torch.save never writes: refused; save it again with torch"
        )
    if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size or m.flag_bits & 1 for m in members):
        raise RefusedError("has compressed members, which torch.save never writes: refused; save it again with torch")
    if sum(m.file_size for m in members) > size:
        raise RefusedError("has members that overlap and would grow when opened: refused")
    if any(name.endswith("/constants.pkl") for name in names):
        raise RefusedError("is a TorchScript program, not weights; save its state_dict() with torch.save")
    pickles = [m for m in members if m.filename.count("/") == 1 and m.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise RefusedError(NOT_TORCH)
    if pickles[0].file_size > limits.pickle_bytes:
        raise RefusedError(
            f"holds {pickles[0].file_size:,} bytes of structure, more than {limits.pickle_bytes:,}: refused"
        )
    # torch itself does not compare checksums. It can be told to write none, and then all of them are 0.
    if any(m.CRC for m in members):
        for member in members:
            with archive.open(member) as content:
                while content.read(1 << 20):
                    pass


# ---------------------------------------------------------------- with torch
def load(file: BinaryIO, size: int, limits: Limits) -> Any:
    """What torch.load makes of the file, of weights and plain values only.

    Raises:
        RefusedError: it asks for anything else, or is damaged.
        MemoryError: it needs more than it may.
    """
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (*DAMAGE, *CUT_OFF) as e:
        text = str(e)
        if asked := _GLOBAL.search(text) if isinstance(e, pickle.UnpicklingError) else None:
            raise RefusedError(
                f"asks to run code ({asked[1]}): refused; have it saved again as a dict of tensors "
                "alone, or copy it again if it should be one"
            ) from None
        if "allocate memory" in text or "bad_alloc" in text:
            raise MemoryError from None
        # torch surrounds the reason with advice how to open the file without any protection.
        reason = text.split("WeightsUnpickler error:")[-1].split("Check the documentation")[0]
        raise RefusedError(f"is cut off or damaged ({_one_line(reason)}); {AGAIN}") from None


@dataclass
class Inventory:
    """Takes tensors and plain values out of what was loaded; anything else, and any excess, is refused.

    A tensor's name is its path, joined by `/`. Those that match one of `leave_out` are only counted.
    """

    size: int
    limits: Limits
    leave_out: Sequence[str] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)
    left_out: int = 0
    _seen: int = 0
    _bytes: int = 0
    _storages: set[int] = field(default_factory=set)
    _stored: int = 0

    def take(self, value: Any, path: str = "", depth: int = 0) -> Any:
        """The plain values in `value`; tensors are set aside under their names, lists have None in their places.

        Raises:
            RefusedError: something else than a value or a tensor, or too much of them.
        """
        import torch

        self._seen += 1
        if self._seen > self.limits.values or depth > self.limits.depth:
            raise RefusedError(
                f"nests or repeats values beyond {self.limits.values:,} entries and {self.limits.depth} levels: refused"
            )
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if isinstance(value, Mapping):
            taken = {key: self.take(value[k], f"{path}/{key}" if path else key, depth + 1) for k, key in _keys(value)}
            return {key: item for key, item in taken.items() if item is not _LEFT_OUT}
        if isinstance(value, list | tuple):
            items = [self.take(item, f"{path}/{i}" if path else str(i), depth + 1) for i, item in enumerate(value)]
            return [None if item is _LEFT_OUT else item for item in items]
        return _plain(value, path)

    def _tensor(self, tensor: Tensor, path: str) -> object:
        import torch

        where = f"tensor {_one_line(path)!r}"
        if not path or not all(_NAME.fullmatch(part) for part in path.split("/")):
            raise RefusedError(f"{where} has a name with characters beyond letters, digits, '_', '-' and '.': refused")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
            raise RefusedError(f"{where} is not a plain dense one: refused; convert it before saving")
        if tensor.device.type != "cpu":
            raise RefusedError(f"{where} is on the device {tensor.device}: refused; copy it to the cpu before saving")
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES or tensor.is_quantized:
            raise RefusedError(f"{where} is of kind {tensor.dtype}: refused; convert it to float32 before saving")
        storage, taken = tensor.untyped_storage(), tensor.numel() * tensor.element_size()
        if taken > storage.nbytes():
            raise RefusedError(f"{where} claims {taken:,} bytes of a storage of {storage.nbytes():,}: refused")
        if storage._cdata not in self._storages:
            self._storages.add(storage._cdata)
            self._stored += storage.nbytes()
        if self._stored > self.size:
            raise RefusedError(f"{where} claims storage beyond the file's {self.size:,} bytes: refused")
        if any(fnmatchcase(path, pattern) for pattern in self.leave_out):
            self.left_out += 1
            return _LEFT_OUT
        self._bytes += taken
        if self._bytes > output_bytes(self.size):
            raise RefusedError(f"holds tensors that grow to more than {output_bytes(self.size):,} bytes: refused")
        if path in self.tensors:
            raise RefusedError(f"has two tensors named {path!r}: refused")
        self.tensors[path] = tensor.detach()
        return _LEFT_OUT


def _keys(values: Mapping[Any, Any]) -> list[tuple[Any, str]]:
    """Each key of a dict beside its text."""
    for key in values:
        if type(key) not in (str, int) or len(str(key)) > 1000:
            raise RefusedError(f"has a dict whose keys are not texts or numbers ({type(key).__name__}): refused")
    keys = [(key, str(key)) for key in values]
    if len({text for _, text in keys}) < len(keys):
        raise RefusedError("has a dict with a number and the same number as text for keys: refused")
    return keys


def _plain(value: Any, path: str) -> Any:
    """A value that JSON has; numbers that are not finite become None."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 1 << 63:
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    raise RefusedError(
        f"holds a {type(value).__name__} at {_one_line(path or 'its top')!r}, neither tensor nor plain value: refused"
    )


def write(folder: Path, inventory: Inventory) -> None:
    """Write the tensors as safetensors, each with a storage of its own."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in inventory.tensors.items():
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size() and storage._cdata not in seen
        seen.add(storage._cdata)
        own[name] = tensor.contiguous() if whole else tensor.contiguous().clone()
    try:
        save_file(own, str(folder / TENSORS))
    except (OSError, SafetensorError) as e:
        raise RefusedError(
            f"does not fit the temporary folder ({_one_line(e)}); set TMPDIR to one with more room"
        ) from None


def _one_line(text: object) -> str:
    words = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else "?" for c in words)
    return shown if len(shown) <= 100 else shown[:97] + "..."


def convert(file: BinaryIO, size: int, folder: Path, leave_out: Sequence[str], limits: Limits) -> dict[str, Any]:
    """Check, load and write; gives what `result.json` will hold.

    Raises:
        RefusedError: see the functions this calls.
    """
    limit_memory(size, limits)
    check_container(file, size, limits)
    import_torch()
    limit_memory(size, limits)
    inventory = Inventory(size, limits, leave_out)
    values = inventory.take(load(file, size, limits))
    text = json.dumps(values, allow_nan=False)
    if len(text) > limits.text_bytes:
        raise RefusedError(f"holds {len(text):,} bytes of plain values, more than {limits.text_bytes:,}: refused")
    write(folder, inventory)
    return {"values": values, "left_out": inventory.left_out}


def main(folder: Path, job: Mapping[str, Any]) -> None:
    """Convert the file on stdin; what is wrong with it, if anything, goes to `result.json` too."""
    sys.path += [path for path in job["paths"] if path not in sys.path]
    limits = Limits(**job["limits"])
    limit_self(job["size"], limits)
    try:
        with open(0, "rb", closefd=False) as file:
            result = convert(file, job["size"], folder, job["leave_out"], limits)
    except RefusedError as e:
        result = {"refused": str(e)}
    except MemoryError:
        result = {"refused": f"needs more than {memory_bytes(job['size'], limits) / 1e9:.1f} GB when opened: refused"}
    (folder / RESULT).write_text(json.dumps(result, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
