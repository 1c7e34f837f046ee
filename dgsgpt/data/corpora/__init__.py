"""The texts shipped with the package, and reading any text by name or path.

Origins and licences: SOURCES.md beside this file.
"""

from __future__ import annotations

import difflib
import hashlib
import lzma
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from dgsgpt.data.text import TextFacts, read_file, shown, text_facts
from dgsgpt.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """An embedded text; `bytes` is its size as UTF-8, `sha256` that of those bytes."""

    name: str
    title: str
    description: str
    bytes: int
    characters: int
    sha256: str


_CORPORA = (
    Corpus(
        name="austen",
        title="Jane Austen, six novels",
        description=(
            "Sense and Sensibility, Pride and Prejudice, Mansfield Park, Emma, Northanger Abbey, Persuasion (1811–18)."
        ),
        bytes=4_017_124,
        characters=4_017_123,
        sha256="491783e5635914efc3f9ef382f21ebafb3b6fb7efbe0d8879a20c05b83404068",
    ),
    Corpus(
        name="plays",
        title="William Shakespeare, 38 plays",
        description="Speaker lines followed by verse or prose; a contrast to the novels in language and layout.",
        bytes=4_786_622,
        characters=4_786_622,
        sha256="e25eb0587912fd011b80e9e814599c47ee9859048d5d0e893f11a7c153bed776",
    ),
)


def list_corpora() -> list[Corpus]:
    """The embedded texts, the default first."""
    return list(_CORPORA)


def find_corpus(name: str) -> Corpus | None:
    """The embedded text of that name, or None."""
    return next((corpus for corpus in _CORPORA if corpus.name == name), None)


def read_text(corpus: str | Path) -> str:
    """The text of an embedded corpus, or of a UTF-8 file (`./austen` is a file even though `austen` is embedded).

    Raises:
        DataError: there is no such text, or it cannot be learned from (see `dgsgpt.data.text.read_file`).
    """
    embedded = find_corpus(str(corpus))
    if embedded is not None:
        return _read_embedded(embedded)
    try:
        return read_file(corpus)
    except DataError as e:
        guess = difflib.get_close_matches(str(corpus), [c.name for c in _CORPORA], 1, 0.7)
        if guess and "no such text" in str(e):
            raise DataError(f"{shown(corpus)}: no such text; did you mean {guess[0]}?") from None
        raise


def check_text(corpus: str | Path) -> TextFacts:
    """Read a text by name or path and count it, without preparing anything.

    Raises:
        DataError: as `read_text`.
    """
    return text_facts(read_text(corpus), str(corpus))


@lru_cache(maxsize=2)
def _read_embedded(corpus: Corpus) -> str:
    raw = lzma.decompress(resources.files(__package__).joinpath(f"{corpus.name}.txt.xz").read_bytes())
    if hashlib.sha256(raw).hexdigest() != corpus.sha256:
        raise DataError(f"embedded corpus {corpus.name} is damaged (its sha256 differs); reinstall dgsgpt")
    return raw.decode("utf-8")


__all__ = ["Corpus", "check_text", "find_corpus", "list_corpora", "read_text"]
