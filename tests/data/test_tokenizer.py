"""Laws of the tokenizers, against a plain-Python BPE and published GPT-2 ids."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.config import TokenizerConfig
from dgsgpt.data import bpe, corpora
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer, parse_envelope, train_tokenizer
from dgsgpt.errors import DataError

# White space, line ends, digits, contractions, marks and scripts: where a splitting expression could slip.
SPACES = [" ", "  ", "\n", "\n\n", "\r\n", "\r", "\t", "\u00a0", "\u3000", "\x1c", "\x85", "\u2028", "\ufeff"]
WORDS = [
    "a",
    "Bc",
    "word",
    "it's",
    "'LL",
    "12345",
    "...",
    "?!",
    "—",
    "é",
    "日本",
    "🙂",
    "x" * 70,
    "." * 70,
    END_OF_TEXT,
]
TRICKY = st.lists(st.sampled_from([*SPACES, *WORDS]), max_size=40).map("".join)
TEXTS = st.one_of(st.text(), TRICKY)


@lru_cache(maxsize=4)
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "gpt2":
        return bpe.load_gpt2()
    return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=700), corpora.read_text("austen")[:200_000])


@pytest.mark.parametrize("kind", ["byte", "bpe", "gpt2"])
@settings(deadline=None)
@given(text=TEXTS)
def test_decode_inverts_encode_for_any_text(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.unknown_characters(text) == []


@settings(deadline=None)
@given(st.text(min_size=1), st.data())
def test_char_round_trips_on_its_alphabet(text: str, data: st.DataObject) -> None:
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    other = data.draw(st.text(sorted(set(text))))
    assert tokenizer.decode(tokenizer.encode(other)) == other
    assert len(tokenizer.encode(other)) == len(other)


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
@settings(deadline=None, max_examples=300)
@given(text=TRICKY)
def test_chunks_encode_to_exactly_the_ids_of_the_whole(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    chunks = tokenizer.chunks(text)
    assert "".join(chunks) == text
    assert isinstance(tokenizer, bpe.BpeTokenizer)
    whole = tokenizer._encoder.encode(text, add_special_tokens=False).ids
    assert [i for chunk in chunks for i in tokenizer.encode(chunk)] == whole
    assert tokenizer.encode(text) == whole


def test_chunks_of_real_texts_encode_to_the_ids_of_the_whole() -> None:
    for kind in ("bpe", "gpt2"):
        for name in ("austen", "plays"):
            tokenizer, text = tokenizer_of(kind), corpora.read_text(name)[100_000:300_000]
            assert isinstance(tokenizer, bpe.BpeTokenizer)
            assert len(tokenizer.chunks(text)) > 100
            assert tokenizer.encode(text) == tokenizer._encoder.encode(text, add_special_tokens=False).ids


def reference_encode(tokenizer: bpe.BpeTokenizer, text: str) -> list[bytes]:
    """BPE as Sennrich et al. write it: merge the earliest-learned pair, everywhere, until none is left."""
    characters = bpe.BYTE_OF
    rank = {
        (bytes(characters[c] for c in left), bytes(characters[c] for c in right)): i
        for i, (left, right) in enumerate(tokenizer._merges)
    }
    out: list[bytes] = []
    for piece in regex.findall(bpe.SPLITS[tokenizer._split], text):
        parts = [bytes([b]) for b in piece.encode()]
        while pairs := [p for p in itertools.pairwise(parts) if p in rank]:
            best, merged, i = min(pairs, key=rank.__getitem__), [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        out += parts
    return out


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_bpe_equals_a_plain_python_bpe(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert isinstance(tokenizer, bpe.BpeTokenizer)
    for text in (corpora.read_text("austen")[300_000:304_000], "it's 12345 naïve—日本 🙂\n\n  x \r\n", "WE'LL  \t\n y"):
        assert [tokenizer.token_bytes(i) for i in tokenizer.encode(text)] == reference_encode(tokenizer, text)


def test_bpe_learns_the_most_frequent_pair_first() -> None:
    tokenizer = bpe.train_bpe("zq " * 50 + "ab", 264)
    assert tokenizer._merges[0] in {("z", "q"), ("Ġ", "z")}
    assert tokenizer.token_bytes(256) in {b"zq", b" z"}


def test_gpt2_gives_the_published_ids() -> None:
    tokenizer = bpe.load_gpt2()
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.end_of_text == 50_256
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("Hello, I'm a language model") == [15496, 11, 314, 1101, 257, 3303, 2746]


def test_gpt2_equals_the_tokenizer_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = bpe.load_gpt2()
    ids = {c: i for i, c in enumerate(bpe.BYTE_OF)}
    for left, right in ours._merges:
        ids[left + right] = len(ids)
    theirs = transformers.GPT2Tokenizer(vocab={**ids, END_OF_TEXT: len(ids)}, merges=list(ours._merges))
    for name in ("austen", "plays"):
        text = corpora.read_text(name)[1_000_000:1_060_000]
        assert ours.encode(text) == theirs(text)["input_ids"]


def test_special_tokens_in_a_text_are_only_letters() -> None:
    for kind in ("bpe", "gpt2"):
        tokenizer = tokenizer_of(kind)
        ids = tokenizer.encode(f"a{END_OF_TEXT}b")
        assert tokenizer.end_of_text not in ids
        assert len(ids) > 3
        assert tokenizer.end_of_text == tokenizer.vocab_size - 1
        assert tokenizer.decode([tokenizer.end_of_text]) == ""
        assert tokenizer.byte_lengths[tokenizer.end_of_text] == 0


def test_unknown_characters_are_listed() -> None:
    tokenizer = CharTokenizer("abc")
    assert tokenizer.unknown_characters("axbéxa") == ["x", "é"]
    with pytest.raises(DataError, match="'x', 'é'"):
        tokenizer.encode("axbéxa")


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "gpt2"])
def test_half_a_surrogate_pair_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="ud800"):
        tokenizer_of(kind).encode("a\ud800")
    assert tokenizer_of(kind).unknown_characters("a\ud800") == ["\ud800"]


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "gpt2"])
def test_a_saved_tokenizer_is_read_back_equal(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    text = "It was a truth, universally acknowledged."
    assert (again.kind, again.vocab_size, again.sha256) == (kind, tokenizer.vocab_size, tokenizer.sha256)
    assert again.specials == tokenizer.specials
    assert again.encode(text) == tokenizer.encode(text)
    assert set(json.loads((tmp_path / "tokenizer.json").read_text())) == {
        "type",
        "version",
        "vocab",
        "specials",
        "sha256",
    }


def test_a_changed_byte_in_the_envelope_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer_of("bpe").save(path)
    path.write_text(path.read_text().replace("\u0120t", "\u0120q", 1))
    with pytest.raises(DataError, match=r"tokenizer\.json.*sha256"):
        load_tokenizer(path)


@settings(deadline=None, max_examples=200)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    st.sampled_from(["byte", "char", "bpe", "gpt2", "other", 3]),
)
def test_a_foreign_envelope_is_refused_never_a_crash(vocab: Any, kind: Any) -> None:
    from dgsgpt.data.tokenizer import _hash

    content = {"type": kind, "version": 1, "vocab": vocab, "specials": {}}
    with pytest.raises(DataError):
        parse_envelope({**content, "sha256": _hash(content)}, "x")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff\xfe", b'{"type": "byte"}'])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(path)


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    for token in (-1, 256):
        with pytest.raises(DataError, match="outside the byte vocabulary"):
            ByteTokenizer().decode([token])


def test_cut_characters_decode_to_replacement_characters() -> None:
    assert ByteTokenizer().decode(list("é".encode()[:1])) == "\ufffd"


def test_learning_is_the_same_in_every_process_and_thread_count() -> None:
    program = (
        "from dgsgpt.data import corpora, bpe;print(bpe.train_bpe(corpora.read_text('plays')[:300_000], 1000).sha256)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 64


def test_a_short_text_gives_fewer_merges_than_asked() -> None:
    tokenizer = bpe.train_bpe("one two one two", 4096)
    assert 257 < tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode("two one")) == "two one"


def test_bpe_learns_the_size_asked_for_including_the_special_token() -> None:
    assert tokenizer_of("bpe").vocab_size == 700


@pytest.mark.timeout(60)
def test_a_megabyte_without_spaces_is_learned_and_encoded() -> None:
    letters = np.random.default_rng(0).choice(list("ACGT"), 300_000)
    text = "".join(letters)
    tokenizer = bpe.train_bpe(text, 400)
    assert tokenizer.decode(tokenizer.encode(text)) == text
