"""Small files that survive a power cut: atomic replacement, one-write appends, bounded reads."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16_000_000


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable; a no-op where directories cannot be opened (Windows)."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace `path` with `data`: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or read-only; `path` is then unchanged and no temporary file stays.
    """
    fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            if durable:
                f.flush()
                os.fsync(f.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    if durable:
        fsync_directory(path.parent)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text; refuses NaN and infinity, which JSON does not have."""
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Atomically write `value` as indented JSON."""
    write_atomic(path, (to_json(value, 2) + "\n").encode(), durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when the file is missing or not a whole JSON object.

    The callers treat both alike on purpose: a file of another process may vanish or be damaged at any time.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line with a single write, so that lines of several writers never mix.

    Raises:
        OSError: nothing or only a part could be written; the part is cut off again.
    """
    data = (to_json(value) + "\n").encode()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        start = os.fstat(fd).st_size
        written = os.write(fd, data)
        if written != len(data):
            os.ftruncate(fd, start)
            raise OSError(28, "no space left on device", str(path))
    finally:
        os.close(fd)


def read_lines(path: Path, offset: int = 0, max_line: int = 1_000_000) -> Iterator[tuple[bytes | None, int]]:
    """Whole lines of a growing file from `offset`, as `(line, offset after it)`.

    A torn last line is left for the next call. A line longer than `max_line` bytes yields None instead of
    its content, and memory stays bounded.
    """
    with path.open("rb") as f:
        f.seek(offset)
        pending, oversized = b"", False
        while block := f.read(1 << 18):
            parts = (pending + block).split(b"\n")
            pending = parts.pop()
            for part in parts:
                offset += len(part) + 1
                yield (None if oversized or len(part) > max_line else part), offset
                oversized = False
            if len(pending) > max_line:
                offset += len(pending)
                pending, oversized = b"", True


def read_blocks(
    path: Path, offset: int = 0, skipping: bool = False, block: int = 1 << 22, max_line: int = 1_000_000
) -> Iterator[tuple[bytes, int, bool]]:
    """Whole lines of a growing file from `offset` in large pieces, as `(lines with their newlines, offset, skipping)`.

    What is yielded beside the lines is where to go on later. A torn last line is left for then. `skipping` says that
    `offset` lies within a line longer than `max_line`, whose rest is thrown away; such a line is yielded as an empty
    one at its end, or whole where it fits into a block, so a reader has to look at lengths too. Memory is bounded by
    `block` and `max_line`.
    """
    with path.open("rb") as f:
        f.seek(offset)
        pending = b""
        while piece := f.read(block):
            end = piece.rfind(b"\n") + 1
            if not end:
                pending += piece
            else:
                lines = b"".join((pending, memoryview(piece)[:end]))
                offset += len(lines)
                if skipping:
                    lines, skipping = lines[lines.index(b"\n") :], False
                yield lines, offset, False
                pending = piece[end:]
            if skipping or len(pending) > max_line:
                offset += len(pending)
                pending, skipping = b"", True
                yield b"", offset, True


def tail_text(path: Path, lines: int = 200, max_bytes: int = 200_000) -> list[str]:
    """The last lines of a text file; undecodable bytes are shown as replacement characters."""
    try:
        with path.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(max(0, size - max_bytes))
            text = f.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    rows = [row.rsplit("\r", 1)[-1] for row in text.split("\n")]
    return [row for row in rows if row.strip()][-lines:]


def directory_bytes(path: Path) -> int:
    """Size of all regular files below `path`, in bytes."""
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).lstat().st_size
    return total
