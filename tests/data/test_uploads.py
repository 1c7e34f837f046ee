"""Uploads end below the datasets folder under a harmless name, or nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.data.prepare import list_uploads, save_upload
from dgsgpt.data.text import read_file
from dgsgpt.data.uploads import safe_name
from dgsgpt.errors import DataError


@settings(deadline=None)
@given(st.one_of(st.text(), st.from_regex(r"(\.\./|[A-Za-z\\/. -])*", fullmatch=True), st.just("CON.txt")))
def test_any_name_becomes_a_safe_one(name: str) -> None:
    safe = safe_name(name, b"content")
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", safe)
    assert safe.split(".")[0].lower() not in {"con", "nul", "aux", "prn"}


def test_a_readable_name_is_kept() -> None:
    assert safe_name("My Book (2nd).txt", b"") == "My-Book-2nd.txt"
    assert safe_name("C:\\texts\\moby.txt", b"") == "moby.txt"
    assert safe_name("../../etc/passwd", b"") == "passwd"
    assert safe_name("книга.txt", b"x").startswith("t")


def test_an_upload_can_be_read_back(tmp_path: Path) -> None:
    path = save_upload("../a book.txt", b"some text\n", tmp_path)
    assert path == tmp_path / "uploads" / "a-book.txt"
    assert read_file(path) == "some text\n"
    assert save_upload("a book.txt", b"some text\n", tmp_path) == path
    other = save_upload("a book.txt", b"another text\n", tmp_path)
    assert other != path
    assert read_file(path) == "some text\n"
    assert list_uploads(tmp_path) == sorted([path, other])


@pytest.mark.parametrize("content", [b"", b"\0binary", b"\xff\xff", b"aaaa"])
def test_an_unusable_upload_is_refused_and_not_kept(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^my file\.txt: "):
        save_upload("my file.txt", content, tmp_path)
    assert list((tmp_path / "uploads").iterdir()) == []
