"""Other people's tokenizers, as they stand in a Hugging Face `tokenizer.json`.

The description is run by the library that such files are made for, without truncation, padding or sampling. What a
text says is never a special token: `<|endoftext|>` in it is encoded as the letters it is made of.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from dgsgpt.data.bpe import BYTE_OF, batches
from dgsgpt.data.foreign_backend import PARTS, build_backend, components, told_in_one_line, unknown_id, vocabulary
from dgsgpt.data.foreign_regex import DIGIT, GPT2, cut_of
from dgsgpt.data.tokenizer import TokenArray, Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_LINE_BY_LINE: list[Any] = [[], [{"type": "NFC"}]]  # normalizers that do the same to a text as to each of its lines


class ForeignTokenizer(Tokenizer):
    """A tokenizer given by a whole `tokenizer.json`, the token expected before a text, and those that end one.

    Raises:
        ValueError: the description is damaged, unsafe, or of a kind whose tokens are not pieces of text.
    """

    kind = "hf"

    def __init__(self, description: dict[str, Any], bos: int | None = None, eos: Sequence[int] = ()) -> None:
        self.description = description
        self._bos, self._eos = bos, tuple(eos)
        self._backend = build_backend(description)
        self._parts = components(self._backend)
        names = vocabulary(self._backend)
        silent = self._silent(names)
        self._pieces = _Pieces(self._parts, self._backend.model)
        table = [b""] * (max(names.values()) + 1)
        for name, token in names.items():
            table[token] = b"" if token in silent else self._pieces.bytes_of(name)
        for token in self._eos if bos is None else (bos, *self._eos):
            if not 0 <= token < len(table):
                raise ValueError(f"the id {token} of a special token is outside its vocabulary of {len(table)}")
        super().__init__(table, {name: token for name, token in names.items() if token in silent})
        self._whole = self._pieces.knows_every_byte(names)
        self._cut = self._certain_cut()

    # ------------------------------------------------------------ ids that are no text
    @property
    def end_of_text(self) -> int | None:
        """The first of the ids that end a text, or None."""
        return self._eos[0] if self._eos else None

    @property
    def ends_of_text(self) -> tuple[int, ...]:
        """Every id that ends a text, `end_of_text` first: models trained to converse have several."""
        return self._eos

    @property
    def begin_of_text(self) -> int | None:
        """Id that the model expects before every text, or None; `encode` does not give it."""
        return self._bos

    def _silent(self, names: dict[str, int]) -> set[int]:
        added = self._backend.get_added_tokens_decoder()
        marked = {token for token, content in added.items() if content.special}
        self._unknown = unknown_id(self._backend, self.description)
        given = {self._bos, self._unknown, *self._eos} - {None}
        return marked | {token for token in given if token is not None}

    # ------------------------------------------------------------ text to ids
    def chunks(self, text: str) -> list[str]:
        """Pieces of `text` whose encodings, concatenated, are that of the whole; one piece where cuts are not safe."""
        return [text] if self._cut is None else self._cut.split(text)

    def encode_array(self, text: str) -> TokenArray:
        """Token ids of `text`, without tokens before or after it.

        Raises:
            DataError: the text has characters this tokenizer does not know; they are listed.
        """
        self._utf8(text)
        ids = self._ids(text)
        if not self._whole:
            self.refuse_unknown(text)
        return ids

    def unknown_characters(self, text: str) -> list[str]:
        """Distinct characters of `text` that would be lost or become the unknown token, in order of appearance."""
        halves = super().unknown_characters(text)
        if halves or self._whole:
            return halves
        if self._unknown is not None and not (self._ids(text) == self._unknown).any():
            return []
        return [character for character in dict.fromkeys(text) if self._loses(character)]

    def _ids(self, text: str) -> TokenArray:
        parts = [np.zeros(0, dtype=np.uint32)]
        with told_in_one_line():
            for batch in batches(self.chunks(text)):
                encodings = self._backend.encode_batch_fast(batch, add_special_tokens=False)
                ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
                parts.append(np.fromiter(ids, dtype=np.uint32))
        return np.concatenate(parts)

    def _loses(self, character: str) -> bool:
        ids = self._ids(character)
        if self._unknown is not None and (ids == self._unknown).any():
            return True
        normalizer = self._backend.normalizer
        with told_in_one_line():
            kept = character if normalizer is None else normalizer.normalize_str(character)
        return bool(kept) and not b"".join(self._table[token] for token in ids.tolist())

    # ------------------------------------------------------------ ids to text
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without the space that the tokenizer puts before every text.

        Raises:
            DataError: an id outside the vocabulary.
        """
        text = super().decode(ids)
        return text.removeprefix(" ") if self._pieces.adds_space else text

    # ------------------------------------------------------------ envelope
    def vocab(self) -> dict[str, Any]:
        """The whole description, the token before a text and those that end one."""
        return {"json": self.description, "bos": self._bos, "eos": list(self._eos)}

    @classmethod
    def from_vocab(cls, kind: str, vocab: Any, specials: Any) -> Self:
        """Rebuild from an envelope."""
        bos, eos = vocab["bos"], vocab["eos"]
        if not isinstance(eos, list) or any(type(token) is not int for token in ([] if bos is None else [bos]) + eos):
            raise ValueError("the special tokens must be given by their ids")
        tokenizer = cls(vocab["json"], bos, eos)
        if specials != tokenizer.specials:
            raise ValueError("its special tokens are not those of its description")
        return tokenizer

    def _certain_cut(self) -> re.Pattern[str] | None:
        """Where texts may be cut: only where the pre-tokenizer is one whose pieces are known not to reach over."""
        added = self._backend.get_added_tokens_decoder().values()
        matched = [token for token in added if not token.special]  # in texts, before anything is split
        if any(token.lstrip or token.rstrip or token.single_word or "\n" in token.content for token in matched):
            return None
        if self._parts["normalizer"] not in _LINE_BY_LINE:
            return None
        splits = split_expressions(self._parts["pre_tokenizer"])
        return None if splits is None else cut_of(splits)


class _Pieces:
    """What the tokens of a vocabulary stand for: bytes in GPT-2's notation, or text with a sign for the space."""

    def __init__(self, parts: dict[str, list[dict[str, Any]]], model: Any) -> None:
        name = type(model).__name__
        if name not in ("BPE", "Unigram"):
            raise ValueError(f"it is a {name} tokenizer, whose tokens are not pieces of text; BPE and Unigram are read")
        if name == "BPE" and (model.continuing_subword_prefix or model.end_of_word_suffix):
            raise ValueError("it marks the parts of words, so that its tokens are not pieces of text")
        every = [part for kind in PARTS for part in parts[kind]]
        self._byte_level = any(part["type"] == "ByteLevel" for part in every)
        self._space = None if self._byte_level else next(filter(None, map(_sign_for_space, every)), None)
        if not self._byte_level and self._space is None and [p["type"] for p in parts["decoder"]] != ["Fuse"]:
            raise ValueError("nothing tells how its tokens become text (ByteLevel, Metaspace or Fuse would)")
        decoders = parts["decoder"]
        self._fallback = bool(getattr(model, "byte_fallback", False)) or any(
            part["type"] == "ByteFallback" for part in decoders
        )
        self.adds_space = self._space is not None and any(map(_takes_first_space, decoders))
        for part in parts["pre_tokenizer"]:
            if part["type"] in _LOSSY or part.get("behavior") == "Removed":
                raise ValueError(f"its pre-tokenizer {part['type']} drops parts of a text")

    def bytes_of(self, token: str) -> bytes:
        """The bytes that a token stands for."""
        if self._byte_level:
            known = all(character in BYTE_OF for character in token)
            return bytes(BYTE_OF[character] for character in token) if known else token.encode("utf-8")
        byte = _BYTE_TOKEN.fullmatch(token) if self._fallback else None
        if byte:
            return bytes([int(byte[1], 16)])
        return (token if self._space is None else token.replace(self._space, " ")).encode("utf-8")

    def knows_every_byte(self, names: Iterable[str]) -> bool:
        """Whether every text can be encoded, if need be byte by byte."""
        known = set(names)
        if self._byte_level:
            return known.issuperset(BYTE_OF)
        return self._fallback and known.issuperset(f"<0x{value:02X}>" for value in range(256))


_LOSSY = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}


def _sign_for_space(part: dict[str, Any]) -> str | None:
    if part["type"] == "Metaspace":
        return str(part["replacement"])
    if part["type"] != "Replace":
        return None
    pattern, content = part["pattern"].get("String"), part["content"]
    return str(content) if pattern == " " else str(pattern) if content == " " and pattern else None


def _takes_first_space(part: dict[str, Any]) -> bool:
    if part["type"] == "Strip":
        return bool(part["content"] == " " and part["start"])
    return part["type"] == "Metaspace" and part["prepend_scheme"] != "never"


def split_expressions(pre_tokenizer: list[dict[str, Any]]) -> list[str] | None:
    """The expressions by which a byte-level pre-tokenizer splits, one after the other; None if it is another."""
    expressions = []
    for part in pre_tokenizer[:-1]:
        if part["type"] == "Digits" and part["individual_digits"]:
            expressions.append(DIGIT)
        elif part["type"] == "Split" and part["behavior"] == "Isolated" and "Regex" in part["pattern"]:
            expressions.append(part["pattern"]["Regex"])
        else:
            return None
    last = pre_tokenizer[-1] if pre_tokenizer else {"type": None}
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    return [*expressions, GPT2] if last["use_regex"] else expressions
