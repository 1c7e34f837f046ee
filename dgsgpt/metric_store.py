"""What was read of metrics.jsonl, kept beside it as columns, so that a long run opens at once the next time.

`.metrics.columns` is written by readers and belongs to nobody: it can be deleted at any time, is rebuilt when it is
damaged, of another version or of other lines, and is done without where the directory cannot be written. Layout:
magic, length and CRC-32 of the header, the header as JSON, then each column's bytes, little-endian, 64-byte aligned.
The header says which file the columns are of (inode, bytes read, a hash of samples of them), and sums them up.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dgsgpt import files
from dgsgpt.metric_table import STEP

NAME = ".metrics.columns"
VERSION = 1
_MAGIC = b"DGSCOL01"
_HEAD = struct.Struct("<8sII")
_ALIGN = 64
_MAX_HEADER = 4_000_000
_SAMPLES, _SAMPLE_BYTES = 12, 1024


@dataclass(frozen=True)
class Source:
    """Which lines were read: the file's inode, when it was last written, how far it was read, a hash of samples."""

    inode: int
    mtime_ns: int
    offset: int
    digest: str


@dataclass(frozen=True)
class Stored:
    """A side file: whose lines, rows, damaged lines, names of columns, a summary; `columns` when they were read too."""

    source: Source
    rows: int
    skipped: int
    names: tuple[str, ...]
    summary: dict[str, Any]
    columns: dict[str, np.ndarray] = field(default_factory=dict)


def fingerprint(lines: Path, offset: int) -> str:
    """A hash of samples of the first `offset` bytes, the first and last among them; empty when there are fewer.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.blake2b(struct.pack("<Q", offset), digest_size=16)
    last = max(0, offset - _SAMPLE_BYTES)
    with lines.open("rb", buffering=0) as f:
        for at in sorted({last * n // (_SAMPLES - 1) for n in range(_SAMPLES)}):
            f.seek(at)
            piece = f.read(min(_SAMPLE_BYTES, offset - at))
            if len(piece) < min(_SAMPLE_BYTES, offset - at):
                return ""
            digest.update(piece)
    return digest.hexdigest()


def write(lines: Path, columns: Mapping[str, np.ndarray], offset: int, skipped: int, summary: dict[str, Any]) -> bool:
    """Keep what the first `offset` bytes of `lines` hold; False where that is not possible, which is no failure."""
    try:
        stat = lines.stat()
        source = Source(stat.st_ino, stat.st_mtime_ns, offset, fingerprint(lines, offset))
        arrays = {name: _plain(name, columns[name]) for name in columns}
        header = {
            "version": VERSION, "source": vars(source), "rows": len(arrays[STEP]), "skipped": skipped,
            "names": list(arrays), "crc": [zlib.crc32(array.data) for array in arrays.values()], "summary": summary,
        }  # fmt: skip
        text = files.to_json(header).encode()
        head = _HEAD.pack(_MAGIC, len(text), zlib.crc32(text)) + text
        parts: list[bytes | memoryview] = [head, bytes(-len(head) % _ALIGN)]
        for array in arrays.values():
            parts += [array.data, bytes(-array.nbytes % _ALIGN)]
        files.write_atomic(lines.with_name(NAME), b"".join(parts), durable=False)
    except OSError:  # read-only, full, or the lines went away meanwhile: it works without
        return False
    return True


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, "<i8" if name == STEP else "<f8")


def read(lines: Path, *, columns: bool = True) -> Stored | None:
    """What is kept of `lines`, if it is of the beginning of that very file and whole; else None.

    Without `columns` only the header is read.
    """
    try:
        with lines.with_name(NAME).open("rb") as f:
            found = _read_header(f)
            if found is None:
                return None
            stored, sums, start = found
            if not _is_of(stored.source, lines):
                return None
            whole = start + len(stored.names) * _padded(stored.rows)
            if os.fstat(f.fileno()).st_size != whole:
                return None
            return stored if not columns or _read_columns(f, start, stored, sums) else None
    except OSError:
        return None


def covers(stored: Stored, lines: Path) -> bool:
    """Whether the side file has everything of `lines`: nothing was appended or changed since."""
    with contextlib.suppress(OSError):
        stat = lines.stat()
        return (stat.st_size, stat.st_mtime_ns) == (stored.source.offset, stored.source.mtime_ns)
    return False


def _is_of(source: Source, lines: Path) -> bool:
    """The very file, which may have grown, or a copy of it as it was, such as from an archive."""
    stat = lines.stat()
    as_it_was = (stat.st_size, stat.st_mtime_ns) == (source.offset, source.mtime_ns)
    grown = stat.st_ino == source.inode and stat.st_size > source.offset
    if not as_it_was and not grown:
        return False
    return fingerprint(lines, source.offset) == source.digest != ""


def _read_header(f: io.BufferedReader) -> tuple[Stored, list[int], int] | None:
    """The header, the columns' checksums, and where they begin; None when anything in it is not as it should be."""
    head = f.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, length, crc = _HEAD.unpack(head)
    if magic != _MAGIC or length > _MAX_HEADER:
        return None
    text = f.read(length)
    if len(text) < length or zlib.crc32(text) != crc:
        return None
    try:
        told = json.loads(text)
        if told["version"] != VERSION:
            return None
        names, sums, summary = tuple(told["names"]), list(told["crc"]), dict(told["summary"])
        stored = Stored(Source(**told["source"]), told["rows"], told["skipped"], names, summary)
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    numbers = (stored.rows, stored.skipped, stored.source.offset)
    sound = all(type(n) is int and n >= 0 for n in numbers) and len(set(names)) == len(names) == len(sums)
    if not sound or names[:1] != (STEP,) or not all(isinstance(name, str) for name in names):
        return None
    start = _HEAD.size + length
    return stored, sums, start + (-start % _ALIGN)


def _padded(rows: int) -> int:
    return 8 * rows + (-8 * rows % _ALIGN)


def _read_columns(f: io.BufferedReader, start: int, stored: Stored, sums: list[int]) -> bool:
    """Fill `stored.columns`; False when a column's bytes are not those that were written."""
    for n, (name, crc) in enumerate(zip(stored.names, sums, strict=True)):
        array = np.empty(stored.rows, "<i8" if name == STEP else "<f8")
        f.seek(start + n * _padded(stored.rows))
        if (stored.rows and f.readinto(array.data) != array.nbytes) or zlib.crc32(array.data) != crc:
            return False
        stored.columns[name] = array
    return True
