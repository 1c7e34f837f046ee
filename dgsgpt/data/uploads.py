"""Texts that came through the browser, kept below the datasets folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from dgsgpt.data.dataset import datasets_root
from dgsgpt.data.text import read_file, shown
from dgsgpt.errors import DataError
from dgsgpt.files import write_atomic

FOLDER = "uploads"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")  # device names on Windows


def safe_name(name: str, content: bytes) -> str:
    """A file name made of letters, digits, dot, dash and underscore; any folder in `name` is dropped."""
    leaf = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", leaf).lstrip("._-")
    stem, dot, suffix = kept.rpartition(".")
    kept = f"{stem[:40].rstrip('._-')}.{suffix[:12]}" if dot and stem else kept[:40]
    if not _SAFE_NAME.fullmatch(kept) or _RESERVED.fullmatch(kept):
        return f"text-{hashlib.sha256(content).hexdigest()[:12]}.txt"
    return kept


def save_upload(name: str, content: bytes, root: Path | str | None = None) -> Path:
    """Keep an uploaded text as `uploads/<safe name>` below the datasets folder and return its absolute path.

    Another text of the same name is not replaced, since a run may use it: the newcomer's name gets a suffix.

    Raises:
        DataError: the content is no usable UTF-8 text (nothing is kept), or the disk refuses.
    """
    folder = datasets_root(root).absolute() / FOLDER
    path = folder / safe_name(name, content)
    digest = hashlib.sha256(content).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_bytes() != content:
            path = path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}")
        candidate = folder / f".checking-{digest[:16]}"
        try:
            write_atomic(candidate, content)
            read_file(candidate)
            candidate.replace(path)
        except DataError as e:
            raise DataError(str(e).replace(shown(candidate), shown(name))) from None
        finally:
            candidate.unlink(missing_ok=True)
    except OSError as e:
        raise DataError(
            f"{shown(folder)}: the upload cannot be written: {e.strerror or e}; free space or choose another folder"
        ) from None
    return path


def list_uploads(root: Path | str | None = None) -> list[Path]:
    """Uploaded texts, by name."""
    folder = datasets_root(root).absolute() / FOLDER
    return (
        sorted(p for p in folder.iterdir() if _SAFE_NAME.fullmatch(p.name) and p.is_file()) if folder.is_dir() else []
    )


__all__ = ["list_uploads", "safe_name", "save_upload"]
