"""A text of many documents: each is tokenized on its own, and where it begins is kept beside the tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.config import DataConfig, build_config
from dgsgpt.data import prepare
from dgsgpt.data.text import split_documents
from dgsgpt.errors import DataError

END = "<|endoftext|>"
DOCUMENTS = [f"Story {i}: naïve 日本,\n{'tomorrow ' * (i % 7)}and {i * i}" + END for i in range(120)]
TEXT = "\n".join(DOCUMENTS) + "\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "stories.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def data(path: Path | str, kind: str = "bpe", separator: str | None = END, **values: Any) -> DataConfig:
    tokenizer = {"kind": kind, "vocab_size": 400}
    return DataConfig.model_validate(
        {"corpus": str(path), "tokenizer": tokenizer, "document_separator": separator, **values}
    )


# ---------------------------------------------------------------- dividing
@settings(deadline=None)
@given(st.text("ab-\n", max_size=40), st.sampled_from(["-", "--", "-\n", "\n\n", "a.b", "aba"]))
def test_documents_are_the_text_and_none_is_empty(text: str, separator: str) -> None:
    documents = list(split_documents(text, separator))
    assert "".join(documents) == text
    contents = ["".join(d.split(separator)) for d in documents]
    assert [c for c in contents if c] == [piece for piece in text.split(separator) if piece]
    assert all(contents) or len(contents) == 1
    assert all(d.endswith(separator) for d in documents[:-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b|", ["a|", "b|"]),
        ("a|b", ["a|", "b"]),
        ("a||b|||", ["a||", "b|||"]),
        ("||a|b", ["||a|", "b"]),
        ("|||", ["|||"]),
        ("a", ["a"]),
        ("", []),
    ],
)
def test_a_separator_belongs_to_the_document_it_ends_and_empty_documents_are_none(
    text: str, expected: list[str]
) -> None:
    assert list(split_documents(text, "|")) == expected
    assert list(split_documents(text, None)) == ([text] if text else [])


def test_a_separator_is_no_regular_expression_and_a_long_run_of_it_needs_no_memory() -> None:
    assert list(split_documents("a.b(c.b(d", ".b(")) == ["a.b(", "c.b(", "d"]
    assert [len(d) for d in split_documents("a" + "\n" * 3_000_000 + "b", "\n\n")] == [3_000_001, 1]


# ---------------------------------------------------------------- preparing
@pytest.mark.parametrize("kind", ["bpe", "char", "byte", "gpt2"])
def test_each_document_is_tokenized_on_its_own(kind: str, text: Path, tmp_path: Path) -> None:
    dataset = prepare.prepare(data(text, kind), 16, tmp_path)
    seen = ""
    for split in ("train", "val"):
        ids, starts = dataset.tokens(split), dataset.document_starts(split)
        assert starts is not None
        assert isinstance(starts, np.memmap)
        assert not starts.flags.writeable
        documents = [dataset.tokenizer.decode(part.tolist()) for part in np.split(ids, starts[1:])]
        assert [dataset.tokenizer.encode(d) for d in documents] == [p.tolist() for p in np.split(ids, starts[1:])]
        part = "".join(documents)
        assert documents == list(split_documents(part, END))
        assert len(documents) == dataset.meta[f"{split}_documents"]
        seen += part
    assert seen == TEXT


def test_the_split_stays_where_it_is_and_cuts_a_document_in_two(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i}\n" + "@\n" * (i % 50 == 49) for i in range(220)))
    whole, divided = (prepare.prepare(data(path, "byte", s), 16, tmp_path / "sets") for s in (None, "@\n"))
    for split in ("train", "val"):
        assert np.array_equal(whole.tokens(split), divided.tokens(split))
    assert whole.document_starts("train") is whole.document_starts("val") is None
    assert (divided.meta["train_documents"], divided.meta["val_documents"]) == (4, 2)
    assert bytes(divided.tokens("val")[: divided.document_starts("val")[1]].tolist()).endswith(b"@\n")  # type: ignore[index]


def test_a_document_is_joined_from_blocks(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare.prepare(data(text, "gpt2"), 16, tmp_path / "a")
    monkeypatch.setattr("dgsgpt.data.dataset._BLOCK_CHARACTERS", 10)
    pieces = prepare.prepare(data(text, "gpt2"), 16, tmp_path / "b")
    for split in ("train", "val"):
        assert np.array_equal(whole.tokens(split), pieces.tokens(split))
        assert np.array_equal(whole.document_starts(split), pieces.document_starts(split))


def test_without_a_separator_datasets_and_fingerprints_are_those_of_before(text: Path, tmp_path: Path) -> None:
    default, other = DataConfig(), data("any", "byte", None, val_fraction=0.2)
    known = "bc4d840868af7a1fc0095f5f0ea128e3941284b534ce8dc40d507c0d5044d81f"
    assert prepare.fingerprint(default, "0" * 64) == known
    known = "595e4975a067c5022cd0ffd708aae0189c28d8ffc919432f10b0b86a4b6ad43b"
    assert prepare.fingerprint(other, "f" * 64) == known
    plain = prepare.prepare(data(text, "byte", None), 16, tmp_path)
    assert {p.name for p in plain.path.iterdir()} == {"train.bin", "val.bin", "meta.json", "tokenizer.json"}
    assert not [key for key in plain.meta if "doc" in key]
    made = {prepare.prepare(data(text, "byte", s), 16, tmp_path).id for s in (None, END, "\n")}
    assert len(made) == 3


def test_a_separator_that_never_occurs_is_refused_in_one_line(text: Path, tmp_path: Path) -> None:
    config = build_config({"data": data(text, "byte", "\r\n--").model_dump()})
    for call in (lambda: prepare.prepare(config.data, 16, tmp_path), lambda: prepare.resolve(config, tmp_path)):
        with pytest.raises(DataError, match=r"data\.document_separator='\\r\\n--' must occur in the text; set it") as e:
            call()
        assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_named_by_its_id_keeps_its_documents(text: Path, tmp_path: Path) -> None:
    made, plain = (prepare.prepare(data(text, "byte", s), 16, tmp_path).id for s in ("\n", None))
    assert prepare.prepare(data(made, "byte", "\n"), 16, tmp_path).id == made
    with pytest.raises(DataError, match=r'document_separator="\\n", not null; set it to "\\n"') as e:
        prepare.prepare(data(made, "byte", None), 16, tmp_path)
    assert "\n" not in str(e.value)
    with pytest.raises(DataError, match=rf"document_separator=null, not {END[:1]}.*set it to null"):
        prepare.prepare(data(plain, "byte"), 16, tmp_path)


def test_damaged_document_starts_are_found_and_mended(text: Path, tmp_path: Path) -> None:
    dataset = prepare.prepare(data(text, "byte"), 16, tmp_path)
    dataset.verify()
    path = dataset.path / "train.docs.bin"
    before = path.read_bytes()
    assert np.frombuffer(before, "<u8").tolist() == dataset.document_starts("train").tolist()  # type: ignore[union-attr]
    path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    with pytest.raises(DataError, match=r"train\.docs\.bin: is damaged \(its sha256"):
        dataset.verify()
    path.write_bytes(before[:-8])
    with pytest.raises(DataError, match=r"train\.docs\.bin: has [\d,]+ bytes, not"):
        prepare.open_dataset(dataset.path)
    path.unlink()
    with pytest.raises(DataError, match=r"train\.docs\.bin: is missing"):
        dataset.document_starts("train")
    assert prepare.prepare(data(text, "byte"), 16, tmp_path).id == dataset.id
    assert path.read_bytes() == before
    meta = json.loads((dataset.path / "meta.json").read_text())
    (dataset.path / "meta.json").write_text(json.dumps({**meta, "val_documents": None}))
    with pytest.raises(DataError, match="val_documents is missing or not int"):
        prepare.open_dataset(dataset.path)
