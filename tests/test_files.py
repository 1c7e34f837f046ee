from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt import files


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    files.write_json(target, {"v": 1})

    def full_disk(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_json(target, {"v": 2})
    assert files.read_json(target) == {"v": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_refuses_what_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.to_json({"x": float("nan")})


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": ' + "[" * 100_000, "\xff\xfe"])
def test_damaged_json_reads_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    assert files.read_json(path) is None


@given(cut=st.integers(0, 60))
def test_a_torn_last_line_waits_for_its_rest(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "m.jsonl"
    whole = b"".join(b'{"step": %d}\n' % i for i in range(5))
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    first = list(files.read_lines(path))
    offset = first[-1][1] if first else 0
    path.write_bytes(whole)
    rest = list(files.read_lines(path, offset))
    assert [line for line, _ in first + rest] == whole.split(b"\n")[:-1]


def test_an_oversized_line_is_skipped_and_the_next_one_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"a\n" + b"x" * 3_000_000 + b"\nb\n")
    lines = list(files.read_lines(path, max_line=1000))
    assert [line for line, _ in lines] == [b"a", None, b"b"]
    assert lines[-1][1] == path.stat().st_size


def test_append_line_is_one_line_a_call(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    files.append_line(path, {"text": "two\nlines"})
    files.append_line(path, {"n": 2})
    assert len(path.read_text().splitlines()) == 2


def test_append_to_a_full_device_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space"):
        files.append_line(Path("/dev/full"), {"a": 1})


def test_tail_text_shows_the_end_and_survives_bad_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %d\n" % i for i in range(1000)) + b"\xff end")
    tail = files.tail_text(path, 3)
    assert tail == ["line 998", "line 999", "\ufffd end"]
    assert files.tail_text(tmp_path / "none") == []
