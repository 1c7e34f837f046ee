"""Reading texts: every unusable file is refused with one line that names it, and nothing ever blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.data.text import read_file, split_text, text_facts
from dgsgpt.errors import DataError


def refusal(path: Path | str) -> str:
    with pytest.raises(DataError) as e:
        read_file(path)
    message = str(e.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b" \n\n\t", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"good text\0more", "NUL at byte 9"),
        (b"a" * 200_000 + b"\0", "NUL at byte 200000"),
        (b"fine so far \xff\xfe and on", "byte 12 (0xff)"),
        (b"\xef\xbb\xbfabc\xc3", "byte 6 (0xc3)"),
        (b"surrogate \xed\xa0\x80", "byte 10"),
        ("a text".encode("utf-16"), "UTF-16"),
        (b"aaaaaaaa", "one distinct character"),
    ],
)
def test_an_unusable_file_is_refused_by_name(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    message = refusal(path)
    assert expected in message
    assert "text.txt" in message


def test_a_missing_file_or_directory_is_refused(tmp_path: Path) -> None:
    assert "no such text" in refusal(tmp_path / "none.txt")
    assert "is a directory" in refusal(tmp_path)
    assert "cannot be read" in refusal("with\0nul")
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(tmp_path / "loop")


@pytest.mark.timeout(20)
def test_pipes_and_devices_never_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    link = tmp_path / "link"
    link.symlink_to(fifo)
    for path in (fifo, link, Path("/dev/zero")):
        assert "not a regular file" in refusal(path)


@pytest.mark.timeout(20)
def test_a_sparse_file_of_ten_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as f:
        f.truncate(10 << 30)
    assert "NUL at byte 0" in refusal(path)


def test_a_text_larger_than_memory_allows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some writing " * 100)

    class Memory:
        available = 4000

    monkeypatch.setattr("dgsgpt.data.text.psutil.virtual_memory", Memory)
    assert "1,300 bytes are more than" in refusal(path)


def test_line_ends_become_lf_and_the_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\xef\xbb\xbffour")
    with path.open(encoding="utf-8-sig", newline=None) as f:
        assert read_file(path) == f.read() == "one\ntwo\nthree\n\ufefffour"


def test_a_link_to_a_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("naïve 🙂 text")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    assert read_file(tmp_path / "link.txt") == "naïve 🙂 text"


@settings(deadline=None)
@given(st.text(min_size=2), st.floats(0.001, 0.5))
def test_the_two_splits_are_the_whole_text_and_neither_is_empty(text: str, fraction: float) -> None:
    train, val = split_text(text, fraction)
    assert train + val == text
    assert train
    assert val


@settings(deadline=None)
@given(st.lists(st.text("ab ", min_size=1, max_size=9), min_size=40, max_size=80), st.floats(0.1, 0.5))
def test_the_split_is_at_a_line_start_near_the_fraction(lines: list[str], fraction: float) -> None:
    text = "\n".join(lines)
    train, val = split_text(text, fraction)
    assert train.endswith("\n")
    assert not val.startswith("\n")
    assert abs(len(val) - len(text) * fraction) <= 12


def test_a_text_without_lines_is_cut_at_the_fraction() -> None:
    train, val = split_text("ab" * 500, 0.1)
    assert (len(train), len(val)) == (900, 100)


def test_facts_count_bytes_characters_lines_and_alphabet() -> None:
    facts = text_facts("é a\nb", "x")
    assert (facts.bytes, facts.characters, facts.lines, facts.distinct) == (6, 5, 2, 5)
