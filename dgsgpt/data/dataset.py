"""Prepared datasets on disk: `train.bin`, `val.bin`, `tokenizer.json` and `meta.json` in one folder.

The bins are bare token ids, little-endian uint16 (uint32 above 65,536 ids), read through memory maps. A text with a
document separator has `train.docs.bin` and `val.docs.bin` too: the place in the bin, in tokens, at which each document
begins, little-endian uint64. `meta.json` is written last, so a folder without it is not a dataset.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dgsgpt.data.text import shown, split_documents
from dgsgpt.data.tokenizer import Tokenizer, load_tokenizer
from dgsgpt.errors import DataError
from dgsgpt.files import read_json

FORMAT_VERSION = 1
META, TOKENIZER = "meta.json", "tokenizer.json"
DATASET_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
_AGAIN = "prepare the text again"

_META_TYPES: dict[str, type] = {
    "id": str,
    "corpus": str,
    "fingerprint": str,
    "created_at": str,
    "tokenizer_kind": str,
    "tokenizer_sha256": str,
    "source_sha256": str,
    "dtype": str,
    "vocab_size": int,
    "val_fraction": float,
    **{f"{split}_{unit}": int for split in SPLITS for unit in ("tokens", "bytes", "characters")},
    **{f"{split}_sha256": str for split in SPLITS},
}
_DOCUMENT_META_TYPES: dict[str, type] = {
    "document_separator": str,
    **{f"{split}_documents": int for split in SPLITS},
    **{f"{split}_docs_sha256": str for split in SPLITS},
}
# Starts are below 2**63, so the signed type reads the same; numpy would turn uint64 beside int64 into float64.
_STARTS = np.dtype("<i8")
_BLOCK_CHARACTERS = 1 << 22


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """How one id is stored: two bytes if all ids fit, else four."""
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


@dataclass(frozen=True)
class Dataset:
    """A text as token ids; `meta` is the content of `meta.json`."""

    path: Path
    meta: dict[str, Any]

    @property
    def id(self) -> str:
        """Name of its folder: corpus, tokenizer and the start of the fingerprint."""
        return self.path.name

    @property
    def corpus(self) -> str:
        """The corpus or path it was prepared from."""
        return str(self.meta["corpus"])

    @property
    def tokenizer_kind(self) -> str:
        """bpe, char, byte or gpt2."""
        return str(self.meta["tokenizer_kind"])

    @property
    def vocab_size(self) -> int:
        """Ids of its tokenizer; a short text may have given bpe fewer than asked."""
        return int(self.meta["vocab_size"])

    @property
    def train_tokens(self) -> int:
        """Tokens of the training split."""
        return int(self.meta["train_tokens"])

    @property
    def val_tokens(self) -> int:
        """Tokens of the validation split."""
        return int(self.meta["val_tokens"])

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the training text."""
        return int(self.meta["train_bytes"])

    @property
    def val_bytes(self) -> int:
        """UTF-8 bytes of the validation text."""
        return int(self.meta["val_bytes"])

    @property
    def fingerprint(self) -> str:
        """sha256 over the text, the tokenizer settings, the split and the format version."""
        return str(self.meta["fingerprint"])

    @property
    def document_separator(self) -> str | None:
        """What ends each document; None if the text was taken as a single one."""
        separator = self.meta.get("document_separator")
        return None if separator is None else str(separator)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer the ids were made with.

        Raises:
            DataError: it is damaged or not the one `meta.json` names.
        """
        tokenizer = load_tokenizer(self.path / TOKENIZER)
        if tokenizer.sha256 != self.meta["tokenizer_sha256"]:
            raise DataError(f"{shown(self.path / TOKENIZER)}: is not the tokenizer of this dataset; {_AGAIN}")
        return tokenizer

    def tokens(self, split: str) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The ids of a split as a read-only memory map, [tokens].

        Raises:
            DataError: no such split, or its file is missing or has another size than `meta.json` says.
        """
        ids: npt.NDArray[np.unsignedinteger[Any]] = self._map(split, ".bin", np.dtype(self.meta["dtype"]))
        return ids

    def document_starts(self, split: str) -> npt.NDArray[np.int64] | None:
        """Where in `tokens(split)` each document begins, as a read-only memory map, [documents], rising from 0.

        None if the text was prepared without a document separator.

        Raises:
            DataError: no such split, or its file is missing or has another size than `meta.json` says.
        """
        return None if self.document_separator is None else self._map(split, ".docs.bin", _STARTS)

    def verify(self) -> None:
        """Read all bins and compare their sha256.

        Raises:
            DataError: a bin is missing or damaged.
        """
        for name, _, sha256 in self._bins():
            path = self._checked_bin(name)
            with path.open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            if digest != sha256:
                raise DataError(f"{shown(path)}: is damaged (its sha256 differs from meta.json); {_AGAIN}")

    def _bins(self) -> Iterator[tuple[str, int, str]]:
        """Name, bytes and sha256 of each bin."""
        for split in SPLITS:
            token_bytes = self.meta[f"{split}_tokens"] * np.dtype(self.meta["dtype"]).itemsize
            yield f"{split}.bin", token_bytes, self.meta[f"{split}_sha256"]
            if self.document_separator is not None:
                start_bytes = self.meta[f"{split}_documents"] * _STARTS.itemsize
                yield f"{split}.docs.bin", start_bytes, self.meta[f"{split}_docs_sha256"]

    def _map(self, split: str, suffix: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        if split not in SPLITS:
            raise DataError(f"split {split!r} must be train or val")
        path = self._checked_bin(split + suffix)
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)

    def _checked_bin(self, name: str) -> Path:
        path = self.path / name
        expected = next(n_bytes for known, n_bytes, _ in self._bins() if known == name)
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            found = "is missing" if size is None else f"has {size:,} bytes, not {expected:,}"
            raise DataError(f"{shown(path)}: {found}; {_AGAIN}")
        return path


def datasets_root(override: str | Path | None = None) -> Path:
    """Where datasets are kept: `override`, else the variable DGSGPT_DATASETS, else ./datasets."""
    return Path(override or os.environ.get("DGSGPT_DATASETS") or "datasets")


def open_dataset(path: str | Path) -> Dataset:
    """A dataset by its folder; the bins' sizes are checked, `verify` reads them whole.

    Raises:
        DataError: not a dataset, incomplete, or of another format version.
    """
    path = Path(path)
    meta = read_json(path / META)
    if meta is None:
        raise DataError(f"{shown(path)}: is not a prepared dataset (no readable {META}); {_AGAIN}")
    if meta.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{shown(path)}: format_version {meta.get('format_version')!r} is not {FORMAT_VERSION}; {_AGAIN}"
        )
    for key, kind in (_META_TYPES | (_DOCUMENT_META_TYPES if "document_separator" in meta else {})).items():
        if not isinstance(meta.get(key), kind):
            raise DataError(f"{shown(path / META)}: {key} is missing or not {kind.__name__}; {_AGAIN}")
    if meta["dtype"] not in ("uint16", "uint32"):
        raise DataError(f"{shown(path / META)}: dtype {meta['dtype']!r} must be uint16 or uint32; {_AGAIN}")
    dataset = Dataset(path, meta)
    for name, _, _ in dataset._bins():
        dataset._checked_bin(name)
    return dataset


def write_split(
    folder: Path, split: str, tokenizer: Tokenizer, text: str, separator: str | None, report: Callable[[int], None]
) -> dict[str, Any]:
    """Encode `text`, each document on its own, into the bins of `split`; the entries that `meta.json` has for them.

    `report` is called with the number of characters done.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    starts = array("q")
    tokens, done = 0, 0

    def encoded() -> Iterator[bytes]:
        nonlocal tokens, done
        for document in split_documents(text, separator):
            starts.append(tokens)
            for block in _blocks(tokenizer.chunks(document)):
                ids = tokenizer.encode_array(block).astype(dtype)
                tokens += len(ids)
                done += len(block)
                report(done)
                yield ids.tobytes()

    digest = _write_bin(folder / f"{split}.bin", encoded())
    entries = {
        f"{split}_tokens": tokens,
        f"{split}_bytes": len(text.encode("utf-8")),
        f"{split}_characters": len(text),
        f"{split}_sha256": digest,
    }
    if separator is None:
        return entries
    digest = _write_bin(folder / f"{split}.docs.bin", [np.array(starts, _STARTS).tobytes()])
    return entries | {f"{split}_documents": len(starts), f"{split}_docs_sha256": digest}


def _write_bin(path: Path, parts: Iterable[bytes]) -> str:
    """Write `parts` through to the disk; their sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as f:
        for part in parts:
            f.write(part)
            digest.update(part)
        f.flush()
        os.fsync(f.fileno())
    return digest.hexdigest()


def _blocks(chunks: list[str]) -> Iterator[str]:
    """Neighbouring chunks joined to about 4 million characters, so that memory stays bounded and progress moves."""
    block: list[str] = []
    size = 0
    for chunk in chunks:
        block.append(chunk)
        size += len(chunk)
        if size >= _BLOCK_CHARACTERS:
            yield "".join(block)
            block, size = [], 0
    if block:
        yield "".join(block)


def list_datasets(root: str | Path | None = None) -> list[Dataset]:
    """The prepared datasets below `root`, newest first; damaged ones are left out."""
    folder = datasets_root(root)
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if DATASET_ID.fullmatch(path.name) and (path / META).is_file():
            try:
                found.append(open_dataset(path))
            except DataError:
                continue  # `prepare` makes it anew; a list is no place to stop at it
    return sorted(found, key=lambda d: (d.meta["created_at"], d.id), reverse=True)


__all__ = ["Dataset", "Split", "datasets_root", "list_datasets", "open_dataset", "token_dtype", "write_split"]
