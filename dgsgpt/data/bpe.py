"""Byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), learned here or GPT-2's.

Ids: the 256 bytes in GPT-2's order, then one id for each merge, `<|endoftext|>` last. A text is first split by a
regular expression, and merges never cross its pieces. Long texts are encoded in chunks, which is several times
faster and bounds memory; chunks are cut only where the expression always splits (see `CUTS`), so that the ids
are exactly those of the whole text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import re
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dgsgpt.data.tokenizer import END_OF_TEXT, TokenArray, Tokenizer
from dgsgpt.errors import DataError

if TYPE_CHECKING:
    import tokenizers

# An envelope names its expression, it never carries one: a hostile expression can take for ever.
SPLITS = {
    # GPT-4's, with letters and marks in runs of at most 64: a megabyte without a space (base64, DNA)
    # would otherwise be a single word, which takes minutes to learn from.
    "gpt4-64": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}{1,64}|\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,64}[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
# Where a text may be cut. gpt4-64 takes any run of white space that ends in a newline whole, so it always splits
# after a newline that visible text follows. gpt2 may split such a run, so there the cut is before the run.
CUTS = {"gpt4-64": re.compile(r"(?<=\n)(?=\S)"), "gpt2": re.compile(r"(?<=\S)(?=\n)")}

_GPT2_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_BATCH_CHARACTERS = 1 << 22
_MAX_MERGES = 1 << 20


def _byte_characters() -> list[tuple[str, int]]:
    """GPT-2's printable stand-in for each byte, in the order of their ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [(chr(b), b) for b in printable] + [(chr(256 + i), b) for i, b in enumerate(rest)]


BYTE_OF = dict(_byte_characters())


class BpeTokenizer(Tokenizer):
    """Byte-level BPE given by its merges, most frequent first."""

    kind = "bpe"

    def __init__(self, merges: list[tuple[str, str]], kind: str = "bpe", split: str = "gpt4-64") -> None:
        self.kind = kind
        self._split = split
        self._merges = merges
        ids = {character: i for i, character in enumerate(BYTE_OF)}
        for left, right in merges:
            if left not in ids or right not in ids:
                raise ValueError(f"merge {left!r} {right!r} uses a token that does not exist yet")
            ids.setdefault(left + right, len(ids))
        table = [bytes(map(BYTE_OF.__getitem__, token)) for token in ids]
        super().__init__([*table, b""], {END_OF_TEXT: len(table)})
        self._encoder = _encoder(ids, merges, split)

    def chunks(self, text: str) -> list[str]:
        """Pieces of `text` whose encodings, concatenated, are exactly the encoding of the whole."""
        return CUTS[self._split].split(text)

    def encode_array(self, text: str) -> TokenArray:
        """Token ids of `text`, chunk by chunk.

        Raises:
            DataError: half of a surrogate pair, which is not text.
        """
        self._utf8(text)
        parts = [np.zeros(0, dtype=np.uint32)]
        for batch in batches(self.chunks(text)):
            encodings = self._encoder.encode_batch_fast(batch, add_special_tokens=False)
            ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
            parts.append(np.fromiter(ids, dtype=np.uint32))
        return np.concatenate(parts)

    def vocab(self) -> dict[str, Any]:
        """The name of the splitting expression and the merges in GPT-2's notation."""
        return {"split": self._split, "merges": [f"{left} {right}" for left, right in self._merges]}

    @classmethod
    def from_vocab(cls, kind: str, vocab: Any, specials: Any) -> Self:
        """Rebuild from an envelope."""
        split, lines = vocab["split"], vocab["merges"]
        if split not in SPLITS or not isinstance(lines, list) or len(lines) > _MAX_MERGES:
            raise ValueError(f"unknown splitting {split!r}, or no list of merges")
        tokenizer = cls(_parse_merges(lines), kind, split)
        if specials != tokenizer.specials:
            raise ValueError(f"special tokens must be {tokenizer.specials}")
        return tokenizer


def train_bpe(text: str, vocab_size: int) -> BpeTokenizer:
    """Learn merges from `text`; deterministic. A short text may have fewer to learn than `vocab_size` asks for."""
    from tokenizers import pre_tokenizers, trainers

    encoder = _encoder({}, [], "gpt4-64")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # one id is <|endoftext|>
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    encoder.train_from_iterator(CUTS["gpt4-64"].split(text), trainer)
    ids = encoder.get_vocab()
    merges = _read_merges(encoder)
    tokenizer = BpeTokenizer(merges)
    if tokenizer.vocab_size != len(ids) + 1:
        raise RuntimeError(f"learned {len(ids)} tokens but rebuilt {tokenizer.vocab_size - 1}")
    return tokenizer


@lru_cache(maxsize=1)
def load_gpt2() -> BpeTokenizer:
    """OpenAI's GPT-2 tokenizer, 50,257 ids, from the merges shipped with the package.

    Raises:
        DataError: the shipped file is damaged.
    """
    raw = lzma.decompress(resources.files("dgsgpt.data").joinpath("vocabularies/gpt2_merges.txt.xz").read_bytes())
    if hashlib.sha256(raw).hexdigest() != _GPT2_SHA256:
        raise DataError("the embedded gpt2 vocabulary is damaged (its sha256 differs); reinstall dgsgpt")
    lines = raw.decode("utf-8").split("\n")
    return BpeTokenizer(_parse_merges(lines[1:-1]), kind="gpt2", split="gpt2")  # the first line is a version


def _encoder(ids: dict[str, int], merges: list[tuple[str, str]], split: str) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    encoder = Tokenizer(models.BPE(vocab=ids, merges=merges))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS[split]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return encoder


def _read_merges(encoder: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(encoder.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def _parse_merges(lines: list[Any]) -> list[tuple[str, str]]:
    merges = []
    for line in lines:
        left, space, right = line.partition(" ") if isinstance(line, str) else ("", "", "")
        if not (left and space and right) or " " in right:
            raise ValueError(f"merge {str(line)[:40]!r} is not two tokens")
        merges.append((left, right))
    return merges


def batches(chunks: list[str]) -> list[list[str]]:
    """Chunks in groups of about 4 million characters, so that the ids of one group fit easily in memory."""
    groups: list[list[str]] = [[]]
    size = 0
    for chunk in chunks:
        if size + len(chunk) > _BATCH_CHARACTERS and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append(chunk)
        size += len(chunk)
    return groups
