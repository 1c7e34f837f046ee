from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.metrics import METRICS, MetricsTail, MetricsWriter, decimate, ema, read_events, read_metrics

finite = st.floats(-1e6, 1e6)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.log(1, {"loss/train": 2.5})
    writer.log(2, {"loss/train": 2.0, "loss/val": 2.2})
    frame = read_metrics(tmp_path)
    assert frame["step"].tolist() == [1, 2]
    assert frame["loss/train"].tolist() == [2.5, 2.0]
    assert math.isnan(frame["loss/val"][0])
    assert frame["loss/val"][1] == 2.2


def test_non_finite_values_go_out_as_null_and_are_named(tmp_path: Path) -> None:
    assert MetricsWriter(tmp_path).log(1, {"a": math.nan, "b": math.inf, "c": 1.0}) == ["a", "b"]
    row = json.loads((tmp_path / METRICS).read_text())
    assert row == {"step": 1, "a": None, "b": None, "c": 1.0}


@given(parts=st.lists(st.integers(1, 40), max_size=12))
def test_reading_in_pieces_equals_reading_at_once(tmp_path_factory: pytest.TempPathFactory, parts: list[int]) -> None:
    path = tmp_path_factory.mktemp("tail")
    text = b"".join(json.dumps({"step": i, "x": i / 3}).encode() + b"\n" for i in range(1, 9))
    tail = MetricsTail(path)
    done = 0
    for part in [*parts, len(text)]:
        done = min(len(text), done + part)
        (path / METRICS).write_bytes(text[:done]) if not (path / METRICS).exists() else _extend(
            path / METRICS, text, done
        )
        tail.refresh()
    assert tail.frame.equals(read_metrics(path))
    assert len(tail) == 8


def _extend(path: Path, text: bytes, upto: int) -> None:
    with path.open("ab") as f:
        f.write(text[path.stat().st_size : upto])


@pytest.mark.parametrize("cut", range(1, 23))
def test_a_damaged_last_line_loses_only_itself(tmp_path: Path, cut: int) -> None:
    lines = [json.dumps({"step": i, "x": 1.5}) for i in (1, 2, 3)]
    text = "\n".join(lines) + "\n"
    (tmp_path / METRICS).write_text(text[:-cut])
    assert len(read_metrics(tmp_path)) == 2
    (tmp_path / METRICS).write_text(text)
    assert len(read_metrics(tmp_path)) == 3


def test_garbage_in_the_middle_is_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(
        b'{"step": 1}\n\x00\x00\x00\n[]\n{"step": true}\n{"x": 1}\n\xff\xfe\n{"step": 2}\n'
    )
    tail = MetricsTail(tmp_path)
    assert tail.refresh()
    assert tail.frame["step"].tolist() == [1, 2]
    assert tail.skipped == 5


def test_refresh_says_whether_anything_is_new(tmp_path: Path) -> None:
    tail = MetricsTail(tmp_path)
    assert not tail.refresh()
    MetricsWriter(tmp_path).log(1, {"x": 1.0})
    assert tail.refresh()
    assert not tail.refresh()


def test_a_resume_supersedes_the_lines_past_its_checkpoint(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    tail = MetricsTail(tmp_path)
    for step in (1, 2, 3, 4):
        writer.log(step, {"x": 1.0})
    tail.refresh()
    assert writer.cut_after(2) == 2
    writer.log(3, {"x": 9.0})
    tail.refresh()
    assert tail.frame["step"].tolist() == [1, 2, 3]
    assert tail.frame["x"].tolist() == [1.0, 1.0, 9.0]


def test_a_reader_lets_the_later_line_of_a_step_win(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text(
        "".join(json.dumps({"step": s, "x": i}) + "\n" for i, s in enumerate((1, 2, 3, 2, 3)))
    )
    frame = read_metrics(tmp_path)
    assert frame["step"].tolist() == [1, 2, 3]
    assert frame["x"].tolist() == [0.0, 3.0, 4.0]


def test_events_are_read_in_order_and_by_kind(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.event("start", 0)
    writer.event("sample", 5, prompt="a", text="b\nc")
    assert [e["kind"] for e in read_events(tmp_path)] == ["start", "sample"]
    assert read_events(tmp_path, ("sample",))[0]["text"] == "b\nc"


@given(st.lists(finite, min_size=1, max_size=50), st.floats(0.0, 0.99))
def test_ema_is_the_weighted_mean_of_what_came_before(values: list[float], weight: float) -> None:
    smooth = ema(np.array(values), weight)
    for i in range(len(values)):
        w = np.array([weight ** (i - j) for j in range(i + 1)])
        assert smooth[i] == pytest.approx((w * values[: i + 1]).sum() / w.sum(), rel=1e-6, abs=1e-6)


def test_ema_keeps_gaps_as_gaps() -> None:
    smooth = ema(np.array([1.0, np.nan, 1.0]), 0.5)
    assert math.isnan(smooth[1])
    assert smooth[2] == pytest.approx(1.0)


@given(st.lists(finite, min_size=5, max_size=400), st.integers(4, 60))
def test_decimation_keeps_ends_and_extremes_and_the_order(values: list[float], limit: int) -> None:
    x = np.arange(len(values))
    kept_x, kept_y = decimate(x, np.array(values), limit)
    assert len(kept_x) <= max(limit, 4)
    assert {kept_x[0], kept_x[-1]} == {0, len(values) - 1}
    assert (np.diff(kept_x) > 0).all()
    assert (kept_y == np.array(values)[kept_x]).all()
    assert kept_y.min() == min(values)
    assert kept_y.max() == max(values)
