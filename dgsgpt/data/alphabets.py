"""Tokenizers whose tokens are single bytes or single characters."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from dgsgpt.data.tokenizer import TokenArray, Tokenizer


class ByteTokenizer(Tokenizer):
    """The 256 byte values; encodes any text and needs no training."""

    kind = "byte"

    def __init__(self) -> None:
        super().__init__([bytes([value]) for value in range(256)])

    def encode_array(self, text: str) -> TokenArray:
        """The UTF-8 bytes of `text`."""
        return np.frombuffer(self._utf8(text), dtype=np.uint8).astype(np.uint32)

    def vocab(self) -> dict[str, Any]:
        """Only the size; a byte's id is its value."""
        return {"size": 256}

    @classmethod
    def from_vocab(cls, kind: str, vocab: Any, specials: Any) -> Self:
        """Rebuild from an envelope."""
        if vocab != {"size": 256} or specials != {}:
            raise ValueError("a byte vocabulary has 256 entries and no special tokens")
        return cls()


class CharTokenizer(Tokenizer):
    """One id for each character of an alphabet, in code-point order."""

    kind = "char"

    def __init__(self, characters: str) -> None:
        self._characters = characters
        self._codes = np.array([ord(c) for c in characters], dtype=np.uint32)
        if len(self._codes) < 1 or (np.diff(self._codes.astype(np.int64)) <= 0).any():
            raise ValueError("the characters must be distinct and in code-point order")
        super().__init__([c.encode("utf-8") for c in characters])

    def encode_array(self, text: str) -> TokenArray:
        """The index of each character in the alphabet.

        Raises:
            DataError: characters outside the alphabet; they are listed.
        """
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        if not np.array_equal(self._codes[ids], codes):
            self.refuse_unknown(text)
        return ids.astype(np.uint32)

    def unknown_characters(self, text: str) -> list[str]:
        """Distinct characters outside the alphabet, in order of appearance."""
        known = set(self._characters)
        return [c for c in dict.fromkeys(text) if c not in known]

    def vocab(self) -> dict[str, Any]:
        """The alphabet as one string."""
        return {"characters": self._characters}

    @classmethod
    def from_vocab(cls, kind: str, vocab: Any, specials: Any) -> Self:
        """Rebuild from an envelope."""
        if specials != {} or not isinstance(vocab["characters"], str):
            raise ValueError("a char vocabulary is one string of characters without special tokens")
        return cls(vocab["characters"])
