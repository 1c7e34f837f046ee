"""The parts of the dashboard's benchmark that need no browser."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import browser, dashboard
from benchmarks.dashboard import Bench, Size
from benchmarks.measure import Setup, Timing
from benchmarks.report import Case
from dgsgpt import metric_store
from dgsgpt.metric_shelf import MetricShelf
from dgsgpt.runs import list_runs

SIZE = Size(3, 1200, 1500)


def bench_of(root: Path, quick: bool = True) -> Bench:
    page: Any = None
    return Bench(Setup(torch.device("cpu"), 0, quick), SIZE, browser.Server(root, root.parent), page)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setenv(dashboard.KEPT, str(tmp_path / "kept"))
    with dashboard.made_runs(SIZE) as folders:
        return folders


def test_runs_are_made_once_where_they_are_kept(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(list_runs(folder)) for folder in made] == [3, 1]
    monkeypatch.setattr(dashboard.synthetic, "make_runs", lambda *a: pytest.fail("made again"))
    with dashboard.made_runs(SIZE) as again:
        assert again == made
    monkeypatch.undo()
    with dashboard.made_runs(Size(1, 5, 5)) as temporary:
        assert len(list_runs(temporary[0])) == 1
    assert not temporary[0].exists()


def test_cold_means_that_no_reader_has_kept_anything(made: tuple[Path, Path]) -> None:
    for run in list_runs(made[0]):
        os.utime(run.path / "metrics.jsonl", (1e9, 1e9))
    MetricShelf().summaries([run.path for run in list_runs(made[0])])
    assert len(list(made[0].glob(f"*/{metric_store.NAME}"))) == 3
    dashboard.forget(made[0])
    assert not list(made[0].glob(f"*/{metric_store.NAME}"))


def test_a_live_run_is_live_while_it_is_needed_and_then_gone(made: tuple[Path, Path]) -> None:
    bench = bench_of(made[0])
    with dashboard.live_run(bench) as (run, beat):
        beat()
        assert run.status().state == "running"
        assert len(list_runs(made[0])) == 4
    assert len(list_runs(made[0])) == 3


def test_targets_hold_only_for_real_sizes(tmp_path: Path) -> None:
    case = Case("x", {}, {"side": Timing((1.0, 3.0, 2.0))})
    dashboard.add_seconds(case, "side", bench_of(tmp_path / "runs", quick=False).target("P10", 2.5))
    dashboard.add_seconds(case, "side", bench_of(tmp_path / "runs").target("P10", 2.5))
    first, second = case.figures
    assert (first.value, first.low, first.high, first.met) == (2.0, 1.0, 3.0, True)
    assert second.met is None


def test_memory_is_the_most_that_a_process_had() -> None:
    before = browser.peak_bytes(os.getpid())
    block = bytearray(64 << 20)
    assert browser.peak_bytes(os.getpid()) >= before
    assert browser.peak_bytes(os.getpid()) >= len(block)


def test_the_help_is_asked_for_in_a_process_and_nothing_else_is_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return real(command if len(started) == 1 else [sys.executable, "-c", "print('something else')"], **options)

    real = subprocess.run
    monkeypatch.setattr(dashboard.subprocess, "run", run)
    dashboard.show_help()
    assert started[0][0] == sys.executable
    assert started[0][-1] == "--help"
    with pytest.raises(AssertionError, match="not the help"):
        dashboard.show_help()
