"""Metrics of many runs: curves and summaries equal what the lines say, cost nothing twice, and memory is bounded."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from dgsgpt import metric_shelf
from dgsgpt.curves import decimate, ema
from dgsgpt.metric_shelf import MetricShelf, file_stamp
from dgsgpt.metric_summary import MetricSummary, summarise
from dgsgpt.metrics import METRICS, MetricsWriter, read_metrics


def run_of(root: Path, name: str, count: int, level: float = 2.0) -> Path:
    path = root / name
    path.mkdir()
    losses = level + np.random.default_rng(len(name)).normal(0, 0.1, count) + 3 / np.arange(1, count + 1)
    lines = [{"step": n + 1, "tokens": 128 * (n + 1), "loss/train": float(loss)} for n, loss in enumerate(losses)]
    for line in lines[9::10]:
        line |= {"loss/val": line["loss/train"] + 0.1, "loss/train": None if line["step"] == 50 else line["loss/train"]}
    (path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_curve_is_smoothed_on_all_points_before_it_is_thinned_out(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a", 3000)
    frame = read_metrics(run)[["tokens", "loss/train"]].dropna()
    x, y = decimate(frame["tokens"].to_numpy(), ema(frame["loss/train"].to_numpy(), 0.9), 200)
    found = MetricShelf().curve(run, "loss/train", "tokens", 0.9, 200)
    assert (found.x.tolist(), found.y.tolist(), found.total) == (x.tolist(), y.tolist(), 2999)
    assert len(found.x) <= 200
    assert MetricShelf().curve(run, "no/such").total == 0


def test_a_curve_is_made_once_until_the_run_writes_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, shelf, made = run_of(tmp_path, "a", 500), MetricShelf(), []
    draw = metric_shelf.draw_curve
    monkeypatch.setattr(metric_shelf, "draw_curve", lambda *a: made.append(a) or draw(*a))
    first = shelf.curve(run, "loss/train", weight=0.9)
    assert shelf.curve(run, "loss/train", weight=0.9) is first
    assert len(made) == 1
    MetricsWriter(run).log(501, {"loss/train": 9.0})
    assert shelf.curve(run, "loss/train", weight=0.0).y[-1] == 9.0
    assert shelf.curve(run, "loss/train", weight=0.9).total == first.total + 1


def test_a_summary_has_the_last_and_lowest_figures(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a", 400)
    frame = read_metrics(run)
    found = MetricShelf().summary(run)
    val = frame["loss/val"].dropna()
    assert (found.rows, found.step, found.last["loss/val"]) == (400, 400, val.iloc[-1])
    assert (found.best_val, found.best_val_step) == (val.min(), frame["step"][val.idxmin()])
    assert found.spark[-1] == pytest.approx(ema(frame["loss/train"].dropna().to_numpy(), 0.8)[-1])
    assert MetricSummary.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    (tmp_path / "none").mkdir()
    assert MetricShelf().summary(tmp_path / "none") == MetricSummary()


def test_summaries_follow_what_runs_write(tmp_path: Path) -> None:
    runs, shelf = [run_of(tmp_path, f"r{n}", 40 + n) for n in range(12)], MetricShelf()
    assert [found.rows for found in shelf.summaries(runs) if found] == [40 + n for n in range(12)]
    MetricsWriter(runs[3]).log(44, {"loss/val": 0.5})
    assert [found.best_val for found in shelf.summaries(runs) if found][3] == 0.5
    MetricsWriter(runs[3]).cut_after(10)
    found = shelf.summaries(runs)[3]
    assert found is not None
    assert (found.rows, found.step) == (10, 10)


def test_a_list_does_not_wait_for_what_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, slow = run_of(tmp_path, "quick", 20), run_of(tmp_path, "slow", 20)
    ready, read = threading.Event(), metric_shelf.read_summary
    monkeypatch.setattr(metric_shelf, "_WORKERS", 2)
    monkeypatch.setattr(metric_shelf.os, "cpu_count", lambda: 2)

    def wait_and_read(run: Path) -> MetricSummary:
        assert run != slow or ready.wait(60)
        return read(run)

    monkeypatch.setattr(metric_shelf, "read_summary", wait_and_read)
    shelf = MetricShelf()
    assert shelf.pending([quick, slow]) == 2
    shelf.summaries([quick])
    first, second = shelf.summaries([quick, slow], within_s=0.05)
    assert first is not None
    assert second is None
    assert shelf.pending([quick, slow]) == 1
    ready.set()
    assert shelf.summaries([slow])[0] == summarise({name: c.to_numpy() for name, c in read_metrics(slow).items()})
    assert shelf.pending([quick, slow]) == 0


def test_a_failure_of_a_reader_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Path) -> MetricSummary:
        raise PermissionError(run)

    monkeypatch.setattr(metric_shelf, "read_summary", fail)
    with pytest.raises(PermissionError):
        MetricShelf().summaries([run_of(tmp_path, "a", 5)])


def test_columns_of_runs_not_looked_at_lately_are_given_up(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, f"r{n}", 1000) for n in range(6)]
    one = MetricShelf().read(runs[0]).nbytes
    shelf = MetricShelf(max_bytes=2 * one + 1000)
    shelf.prefetch(runs)
    for run in runs:
        assert len(shelf.read(run).columns["step"]) == 1000
    assert shelf.nbytes <= 2 * one + 1000
    before = shelf.read(runs[-1])
    assert shelf.read(runs[-1]) is before
    shelf.read(runs[0])
    assert shelf.read(runs[0]).revision != before.revision


def test_the_stamp_of_a_file_changes_with_it(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a", 5)
    before = file_stamp(run / METRICS)
    assert file_stamp(run / METRICS) == before
    MetricsWriter(run).log(6, {})
    assert file_stamp(run / METRICS) != before
    assert file_stamp(run / "missing") == ()
