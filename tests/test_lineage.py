"""Lineage: chains back to scratch or an import, what is missing on the way, and damaged files that lead in circles."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dgsgpt import files, trash
from dgsgpt.lineage import add_alone, lineage, tell
from dgsgpt.metrics import MetricsWriter
from dgsgpt.runs import Run, create_run
from tests.run_factory import add_checkpoint, config


def make(root: Path, run_id: str, parent: Any = None, steps: tuple[int, ...] = (100,), **facts: Any) -> Run:
    run = create_run(root, config(), run_id, parent=parent)
    for step in steps:
        add_checkpoint(run, step)
    if facts:
        files.write_json(run.path / "run.json", {**run.facts, **facts})
    return Run(run.path)


def came(run: str, step: int, kind: str = "fork") -> dict[str, Any]:
    return {"run": run, "step": step, "kind": kind}


@pytest.fixture
def family(runs_dir: Path) -> Path:
    make(runs_dir, "a", steps=(100, 200))
    make(runs_dir, "b", came("a", 100), steps=(100, 300))
    make(runs_dir, "c", came("b", 300, "fine-tune"))
    make(runs_dir, "d", came("a", 200))
    return runs_dir


def test_a_chain_leads_back_to_scratch(family: Path) -> None:
    chain = lineage(family).ancestors("c", 100)
    assert [(link.run, link.step, link.kind, link.place) for link in chain] == [
        ("c", 100, "fine-tune", "here"),
        ("b", 300, "fork", "here"),
        ("a", 100, "scratch", "here"),
    ]
    assert tell(chain) == "scratch → run a, step 100 → fork: run b, step 300 → fine-tune: run c, step 100"


def test_children_are_those_that_began_from_the_checkpoint(family: Path) -> None:
    known = lineage(family)
    assert [n.id for n in known.children("a")] == ["b", "d"]
    assert [n.id for n in known.children("a", 100)] == ["b"]
    assert [n.id for n in known.children("a", 300)] == []
    assert [n.id for n in known.children("b", 300)] == ["c"]


def test_an_import_ends_the_chain_and_is_named(runs_dir: Path) -> None:
    make(runs_dir, "i", steps=(0,), imported={"family": "GPT-2", "source": "gpt2", "sha256": "0"})
    make(runs_dir, "t", came("i", 0, "fine-tune"))
    chain = lineage(runs_dir).ancestors("t")
    assert (chain[-1].kind, chain[-1].imported) == ("import", "GPT-2 gpt2")
    assert tell(chain) == "import of GPT-2 gpt2 → run i, step 0 → fine-tune: run t"


def test_a_run_that_went_on_says_from_where(family: Path) -> None:
    writer = MetricsWriter(family / "a")
    writer.event("resume", 50)
    writer.event("resume", 150)
    chain = lineage(family).ancestors("c")
    assert chain[-1].resumed_at == (50,), "what came after step 100 is not in it"
    assert "run a, step 100 (resumed at 50) → " in tell(chain)
    assert lineage(family).ancestors("a")[0].resumed_at == (50, 150)


def test_what_lies_in_the_trash_is_said_and_the_chain_goes_on_behind_it(family: Path) -> None:
    trash.move_to_trash(family, Run(family / "b"))
    chain = lineage(family).ancestors("c", 100)
    assert [(link.run, link.place) for link in chain] == [("c", "here"), ("b", "in the trash"), ("a", "here")]
    assert "run b, step 300 (in the trash)" in tell(chain)
    trash.move_to_trash(family, Run(family / "a"), "step_00000100")
    assert [link.place for link in lineage(family).ancestors("c", 100)] == ["here", "in the trash", "in the trash"]


def test_what_was_deleted_is_said(family: Path) -> None:
    trash.move_to_trash(family, Run(family / "a"), "step_00000100")
    trash.empty(family)
    assert [link.place for link in lineage(family).ancestors("c")] == ["here", "here", "deleted"]
    trash.move_to_trash(family, Run(family / "b"))
    trash.empty(family)
    chain = lineage(family).ancestors("c")
    assert [(link.run, link.kind, link.place) for link in chain] == [
        ("c", "fine-tune", "here"),
        ("b", "unknown", "deleted"),
    ]


def test_another_run_of_the_same_name_is_no_parent(family: Path) -> None:
    trash.move_to_trash(family, Run(family / "a"))
    make(family, "a", created_at=time.time() + 1)
    assert lineage(family).ancestors("b")[-1].place == "replaced"
    assert lineage(family).children("a") == []


def test_circles_in_damaged_files_end(runs_dir: Path) -> None:
    make(runs_dir, "x", came("y", 100))
    make(runs_dir, "y", came("x", 100), created_at=0.0)
    make(runs_dir, "self", came("self", 100))
    known = lineage(runs_dir)
    assert [link.run for link in known.ancestors("self")] == ["self", "self"]
    assert known.ancestors("self")[-1].place == "a circle"
    assert len(known.ancestors("x")) <= 3
    assert known.ancestors("y")[-1].place == "a circle"


@pytest.mark.parametrize("parent", [5, "a", [], {}, {"run": 5, "step": 1}, {"run": "a"}, {"run": "a", "step": True}])
def test_a_parent_that_cannot_be_read_is_unknown(runs_dir: Path, parent: Any) -> None:
    make(runs_dir, "a")
    make(runs_dir, "b", parent)
    (link,) = lineage(runs_dir).ancestors("b")
    assert link.kind == "unknown"


def test_a_run_without_its_facts_is_unknown(runs_dir: Path) -> None:
    run = make(runs_dir, "a")
    (run.path / "run.json").write_text("{")
    assert tell(lineage(runs_dir).ancestors("a", 100)) == "unknown → run a, step 100"
    assert lineage(runs_dir).ancestors("none")[0].place == "deleted"


def test_a_checkpoint_outside_tells_its_own_origin(family: Path, tmp_path: Path) -> None:
    known = add_alone(lineage(family), "far", 7, {"parent": came("b", 300)}, tmp_path)
    assert [link.run for link in known.ancestors("far", 7)] == ["far", "b", "a"]
    assert known.ancestors("far", 7)[0].place == "here"


def test_all_of_it_as_plain_values(family: Path) -> None:
    told = lineage(family).to_dict()["runs"]
    assert {node["id"] for node in told} == {"a", "b", "c", "d"}
    (b,) = [node for node in told if node["id"] == "b"]
    assert (b["kind"], b["parent"], b["steps"]) == ("fork", ("a", 100), (100, 300))
    assert files.to_json(told)
