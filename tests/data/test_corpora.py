"""The embedded texts are the ones their notices speak of."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import pytest

from dgsgpt.data import corpora
from dgsgpt.errors import DataError


@pytest.mark.parametrize("name", ["austen", "plays"])
def test_an_embedded_corpus_is_what_its_record_says(name: str) -> None:
    corpus = next(c for c in corpora.list_corpora() if c.name == name)
    raw = corpora.read_text(name).encode("utf-8")
    assert hashlib.sha256(raw).hexdigest() == corpus.sha256
    assert len(raw) == corpus.bytes
    assert len(corpora.read_text(name)) == corpus.characters
    notice = resources.files("dgsgpt.data.corpora").joinpath("SOURCES.md").read_text(encoding="utf-8")
    assert corpus.sha256 in notice
    assert "Permission is hereby granted" in notice


def test_austen_carries_no_foreign_notice() -> None:
    text = corpora.read_text("austen").lower()
    assert not [word for word in ("gutenberg", "copyright", "http", "www") if word in text]


def test_only_the_licensed_texts_are_shipped() -> None:
    folder = resources.files("dgsgpt.data.corpora")
    files = {f.name for f in folder.iterdir() if not f.name.startswith("__")}
    assert files == {"austen.txt.xz", "plays.txt.xz", "SOURCES.md"}


def test_a_damaged_corpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgsgpt.data.corpora.lzma.decompress", lambda raw: b"something else")
    with pytest.raises(DataError, match="reinstall"):
        corpora._read_embedded.__wrapped__(corpora.list_corpora()[0])


def test_a_misspelt_corpus_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean austen"):
        corpora.read_text("austin")


def test_a_path_is_read_even_where_its_name_is_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "austen").write_text("my own austen")
    monkeypatch.chdir(tmp_path)
    assert corpora.read_text("./austen") == "my own austen"
    assert corpora.check_text("./austen").characters == 13
