"""Prompts from a file, and what was written to them as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgsgpt.data.text import shown
from dgsgpt.errors import DataError

if TYPE_CHECKING:
    from dgsgpt.generation.batch import Result

_MOST_BYTES = 1 << 30


def read_prompts(path: Path) -> list[str]:
    """The prompts of a UTF-8 file: one a line, or of a .jsonl the text under "prompt" of each line's object.

    Lines without any character but white space are left out.

    Raises:
        DataError: the file is missing, no regular file, unreadable, larger than 1 GiB, or as `parse_prompts`.
    """
    name = shown(path)
    try:
        if not path.is_file():
            raise DataError(f"{name}: is not a file; give a text with one prompt a line, or a .jsonl")
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{name}: is larger than 1 GiB; give the prompts in parts")
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"{name}: cannot be read: {e.strerror or e}") from None
    return [prompt for _, prompt in parse_prompts(data, str(path))]


def parse_prompts(data: bytes, file: str) -> list[tuple[int, str]]:
    """The prompts in the bytes of a file of this name, each with the number of its line; see `read_prompts`.

    Raises:
        DataError: it is not UTF-8, without prompts, or a line of a .jsonl is no object with a text under "prompt".
    """
    name = shown(file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{name}: is not UTF-8 at byte {e.start:,}; save it as UTF-8") from None
    written = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [(number, line) for number, line in enumerate(written, 1) if line.strip()]
    if not lines:
        raise DataError(f"{name}: holds no prompt; write one on each line")
    if not file.lower().endswith(".jsonl"):
        return lines
    return [(number, _prompt(line, f"{name}: line {number}")) for number, line in lines]


def _prompt(line: str, place: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not isinstance(prompt, str):
        raise DataError(f'{place} must be a JSON object with a text under "prompt", as {{"prompt": "Once"}}')
    return prompt


def in_order(results: Iterable[Result]) -> Iterator[Result]:
    """Results by their row, each as soon as all before it are done."""
    early: dict[int, Result] = {}
    following = 0
    for result in results:
        early[result.row] = result
        while following in early:
            yield early.pop(following)
            following += 1


def to_record(result: Result, prompt: str) -> dict[str, Any]:
    """What a JSON line tells of a result."""
    stats = result.stats
    return {
        "prompt": prompt,
        "sample": result.sample,
        "text": result.text,
        "tokens": stats.tokens,
        "seed": stats.seed,
        "finish_reason": stats.finish_reason,
        "cropped": stats.cropped,
    }


@contextmanager
def open_lines(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes objects as JSON lines to a new file at `path`, or to the standard output; each line at once.

    Raises:
        DataError: the file exists or cannot be written.
    """
    if path is None:
        yield lambda record: click.echo(json.dumps(record, ensure_ascii=False))
        return
    try:
        file = path.open("x", encoding="utf-8", buffering=1)
    except FileExistsError:
        raise DataError(f"{shown(path)}: exists; give another name, or remove it") from None
    except OSError as e:
        raise DataError(f"{shown(path)}: cannot be written: {e.strerror or e}") from None

    def write(record: dict[str, Any]) -> None:
        try:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as e:
            raise DataError(f"{shown(path)}: cannot be written: {e.strerror or e}") from None

    with file:
        yield write


__all__ = ["in_order", "open_lines", "parse_prompts", "read_prompts", "to_record"]
