"""Synthetic runs: the same for the same seed, in the form the trainer writes, openable like any run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import synthetic
from benchmarks.synthetic_text import lines_of
from dgsgpt.metrics import METRICS, MetricsTail, read_events
from dgsgpt.runs import Run, list_runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.make_runs(folder, 16, 300, seed=5)
    return folder


def by_number(root: Path) -> list[Run]:
    return sorted(list_runs(root), key=lambda run: run.id[-4:])


def test_lines_are_those_that_json_writes() -> None:
    columns = {"step": np.array([1, 2]), "a/b": np.array([0.1, 1e-7])}
    text = lines_of(columns, {1: {"a/b": None, "loss/val": 2.5}})
    assert text.decode().splitlines() == [
        json.dumps({"step": 1, "a/b": 0.1}), json.dumps({"step": 2, "a/b": None, "loss/val": 2.5})
    ]  # fmt: skip
    assert lines_of({"step": np.array([], int)}, {}) == b""


def test_the_same_seed_makes_the_same_files(root: Path, tmp_path: Path) -> None:
    for seed, same in ((5, True), (6, False)):
        synthetic.make_runs(tmp_path / str(seed), 2, 300, seed=seed)
        for run in list_runs(tmp_path / str(seed)):
            theirs = root / run.id
            assert all((run.path / f).read_bytes() == (theirs / f).read_bytes() for f in ("config.yaml", "run.json"))
            assert ((run.path / METRICS).read_bytes() == (theirs / METRICS).read_bytes()) is same


def test_each_run_opens_and_tells_what_it_was_made_to(root: Path) -> None:
    for number, run in enumerate(by_number(root)):
        plan = synthetic.plan_run(number, 300)
        status = run.status()
        tail = MetricsTail(run.path)
        tail.refresh()
        assert run.config == plan.config
        assert run.facts["synthetic"] is True
        assert (status.state, status.step, status.max_steps) == (plan.state, plan.lines, 300)
        assert (len(tail), tail.skipped, tail.columns["step"][-1]) == (plan.lines, 0, plan.step)
        losses = tail.columns["loss/train"]
        assert np.nanmean(losses[:10]) > np.nanmean(losses[-10:])
        assert np.isfinite(tail.columns["loss/val"]).sum() == plan.lines
        assert ("moe/max_load" in tail.columns) is (plan.config.model.moe is not None)
        assert read_events(run.path)
        assert run.checkpoints() == []


def test_some_fail_some_stop_and_some_lines_have_no_loss(root: Path) -> None:
    runs = by_number(root)
    assert {run.status().state for run in runs} == {"finished", "stopped", "failed"}
    assert len({run.config.train.seed for run in runs}) == synthetic.SEEDS
    tail = MetricsTail(runs[3].path)
    tail.refresh()
    assert 1 <= np.isnan(tail.columns["loss/train"]).sum() <= 3
    failed = next(run for run in runs if run.status().state == "failed")
    assert failed.status().error
    assert read_events(failed.path, ("health",))


def test_steps_may_lie_between_lines(tmp_path: Path) -> None:
    (run,) = synthetic.make_runs(tmp_path, 1, 20, log_every=50)
    tail = MetricsTail(run.path)
    tail.refresh()
    assert tail.columns["step"].tolist() == list(range(50, 1001, 50))
    assert run.config.train.steps == 1000
