"""Many prompts on the playground: limits, commands, files, and what Stop and errors leave."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from dgsgpt.checkpoint import load_checkpoint
from dgsgpt.errors import DataError
from dgsgpt.generation import generate
from dgsgpt.runs import Run
from dgsgpt.ui import batch_run, batch_view
from dgsgpt.ui.batch_run import Job
from dgsgpt.ui.checkpoint_list import Entry, entries
from tests.checkpoint_factory import save
from tests.run_factory import make_run

RULES: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.9, "top_k": 20, "top_p": None, "seed": 5, "stop": None}


class StopPressedError(Exception):
    """What a press of Stop is."""


class Slot:
    """A place for a bar; after `draws` of them it is stopped."""

    def __init__(self, draws: int = 10**9) -> None:
        self.said: list[tuple[float, str]] = []
        self._draws = draws

    def progress(self, share: float, text: str) -> None:
        self.said.append((share, text))
        if len(self.said) > self._draws:
            raise StopPressedError


@pytest.fixture
def entry(runs_dir: Path) -> Entry:
    run: Run = make_run(runs_dir, "one", step=20)
    save(run, 20, characters="\n abc")
    (found,) = entries([run])
    return found


def job(entry: Entry, *prompts: str, samples: int = 1, **rules: Any) -> Job:
    return Job(entry.ref, list(enumerate(prompts, 1)), samples, 4, {**RULES, **rules})


# ---------------------------------------------------------------- what is asked
def test_prompts_are_read_by_the_rules_of_the_command_and_keep_their_lines() -> None:
    assert batch_run.read(b"one\n\n two\r\n", "p.txt", 1) == [(1, "one"), (3, " two")]
    assert batch_run.read(b'\n{"prompt": "a\\nb"}\n', "p.jsonl", 1) == [(2, "a\nb")]


@pytest.mark.parametrize(
    ("data", "name", "samples", "said"),
    [
        (b" \n\n", "p.txt", 1, "p.txt: holds no prompt"),
        (b"\xff\xfe", "p.txt", 1, "p.txt: is not UTF-8 at byte 0"),
        (b'{"prompt": "a"}\n{"text": "b"}', "p.jsonl", 1, 'p.jsonl: line 2 must be a JSON object with a text under'),
        (b"a\n" * 1001, "p.txt", 1, "has 1,001 prompts; this page takes at most 1,000"),
        (b"a\n" * 600, "p.txt", 4, "are 2,400 texts; this page writes at most 2,000"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_one_line_with_the_rule(data: bytes, name: str, samples: int, said: str) -> None:
    with pytest.raises(DataError) as raised:
        batch_run.read(data, name, samples)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_writes_the_same(entry: Entry) -> None:
    rules = {**RULES, "stop": ["\n\n", "a b"], "min_p": None, "repetition_penalty": 1.0}
    words = shlex.split(batch_run.command(entry, "my prompts.txt", 3, 16, rules))
    assert words == [
        "dgsgpt", "sample", entry.ref, "--prompts", "my prompts.txt", "--out", "texts.jsonl", "--samples", "3",
        "--batch-size", "16", "--max-new-tokens", "6", "--temperature", "0.9", "--top-k", "20", "--seed", "5",
        "--stop", "\n\n", "--stop", "a b",
    ]  # fmt: skip


def test_the_amount_or_the_limits_are_said() -> None:
    assert "3\u00a0prompts, 6\u00a0texts of at most 6\u00a0tokens" in batch_view.amount([(1, "a")] * 3, 2, RULES)
    assert "2\u202f000 texts on this page" in batch_view.amount([], 1, RULES)


# ---------------------------------------------------------------- the run
def test_each_text_is_the_one_its_prompt_and_seed_give_alone(entry: Entry) -> None:
    asked, slot, drawn = job(entry, "ab", "c", "a" * 40, samples=2), Slot(), list[int]()
    batch_run.run(asked, entry, slot, lambda: drawn.append(1))  # type: ignore[arg-type]
    assert asked.done
    assert asked.problem is None
    opened = load_checkpoint(entry.info.path)
    for row, record in enumerate(asked.in_order()):
        assert (record["prompt"], record["sample"], record["seed"]) == (asked.prompts[row // 2][1], row % 2, 5 + row)
        alone = generate(opened.model, opened.tokenizer, record["prompt"], **{**asked.rules, "seed": record["seed"]})
        assert record["text"] == alone
    assert asked.in_order()[-1]["cropped"] > 0
    assert slot.said[-1][0] == 1
    assert "6\u00a0texts done" in batch_run.progress_text(asked, 1.0)


def test_stop_keeps_the_texts_that_are_finished(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "_FRAME_S", 0.0)  # a drawing for each token
    asked = job(entry, *["ab"] * 8, max_new_tokens=4)
    with pytest.raises(StopPressedError):
        batch_run.run(asked, entry, Slot(6), lambda: None)  # type: ignore[arg-type]
    assert sorted(asked.records) == [0, 1, 2, 3]  # the first batch
    assert not asked.done
    assert asked.problem is None
    batch_run.run(again := job(entry, "ab"), entry, Slot(), lambda: None)  # type: ignore[arg-type]
    assert again.done  # nobody waits for the one that was stopped


def test_a_prompt_that_cannot_be_used_is_named_by_its_line(entry: Entry) -> None:
    asked = Job(entry.ref, [(1, "ab"), (7, "xyz")], 1, 4, RULES)
    batch_run.run(asked, entry, Slot(), lambda: None)  # type: ignore[arg-type]
    assert asked.problem is not None
    assert asked.problem.startswith("line 7: ")
    assert "'x'" in asked.problem
    assert not asked.records


# ---------------------------------------------------------------- files and table
def test_files_have_all_texts_and_the_table_shows_them_as_they_are(entry: Entry) -> None:
    asked = job(entry)
    asked.records[0] = {
        "line": 1, "prompt": 'a,"b"', "sample": 0, "text": "<b>**x**\né", "tokens": 2, "seed": 5,
        "finish_reason": "end_of_text", "cropped": 0,
    }  # fmt: skip
    records = asked.in_order()
    (line,) = batch_run.as_jsonl(records).splitlines()
    assert json.loads(line) == {name: value for name, value in asked.records[0].items() if name != "line"}
    (row,) = csv.DictReader(io.StringIO(batch_run.as_csv(records)))
    assert row == {name: str(value) for name, value in asked.records[0].items()}
    assert batch_view.frame(records).to_dict("records") == [
        {"prompt": 'a,"b"', "text": "<b>**x**\né", "tokens": 2, "seed": 5, "ended": "the model ended it"}
    ]
