"""Tokenizers to Hugging Face's files and back: transformers must read what is written, and ours what it writes."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from dgsgpt.data import corpora
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.bpe import BYTE_OF, BpeTokenizer, load_gpt2, train_bpe
from dgsgpt.data.foreign_files import build
from dgsgpt.data.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer_file
from dgsgpt.errors import DataError
from dgsgpt.interop.hf_tokenizer import read_hf_tokenizer, write_hf_tokenizer
from tests.data.test_foreign import BEGIN, END, library
from tests.data.test_tokenizer import SPACES, TEXTS, WORDS

transformers = pytest.importorskip("transformers")

KINDS = ["bpe", "gpt2", "byte", "hf", "hf-llama2"]
ALPHABET = "".join(sorted(set("".join([*SPACES, *WORDS]) + "\x00")))


@lru_cache(maxsize=8)
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "bpe":
        return train_bpe(corpora.read_text("austen")[:100_000], 600)
    if kind.startswith("hf"):
        made = library("llama2" if kind == "hf-llama2" else "smollm")
        begin = made.token_to_id(BEGIN) if kind == "hf-llama2" else None
        return build(json.loads(made.to_str()), begin, [made.token_to_id(END)])
    return load_gpt2() if kind == "gpt2" else CharTokenizer(ALPHABET) if kind == "char" else ByteTokenizer()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    for kind in [*KINDS, "char"]:
        (root / kind).mkdir()
        write_hf_tokenizer(tokenizer_of(kind), root / kind, 64)
    return root


@lru_cache(maxsize=16)
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_transformers_encodes_and_decodes_as_we_do(kind: str, written: Path, text: str) -> None:
    ours, other = tokenizer_of(kind), theirs(written / kind)
    ids = other(text, add_special_tokens=False)["input_ids"]
    assert ids == ours.encode(text)
    assert other.decode(ids) == ours.decode(ids) == text
    begin = [] if ours.begin_of_text is None else [ours.begin_of_text]
    assert other(text)["input_ids"] == begin + ids


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_char_encodes_what_it_knows_and_refuses_the_rest_on_both_sides(written: Path, text: str) -> None:
    ours, other = tokenizer_of("char"), theirs(written / "char")
    if ours.unknown_characters(text):
        with pytest.raises(DataError):
            ours.encode(text)
        with pytest.raises(Exception, match="UNK"):
            other(text)
    else:
        ids = other(text)["input_ids"]
        assert ids == ours.encode(text)
        assert other.decode(ids) == ours.decode(ids) == text


@pytest.mark.parametrize("kind", [*KINDS, "char"])
def test_what_is_written_is_read_back_as_the_same_tokenizer(kind: str, written: Path) -> None:
    again = read_hf_tokenizer(written / kind)
    assert (again.kind, again.sha256) == (tokenizer_of(kind).kind, tokenizer_of(kind).sha256)
    assert again.ends_of_text == tokenizer_of(kind).ends_of_text
    assert again.begin_of_text == tokenizer_of(kind).begin_of_text


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mistral", "mixtral", "qwen3"])
def test_the_models_config_beside_it_changes_nothing(model_type: str, written: Path, tmp_path: Path) -> None:
    text = " it's 12345\r\n\n  naïve 日本 🙂" + END_OF_TEXT
    for kind in ("bpe", "byte", "hf"):
        folder = shutil.copytree(written / kind, tmp_path / f"{model_type}-{kind}")
        config = {"model_type": model_type, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1}
        (folder / "config.json").write_text(json.dumps(config))
        other = transformers.AutoTokenizer.from_pretrained(folder)
        assert other(text)["input_ids"] == tokenizer_of(kind).encode(text)
        assert other.decode(other(text)["input_ids"]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_knows_the_ends_and_the_length(kind: str, written: Path) -> None:
    ours, other = tokenizer_of(kind), theirs(written / kind)
    assert other.eos_token_id == ours.end_of_text
    assert other.model_max_length == 64
    assert len(other) == ours.vocab_size


def test_what_transformers_saves_again_is_still_ours(written: Path, tmp_path: Path) -> None:
    for kind in ("bpe", "byte"):
        theirs(written / kind).save_pretrained(tmp_path / kind)
        assert read_hf_tokenizer(tmp_path / kind).encode("It's 12.") == tokenizer_of(kind).encode("It's 12.")
        assert read_hf_tokenizer(tmp_path / kind).kind == kind


# ---------------------------------------------------------------- other people's folders
def test_an_old_gpt2_folder_is_our_gpt2(tmp_path: Path) -> None:
    ours = load_gpt2()
    ids = {character: i for i, character in enumerate(BYTE_OF)}
    merges = ours.vocab()["merges"]
    for line in merges:
        ids[line.replace(" ", "")] = len(ids)
    (tmp_path / "vocab.json").write_text(json.dumps({**ids, END_OF_TEXT: len(ids)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    read = read_hf_tokenizer(tmp_path)
    assert (read.kind, read.sha256) == ("gpt2", ours.sha256)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"merges\.txt is missing"):
        read_hf_tokenizer(tmp_path)


def test_a_tokenizer_saved_by_transformers_gpt2_is_our_gpt2(tmp_path: Path) -> None:
    ours = load_gpt2()
    ids = {character: i for i, character in enumerate(BYTE_OF)}
    merges = [tuple(line.split(" ")) for line in ours.vocab()["merges"]]
    for left, right in merges:
        ids[left + right] = len(ids)
    transformers.GPT2Tokenizer(vocab={**ids, END_OF_TEXT: len(ids)}, merges=merges).save_pretrained(tmp_path)
    read = read_hf_tokenizer(tmp_path)
    assert (read.kind, read.sha256) == ("gpt2", ours.sha256)


def test_nearly_ours_is_not_taken_for_ours(written: Path, tmp_path: Path) -> None:
    description = json.loads((written / "bpe" / "tokenizer.json").read_text())
    changes: list[tuple[str, Any]] = [
        ("normalizer", {"type": "NFC"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        ("model", {**description["model"], "ignore_merges": True}),
    ]
    for key, value in changes:
        (tmp_path / "tokenizer.json").write_text(json.dumps({**description, key: value}))
        assert read_hf_tokenizer(tmp_path).kind == "hf", key
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    assert isinstance(read_hf_tokenizer(tmp_path), BpeTokenizer)


@pytest.mark.parametrize("said", [True, False, None])
def test_the_token_before_a_text_is_the_config_or_else_the_post_processor(said: bool | None, tmp_path: Path) -> None:
    description = json.loads(library("llama2").to_str())
    template = {"special_tokens": {BEGIN: {"id": BEGIN, "ids": [1], "tokens": [BEGIN]}}, "pair": []}
    single = [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    description["post_processor"] = {"type": "TemplateProcessing", **template, "single": single, "pair": pair}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    description["added_tokens"] += [{"id": 700 + i, "content": f"<end{i}>", **flags} for i in range(2)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    config = {"bos_token": BEGIN, "eos_token": {"content": END}} | ({} if said is None else {"add_bos_token": said})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [701, 2, 5]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 700}))
    read = read_hf_tokenizer(tmp_path)
    assert read.begin_of_text == (None if said is False else 1)
    assert read.ends_of_text == (2, 701, 700)  # 5 is a piece of text
    assert read.token_bytes(5) != b""
    assert load_tokenizer_file(tmp_path / "tokenizer.json").sha256 == read.sha256


def test_a_folder_without_tokenizer_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        read_hf_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(DataError, match=r"tokenizer\.model is not read"):
        read_hf_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "[" * 100_000, '{"model": 3}', '{"model": {}}', '{"model": {"type": "BPE"}}']
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_files_are_named_in_one_line(name: str, content: str, written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written / "hf", tmp_path / "copy")
    (folder / name).write_text(content)
    if name != "tokenizer.json" and content.startswith("{") and content != "{":
        assert read_hf_tokenizer(folder).kind == "hf"  # an object that says nothing of ours
        return
    with pytest.raises(DataError, match=name) as caught:
        read_hf_tokenizer(folder)
    assert "\n" not in str(caught.value)
