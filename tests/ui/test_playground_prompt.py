"""What is said of a prompt before it is used: that of the generation that would use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.bpe import BpeTokenizer
from dgsgpt.data.tokenizer import TokenArray, Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation import prepare_prompt
from dgsgpt.runs import Run
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui import playground_prompt as prompts
from tests.checkpoint_factory import save
from tests.run_factory import make_run


@pytest.fixture
def run(runs_dir: Path) -> Run:
    return make_run(runs_dir, "one", step=20)


class Begins(ByteTokenizer):
    @property
    def begin_of_text(self) -> int | None:
        return 7


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Begins()])
@pytest.mark.parametrize("block_size", [1, 2, 3, 32])
def test_so_much_of_a_prompt_is_read_as_is_said(block_size: int, tokenizer: Tokenizer) -> None:
    ready = prepare_prompt(tokenizer, "x" * 100, block_size)
    assert prompts.room(tokenizer, block_size) == 100 - ready.cropped


def test_unknown_characters_are_listed_before_anything_is_generated(run: Run) -> None:
    save(run, 10, characters="abc")
    (entry,) = table.entries([run])
    note, usable = prompts.prompt_note(entry, "abzß", 32)
    assert not usable
    assert "z" in note
    assert "ß" in note
    note, usable = prompts.prompt_note(entry, "abc", 32)
    assert usable
    assert "3\u00a0tokens of 32" in note


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abc"), BpeTokenizer([]), Begins()])
def test_an_empty_prompt_is_refused_where_a_generation_would_refuse_it(tokenizer: Tokenizer) -> None:
    note, usable = prompts._empty(tokenizer)
    if usable:
        assert prepare_prompt(tokenizer, "", 32).ids
        return
    with pytest.raises(DgsgptError, match="cannot start from nothing; give a character"):
        prepare_prompt(tokenizer, "", 32)
    assert "cannot start from nothing; give a character" in note


def test_of_a_huge_prompt_the_end_alone_is_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 10)
    (entry,) = table.entries([run])
    seen: list[int] = []
    encode = ByteTokenizer.encode_array

    def counted(self: ByteTokenizer, text: str) -> TokenArray:
        seen.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(ByteTokenizer, "encode_array", counted)
    for _ in range(3):
        note, usable = prompts.prompt_note(entry, "y" * 1_000_000, 32)
    assert usable
    assert "all before is not" in note
    assert seen == [prompts.COUNTED]  # once, and kept
