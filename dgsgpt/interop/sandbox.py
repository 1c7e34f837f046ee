"""Opening other people's torch files (.pth, .pt, .bin) without trusting them.

A torch file is a pickle, and a pickle can run code. So it is opened in a child process that is limited in memory,
time and output, has an empty environment, and uses only torch's restricted unpickler; what comes back are tensors as
safetensors and plain values as JSON. See `dgsgpt.interop.unpickle` for what the child checks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgsgpt.data.text import shown
from dgsgpt.errors import CheckpointError
from dgsgpt.interop import unpickle
from dgsgpt.interop.unpickle import Limits

if TYPE_CHECKING:
    from torch import Tensor

LIMITS = Limits()
_RESULT_BYTES = 16_000_000
# Without these neither Windows nor a libtorch outside the package would start; nothing else is handed on.
_HANDED_ON = ("SYSTEMROOT", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class TorchFile:
    """What a torch file holds: tensors named by their paths (`model_state_dict/ln_f.weight`), and the plain values.

    `values` has the file's structure without the tensors; `left_out` counts tensors that nobody asked for.
    """

    tensors: Mapping[str, Tensor]
    values: Any
    sha256: str
    left_out: int = 0


def read_torch_file(path: str | Path, limits: Limits = LIMITS, leave_out: Sequence[str] = ()) -> TorchFile:
    """Open a file of torch.save in a limited child process.

    Tensors whose names match a pattern of `leave_out` (`*` stands for anything) are checked but not handed over.

    Raises:
        CheckpointError: not a regular file, not of torch.save, cut off, damaged, too large, or asking for anything
            but tensors and plain values.
    """
    name = shown(path)
    with _open_regular(path) as file, tempfile.TemporaryDirectory(prefix="dgsgpt-open-") as folder:
        size = os.fstat(file.fileno()).st_size
        if size > limits.file_bytes:
            raise CheckpointError(f"{name}: {size:,} bytes are more than the {limits.file_bytes:,} that are opened")
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        result = _unpickle(file, size, Path(folder), limits, leave_out, name)
        return TorchFile(_tensors(Path(folder) / unpickle.TENSORS), result["values"], sha256, result["left_out"])


def looks_like_torch(path: str | Path) -> bool:
    """Whether a file begins as those of torch.save do; nothing is unpickled.

    Raises:
        CheckpointError: missing, not a regular file, or unreadable.
    """
    with _open_regular(path) as file:
        head = file.read(64)
    return head.startswith(unpickle.ZIP_MAGIC) or unpickle.LEGACY_MAGIC in head


@contextlib.contextmanager
def _open_regular(path: str | Path) -> Iterator[BufferedReader]:
    """A regular file, opened for reading; a pipe or device is refused without waiting for it.

    Raises:
        CheckpointError: missing, not a regular file, or unreadable.
    """
    name = shown(path)
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file; give the path of a .pth, .pt or .bin file") from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise CheckpointError(f"{name}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind):
        os.close(fd)
        what = "a directory" if stat.S_ISDIR(kind) else "a pipe, socket or device"
        raise CheckpointError(f"{name}: is {what}; give the path of one .pth, .pt or .bin file")
    with os.fdopen(fd, "rb") as file:
        yield file


def _unpickle(
    file: BufferedReader, size: int, folder: Path, limits: Limits, leave_out: Sequence[str], name: str
) -> dict[str, Any]:
    """Run the child on `file`; gives its result, which is as little trusted as the file."""
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    job = {"size": size, "limits": asdict(limits), "leave_out": list(leave_out), "paths": packages}
    code, complaint = _run(json.dumps(job), file, folder, unpickle.seconds_for(limits.wall_s, size, limits), name)
    result_file = folder / unpickle.RESULT
    if not result_file.exists() or result_file.stat().st_size > _RESULT_BYTES:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else complaint
        raise CheckpointError(
            f"{name}: cannot be opened: the reader ended early ({how}); the file is damaged or needs more memory or "
            f"time than it should; {unpickle.AGAIN}"
        )
    result: dict[str, Any] = json.loads(result_file.read_bytes())
    if "refused" in result:
        raise CheckpointError(f"{name}: {result['refused']}")
    return result


def _run(job: str, file: BufferedReader, folder: Path, seconds: int, name: str) -> tuple[int, str]:
    """The child's exit code, and the last line it wrote about an error."""
    file.seek(0)
    environment = {key: os.environ[key] for key in _HANDED_ON if key in os.environ}
    errors = folder / "stderr"
    with errors.open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-I", unpickle.__file__, str(folder), job],
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=folder,
            env={**environment, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
            start_new_session=True,
        )
    try:
        code = child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{name}: took longer than {seconds} s to open: refused") from None
    finally:
        if child.poll() is None:  # also when the person at the keyboard interrupts
            child.kill()
            child.wait()
    lines = errors.read_bytes()[-4000:].decode("utf-8", "replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "no reason given")
    return code, shown(last.strip())


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    if sys.platform == "win32":  # a mapped file could not be removed there
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return tensors
