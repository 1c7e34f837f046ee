"""Fast ways of reading metrics against the naive one: many lines at once, piece by piece, from kept columns."""

from __future__ import annotations

import json
import math
import os
import shutil
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgsgpt import files, metric_lines, metric_store, metrics
from dgsgpt.metric_lines import Lines, parse_block
from dgsgpt.metric_summary import MetricSummary, summarise
from dgsgpt.metrics import METRICS, MetricsTail, MetricsWriter, keep_columns, read_summary

ROOMY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
names = st.sampled_from(["loss/train", "lr", "a b", "é", "moe/x"])
numbers = st.one_of(
    st.integers(-(10**25), 10**25), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(),
    st.sampled_from(["text", "1e3", "2020-01-01", "}", "{", [1], {"x": 1}, -0.0]),
)  # fmt: skip
rows = st.dictionaries(names, numbers, max_size=4)


def naive(path: Path) -> tuple[list[int], dict[str, list[float]], int]:
    """Steps, columns and damaged lines by the plain rules, on the whole file at once."""
    kept: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    skipped = 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        row = None
        if len(line) <= metric_lines.MAX_LINE:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
        if not isinstance(row, dict) or type(row.get("step")) is not int or abs(row["step"]) >= 2**63:
            skipped += bool(line.strip())
            continue
        kept = [r for r in kept if r["step"] < row["step"]] + [row]
        columns |= dict.fromkeys(row)
    return [r["step"] for r in kept], {n: [_float(r.get(n)) for r in kept] for n in columns if n != "step"}, skipped


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def assert_same(tail: MetricsTail, path: Path) -> None:
    steps, columns, skipped = naive(path)
    assert tail.columns["step"].tolist() == steps
    assert set(tail.columns) == {"step", *columns}
    for name, values in columns.items():
        assert np.array_equal(tail.columns[name], np.array(values, float), equal_nan=True), name
    assert tail.skipped == skipped
    assert len(tail) == len(steps)


def lines_of(items: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


# ---------------------------------------------------------------- many lines at once
@ROOMY
@given(st.lists(st.tuples(st.integers(0, 30), rows), max_size=30), st.lists(st.binary(max_size=12), max_size=2))
def test_many_lines_at_once_are_read_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, items: list[tuple[int, dict[str, Any]]], junk: list[bytes]
) -> None:
    block = lines_of({"step": step, **row} for step, row in items) + b"".join(j + b"\n" for j in junk)
    slow = parse_block(block)
    with monkeypatch.context() as patch:
        patch.setattr(metric_lines, "FAST_BYTES", 0)
        fast = parse_block(block)
    assert_equal(fast, slow)


def assert_equal(fast: Lines, slow: Lines) -> None:
    assert (fast.steps.tolist(), fast.skipped, list(fast.values)) == (
        slow.steps.tolist(), slow.skipped, list(slow.values)
    )  # fmt: skip
    for name, values in slow.values.items():
        assert np.array_equal(fast.values[name], values, equal_nan=True), name


TRICKY = [
    b'{"step": 1}{"step": 2}', b'{"step": 1}{"step": 2}\n{"step": 3, "x": {\n"y": 1}}',
    b'{"step": 1\n"x": 2}\n{"step": 3}{"step": 4}', b'{"step": 1, "x": NaN}',
    b'{"step": 1.0}',
    b'{"step": 1, "x": 1, "x": 2}', b'{"step": 1, "x": 01}', b'{"step": 1, "x": -0}', b'{"step": 1, "x": 1e400}',
    b'{"step": 1, "x": 12345678901234567891}', b'{"step": 9223372036854775808}', b' {"step": 1} ', b'{"step": 1}\r',
    b'{"step": 1, "x": 9007199254740993}', b'{"step": 1, "x": "2020-01-01"}', b'{"x": 5}', b'{"step": null}', b"{}",
    b'{"step": 1, "\\u0078": 3}', b'{"step": 1, "x": "\xff"}', b'{"step": 1, "x": {"y": 1}}', b'{"step": 1, "": 1}',
    b'{"step": 1, "x": 0.1, "y": true, "z": null}', b'{"step": true}', b'{"step": "1"}', b'{"step": 1,}', b"\x00",
    b'{"step": 1, "x": 1' + b"0" * 400 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("line", TRICKY, ids=range(len(TRICKY)))
@pytest.mark.parametrize("before", [b"", b'{"step": 0, "x": 1.5}\n'])
def test_lines_of_odd_form_mean_the_same_in_both_ways(
    monkeypatch: pytest.MonkeyPatch, line: bytes, before: bytes
) -> None:
    block = before + line + b"\n"
    slow = parse_block(block)
    monkeypatch.setattr(metric_lines, "FAST_BYTES", 0)
    fast = parse_block(block)
    assert_equal(fast, slow)


def test_plain_lines_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(metric_lines, "FAST_BYTES", 0)
    monkeypatch.setattr(metric_lines, "_line_by_line", lambda *a: pytest.fail("read line by line"))
    block = lines_of({"step": n, "time_s": n / 3, "loss/train": 1 / n, "loss/val": None} for n in range(1, 50))
    found = parse_block(block)
    assert found.values["loss/train"].tolist() == [1 / n for n in range(1, 50)]


def test_blocks_parsed_at_the_same_time_come_in_order() -> None:
    blocks = [(lines_of([{"step": n, "x": n}] * 50), n) for n in range(20)]
    found = list(metric_lines.parse_ahead(iter(blocks), 3))
    assert [(lines.steps[0], beside) for lines, beside in found] == [(n, n) for n in range(20)]


def test_without_pyarrow_everything_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    block = lines_of({"step": n, "x": n / 3} for n in range(5))
    monkeypatch.setattr(metric_lines, "FAST_BYTES", 0)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert parse_block(block).values["x"].tolist() == [n / 3 for n in range(5)]


# ---------------------------------------------------------------- piece by piece, with and without kept columns
actions = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(rows, min_size=1, max_size=4), st.integers(-3, 2)),
        st.tuples(st.just("junk"), st.binary(max_size=20), st.just(0)),
        st.tuples(st.just("cut"), st.just(None), st.integers(0, 12)),
        st.tuples(st.sampled_from(["refresh", "reopen", "damage", "quiet", "delete"]), st.just(None), st.just(0)),
    ),
    max_size=14,
)


@ROOMY
@given(actions)
def test_any_order_of_writes_cuts_and_refreshes_reads_as_the_file_does_at_once(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, todo: list[tuple[str, Any, int]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    path = folder / METRICS
    path.touch()
    with monkeypatch.context() as patch:
        for module, name, value in (
            (metrics, "KEEP_BYTES", 1),
            (metrics, "LONG_BYTES", 20),
            (metrics, "QUIET_S", -1e9),
            (metric_lines, "FAST_BYTES", 0),
        ):
            patch.setattr(module, name, value)
        tail, step = MetricsTail(folder), 0
        for what, argument, number in todo:
            if what == "write":
                for row in argument:
                    step = max(0, step + (number if number < 0 else number + 1))
                    with path.open("ab") as f:
                        f.write(lines_of([{"step": step, **row}]))
            elif what == "junk":
                with path.open("ab") as f:
                    f.write(argument + b"\n")
            elif what == "cut":
                MetricsWriter(folder).cut_after(number)
            elif what == "reopen":
                tail = MetricsTail(folder)
            elif what == "damage" and (folder / metric_store.NAME).exists():
                _flip(folder / metric_store.NAME, len(todo) * 37 + step)
                tail = MetricsTail(folder)
            elif what == "delete":
                path.unlink()
                tail.refresh()
                path.touch()
            elif what == "refresh":
                tail.refresh()
                assert_same(tail, path)
        tail.refresh()
        assert_same(tail, path)
        again = MetricsTail(folder)
        again.refresh()
        assert_same(again, path)


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_blocks_hold_the_same_lines_whatever_their_size(tmp_path: Path, block: int) -> None:
    text = b"one\n\n" + b"x" * 300 + b"\ntwo\nthree" + b"y" * 90 + b"\n" + b"z" * 250 + b"\nlast\ntorn"
    (tmp_path / "f").write_bytes(text)
    lines: list[bytes] = []
    oversized, offset, inside = 0, 0, False
    for part, at, now in files.read_blocks(tmp_path / "f", 0, block=block, max_line=200):
        lines += part.split(b"\n")[:-1]
        oversized += now and not inside
        offset, inside = at, now
    assert [line for line in lines if line and len(line) <= 200] == [b"one", b"two", b"three" + b"y" * 90, b"last"]
    assert offset == len(text) - 4
    assert oversized + sum(len(line) > 200 for line in lines) == 2


# ---------------------------------------------------------------- what is kept
@pytest.fixture
def long_run(tmp_path: Path) -> Path:
    """A run long enough to be kept, which nothing has written to for a while."""
    write_long(tmp_path / METRICS, 3000)
    return tmp_path


def write_long(path: Path, count: int, extra: float = 0.0) -> None:
    items = [{"step": n, "loss/train": 3 + 1 / n + extra, "lr": 1e-3 * n} for n in range(1, count + 1)]
    for item in items[99::100]:
        item["loss/val"] = 5 - item["step"] / 1e4
    path.write_bytes(lines_of(items))
    os.utime(path, (1e9, 1e9))


def fresh(run: Path) -> MetricsTail:
    tail = MetricsTail(run)
    tail.refresh()
    return tail


def no_parsing(*_: object) -> Lines:
    raise AssertionError("lines were read again")


def test_the_second_reader_parses_nothing(long_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh(long_run)
    assert (long_run / metric_store.NAME).is_file()
    monkeypatch.setattr(metric_lines, "parse_block", no_parsing)
    second = fresh(long_run)
    assert second.frame.equals(first.frame)
    summary = read_summary(long_run)
    assert (summary.rows, summary.step, summary.best_val, summary.best_val_step) == (3000, 3000, 4.7, 3000)
    assert summary.last["loss/val"] == 4.7
    assert len(summary.spark) <= 120


def test_short_and_growing_files_are_not_kept(tmp_path: Path) -> None:
    write_long(tmp_path / METRICS, 20)
    fresh(tmp_path)
    assert not (tmp_path / metric_store.NAME).exists()
    write_long(tmp_path / METRICS, 3000)
    os.utime(tmp_path / METRICS)
    fresh(tmp_path)
    assert not (tmp_path / metric_store.NAME).exists(), "more lines may come at any moment"


def test_lines_after_the_kept_ones_are_added(long_run: Path) -> None:
    fresh(long_run)
    with (long_run / METRICS).open("ab") as f:
        f.write(lines_of([{"step": 2990, "loss/train": 9.0, "new": 1}, {"step": 3001, "loss/train": 8.0}]))
    assert_same(fresh(long_run), long_run / METRICS)
    assert read_summary(long_run).last == {"loss/train": 8.0, "lr": pytest.approx(2.989), "loss/val": 4.71, "new": 1.0}


def test_other_lines_of_the_same_length_and_time_are_noticed(long_run: Path) -> None:
    fresh(long_run)
    text = (long_run / METRICS).read_bytes()
    (long_run / METRICS).write_bytes(text[:-10] + text[-10:].replace(b"4", b"5").replace(b"7", b"8"))
    assert_same(fresh(long_run), long_run / METRICS)


@pytest.mark.parametrize("damage", ["empty", "short", "long", "junk", "version", "rows"])
def test_a_damaged_side_file_is_ignored_and_rebuilt(long_run: Path, damage: str) -> None:
    fresh(long_run)
    kept = long_run / metric_store.NAME
    whole = kept.read_bytes()
    kept.write_bytes(
        {
            "empty": b"", "short": whole[:-8], "long": whole + b"\0", "junk": b"\xff" * 500,
            "version": whole.replace(b'"version": 1', b'"version": 9'),
            "rows": whole.replace(b'"rows": 3000', b'"rows": 9000'),
        }[damage]
    )  # fmt: skip
    assert_same(fresh(long_run), long_run / METRICS)
    assert kept.read_bytes() == whole


def test_a_header_with_absurd_figures_is_refused(long_run: Path) -> None:
    columns = fresh(long_run).columns
    size = (long_run / METRICS).stat().st_size
    assert metric_store.write(long_run / METRICS, columns, size, 0, {"spark": "x"})
    assert metric_store.read(long_run / METRICS) is not None
    assert read_summary(long_run) == summarise(columns), "a summary of another form is made again"
    assert MetricSummary.from_dict({"rows": [], "step": None}) is None


def test_where_nothing_can_be_written_it_works_without(long_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "read-only file system")

    monkeypatch.setattr(files, "write_atomic", refuse)
    assert_same(fresh(long_run), long_run / METRICS)
    assert [p.name for p in long_run.iterdir()] == [METRICS]


def test_a_copied_run_brings_its_columns(long_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh(long_run).frame
    shutil.copytree(long_run, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    monkeypatch.setattr(metric_lines, "parse_block", no_parsing)
    assert fresh(tmp_path / "copy").frame.equals(first)


def test_a_copied_run_is_read_from_its_own_lines(long_run: Path, tmp_path: Path) -> None:
    fresh(long_run)
    copy = tmp_path / "copy"
    shutil.copytree(long_run, copy, ignore=shutil.ignore_patterns("copy"))
    write_long(copy / METRICS, 2500, extra=1.0)
    assert_same(fresh(copy), copy / METRICS)


def test_columns_do_not_change_under_who_holds_them(long_run: Path) -> None:
    tail = fresh(long_run)
    held = tail.columns
    before = held["loss/train"].copy()
    MetricsWriter(long_run).log(2000, {"loss/train": 1.0})
    assert tail.refresh()
    assert len(tail) == 2000
    assert (held.length, held["loss/train"].tolist()) == (3000, before.tolist())
    with pytest.raises(ValueError, match="read-only"):
        held["loss/train"][0] = 0.0


def test_a_huge_line_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / METRICS).open("wb") as f:
        f.write(b'{"step": 1}\n{"step": 2, "x": "')
        for _ in range(40):
            f.write(b"a" * 1_000_000)
        f.write(b'"}\n{"step": 3}\n')
    tracemalloc.start()
    tail = fresh(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tail.columns["step"].tolist() == [1, 3]
    assert tail.skipped == 1
    assert peak < 16 << 20


def test_a_run_that_is_over_leaves_its_columns_for_the_first_reader(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text("".join(f'{{"step": {i}, "loss/train": {1 / i:.6f}}}\n' for i in range(1, 4000)))
    keep_columns(tmp_path)
    kept = metric_store.read(tmp_path / METRICS)
    assert kept is not None
    assert metric_store.covers(kept, tmp_path / METRICS)
    assert read_summary(tmp_path).rows == 3999
