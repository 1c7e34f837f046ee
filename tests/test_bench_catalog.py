"""Listing checkpoints: fast enough without torch, by the benchmark's own processes; robust against odd metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkpoints as bench
from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.annotations import FILE, annotate
from dgsgpt.runs import Run
from dgsgpt.train.saver import Saver
from tests.checkpoint_factory import save
from tests.run_factory import make_run


def test_many_checkpoints_are_listed_without_torch_and_quickly(tmp_path: Path) -> None:
    bench.make_checkpoints(tmp_path, 10, 100)
    told = bench.list_in_a_process(tmp_path, 1000)
    assert told["list_s"] < bench.MAX_SECONDS


def test_the_benchmark_notices_what_is_not_whole(tmp_path: Path) -> None:
    bench.make_checkpoints(tmp_path, 1, 2)
    (ck.list_checkpoints(tmp_path)[0].path / ck.MODEL).unlink()
    with pytest.raises(AssertionError, match="1 of 2 checkpoints were listed as whole"):
        bench.list_in_a_process(tmp_path, 2)


# ---------------------------------------------------------------- what is listed
def test_a_saved_checkpoint_tells_its_sizes_and_its_config(runs_dir: Path) -> None:
    path = save(make_run(runs_dir, "a", step=20), 10)
    told = ck.describe(path).metadata
    assert told["weights_bytes"] == (path / ck.MODEL).stat().st_size
    assert told["weights_bytes"] < told["bytes"] <= files.directory_bytes(path)
    assert (told["config"]["model"]["n_layer"], told["config"]["model"]["moe"]) == (2, None)
    assert told["config"]["train"]["optimizer"] == "adamw"


def test_a_checkpoint_in_a_run_is_of_that_run_whatever_it_tells(runs_dir: Path) -> None:
    run = make_run(runs_dir, "a", step=20)
    path = save(run, 10)
    fork = path.rename(make_run(runs_dir, "b", step=20).path / "checkpoints" / "step_00000030")
    (info,) = ck.list_checkpoints(runs_dir)
    assert (info.run_id, info.step, info.path) == ("b", 30, fork)
    alone = fork.rename(runs_dir.parent / "alone")
    assert (ck.describe(alone).run_id, ck.describe(alone).step) == ("a", 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, "x", [], None, -1e308])
def test_odd_figures_neither_crash_a_list_nor_become_the_best(runs_dir: Path, value: Any) -> None:
    run = make_run(runs_dir, "a", step=20)
    good, odd = save(run, 10), save(run, 20)
    told = json.loads((odd / ck.METADATA).read_text())
    told |= {"saved_at": value, "bytes": value, "step": value, "loss_val": value, "run_id": value}
    (odd / ck.METADATA).write_text(json.dumps(told))
    manifest = json.loads((odd / ck.MANIFEST).read_text())
    manifest["files"][ck.METADATA]["bytes"] = (odd / ck.METADATA).stat().st_size
    files.write_json(odd / ck.MANIFEST, manifest)
    found = ck.list_checkpoints(run)
    assert sorted((i.step, i.complete) for i in found) == [(10, True), (20, True)]
    best = ck.best_of(found)
    assert best is not None
    assert best.path == good


def test_a_checkpoint_that_vanishes_while_it_is_looked_at_has_a_problem(runs_dir: Path) -> None:
    gone = ck.describe(runs_dir / "a" / "checkpoints" / "step_00000010")
    assert gone.problem
    assert not gone.complete


# ---------------------------------------------------------------- what is kept
def keep(run: Run, keep_last: int, step: int) -> list[int]:
    """Steps that are left after the trainer's saver has saved one more."""
    saver = Saver(run, keep_last, background=False)
    saver.save(step, {}, {}, lambda model, optimizer: save(run, step, loss_val=9.0))
    saver.poll(wait=True)
    return sorted(info.step for info in ck.list_checkpoints(run))


def test_a_star_keeps_a_checkpoint_for_ever(runs_dir: Path) -> None:
    run = make_run(runs_dir, "a", step=20)
    for step in (10, 20, 30):
        save(run, step, loss_val=1.0 if step == 20 else 2.0)
    annotate(run, "step_00000010", star=True)
    assert keep(run, 1, 40) == [10, 20, 40], "the one with a star, the best and the last"
    annotate(run, "step_00000010", star=False)
    assert keep(run, 1, 50) == [20, 50]


def test_nothing_is_discarded_while_nobody_knows_what_has_a_star(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(runs_dir, "a", step=20)
    save(run, 10)
    (run.path / FILE).write_text("{")
    assert keep(run, 1, 20) == [10, 20]
    assert "old checkpoints are kept this time" in capsys.readouterr().out
    (run.path / FILE).unlink()
    assert keep(run, 1, 30) == [10, 30], "the best, which is the first, and the last"
