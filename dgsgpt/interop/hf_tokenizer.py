"""Tokenizers to and from the files that Hugging Face's programs read.

Every tokenizer of dgsgpt can be written, so that `AutoTokenizer.from_pretrained` gives the same ids and the same text:

- bpe and gpt2 as byte-level BPE with the expression that splits texts;
- byte as byte-level BPE without merges, each byte its own id;
- char as one word for each character; an unknown character is an error there as it is here;
- hf as the description it was read from.

A special token written in a text is letters, there as here (`split_special_tokens`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgsgpt.data.bpe import BYTE_OF
from dgsgpt.data.foreign import ForeignTokenizer
from dgsgpt.data.foreign_files import (
    EVERY_CHARACTER,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    byte_level_description,
    description_of,
    read_folder,
    with_begin,
)
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError
from dgsgpt.files import to_json, write_atomic


def read_hf_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the model in `folder`; our own where it is one of ours.

    Raises:
        DataError: a file is missing or damaged, or its tokenizer cannot be used here.
    """
    return read_folder(folder)


def write_hf_tokenizer(tokenizer: Tokenizer, dest: Path, block_size: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into the folder `dest`.

    Raises:
        DataError: the tokenizer is of a kind that these files cannot express.
    """
    description = describe(tokenizer)
    named = _named(tokenizer)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        **named,
    }
    if isinstance(tokenizer, ForeignTokenizer):
        config["add_bos_token"] = tokenizer.begin_of_text is not None
    _write(dest / TOKENIZER_JSON, description)
    _write(dest / TOKENIZER_CONFIG, config)
    _write(dest / SPECIAL_TOKENS, named)


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `tokenizer.json` of a tokenizer, as an object.

    Raises:
        DataError: the tokenizer is of a kind that such a file cannot express.
    """
    vocab = tokenizer.vocab()
    if isinstance(tokenizer, ForeignTokenizer):
        return with_begin(tokenizer.description, tokenizer.begin_of_text)
    if tokenizer.kind in ("bpe", "gpt2"):
        return _bpe(tokenizer, vocab)
    if tokenizer.kind == "byte":
        return byte_level_description(dict(sorted(BYTE_OF.items(), key=lambda pair: pair[1])), [], {}, "")
    if tokenizer.kind == "char":
        return _char(vocab["characters"])
    raise DataError(
        f"a tokenizer of kind {tokenizer.kind} cannot be written as {TOKENIZER_JSON}; use bpe, gpt2 or byte"
    )


def _bpe(tokenizer: Tokenizer, vocab: dict[str, Any]) -> dict[str, Any]:
    ids = {character: i for i, character in enumerate(BYTE_OF)}
    pairs = [line.split(" ") for line in vocab["merges"]]
    for left, right in pairs:
        ids.setdefault(left + right, len(ids))
    return byte_level_description(ids, pairs, tokenizer.specials, vocab["split"])


def _char(characters: str) -> dict[str, Any]:
    # WordLevel demands the name of an unknown token. It is not in the vocabulary, so that what is unknown is an error.
    model = {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(characters)}, "unk_token": "<unk>"}
    split = {"type": "Split", "pattern": {"Regex": EVERY_CHARACTER}, "behavior": "Isolated", "invert": False}
    return description_of(model, split, {"type": "Fuse"}, {})


def _named(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokens around a text, by the names they go by."""
    names = {token: content for content, token in tokenizer.specials.items()}
    named = {"bos_token": tokenizer.begin_of_text, "eos_token": tokenizer.end_of_text}
    if tokenizer.kind in ("bpe", "gpt2"):
        named["bos_token"] = tokenizer.end_of_text  # as in GPT-2: what ends a text also stands between two
    return {name: names[token] for name, token in named.items() if token is not None}


def _write(path: Path, value: Any) -> None:
    write_atomic(path, (to_json(value, 2) + "\n").encode())
