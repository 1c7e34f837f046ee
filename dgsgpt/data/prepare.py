"""Text -> token files, once for each text, tokenizer setting and split, and found again by fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dgsgpt.config import DataConfig, RunConfig
from dgsgpt.data.corpora import check_text, find_corpus, read_text
from dgsgpt.data.dataset import (
    DATASET_ID,
    FORMAT_VERSION,
    META,
    TOKENIZER,
    Dataset,
    datasets_root,
    list_datasets,
    open_dataset,
    token_dtype,
    write_split,
)
from dgsgpt.data.text import check_separator, shown, split_text
from dgsgpt.data.tokenizer import Tokenizer, train_tokenizer
from dgsgpt.data.tokenizer_file import check_characters, named_tokenizer
from dgsgpt.data.uploads import list_uploads, save_upload
from dgsgpt.errors import ConfigError, DataError
from dgsgpt.files import fsync_directory, write_json

Progress = Callable[[str, float], None]

_LOCK_TIMEOUT_S = 1800


def prepare(
    data: DataConfig, block_size: int, root: Path | str | None = None, progress: Progress | None = None
) -> Dataset:
    """Token files for `data`, made now or found from an earlier time; calls `progress(stage, share done)`.

    Raises:
        DataError: the text cannot be used, the disk refuses, or a split has fewer than `block_size` + 1 tokens.
    """
    folder = datasets_root(root)
    report = progress or (lambda stage, share: None)
    dataset = _open_named(data, folder) or _prepare_text(data, folder, report)
    _check_lengths(dataset, block_size)
    report("ready", 1.0)
    return dataset


def resolve(config: RunConfig, root: Path | str | None = None) -> RunConfig:
    """Check that the text can serve this run, and fill `model.vocab_size` where only the text tells it (char).

    Raises:
        DataError: the text cannot be used, or a split is surely shorter than the context.
        ConfigError: `model.vocab_size` is smaller than the char vocabulary of the text.
    """
    named = _open_named(config.data, datasets_root(root))
    if named is not None:
        _check_lengths(named, config.model.block_size)
        return _with_vocab_size(config, named.vocab_size)
    text = read_text(config.data.corpus)
    check_separator(text, config.data.document_separator, shown(config.data.corpus))
    kind = config.data.tokenizer.kind
    for split, part in zip(("train", "val"), split_text(text, config.data.val_fraction), strict=True):
        # A token is at least one byte, so this is exact for byte and char and a bound for the others.
        most = len(part) if kind == "char" else len(part.encode("utf-8"))
        _check_length(config.data.corpus, split, most, config.model.block_size, at_most=kind not in ("char", "byte"))
    if config.data.tokenizer.file is not None:
        given = named_tokenizer(config.data.tokenizer.file)
        check_characters(given, text, shown(config.data.corpus))
        return _with_vocab_size(config, given.vocab_size)
    return _with_vocab_size(config, len(set(text))) if kind == "char" else config


def fingerprint(data: DataConfig, source_sha256: str) -> str:
    """sha256 over what decides a dataset's content: text, tokenizer settings, split, documents, format version."""
    content: dict[str, Any] = {
        "source_sha256": source_sha256,
        "tokenizer": _tokenizer_settings(data),
        "val_fraction": data.val_fraction,
        "format_version": FORMAT_VERSION,
    }
    if data.document_separator is not None:  # without, the fingerprint is that of datasets from before it existed
        content["document_separator"] = data.document_separator
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- finding
def _open_named(data: DataConfig, root: Path) -> Dataset | None:
    """The dataset if `data.corpus` is the id of a prepared one."""
    name = data.corpus
    if find_corpus(name) or not DATASET_ID.fullmatch(name) or not (root / name / META).is_file():
        return None
    dataset = open_dataset(root / name)
    made_with = {
        "data.val_fraction": (dataset.meta["val_fraction"], data.val_fraction),
        "data.document_separator": (dataset.document_separator, data.document_separator),
    }
    if data.tokenizer.kind == "bpe":
        made_with["data.tokenizer.vocab_size"] = (dataset.meta.get("requested_vocab_size"), data.tokenizer.vocab_size)
    if data.tokenizer.file is None:
        made = dataset.meta.get("requested_tokenizer", dataset.tokenizer_kind)
        made_with["data.tokenizer.kind"] = (made, data.tokenizer.kind)
    for key, (made, asked) in made_with.items():
        if made != asked:
            made, asked = (_in_yaml(value) for value in (made, asked))
            raise DataError(
                f"dataset {name} was prepared with {key}={made}, not {asked}; set it to {made}, or name the text"
            )
    # However it came about there, a tokenizer is the same where its content is.
    if data.tokenizer.file is not None and named_tokenizer(data.tokenizer.file).sha256 != dataset.tokenizer.sha256:
        raise DataError(
            f"dataset {name} was prepared with another tokenizer than data.tokenizer.file={shown(data.tokenizer.file)}"
            "; name the text it was made from, which is then prepared with this one"
        )
    return dataset


def _in_yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value is None or not str(value).isprintable() else str(value)


def _dataset_id(data: DataConfig, digest: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", data.corpus if find_corpus(data.corpus) else Path(data.corpus).stem)
    size = str(data.tokenizer.vocab_size) if data.tokenizer.kind == "bpe" else ""
    return f"{stem.strip('-')[:40] or 'text'}-{data.tokenizer.kind}{size}-{digest[:12]}"


def _tokenizer_settings(data: DataConfig) -> dict[str, Any]:
    kind = data.tokenizer.kind
    if data.tokenizer.file is not None:
        return {"kind": kind, "sha256": named_tokenizer(data.tokenizer.file).sha256}
    return {"kind": kind, "vocab_size": data.tokenizer.vocab_size} if kind == "bpe" else {"kind": kind}


# ---------------------------------------------------------------- making
def _prepare_text(data: DataConfig, root: Path, report: Progress) -> Dataset:
    report("reading", 0.0)
    text = read_text(data.corpus)
    check_separator(text, data.document_separator, shown(data.corpus))
    source_sha256 = hashlib.sha256(text.encode("utf-8")).hexdigest()
    digest = fingerprint(data, source_sha256)
    target = root / _dataset_id(data, digest)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{target.name}.lock", timeout=_LOCK_TIMEOUT_S):
            found = _open_valid(target, digest)
            if found is not None:
                return found
            _clear(root, target)
            with _staging(root, target) as staging:
                corpus = data.corpus.encode("utf-8", "backslashreplace").decode()  # a path need not be UTF-8
                meta = {"id": target.name, "corpus": corpus, "fingerprint": digest, "source_sha256": source_sha256}
                _build(staging, data, text, meta, report)
                staging.replace(target)
                fsync_directory(root)
    except Timeout:
        raise DataError(
            f"{shown(target)}: another process is still preparing it after {_LOCK_TIMEOUT_S} s; end it and try again"
        ) from None
    except OSError as e:
        raise DataError(
            f"{shown(root)}: the dataset cannot be written: {e.strerror or e}; "
            "free space, or set DGSGPT_DATASETS to another folder"
        ) from None
    return open_dataset(target)


def _open_valid(target: Path, digest: str) -> Dataset | None:
    if not (target / META).is_file():
        return None
    try:
        dataset = open_dataset(target)
        intact = dataset.fingerprint == digest and dataset.tokenizer.vocab_size == dataset.vocab_size
    except DataError:
        return None  # damaged: it is made again from the text, which is at hand
    return dataset if intact else None


def _clear(root: Path, target: Path) -> None:
    """Remove what an earlier, killed process left; the lock on `target` is held."""
    if target.exists() or target.is_symlink():
        # Renamed first: a reader never sees a half-deleted dataset.
        target.replace(Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=root)) / "damaged")
    for stale in root.glob(f".tmp-{target.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def _staging(root: Path, target: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=root))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # after success it has been renamed away


def _build(folder: Path, data: DataConfig, text: str, meta: dict[str, Any], report: Progress) -> None:
    train, val = split_text(text, data.val_fraction)
    report("learning the vocabulary", 0.05)
    tokenizer = _tokenizer_for(data, text, train, val)
    tokenizer.save(folder / TOKENIZER)
    counts: dict[str, Any] = {}
    for split, part, before in (("train", train, 0), ("val", val, len(train))):

        def encoded(characters: int, before: int = before) -> None:
            report("encoding", 0.5 + 0.45 * (before + characters) / len(text))

        counts |= write_split(folder, split, tokenizer, part, data.document_separator, encoded)
    documents = {} if data.document_separator is None else {"document_separator": data.document_separator}
    requested = {"requested_tokenizer": "file"} if data.tokenizer.kind == "file" else {}
    write_json(
        folder / META,
        {
            "format_version": FORMAT_VERSION,
            **meta,
            "tokenizer_kind": tokenizer.kind,
            "tokenizer_sha256": tokenizer.sha256,
            "requested_vocab_size": _tokenizer_settings(data).get("vocab_size"),
            "vocab_size": tokenizer.vocab_size,
            "val_fraction": data.val_fraction,
            "dtype": token_dtype(tokenizer.vocab_size).name,
            **documents,
            **requested,
            **counts,
            "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        },
    )
    fsync_directory(folder)


def _tokenizer_for(data: DataConfig, text: str, train: str, val: str) -> Tokenizer:
    if data.tokenizer.file is None:
        return train_tokenizer(data.tokenizer, train, val)
    given = named_tokenizer(data.tokenizer.file)
    check_characters(given, text, shown(data.corpus))
    return given


# ---------------------------------------------------------------- checks
def _check_lengths(dataset: Dataset, block_size: int) -> None:
    for split, tokens in (("train", dataset.train_tokens), ("val", dataset.val_tokens)):
        _check_length(dataset.corpus, split, tokens, block_size)


def _check_length(corpus: str, split: str, tokens: int, block_size: int, at_most: bool = False) -> None:
    if tokens >= block_size + 1:
        return
    other = "raise" if split == "val" else "lower"
    remedy = f"lower model.block_size to {tokens - 1} or less, " if tokens > 1 else ""
    raise DataError(
        f"{shown(corpus)}: its {'training' if split == 'train' else 'validation'} split has "
        f"{'at most ' if at_most else ''}{tokens:,} tokens, but model.block_size={block_size} needs "
        f"{block_size + 1:,}; {remedy}{other} data.val_fraction, or use a longer text"
    )


def _with_vocab_size(config: RunConfig, needed: int) -> RunConfig:
    given = config.model.vocab_size
    if given is None:
        return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": needed})})
    if given < needed:
        kind = config.data.tokenizer.kind
        message = f"model.vocab_size={given} is smaller than the {kind} vocabulary's {needed}; set it to null"
        raise ConfigError(message, {"model.vocab_size": message})
    return config


__all__ = [
    "Dataset",
    "check_text",
    "datasets_root",
    "fingerprint",
    "list_datasets",
    "list_uploads",
    "open_dataset",
    "prepare",
    "resolve",
    "save_upload",
]
