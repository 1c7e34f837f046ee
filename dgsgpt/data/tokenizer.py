"""What every tokenizer can do, and the one JSON envelope they are all kept in.

The envelope is `{type, version, vocab, specials, sha256}`; `sha256` is over the other four as canonical JSON and
identifies the tokenizer. Nothing is pickled. Special tokens stand for no text: they are never produced by
`encode` (a `<|endoftext|>` written in a text is encoded as the letters it is made of) and decode to nothing.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dgsgpt.config import TokenizerConfig
from dgsgpt.data.text import shown
from dgsgpt.errors import DataError
from dgsgpt.files import to_json, write_atomic

ENVELOPE_VERSION = 1
END_OF_TEXT = "<|endoftext|>"
MAX_TOKENIZER_BYTES = 64_000_000  # vocabularies of 256,000 tokens take about half of it
_AGAIN = "restore it or prepare the data again"

TokenArray = npt.NDArray[np.uint32]


class Tokenizer(ABC):
    """Text to token ids and back; ids are 0 … vocab_size - 1."""

    kind: str = ""

    def __init__(self, table: list[bytes], specials: Mapping[str, int] | None = None) -> None:
        self._table = table
        self.specials: dict[str, int] = dict(specials or {})

    @abstractmethod
    def encode_array(self, text: str) -> TokenArray:
        """Token ids of `text` as an array.

        Raises:
            DataError: the text has characters this tokenizer cannot encode; they are listed.
        """

    @abstractmethod
    def vocab(self) -> dict[str, Any]:
        """The envelope's `vocab`: all that is needed to rebuild this tokenizer."""

    def chunks(self, text: str) -> list[str]:
        """Pieces of `text` whose encodings, concatenated, are exactly the encoding of the whole."""
        return text.splitlines(keepends=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self._table)

    @property
    def end_of_text(self) -> int | None:
        """Id of `<|endoftext|>`, or None for tokenizers without it."""
        return self.specials.get(END_OF_TEXT)

    @property
    def ends_of_text(self) -> tuple[int, ...]:
        """Every id that ends a text, `end_of_text` first: models trained to converse have several."""
        return () if self.end_of_text is None else (self.end_of_text,)

    @property
    def begin_of_text(self) -> int | None:
        """Id that the model expects before every text, or None; `encode` does not give it."""
        return None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`.

        Raises:
            DataError: the text has characters this tokenizer cannot encode; they are listed.
        """
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 (a cut character) become U+FFFD, special tokens nothing.

        Raises:
            DataError: an id outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes a token stands for; they need not be whole characters.

        Raises:
            DataError: an id outside the vocabulary.
        """
        if not 0 <= token < len(self._table):
            raise DataError(f"token id {token} is outside the {self.kind} vocabulary of {len(self._table)}")
        return self._table[token]

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of text each id stands for, [vocab_size]; 0 for special tokens."""
        return np.array([len(piece) for piece in self._table], dtype=np.int64)

    def unknown_characters(self, text: str) -> list[str]:
        """Distinct characters of `text` that cannot be encoded, in order of appearance."""
        return list(dict.fromkeys(c for c in text if "\ud800" <= c <= "\udfff"))

    def refuse_unknown(self, text: str) -> None:
        """Check that `text` can be encoded.

        Raises:
            DataError: it has characters this tokenizer cannot encode; they are listed.
        """
        unknown = self.unknown_characters(text)
        if unknown:
            listed = ", ".join(map(repr, unknown[:12])) + (
                f" and {len(unknown) - 12} more" if len(unknown) > 12 else ""
            )
            remedy = "remove them, or train with the bpe or byte tokenizer" if self.kind == "char" else "remove them"
            raise DataError(f"characters that the {self.kind} tokenizer does not know: {listed}; {remedy}")

    def _utf8(self, text: str) -> bytes:
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair
            self.refuse_unknown(text)
            raise

    # ------------------------------------------------------------ envelope
    @cached_property
    def sha256(self) -> str:
        """Identity of the tokenizer: the same text always gives the same ids under the same hash."""
        return _hash(self._content())

    def to_envelope(self) -> dict[str, Any]:
        """The tokenizer as plain values, see the module's description."""
        return {**self._content(), "sha256": self.sha256}

    def save(self, path: str | Path) -> None:
        """Write the envelope atomically as JSON."""
        write_atomic(Path(path), (to_json(self.to_envelope()) + "\n").encode())

    def _content(self) -> dict[str, Any]:
        return {"type": self.kind, "version": ENVELOPE_VERSION, "vocab": self.vocab(), "specials": self.specials}


def train_tokenizer(config: TokenizerConfig, train_text: str, val_text: str = "") -> Tokenizer:
    """A tokenizer of the asked kind; file is one that was made before and learns nothing.

    bpe learns from the training text only; char also takes the validation text's characters, because it could
    not encode them otherwise.
    """
    from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
    from dgsgpt.data.bpe import load_gpt2, train_bpe

    if config.kind == "byte":
        return ByteTokenizer()
    if config.kind == "char":
        return CharTokenizer("".join(sorted({*train_text, *val_text})))
    if config.kind == "gpt2":
        return load_gpt2()
    if config.kind == "file" and config.file is not None:
        return load_tokenizer_file(config.file)
    return train_bpe(train_text, config.vocab_size)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer's envelope.

    Raises:
        DataError: the file is missing, not an envelope, of another version, or does not match its sha256.
    """
    path = Path(path)
    return parse_envelope(read_object(path, "restore it or prepare the data again"), shown(path))


def load_tokenizer_file(path: str | Path) -> Tokenizer:
    """Read a `tokenizer.json`: an envelope of dgsgpt or a file of Hugging Face, with the files that lie beside it.

    Raises:
        DataError: the file is missing or damaged, or its tokenizer cannot be used here.
    """
    path = Path(path).expanduser()
    content = read_object(path, "restore it")
    if isinstance(content, dict) and "model" in content:
        from dgsgpt.data.foreign_files import read_folder

        return read_folder(path)
    return parse_envelope(content, shown(path))


def read_object(path: Path, remedy: str) -> Any:
    """What the JSON of a tokenizer's file says.

    Raises:
        DataError: the file is missing, too large or damaged; the message then ends with `remedy`.
    """
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise DataError(f"{shown(path)}: is too large for a tokenizer (over {MAX_TOKENIZER_BYTES:,} bytes)")
        if not path.is_file():
            raise DataError(f"{shown(path)}: is not a regular file; give the path of a tokenizer.json")
        return json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
    except OSError as e:
        raise DataError(f"{shown(path)}: the tokenizer cannot be read: {e.strerror or e}") from None
    except _DuplicateKeyError as e:
        raise DataError(f"{shown(path)}: has the key {e} twice in one object; {remedy}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{shown(path)}: is not a tokenizer file (damaged JSON); {remedy}") from None


class _DuplicateKeyError(Exception):
    """An object of a JSON text has a key twice; Python's reader would silently keep the last."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _DuplicateKeyError(repr(twice[:40]))
    return values


def one_line(e: Exception) -> str:
    """What an error says, for a one-line message: control characters are escaped, a long text is cut."""
    return shown(str(e))


def parse_envelope(envelope: Any, source: str) -> Tokenizer:
    """A tokenizer from its envelope; `source` is how errors name it.

    Raises:
        DataError: a field is missing or wrong, or the content does not match its sha256.
    """
    from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
    from dgsgpt.data.bpe import BpeTokenizer
    from dgsgpt.data.foreign import ForeignTokenizer

    if not isinstance(envelope, dict) or set(envelope) != {"type", "version", "vocab", "specials", "sha256"}:
        raise DataError(f"{source}: is not a tokenizer file (it needs type, version, vocab, specials and sha256)")
    if envelope["version"] != ENVELOPE_VERSION:
        version = repr(envelope["version"])[:40]
        raise DataError(f"{source}: tokenizer version {version} is not {ENVELOPE_VERSION}; it needs another dgsgpt")
    readers: dict[str, Any] = {
        "byte": ByteTokenizer,
        "char": CharTokenizer,
        "bpe": BpeTokenizer,
        "gpt2": BpeTokenizer,
        "hf": ForeignTokenizer,
    }
    kind = envelope["type"]
    if not isinstance(kind, str) or kind not in readers:
        raise DataError(f"{source}: unknown tokenizer type {repr(kind)[:40]}; known are {', '.join(readers)}")
    content = {key: envelope[key] for key in ("type", "version", "vocab", "specials")}
    if _hash(content) != envelope["sha256"]:
        raise DataError(f"{source}: the tokenizer is damaged (its sha256 does not match); {_AGAIN}")
    try:
        tokenizer: Tokenizer = readers[kind].from_vocab(kind, envelope["vocab"], envelope["specials"])
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(f"{source}: the {kind} tokenizer cannot be rebuilt: {one_line(e)}") from None
    return tokenizer


def _hash(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


__all__ = [
    "END_OF_TEXT",
    "TokenArray",
    "Tokenizer",
    "load_tokenizer",
    "load_tokenizer_file",
    "parse_envelope",
    "train_tokenizer",
]
