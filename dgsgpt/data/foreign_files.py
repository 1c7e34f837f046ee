"""Reading the tokenizer of a Hugging Face model: `tokenizer.json` and the small files that lie beside it.

What is ours gives our own tokenizer, which is faster and, written and read again, the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.bpe import BYTE_OF, SPLITS, BpeTokenizer, load_gpt2
from dgsgpt.data.foreign import ForeignTokenizer, split_expressions
from dgsgpt.data.foreign_backend import build_backend, components, told_in_one_line, vocabulary
from dgsgpt.data.foreign_regex import GPT2
from dgsgpt.data.text import shown
from dgsgpt.data.tokenizer import END_OF_TEXT, Tokenizer, one_line, read_object
from dgsgpt.errors import DataError

TOKENIZER_JSON, TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION_CONFIG, CONFIG, VOCAB_JSON, MERGES = "generation_config.json", "config.json", "vocab.json", "merges.txt"
EVERY_CHARACTER = r"[\s\S]"  # the expression by which a char tokenizer's text is split
_MAX_MERGES_BYTES = 64_000_000
_FETCH = "copy it from where the model is from"


def read_folder(path: Path) -> Tokenizer:
    """The tokenizer of the model in the folder `path`, or of the `tokenizer.json` that `path` is.

    Raises:
        DataError: a file is missing or damaged, or its tokenizer cannot be used here.
    """
    folder = path.parent if path.is_file() else path
    description, source = _description(path, folder)
    try:
        names = _special_names(folder)
        bos, eos = _begin_of_text(description, names), _ends_of_text(folder, description, names)
        return build(description, bos, eos)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"{shown(source)}: its tokenizer cannot be used: {one_line(e)}") from None


def _description(path: Path, folder: Path) -> tuple[dict[str, Any], Path]:
    source = path if path.is_file() else folder / TOKENIZER_JSON
    if source.is_file():
        description = read_object(source, _FETCH)
        if not isinstance(description, dict):
            raise DataError(f"{shown(source)}: is no tokenizer.json (an object with a model); {_FETCH}")
        return description, source
    if (folder / VOCAB_JSON).is_file():
        return _gpt2_description(folder), folder / VOCAB_JSON
    if (folder / "tokenizer.model").is_file():
        raise DataError(
            f"{shown(folder)}: {TOKENIZER_JSON} is missing, and tokenizer.model is not read; save the tokenizer with "
            f"transformers' save_pretrained, which writes it"
        )
    raise DataError(f"{shown(folder)}: {TOKENIZER_JSON} is missing; {_FETCH}")


def _gpt2_description(folder: Path) -> dict[str, Any]:
    """The `tokenizer.json` for a folder from before there were any: GPT-2's vocab.json and merges.txt."""
    ids, merges = read_object(folder / VOCAB_JSON, _FETCH), folder / MERGES
    if not merges.is_file():
        raise DataError(f"{shown(folder)}: {MERGES} is missing beside {VOCAB_JSON}; {_FETCH}")
    try:
        if merges.stat().st_size > _MAX_MERGES_BYTES:
            raise DataError(f"{shown(merges)}: is too large for a list of merges")
        lines = merges.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{shown(merges)}: cannot be read: {e}; {_FETCH}") from None
    special = ids.get(END_OF_TEXT) if isinstance(ids, dict) else None
    pairs = [line for line in lines if line and not line.startswith("#version")]
    return byte_level_description(ids, pairs, {} if special is None else {END_OF_TEXT: special}, "gpt2")


def byte_level_description(ids: Any, merges: list[Any], specials: dict[str, int], split: str) -> dict[str, Any]:
    """A byte-level BPE `tokenizer.json`; `split` names an expression of ours, or is empty for none."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps: list[Any] = [byte_level]
    if split:
        steps.insert(0, {"type": "Split", "pattern": {"Regex": SPLITS[split]}, "behavior": "Isolated", "invert": False})
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges,
    }
    return description_of(model, {"type": "Sequence", "pretokenizers": steps}, byte_level, specials)


def description_of(model: Any, pre_tokenizer: Any, decoder: Any, specials: dict[str, int]) -> dict[str, Any]:
    """A `tokenizer.json` of these parts, without normalizer, padding or anything around a text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": content, **flags} for content, token in specials.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


# ---------------------------------------------------------------- tokens around a text
def _special_names(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says, with special_tokens_map.json for what it leaves open."""
    return {**_beside(folder / SPECIAL_TOKENS), **_beside(folder / TOKENIZER_CONFIG)}


def _beside(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_object(path, _FETCH)
    if not isinstance(value, dict):
        raise DataError(f"{shown(path)}: is no JSON object; {_FETCH}")
    return value


def _name(value: Any) -> str | None:
    """The text of a token, which these files write as it is or with its properties."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _begin_of_text(description: dict[str, Any], names: dict[str, Any]) -> int | None:
    """The token that is put before a text: by `add_bos_token` where it is said, else by the post-processor."""
    backend = build_backend(description)
    asked = names.get("add_bos_token")
    if isinstance(asked, bool):
        name = _name(names.get("bos_token"))
        token: int | None = backend.token_to_id(name or "") if asked else None
        if asked and token is None:
            raise ValueError(f"add_bos_token is true, but bos_token {repr(name)[:60]} is not in its vocabulary")
        return token
    if backend.post_processor is None:
        return None
    sample = "a"
    with told_in_one_line():
        plain: list[int] = backend.encode(sample, add_special_tokens=False).ids
        around: list[int] = backend.encode(sample, add_special_tokens=True).ids
    before = next((i for i in range(2) if around[i : i + len(plain)] == plain), None)
    if before is None:
        raise ValueError("it puts more than one token before a text")
    return around[0] if before else None


def _ends_of_text(folder: Path, description: dict[str, Any], names: dict[str, Any]) -> list[int]:
    """Ids that end a text: the tokenizer's own, then those the model stops at when it generates.

    The model's count only where they are special tokens: a config that nobody filled in has Llama's 2 or GPT-2's 50256,
    which here may be any piece of text.
    """
    added = {token["content"]: token for token in description.get("added_tokens") or []}
    found: list[int] = []
    name = _name(names.get("eos_token"))
    if name is not None:
        vocab = description["model"].get("vocab")
        token = added[name]["id"] if name in added else vocab.get(name) if isinstance(vocab, dict) else None
        found += [] if token is None else [token]
    special = {token["id"] for token in added.values() if token.get("special")}
    for file in (GENERATION_CONFIG, CONFIG):
        given = _as_ids(_beside(folder / file).get("eos_token_id"), folder / file)
        found += [token for token in given if token in special]
    if not found and END_OF_TEXT in added:
        found.append(added[END_OF_TEXT]["id"])
    return list(dict.fromkeys(found))


def _as_ids(value: Any, source: Path) -> Iterator[int]:
    for token in value if isinstance(value, list) else [] if value is None else [value]:
        if type(token) is not int:
            raise DataError(f"{shown(source)}: eos_token_id={repr(value)[:60]} is neither an id nor a list of ids")
        yield token


def with_begin(description: dict[str, Any], bos: int | None) -> dict[str, Any]:
    """The description with a post-processor that puts the token `bos` before a text and adds nothing else.

    What else a post-processor may do (offsets, token types) does not change ids.
    """
    if bos is None:
        return {**description, "post_processor": None}
    names = {token: name for name, token in vocabulary(build_backend(description)).items()}
    if bos not in names:
        raise ValueError(f"the id {bos} of the token before a text is outside its vocabulary")
    name = names[bos]
    single: list[Any] = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}},
    }
    return {**description, "post_processor": template}


# ---------------------------------------------------------------- ours
def build(description: dict[str, Any], bos: int | None, eos: list[int]) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, of the token before a text and of those that end one; ours if it is ours.

    Raises:
        ValueError: the description is damaged, unsafe, or of a kind whose tokens are not pieces of text.
    """
    return native(description, bos, eos) or ForeignTokenizer(with_begin(description, bos), bos, eos)


def native(description: dict[str, Any], bos: int | None, eos: list[int]) -> Tokenizer | None:
    """Our own tokenizer if it gives the same ids for every text and the same tokens around it; else None."""
    backend = build_backend(description)
    parts, model, ids = components(backend), description["model"], vocabulary(backend)
    if bos is not None or parts["normalizer"]:
        return None
    if model.get("type") == "WordLevel":
        return _char(parts, ids) if not eos else None
    if any(model.get(key) for key in _OTHER):
        return None
    splits = split_expressions(parts["pre_tokenizer"])
    if model.get("type") != "BPE" or splits is None or len(splits) > 1:
        return None
    if not splits:
        return ByteTokenizer() if ids == dict(BYTE_OF) and not model["merges"] and not eos else None
    split = "gpt2" if splits[0] == GPT2 else {text: name for name, text in SPLITS.items()}.get(splits[0])
    return None if split is None else _bpe(description, ids, split, eos)


_OTHER = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)


def _bpe(description: dict[str, Any], ids: dict[str, int], split: str, eos: list[int]) -> Tokenizer | None:
    given = (m.split(" ") if isinstance(m, str) else m for m in description["model"]["merges"])
    merges = [(left, right) for left, right in given]
    last = len(ids) - 1
    if eos != [last] or ids.get(END_OF_TEXT) != last or len(description.get("added_tokens") or []) != 1:
        return None
    gpt2 = load_gpt2()
    lines = [f"{left} {right}" for left, right in merges]
    if split == "gpt2" and lines == gpt2.vocab()["merges"]:
        return gpt2 if gpt2.vocab_size == len(ids) and _same_ids(gpt2, ids) else None
    try:
        own = BpeTokenizer(merges, "bpe", split)
    except ValueError:  # its merges build on tokens that come later, or are not pairs: not one of ours
        return None
    return own if own.vocab_size == len(ids) and _same_ids(own, ids) else None


def _same_ids(own: BpeTokenizer, ids: dict[str, int]) -> bool:
    notation = {value: character for character, value in BYTE_OF.items()}
    written = ("".join(notation[byte] for byte in own.token_bytes(token)) for token in range(own.vocab_size - 1))
    return all(ids.get(name) == token for token, name in enumerate(written))


def _char(parts: dict[str, list[dict[str, Any]]], ids: dict[str, int]) -> Tokenizer | None:
    split = [{"type": "Split", "pattern": {"Regex": EVERY_CHARACTER}, "behavior": "Isolated", "invert": False}]
    ordered = sorted(ids)
    ours = parts["pre_tokenizer"] == split and all(len(name) == 1 for name in ids)
    return CharTokenizer("".join(ordered)) if ours and [ids[c] for c in ordered] == list(range(len(ids))) else None
