"""The catalogue on the command line: references, words, damage that is named, the trash, lineage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dgsgpt import annotations, console
from dgsgpt.catalog_commands import COMMANDS, find_target
from dgsgpt.checkpoint import list_checkpoints
from dgsgpt.cli import main
from dgsgpt.errors import DgsgptError
from dgsgpt.runs import Run, list_runs
from tests.checkpoint_factory import flip_a_bit, save
from tests.run_factory import make_run, write_status

GROUP = type(main)(name="dgsgpt", commands=list(COMMANDS))


def dgsgpt(*arguments: object, code: int = 0, typed: str = "") -> Result:
    result = CliRunner().invoke(GROUP, list(map(str, arguments)), input=typed)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def as_json(*arguments: object, code: int = 0) -> Any:
    return json.loads(dgsgpt(*arguments, "--json", code=code).stdout)


def refused(*arguments: object) -> str:
    stderr = dgsgpt(*arguments, code=2).stderr
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    return stderr


@pytest.fixture
def run(runs_dir: Path) -> Run:
    run = make_run(runs_dir, "a", step=30)
    for step in (10, 20, 30):
        save(run, step)
    return run


# ---------------------------------------------------------------- references
def test_a_reference_is_a_run_a_step_of_it_or_a_path(run: Run, runs_dir: Path, tmp_path: Path) -> None:
    path = run.checkpoints()[0]
    assert (find_target("a", runs_dir).owner, find_target("a", runs_dir).path) == (run, None)
    for reference in ("a@10", "a@0010", str(path)):
        target = find_target(reference, runs_dir)
        assert (target.owner, target.path, target.label) == (run, path, "a@10")
    assert find_target(str(run.path), tmp_path).owner == run
    (path / "manifest.json").unlink()
    assert find_target("a@10", runs_dir).path == path, "a damaged one can be deleted too"
    outside = shutil.copytree(run.checkpoints()[1], tmp_path / "moved")
    assert find_target(str(outside), runs_dir).run is None
    with pytest.raises(DgsgptError, match="is not in a run's directory"):
        _ = find_target(str(outside), runs_dir).owner


@pytest.mark.parametrize("reference", ["b", "a@", "a@x", "a@40", "a@²", "@10", "../a", "b@10", "a@" + "9" * 5000, ""])
def test_what_is_not_there_is_one_line(run: Run, reference: str) -> None:
    for command in ("annotate", "verify", "delete", "lineage"):
        refused(command, reference)


def test_the_steps_that_are_there_are_named(run: Run) -> None:
    assert "there are 10, 20, 30" in refused("verify", "a@40")


# ---------------------------------------------------------------- words
def test_words_are_set_shown_and_listed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--star", "--tag", "[red]x[/red]", "--tag", "two", "--note", "one\ntwo", "--name", ":smile: it"]
    said = as_json("annotate", "a@20", *given)
    assert said == {
        "reference": "a@20", "star": True, "tags": ["[red]x[/red]", "two"], "note": "one\ntwo", "name": ":smile: it"
    }  # fmt: skip
    assert as_json("annotate", "a@20") == said
    shown = dgsgpt("annotate", "a@20", "--untag", "TWO", "--note", "").stdout
    assert shown == "a@20  ★  :smile: it  [[red]x[/red]]\n"
    console.print_checkpoints(list_checkpoints(run))
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split()[-2:] == ["name", "tags"]
    assert ":smile: it" in rows[2]
    assert "[red]x[/red]" in rows[2], "as it was written, never as markup"
    assert "★" in rows[2]
    assert "★" not in rows[1] + rows[3]


def test_a_table_without_words_has_no_columns_for_them(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    console.print_checkpoints(list_checkpoints(run))
    assert "tags" not in capsys.readouterr().out


def test_damaged_words_are_named_and_the_table_is_printed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / annotations.FILE).write_text("{")
    console.print_checkpoints(list_checkpoints(run))
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4
    assert printed.err.startswith("warning: ")
    assert annotations.FILE in printed.err
    assert annotations.FILE in refused("annotate", "a@10")
    assert annotations.FILE in refused("annotate", "a@10", "--star")


def test_a_text_that_breaks_a_rule_is_refused(run: Run) -> None:
    assert "80 are allowed" in refused("annotate", "a", "--name", "x" * 81)


# ---------------------------------------------------------------- trust
def test_whole_ones_are_said_to_be_whole(run: Run) -> None:
    found = as_json("verify", "a")
    assert (found["whole"], found["instead"]) == (True, None)
    assert [c["problem"] for c in found["checkpoints"]] == [None] * 3
    assert dgsgpt("verify", "a@20").stdout == "step_00000020: whole, every file as it was saved\n"


def test_damage_is_named_and_the_newest_whole_one_offered(run: Run) -> None:
    flip_a_bit(run.checkpoints()[2])
    message = refused("verify", "a@30")
    assert "step_00000030: model.safetensors is damaged" in message
    assert "the newest whole one is a@20" in message
    found = as_json("verify", "a", code=2)
    assert (found["whole"], found["instead"]) == (False, "a@20")
    assert [bool(c["problem"]) for c in found["checkpoints"]] == [True, False, False]
    for path in run.checkpoints()[:2]:
        flip_a_bit(path)
    message = refused("verify", "a")
    assert "and 2 more: step_00000020, step_00000010" in message
    assert "no other one of the run is whole" in message


def test_a_checkpoint_that_was_moved_away_is_verified(run: Run, tmp_path: Path) -> None:
    outside = shutil.copytree(run.checkpoints()[1], tmp_path / "moved")
    assert as_json("verify", outside)["whole"]
    flip_a_bit(outside)
    assert "moved: model.safetensors is damaged" in refused("verify", outside)


def test_a_run_without_checkpoints_cannot_be_verified(runs_dir: Path) -> None:
    make_run(runs_dir, "empty", step=20)
    assert "has no checkpoints yet" in refused("verify", "empty")


# ---------------------------------------------------------------- trash
def test_a_checkpoint_goes_and_comes_back(run: Run, runs_dir: Path) -> None:
    item = as_json("delete", "a@20")
    assert (item["run"], item["step"], item["problem"]) == ("a", 20, None)
    assert [c.step for c in list_checkpoints(run)] == [30, 10]
    assert as_json("trash") == [item]
    assert item["item"] in dgsgpt("trash").stdout
    assert as_json("restore", "a@20") == {"item": item["item"], "path": str(run.checkpoints()[1])}
    assert [c.step for c in list_checkpoints(run)] == [30, 20, 10]
    assert "is empty" in dgsgpt("trash").stdout


def test_a_whole_run_goes_only_when_that_is_said(run: Run, runs_dir: Path) -> None:
    assert "--yes" in refused("delete", "a")
    assert list_runs(runs_dir) == [run]
    assert "back by `dgsgpt restore " in dgsgpt("delete", "a", "--yes").stdout
    assert list_runs(runs_dir) == []
    dgsgpt("restore", "a")
    assert list_runs(runs_dir) == [run]


def test_a_terminal_is_asked(run: Run, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgsgpt.catalog_commands._on_terminal", lambda: True)
    dgsgpt("delete", "a", code=1, typed="n\n")
    assert list_runs(runs_dir) == [run]
    dgsgpt("delete", "a", typed="y\n")
    assert list_runs(runs_dir) == []


def test_a_live_run_is_refused(run: Run) -> None:
    write_status(run, "running", 30)
    assert "dgsgpt stop a" in refused("delete", "a", "--yes")
    assert "newest whole checkpoint" in refused("delete", "a@30")


def test_for_good_only_when_that_is_said(run: Run) -> None:
    one, two = as_json("delete", "a@10"), as_json("delete", "a@20")
    assert "--yes" in refused("trash", "--empty")
    assert as_json("trash", "--empty", one["item"], "--yes") == {"items": [one["item"]], "bytes": one["bytes"]}
    assert as_json("trash") == [two]
    assert "1\u00a0item deleted for good" in dgsgpt("trash", "--empty", "--yes").stdout
    assert as_json("trash") == []
    assert "no item" in refused("restore", "a@10")
    assert "no item" in refused("trash", "x", "--empty", "--yes")


# ---------------------------------------------------------------- lineage
def test_lineage_is_told(run: Run, runs_dir: Path) -> None:
    fork = make_run(runs_dir, "b", step=20)
    facts = json.loads((fork.path / "run.json").read_text())
    (fork.path / "run.json").write_text(json.dumps({**facts, "parent": {"run": "a", "step": 20, "kind": "fork"}}))
    save(fork, 30)
    assert dgsgpt("lineage", "b@30").stdout == "scratch → run a, step 20 → fork: run b, step 30\n"
    assert dgsgpt("lineage", "a@20").stdout == "scratch → run a, step 20\n  → fork: run b, from step 20\n"
    found = as_json("lineage", "a")
    assert [link["run"] for link in found["ancestors"]] == ["a"]
    assert found["children"] == [{"run": "b", "step": 20, "kind": "fork"}]
    assert len(dgsgpt("lineage").stdout.splitlines()) == 2
    assert {node["id"] for node in as_json("lineage")["runs"]} == {"a", "b"}


def test_lineage_of_a_checkpoint_that_was_moved_away(run: Run, tmp_path: Path) -> None:
    metadata = {"parent": {"run": "a", "step": 20, "kind": "fine-tune"}}
    outside = save(make_run(tmp_path / "other", "far", step=20), 10, **metadata).rename(tmp_path / "moved")
    assert dgsgpt("lineage", outside).stdout == "scratch → run a, step 20 → fine-tune: run far, step 10\n"


def test_lineage_without_runs(runs_dir: Path) -> None:
    assert "no runs" in dgsgpt("lineage").stdout
