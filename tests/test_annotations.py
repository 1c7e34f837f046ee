"""Words about runs and checkpoints: rules, merging, damage, two writers at once."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from dgsgpt import annotations as remarks
from dgsgpt import files
from dgsgpt.annotations import FILE, MAX_NAME, MAX_NOTE, MAX_TAG, MAX_TAGS, Annotation, annotate, read
from dgsgpt.checkpoint import list_checkpoints
from dgsgpt.errors import RunError
from dgsgpt.runs import Run
from tests.run_factory import make_run

STEP = "step_00000010"


@pytest.fixture
def run(runs_dir: Path) -> Run:
    return make_run(runs_dir, "a", step=20, checkpoints=(10, 20))


def test_what_is_said_is_read_again(run: Run) -> None:
    said = annotate(run, STEP, star=True, add_tags=[" Good ", "zwei"], note=" one\r\n\ttwo ", name=" The good one ")
    assert said == Annotation(True, ("Good", "zwei"), "one\n\ttwo", "The good one")
    assert read(run).of(STEP) == said
    assert read(run).starred == [STEP]
    assert not read(run).run
    annotate(run, None, note="of the run")
    assert read(run).of(None).note == "of the run"
    assert read(run).of(STEP) == said
    assert read(run).problem is None


def test_what_is_none_stays_and_empty_removes(run: Run) -> None:
    annotate(run, STEP, star=True, add_tags=["x"], note="n", name="m")
    assert annotate(run, STEP, add_tags=["y"], remove_tags=["X"]) == Annotation(True, ("y",), "n", "m")
    assert annotate(run, STEP, star=False, note="", name="", remove_tags=["y"]) == Annotation()
    assert json.loads((run.path / FILE).read_text())["checkpoints"] == {}


def test_a_tag_is_there_once_whatever_its_case(run: Run) -> None:
    assert annotate(run, STEP, add_tags=["Good", "good", " GOOD"]).tags == ("Good",)
    assert annotate(run, STEP, add_tags=["gOOD"]).tags == ("Good",)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"name": "x" * (MAX_NAME + 1)}, "name 'x+'… has 81 characters, 80 are allowed"),
        ({"name": "two\nlines"}, r"name holds the control character U\+000A"),
        ({"name": "\x1b[31mred"}, r"U\+001B"),
        ({"name": "turned \u202e around"}, r"U\+202E"),
        ({"name": "half \ud800"}, r"U\+D800"),
        ({"note": "x" * (MAX_NOTE + 1)}, "note has 10,001 characters, 10,000 are allowed"),
        ({"note": "bell \x07"}, r"U\+0007"),
        ({"add_tags": ["x" * (MAX_TAG + 1)]}, "tag .* has 33 characters, 32 are allowed"),
        ({"add_tags": ["  "]}, "tag '  ' is empty"),
        ({"add_tags": [str(n) for n in range(MAX_TAGS + 1)]}, "21 tags are too many, 20 are allowed"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line_and_changes_nothing(
    run: Run, given: dict[str, Any], problem: str
) -> None:
    before = annotate(run, STEP, name="kept")
    with pytest.raises(RunError, match=problem) as caught:
        annotate(run, STEP, star=True, **given)
    assert "\n" not in str(caught.value)
    assert read(run).of(STEP) == before


def test_the_longest_that_is_allowed_is_kept(run: Run) -> None:
    tags = [f"{n:02d}".ljust(MAX_TAG, "x") for n in range(MAX_TAGS)]
    said = annotate(run, STEP, add_tags=tags, name="n" * MAX_NAME, note="t" * MAX_NOTE)
    assert (len(said.tags), len(said.name), len(said.note)) == (MAX_TAGS, MAX_NAME, MAX_NOTE)
    assert read(run).of(STEP) == said


@pytest.mark.parametrize("name", ["step_00000030", "../../x", "step_", "x", "step_1/../step_00000010"])
def test_a_checkpoint_that_is_not_there_is_refused(run: Run, name: str) -> None:
    with pytest.raises(RunError, match="has no checkpoint"):
        annotate(run, name, star=True)
    assert not (run.path / FILE).exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"run": 5}',
        '{"checkpoints": {"step_00000010": []}}',
        '{"checkpoints": {"step_00000010": {"star": "yes"}}}',
        '{"checkpoints": {"step_00000010": {"tags": "x"}}}',
        '{"checkpoints": {"step_00000010": {"tags": [5]}}}',
        '{"run": {"name": "two\\nlines"}}',
        '{"run": {"note": null}}',
        '{"format_version": 2, "run": {}}',
    ],
)
def test_a_damaged_file_is_named_listing_works_and_nothing_overwrites_it(run: Run, text: str) -> None:
    (run.path / FILE).write_text(text)
    said = read(run)
    assert said.problem
    assert str(run.path / FILE) in said.problem
    assert "\n" not in said.problem
    assert not said.of(STEP)
    assert len(list_checkpoints(run)) == 2
    with pytest.raises(RunError, match=FILE):
        annotate(run, STEP, star=True)
    assert (run.path / FILE).read_text() == text


def test_a_run_that_has_gone_is_named(run: Run) -> None:
    with pytest.raises(RunError, match="no such run"):
        annotate(Run(run.path.with_name("gone")), None, star=True)
    assert not run.path.with_name("gone").exists()


def test_two_writers_at_once_lose_nothing(run: Run) -> None:
    def write(letter: str) -> None:
        for n in range(MAX_TAGS // 2):
            annotate(run, STEP, add_tags=[f"{letter}{n}"])

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(run).of(STEP).tags) == MAX_TAGS


def test_a_writer_that_does_not_let_go_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remarks, "LOCK_TIMEOUT_S", 0.05)
    with remarks.locked(run), pytest.raises(RunError, match="being written by another process"):
        annotate(run, STEP, star=True)


def test_a_full_disk_leaves_what_was_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = annotate(run, STEP, name="kept")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(RunError, match="No space left on device"):
        annotate(run, STEP, name="lost")
    assert read(run).of(STEP) == before


def test_words_of_many_checkpoints_are_read_once_a_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    annotate(run, STEP, star=True)
    other = make_run(run.path.parent, "b", step=20, checkpoints=(10,))
    calls: list[Run] = []
    real = remarks.read
    monkeypatch.setattr(remarks, "read", lambda run: calls.append(run) or real(run))
    paths = [*run.checkpoints(), *other.checkpoints()]
    said = remarks.of_checkpoints(paths)
    assert [bool(said[path]) for path in paths] == [True, False, False]
    assert len(calls) == 2


def test_an_archived_run_says_so_and_a_checkpoint_cannot_be(runs_dir: Path) -> None:
    run = make_run(runs_dir, "a")
    assert "archived" not in annotate(run, star=True).to_dict()
    assert annotate(run, archived=True).archived
    assert remarks.read(run).run == Annotation(star=True, archived=True)
    with pytest.raises(RunError, match="cannot be archived"):
        annotate(run, "step_00000010", archived=True)
    assert not annotate(run, archived=False).archived


@pytest.mark.parametrize("value", [1, "yes", None])
def test_archived_is_true_or_false(value: object) -> None:
    with pytest.raises(RunError, match="must be true or false"):
        remarks.from_dict({"archived": value}, "run")
