"""Laws of tokenizers that other programs made: ids and text as the library gives them, and nothing hostile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dgsgpt.config import TokenizerConfig
from dgsgpt.data import corpora
from dgsgpt.data.foreign import ForeignTokenizer
from dgsgpt.data.foreign_regex import DIGIT, DIGITS, GPT2, LLAMA3, PUNCTUATION, QWEN2, THREE_DIGITS, check_expressions
from dgsgpt.data.tokenizer import load_tokenizer, load_tokenizer_file, parse_envelope, train_tokenizer
from dgsgpt.errors import DataError
from tests.data.test_tokenizer import TEXTS, TRICKY

SPLITS = {
    "gpt2": [GPT2],
    "llama3": [LLAMA3],
    "qwen2": [QWEN2],
    "smollm": [DIGIT, GPT2],
    "default": [PUNCTUATION, GPT2, DIGITS, THREE_DIGITS],
}
END, BEGIN = "</s>", "<s>"


def byte_level(splits: list[str], vocab_size: int = 600) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BEGIN, END],
        show_progress=False,
    )
    made.train_from_iterator(corpora.read_text("austen")[:60_000].splitlines(keepends=True), trainer)
    return made


def metaspace(byte_fallback: bool, prefix: bool = True) -> tokenizers.Tokenizer:
    """As in Llama 2: no pre-tokenizer, spaces written out, bytes for what the vocabulary does not have."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    spaces: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    made.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    octets = [f"<0x{value:02X}>" for value in range(256)] if byte_fallback else []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", BEGIN, END, *octets], show_progress=False, max_token_length=8
    )
    made.train_from_iterator(corpora.read_text("austen")[:30_000].splitlines(), trainer)
    description = json.loads(made.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["id"] < 3]
    return tokenizers.Tokenizer.from_str(json.dumps(description))


@lru_cache(maxsize=16)
def library(name: str) -> tokenizers.Tokenizer:
    made = {
        "llama2": lambda: metaspace(True),
        "llama2-no-prefix": lambda: metaspace(True, prefix=False),
        "no-bytes": lambda: metaspace(False),
    }
    return made[name]() if name in made else byte_level(SPLITS[name])


@lru_cache(maxsize=16)
def foreign(name: str) -> ForeignTokenizer:
    made = library(name)
    return ForeignTokenizer(json.loads(made.to_str()), made.token_to_id(BEGIN), [made.token_to_id(END)])


WITH_BYTES = [*SPLITS, "llama2", "llama2-no-prefix"]


@pytest.mark.parametrize("name", WITH_BYTES)
@settings(deadline=None)
@given(text=TEXTS)
def test_ids_are_the_librarys_and_decode_inverts_encode(name: str, text: str) -> None:
    tokenizer, made = foreign(name), library(name)
    made.encode_special_tokens = True
    ids = tokenizer.encode(text)
    assert ids == made.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.unknown_characters(text) == []


@pytest.mark.parametrize("name", WITH_BYTES)
@settings(deadline=None)
@given(text=TEXTS)
def test_token_bytes_are_the_bytes_of_the_text(name: str, text: str) -> None:
    tokenizer = foreign(name)
    ids = tokenizer.encode(text)
    space = b" " if name == "llama2" and text else b""
    assert b"".join(map(tokenizer.token_bytes, ids)) == space + text.encode()
    assert tokenizer.byte_lengths[ids].sum() == len(space + text.encode())


@pytest.mark.parametrize("name", WITH_BYTES)
@settings(deadline=None, max_examples=150)
@given(text=TRICKY)
def test_chunks_encode_to_exactly_the_ids_of_the_whole(name: str, text: str) -> None:
    tokenizer = foreign(name)
    chunks = tokenizer.chunks(text)
    assert "".join(chunks) == text
    whole = tokenizer._backend.encode(text, add_special_tokens=False).ids
    assert [i for chunk in chunks for i in tokenizer._backend.encode(chunk, add_special_tokens=False).ids] == whole


def test_texts_are_cut_where_that_is_certain_and_only_there() -> None:
    text = corpora.read_text("plays")[:20_000]
    assert {name: len(foreign(name).chunks(text)) > 50 for name in [*SPLITS, "llama2"]} == {
        **dict.fromkeys(SPLITS, True),
        "llama2": False,
    }


def with_added(content: str, **flags: Any) -> ForeignTokenizer:
    made = byte_level([GPT2])
    made.add_tokens([AddedToken(content, special=False, normalized=False, **flags)])
    return ForeignTokenizer(json.loads(made.to_str()), None, [1])


@pytest.mark.parametrize(("content", "flags"), [("\n\n", {}), ("<mask>", {"lstrip": True})])
def test_an_added_token_that_may_reach_over_a_line_forbids_cuts(content: str, flags: dict[str, Any]) -> None:
    tokenizer = with_added(content, **flags)
    text = "one\n\n\ntwo\n <mask> three\n"
    assert tokenizer.chunks(text) == [text]
    assert tokenizer.decode(tokenizer.encode(text)) == (text if not flags else "one\n\n\ntwo<mask> three\n")


def test_special_tokens_in_a_text_are_letters_but_other_added_tokens_are_found_whole() -> None:
    tokenizer = with_added("<think>")
    ids = tokenizer.encode(f"a{END}b<think>c")
    assert tokenizer.end_of_text == 1
    assert tokenizer.end_of_text not in ids
    assert tokenizer.vocab_size - 1 in ids
    assert tokenizer.decode(ids) == f"a{END}b<think>c"
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == b"<think>"


def test_special_tokens_decode_to_nothing() -> None:
    tokenizer = foreign("llama2")
    ids = [tokenizer.begin_of_text, *tokenizer.encode("Hello there"), tokenizer.end_of_text]
    assert tokenizer.decode([i for i in ids if i is not None]) == "Hello there"
    assert tokenizer.specials == {"<unk>": 0, BEGIN: 1, END: 2}
    assert (tokenizer.begin_of_text, tokenizer.end_of_text, tokenizer.ends_of_text) == (1, 2, (2,))
    assert [tokenizer.token_bytes(i) for i in (0, 1, 2)] == [b"", b"", b""]


def test_ids_without_a_token_stand_for_nothing() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 5}, "merges": []}
    tokenizer = ForeignTokenizer({"model": model, "decoder": {"type": "Fuse"}})
    assert tokenizer.vocab_size == 6
    assert tokenizer.token_bytes(3) == b""
    assert tokenizer.decode([0, 3, 5]) == "ab"


def test_unknown_characters_are_listed_not_lost() -> None:
    tokenizer = foreign("no-bytes")
    assert tokenizer.decode(tokenizer.encode("It was")) == "It was"
    assert tokenizer.unknown_characters("It was 日é日") == ["日", "é"]
    with pytest.raises(DataError, match="'日', 'é'"):
        tokenizer.encode("It was 日é日")


def test_bytes_missing_from_a_byte_level_vocabulary_are_told() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = ForeignTokenizer({"model": model, "pre_tokenizer": step, "decoder": step})
    assert tokenizer.encode("abba") == [0, 1, 1, 0]
    assert tokenizer.unknown_characters("abcé") == ["c", "é"]
    with pytest.raises(DataError, match="'c'"):
        tokenizer.encode("abc")


def test_half_a_surrogate_pair_is_refused() -> None:
    for name in ("gpt2", "llama2", "no-bytes"):
        with pytest.raises(DataError, match="ud800"):
            foreign(name).encode("a\ud800")


def test_sampling_truncation_and_padding_are_switched_off() -> None:
    description = json.loads(library("gpt2").to_str())
    description["model"]["dropout"] = 0.9
    description["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None}
    description["padding"] = {**pad, "pad_id": 0, "pad_type_id": 0, "pad_token": BEGIN}
    tokenizer = ForeignTokenizer(description)
    text = corpora.read_text("austen")[1000:2000]
    assert tokenizer.encode(text) == foreign("gpt2").encode(text)
    assert tokenizer.encode("a") == foreign("gpt2").encode("a")


# ---------------------------------------------------------------- kept and read again
@pytest.mark.parametrize("name", ["gpt2", "llama2", "no-bytes"])
def test_a_saved_tokenizer_is_read_back_equal(name: str, tmp_path: Path) -> None:
    tokenizer = foreign(name)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert (again.kind, again.sha256, again.specials) == ("hf", tokenizer.sha256, tokenizer.specials)
    assert (again.begin_of_text, again.ends_of_text) == (tokenizer.begin_of_text, tokenizer.ends_of_text)
    assert again.encode("It was.") == tokenizer.encode("It was.")
    assert load_tokenizer_file(tmp_path / "tokenizer.json").sha256 == tokenizer.sha256


def test_a_file_of_hugging_face_can_be_named_too(tmp_path: Path) -> None:
    library("smollm").save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer_file(tmp_path / "tokenizer.json").encode("It was 12.") == foreign("smollm").encode(
        "It was 12."
    )
    made = train_tokenizer(TokenizerConfig(kind="file", file=str(tmp_path / "tokenizer.json")), "any text")
    assert made.sha256 == load_tokenizer_file(tmp_path / "tokenizer.json").sha256
    with pytest.raises(DataError, match="needs type, version"):
        load_tokenizer(tmp_path / "tokenizer.json")


def envelope(vocab: Any, specials: Any = None) -> dict[str, Any]:
    from dgsgpt.data.tokenizer import _hash

    content = {"type": "hf", "version": 1, "vocab": vocab, "specials": specials or {}}
    return {**content, "sha256": _hash(content)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["json", "bos", "eos", "model", "pre_tokenizer", "decoder", "added_tokens", "vocab"]), JSON)
def test_a_changed_envelope_is_refused_or_works_never_a_crash(key: str, value: Any) -> None:
    model: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    description: dict[str, Any] = {"model": model, "decoder": {"type": "Fuse"}, "added_tokens": []}
    vocab: dict[str, Any] = {"json": description, "bos": None, "eos": []}
    (vocab if key in vocab else model if key == "vocab" else description)[key] = value
    said = ""
    try:
        assert isinstance(parse_envelope(envelope(vocab), "x").encode(""), list)
    except DataError as e:
        said = str(e)
    assert "\n" not in said


def fuse(**changes: Any) -> dict[str, Any]:
    model: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0}, "merges": [], **changes}
    return {"model": model, "decoder": {"type": "Fuse"}}


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "words": (lambda: fuse(type="WordLevel", unk_token="a"), "WordLevel"),
    "word pieces": (
        lambda: fuse(type="WordPiece", unk_token="a", continuing_subword_prefix="##", max_input_chars_per_word=9),
        "WordPiece",
    ),
    "marks": (lambda: fuse(end_of_word_suffix="</w>"), "parts of words"),
    "no decoder": (lambda: {**fuse(), "decoder": None}, "ByteLevel, Metaspace or Fuse"),
    "drops spaces": (lambda: {**fuse(), "pre_tokenizer": {"type": "Whitespace"}}, "drops parts"),
    "large id": (lambda: fuse(vocab={"a": 1 << 20}), "over the limit"),
    "no tokens": (lambda: fuse(vocab={}), "empty"),
    "no model": (lambda: {"model": None}, "no tokenizer.json"),
    "moved id": (
        lambda: {**fuse(), "added_tokens": [{"id": 9, "content": "x", "special": True, **FLAGS}]},
        "id of another token",
    ),
}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(name: str) -> None:
    make, why = REFUSED[name]
    with pytest.raises(DataError, match=why) as caught:
        parse_envelope(envelope({"json": make(), "bos": None, "eos": []}), "x")
    assert "\n" not in str(caught.value)


def test_a_special_token_outside_the_vocabulary_is_refused() -> None:
    for around in ({"bos": 7, "eos": []}, {"bos": None, "eos": [7]}, {"bos": None, "eos": ["a"]}):
        with pytest.raises(DataError, match="special token"):
            parse_envelope(envelope({"json": fuse(), **around}), "x")


# ---------------------------------------------------------------- expressions
HOSTILE = [
    "(a+)+b",
    "(a|aa)+b",
    "(a*)*b",
    "((a?b?)x?){9,}",
    "(?:a{1,9}){1,9}",
    "a{1,9}+",
    "a**",
    "(?:(?:a{9}){9}){9}",
    "a{5000}",
    r"(a)\1",
    r"(?<x>a)\k<x>",
    r"(?<x>a\g<x>?b)",
    "(?~ab)",
    "(" * 50 + "a+" + ")+" * 50,
    "a" * 5000,
]
PUBLISHED = [
    GPT2,
    LLAMA3,
    QWEN2,
    PUNCTUATION,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
]


@pytest.mark.parametrize("expression", HOSTILE, ids=lambda e: e[:20])
@pytest.mark.timeout(20)
def test_an_expression_that_may_take_for_ever_is_refused_before_it_runs(expression: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    started = time.monotonic()
    with pytest.raises(ValueError, match="its expression"):
        ForeignTokenizer({**fuse(), "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}})
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("expression", PUBLISHED, ids=lambda e: e[:20])
def test_published_expressions_are_accepted(expression: str) -> None:
    check_expressions({"pre_tokenizer": {"pattern": {"Regex": expression}}})


def test_a_description_nested_without_end_is_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(500):
        nested = {"type": "Sequence", "pretokenizers": [nested]}
    with pytest.raises(ValueError, match="nested"):
        ForeignTokenizer({**fuse(), "pre_tokenizer": nested})


def test_what_stops_the_engine_is_told_in_one_line() -> None:
    many = "a*" * 12 + "[bc]d"  # takes polynomial time, which the engine itself gives up
    split = {"type": "Split", "pattern": {"Regex": many}, "behavior": "Isolated", "invert": False}
    tokenizer = ForeignTokenizer({**fuse(), "pre_tokenizer": split})
    with pytest.raises(DataError, match="cannot encode this text") as caught:
        tokenizer.encode("a" * 500 + "bc")
    assert "\n" not in str(caught.value)


def test_the_post_processor_adds_nothing() -> None:
    made = byte_level([GPT2])
    made.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 0), (END, 1)]
    )
    assert ForeignTokenizer(json.loads(made.to_str()), 0, [1]).encode("It was") == foreign("gpt2").encode("It was")
