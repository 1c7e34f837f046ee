"""What a checkpoint consists of: its files, and the manifest that tells whether they are whole. No torch.

`manifest.json` has sha256 and size of every file and is written last.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from dgsgpt import files
from dgsgpt.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST, METADATA, STATE = "manifest.json", "metadata.json", "state.json"
MODEL, OPTIMIZER, TOKENIZER, CONFIG = "model.safetensors", "optimizer.safetensors", "tokenizer.json", "config.yaml"


def write_manifest(folder: Path) -> None:
    """List every file of `folder` as it is now."""
    listed = {p.name: {"bytes": p.stat().st_size, "sha256": hash_file(p)} for p in sorted(folder.iterdir())}
    files.write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, "files": listed})


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def listed_files(path: Path) -> dict[str, dict[str, Any]]:
    """Names of a checkpoint's files, each with its `bytes` and `sha256`.

    Raises:
        CheckpointError: there is no manifest that can be trusted.
    """
    manifest = files.read_json(path / MANIFEST)
    if manifest is None:
        raise CheckpointError(
            f"{path}: {MANIFEST} is missing or damaged: the checkpoint was not completed; use another one"
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {manifest.get('format_version')!r} is not {FORMAT_VERSION}; open it with a "
            "matching dgsgpt"
        )
    listed = manifest.get("files")
    if not isinstance(listed, dict) or any(Path(n).name != n or not _is_entry(e) for n, e in listed.items()):
        raise CheckpointError(
            f"{path}: {MANIFEST} does not list plain file names with size and sha256; the checkpoint cannot be trusted"
        )
    missing = {MODEL, CONFIG, TOKENIZER, METADATA, STATE} - set(listed)
    if missing:
        raise CheckpointError(
            f"{path}: {MANIFEST} does not list {', '.join(sorted(missing))}; the checkpoint is incomplete"
        )
    return listed


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)


def size_problem(path: Path) -> str | None:
    """Why a checkpoint cannot be whole, seen from names and sizes alone; None when nothing speaks against it."""
    try:
        listed = listed_files(path)
        with os.scandir(path) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if entry.name in listed and entry.is_file()}
    except CheckpointError as e:
        return str(e).removeprefix(f"{path}: ")
    except OSError as e:  # it may be deleted at this moment
        return f"cannot be read: {e.strerror or e}"
    for name, facts in listed.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != facts["bytes"]:
            return f"{name} has {sizes[name]:,} of {facts['bytes']:,} bytes"
    return None


def verify(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: names the first file that is missing, cut or changed.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint directory")
    for name, facts in listed_files(path).items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path}: {name} is missing; use an earlier checkpoint")
        if file.stat().st_size != facts.get("bytes") or hash_file(file) != facts.get("sha256"):
            raise CheckpointError(
                f"{path}: {name} is damaged (its sha256 is not the one in {MANIFEST}); use an earlier checkpoint"
            )
