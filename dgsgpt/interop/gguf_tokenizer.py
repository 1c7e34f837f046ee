"""The tokenizer of a GGUF file, rebuilt as the `tokenizer.json` it was made from.

A GGUF names the pre-tokenizer and does not carry it; the expressions for the names are llama.cpp's
(`src/llama-vocab.cpp`) in the form that the models' own files have. A vocabulary with scores (SentencePiece BPE)
becomes merges by the rule of Hugging Face's conversion: best score first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgsgpt.data.foreign_files import build, description_of
from dgsgpt.data.foreign_regex import DIGIT, DIGITS, GPT2, LLAMA3, PUNCTUATION, QWEN2, THREE_DIGITS
from dgsgpt.data.text import shown
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError

KEY = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPLITS = {
    "default": [PUNCTUATION, GPT2, DIGITS, THREE_DIGITS],
    **{name: [GPT2] for name in ("gpt-2", "gpt2", "phi-2", "mpt", "olmo")},
    **{name: [DIGIT, GPT2] for name in ("smollm", "starcoder", "refact", "command-r", "codeshell")},
    **{name: [LLAMA3] for name in ("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe")},
    **{name: [QWEN2] for name in ("qwen2", "deepseek-r1-qwen", "megrez")},
}
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "falcon3"}  # a word that is a token is not built from merges
_COMPOSED = {"qwen2", "deepseek-r1-qwen", "megrez"}  # accents are joined to their letters first


def build_tokenizer(settings: Mapping[str, Any], source: str) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer that the metadata of a GGUF file describe, and what to tell the person; `source` names the file.

    Raises:
        DataError: it is of a kind that cannot be rebuilt, or damaged.
    """
    model = settings.get(KEY + "model")
    try:
        if model == "gpt2":
            description, warnings = _byte_level(settings), _warnings_of(settings)
        elif model == "llama":
            description, warnings = _with_scores(settings), (_SCORES_WARNING,)
        else:
            raise DataError(
                f"{source}: its tokenizer {shown(str(model))} cannot be rebuilt, gpt2 and llama can; import the model "
                "from its Hugging Face folder"
            )
        bos, eos = _begin_of_text(settings, model), _ids(settings, "eos_token_id", "eot_token_id")
        return build(description, bos, eos), warnings
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise DataError(f"{source}: its tokenizer cannot be rebuilt: {e}") from None


_SCORES_WARNING = (
    "The merges of the tokenizer were rebuilt from its scores, as Hugging Face does; in rare texts that repeat "
    "themselves its tokens may differ from llama.cpp's."
)


def _warnings_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    if settings.get(KEY + "pre", "default") != "default":
        return ()
    return (
        "The file does not name how texts are split before they are encoded; llama.cpp's default is taken, which may "
        "not be what the model was trained with.",
    )


def _byte_level(settings: Mapping[str, Any]) -> dict[str, Any]:
    name = settings.get(KEY + "pre", "default")
    if name not in _SPLITS:
        raise ValueError(f"how it splits texts, {str(name)[:40]!r}, is not known; known are {', '.join(_SPLITS)}")
    if settings.get(KEY + "add_space_prefix"):
        raise ValueError("add_space_prefix is not known for a gpt2 tokenizer")
    tokens = _tokens(settings)
    steps: list[Any] = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        for split in _SPLITS[name]
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    merges = [tuple(line.split(" ")) for line in settings[KEY + "merges"]]
    model = _bpe(tokens, merges) | {"ignore_merges": name in _WHOLE_WORDS}
    before = {"type": "Sequence", "pretokenizers": [*steps, byte_level]}
    described = description_of(model, before, byte_level, {}) | {"added_tokens": _added(settings, tokens)}
    return described | ({"normalizer": {"type": "NFC"}} if name in _COMPOSED else {})


def _with_scores(settings: Mapping[str, Any]) -> dict[str, Any]:
    tokens, scores = _tokens(settings), settings[KEY + "scores"]
    if len(scores) != len(tokens):
        raise ValueError(f"it has {len(tokens)} tokens but {len(scores)} scores")
    added = _added(settings, tokens)
    unknown = next((t for t, kind in zip(tokens, settings[KEY + "token_type"], strict=True) if kind == _UNKNOWN), None)
    merges = _merges_of(tokens, scores, {token["content"] for token in added})
    model = _bpe(tokens, merges) | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    prefix = settings.get(KEY + "add_space_prefix", True)
    spaces: list[Any] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    back: list[Any] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    back += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        spaces.insert(0, {"type": "Prepend", "prepend": "▁"})
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    described = description_of(model, None, {"type": "Sequence", "decoders": back}, {})
    return described | {"added_tokens": added, "normalizer": {"type": "Sequence", "normalizers": spaces}}


def _merges_of(tokens: list[str], scores: list[float], skipped: set[str]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, best score first; of one token's pairs the longer left part first."""
    known = set(tokens) - skipped
    pairs = [
        (score, cut, len(token) - cut, token)
        for token, score in zip(tokens, scores, strict=True)
        if token in known
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    pairs.sort(key=lambda pair: pair[:3], reverse=True)
    return [(token[:cut], token[cut:]) for _, cut, _, token in pairs]


def _bpe(tokens: list[str], merges: list[tuple[str, ...]] | list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
    }


def _tokens(settings: Mapping[str, Any]) -> list[str]:
    tokens: list[str] = settings[KEY + "tokens"]
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ValueError("it has no list of tokens")
    if len(set(tokens)) != len(tokens):
        raise ValueError("a token is in its vocabulary twice")
    return tokens


def _added(settings: Mapping[str, Any], tokens: list[str]) -> list[dict[str, Any]]:
    """Control tokens, which stand for no text, and tokens of the model's makers, which are found whole in a text."""
    kinds = settings.get(KEY + "token_type", [])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token, **flags, "special": kind != _USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=bool(kinds)))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _begin_of_text(settings: Mapping[str, Any], model: str) -> int | None:
    """Where the file does not say, llama.cpp puts it before texts for vocabularies with scores and for Llama 3's."""
    default = model == "llama" or settings.get(KEY + "pre") in _WHOLE_WORDS
    found = _ids(settings, "bos_token_id")
    return found[0] if settings.get(KEY + "add_bos_token", default) and found else None


def _ids(settings: Mapping[str, Any], *names: str) -> list[int]:
    given = (settings.get(KEY + name) for name in names)
    return list(dict.fromkeys(int(token) for token in given if token is not None))
