"""Reading a person's text file safely, and dividing a text into training and validation parts, and into documents.

Line ends are read as Python reads text: CRLF and CR become LF. One byte-order mark at the start is dropped.
Nothing else is changed.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from dgsgpt.errors import DataError

_HEAD_BYTES = 1 << 16
# Preparing 26 MB of English took 6 (byte), 9 (char) and 15 (bpe) bytes of memory for a byte of text.
_MEMORY_PER_BYTE = 16


@dataclass(frozen=True)
class TextFacts:
    """What a text is made of."""

    name: str
    bytes: int
    characters: int
    lines: int
    distinct: int


def shown(path: str | Path) -> str:
    """A path for a one-line message: control characters in a hostile name are escaped, a long one is cut."""
    text = str(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else text[:197] + "…"


def read_file(path: str | Path) -> str:
    """The text of a UTF-8 file, without byte-order mark and with LF line ends.

    Never blocks: what is not a regular file is refused before it is opened.

    Raises:
        DataError: missing, not a regular file, unreadable, empty, binary, too large for memory, or not UTF-8
            (the message gives the byte offset).
    """
    path = Path(path).expanduser()
    size = _regular_size(path)
    try:
        with path.open("rb") as f:
            raw = f.read(_HEAD_BYTES)
            _refuse_binary(raw, path)
            _refuse_too_large(size, path)
            raw += f.read(size)  # no more than stat promised: the file may be growing
    except OSError as e:
        raise DataError(f"{shown(path)}: cannot be read: {e.strerror or e}") from None
    except MemoryError:
        raise DataError(f"{shown(path)}: {size:,} bytes do not fit in memory; use a part of the text") from None
    _refuse_binary(raw, path)
    return check_content(_decode(raw, path), shown(path))


def check_content(text: str, name: str) -> str:
    """The text itself if a model can learn from it.

    Raises:
        DataError: empty, only white space, or a single distinct character.
    """
    if not text.strip():
        raise DataError(f"{name}: the text is empty; give a file with some writing in it")
    if len(set(text[:4096])) < 2 and len(set(text)) < 2:
        raise DataError(
            f"{name}: the text has one distinct character, {text[0]!r}; a model needs at least two to learn from"
        )
    return text


def text_facts(text: str, name: str) -> TextFacts:
    """Count a text: UTF-8 bytes, characters, lines, distinct characters."""
    lines = text.count("\n") + (not text.endswith("\n"))
    return TextFacts(name, len(text.encode("utf-8")), len(text), lines, len(set(text)))


def split_text(text: str, val_fraction: float) -> tuple[str, str]:
    """The training text and the validation text, which is the end of `text`.

    The cut is the line start nearest to `1 - val_fraction` (blank lines stay with the training text). A text
    without a line end near that place is cut between two characters.
    """
    size = len(text)
    target = min(max(round(size * (1 - val_fraction)), 1), size - 1)
    near = (size - target) // 2
    cuts = [c for c in (_line_start_after(text, target), _line_start_before(text, target)) if 0 < c < size]
    cut = min(cuts, key=lambda c: abs(c - target), default=target)
    if abs(cut - target) > near:
        cut = target
    return text[:cut], text[cut:]


def split_documents(text: str, separator: str | None) -> Iterator[str]:
    """The documents of `text`, which joined are `text`: one ends after each `separator`; without one there is one.

    A document of nothing but the separator is none: its letters go to the document before, at the start of the text
    to the one after.
    """
    begin = 0
    if separator is not None:
        written = re.escape(separator)
        for run in re.finditer(f"{written}(?:{written})*+", text):  # possessive: a long run needs no memory
            if run.start() > 0:
                yield text[begin : run.end()]
                begin = run.end()
    if begin < len(text):
        yield text[begin:]


def check_separator(text: str, separator: str | None, name: str) -> None:
    """Refuse a separator that would separate nothing.

    Raises:
        DataError: `separator` is given and does not occur in `text`.
    """
    if separator is not None and separator not in text:
        raise DataError(
            f"{name}: data.document_separator={separator!r} must occur in the text; set it to what ends each "
            "document there (line ends are read as \\n), or to null"
        )


def _line_start_after(text: str, target: int) -> int:
    end = text.find("\n", target - 1)
    return _skip_newlines(text, end) if end >= 0 else len(text)


def _line_start_before(text: str, target: int) -> int:
    end = text.rfind("\n", 0, target)
    return _skip_newlines(text, end) if end >= 0 else 0


def _skip_newlines(text: str, position: int) -> int:
    while position < len(text) and text[position] == "\n":
        position += 1
    return position


def _regular_size(path: Path) -> int:
    name = shown(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(
            f"{name}: no such text; give an embedded corpus (austen, plays) or the path of a UTF-8 text file"
        ) from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise DataError(f"{name}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{name}: is a directory; give the path of one text file")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{name}: is not a regular file but a pipe, socket or device; save the text to a file first")
    if status.st_size == 0:
        raise DataError(f"{name}: the file is empty; give a file with some writing in it")
    return status.st_size


def _refuse_too_large(size: int, path: Path) -> None:
    available = psutil.virtual_memory().available
    if size * _MEMORY_PER_BYTE > available:
        limit = available // _MEMORY_PER_BYTE
        raise DataError(
            f"{shown(path)}: {size:,} bytes are more than can be prepared in the free memory of this machine "
            f"({limit:,} bytes of text); use a part of the text"
        )


def _refuse_binary(raw: bytes, path: Path) -> None:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{shown(path)}: is UTF-16 text; save it as UTF-8")
    zero = raw.find(b"\0")
    if zero >= 0:
        raise DataError(f"{shown(path)}: is binary, not text (NUL at byte {zero}); give a UTF-8 text file")


def _decode(raw: bytes, path: Path) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DataError(
            f"{shown(path)}: byte {e.start} (0x{raw[e.start]:02x}) is not UTF-8; save the file as UTF-8"
        ) from None
    except MemoryError:
        raise DataError(f"{shown(path)}: {len(raw):,} bytes do not fit in memory; use a part of the text") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
