"""How large other people's tokenizers may make a text: bounds on a `tokenizer.json` before and after it is built.

Eight steps that each write a thousand letters for one would turn a character into 10^24. So the parts of a description
are small and few, which is judged before the library sees them, and what each step can make of a text is multiplied:
the normalizers and pre-tokenizers together write at most `MAX_GROWTH` characters for each that they are given.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from typing import Any

from dgsgpt.data.text import shown

MAX_GROWTH = 256  # Llama 2 has 2, GPT-2 and Llama 3 have 5, Qwen 15, T5 at most 108
MAX_CONTENT = 8  # characters that a step writes; published ones write one to three
_MAX_PATTERN = 64
_MAX_STEPS = 32
_MAX_ENTRIES = 64  # of one list or object: the parts of a template, its special tokens, the ids of each
_MAX_VALUES = 4096
_MAX_LETTERS = 4096
_MAX_DEPTH = 32
_CHARSMAP = "precompiled_charsmap"
_MAX_CHARSMAP = 1 << 20  # in base64; SentencePiece's nmt_nfkc takes about 320,000

# Characters that a step writes at most for one it is given. NFKC and NFKD write 18 for U+FDFA, which is the most in
# Unicode; Bert's puts spaces around, decomposes and lowers; ByteLevel writes one for each byte and a space before.
_GROWTH = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 2,
    "BertNormalizer": 3 * 4 * 2,
    "ByteLevel": 4 + 1,
    "Metaspace": 1 + 1,
    **dict.fromkeys(("Strip", "StripAccents", "Nmt"), 1),
    **dict.fromkeys(("Split", "Digits", "Punctuation", "UnicodeScripts", "FixedLength"), 1),
    **dict.fromkeys(("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"), 1),
}
_NO_TEXT = {"type", "behavior", "prepend_scheme", _CHARSMAP}


def check_size(description: Mapping[str, Any]) -> None:
    """Judge the parts of a `tokenizer.json`, apart from its vocabulary, before anything is built of them.

    Raises:
        ValueError: a part has more entries, deeper or longer ones than any published tokenizer needs.
    """
    for part, value in description.items():
        if part in ("model", "added_tokens"):
            continue
        _check_text(part, part)
        for count, _ in enumerate(_values(value, part), 1):
            if count > _MAX_VALUES:
                raise ValueError(f"its {shown(part[:40])} has more than {_MAX_VALUES:,} values; {_REMEDY}")


_REMEDY = "take the tokenizer.json that its model was published with"


def _values(value: Any, part: str, depth: int = 0) -> Iterator[Any]:
    """`value` and all within it; each list, object and text is judged when it is come to."""
    yield value
    if depth > _MAX_DEPTH:
        raise ValueError(f"its {shown(part[:40])} is nested more than {_MAX_DEPTH} deep; {_REMEDY}")
    if isinstance(value, str):
        _check_text(value, part)
    if not isinstance(value, dict | list):
        return
    if len(value) > _MAX_ENTRIES:
        raise ValueError(
            f"its {shown(part[:40])} has {len(value):,} entries in one place, over {_MAX_ENTRIES}; {_REMEDY}"
        )
    for key, inner in value.items() if isinstance(value, dict) else ((None, inner) for inner in value):
        _check_text(key or "", part)
        if key == _CHARSMAP and isinstance(inner, str):
            _check_text(inner, _CHARSMAP, _MAX_CHARSMAP)
        elif key != "Regex" or not isinstance(inner, str):  # expressions are judged by `check_expressions`
            yield from _values(inner, part, depth + 1)


def _check_text(text: str, part: str, most: int = _MAX_LETTERS) -> None:
    if len(text) > most:
        name = shown(part[:40])
        raise ValueError(f"its {name} has a text of {len(text):,} characters, over {most:,}; {_REMEDY}")


def check_growth(parts: Mapping[str, list[dict[str, Any]]]) -> None:
    """Judge what the steps of a tokenizer, with every field written out, can make of a text.

    For a text of n characters (1 if it is empty) the product of the steps' growth, at most `MAX_GROWTH`, times n is a
    bound on what is ever made of it, also between two steps, since no growth is below 1.

    Raises:
        ValueError: there are too many steps, one writes a long text or looks for an empty one, or they grow it by more.
    """
    for kind, steps in parts.items():
        if len(steps) > _MAX_STEPS:
            raise ValueError(f"its {kind} has {len(steps)} steps, over {_MAX_STEPS}; {_REMEDY}")
        for step in steps:
            _check_step(step)
    growth = math.prod(_growth(step) for kind in ("normalizer", "pre_tokenizer") for step in parts[kind])
    if growth > MAX_GROWTH:
        raise ValueError(f"it may write {growth:,} characters for one of a text, over {MAX_GROWTH}; {_REMEDY}")


def _check_step(step: Mapping[str, Any]) -> None:
    for key, value in step.items():
        if key not in _NO_TEXT and isinstance(value, str) and len(value) > MAX_CONTENT:
            size = f"{len(value):,} characters, over {MAX_CONTENT}"
            raise ValueError(f"its {step['type']} has a {key} of {size}; {_REMEDY}")
    pattern = step.get("pattern")
    wanted = pattern.get("String") if isinstance(pattern, dict) else None
    if wanted is not None and not 0 < len(wanted) <= _MAX_PATTERN:
        raise ValueError(f"its {step['type']} looks for a text of {len(wanted)}, not 1 to {_MAX_PATTERN}, characters")


def _growth(step: Mapping[str, Any]) -> int:
    """Characters that a step writes at most for each that it is given; as many for an empty text as for one."""
    kind = step["type"]
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "Replace":
        content, wanted = len(step["content"]), step["pattern"].get("String")
        # An expression may match before and after each character and leave it there.
        return 1 + 2 * content if wanted is None else max(1, math.ceil(content / len(wanted)))
    if kind == "Precompiled":
        return _longest(step[_CHARSMAP])
    if kind not in _GROWTH:
        raise ValueError(f"its step {shown(kind)} is not known here; {_REMEDY}")
    return _GROWTH[kind]


def _longest(charsmap: str) -> int:
    """Characters of the longest text in SentencePiece's table: the size of its trie, the trie, texts that end in NUL.

    The trie points into the texts, anywhere, and what is written goes on to the next NUL.
    """
    table = base64.b64decode(charsmap, validate=True)
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(1, *(len(text.decode("utf-8", "replace")) for text in texts.split(b"\0")))


__all__ = ["MAX_CONTENT", "MAX_GROWTH", "check_growth", "check_size"]
