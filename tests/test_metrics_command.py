"""`dgsgpt metrics`: what a run logged, in short or every line of it as CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dgsgpt.cli import main
from dgsgpt.metrics import MetricsWriter
from dgsgpt.metrics_csv import to_csv
from dgsgpt.runs import Run, create_run
from tests.run_factory import config


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    found = [create_run(tmp_path, config(), name) for name in ("a", "b")]
    for step, loss in ((1, 5.123456789012345), (2, float("nan")), (3, 4.5)):
        MetricsWriter(found[0].path).log(step, {"tokens": step * 128, "flops": step * 10**15, "loss/train": loss})
    MetricsWriter(found[1].path).log(7, {"tokens": 896, "loss/val": 2.0, "lr": 3e-4})
    with (found[0].path / "metrics.jsonl").open("ab") as f:
        f.write(b"\x00garbage\n")
    return found


def run_command(*words: str) -> Result:
    return CliRunner().invoke(main, ["metrics", *words])


def test_the_csv_has_every_value_to_the_last_digit(runs: list[Run]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(runs).decode())))
    assert list(rows[0]) == ["run", "step", "time_s", "tokens", "flops", "loss/train", "loss/val", "lr"]
    assert [(row["run"], row["step"]) for row in rows] == [("a", "1"), ("a", "2"), ("a", "3"), ("b", "7")]
    assert float(rows[0]["loss/train"]) == 5.123456789012345
    assert rows[1]["loss/train"] == ""  # not finite
    assert rows[2]["flops"] == "3000000000000000"
    assert (rows[3]["lr"], rows[3]["loss/train"], rows[3]["time_s"]) == ("0.0003", "", "")


def test_the_command_writes_the_same_file_once(runs: list[Run], tmp_path: Path) -> None:
    words = ["a", "b", "--runs-dir", str(tmp_path), "--csv", str(tmp_path / "out.csv")]
    done = run_command(*words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out.csv").read_bytes() == to_csv(runs)
    again = run_command(*words)
    assert again.exit_code == 2
    assert "exists already; name a new file" in again.stderr
    assert run_command("a", "--runs-dir", str(tmp_path), "--csv", "-").stdout.encode() == to_csv(runs[:1])


def test_the_summary_tells_last_lowest_and_highest(runs: list[Run], tmp_path: Path) -> None:
    told = json.loads(run_command("a", "--json", "--runs-dir", str(tmp_path)).stdout)
    assert (told["run_id"], told["lines"], told["damaged_lines"]) == ("a", 3, 1)
    assert told["metrics"]["loss/train"] == {"last": 4.5, "min": 4.5, "max": 5.123456789012345, "count": 2}
    assert len(json.loads(run_command("a", "b", "--json", "--runs-dir", str(tmp_path)).stdout)) == 2
    text = run_command("a", "--runs-dir", str(tmp_path)).stdout
    assert "1 damaged ones left out" in text
    assert "loss/train" in text
    assert run_command("nobody", "--runs-dir", str(tmp_path)).exit_code == 2
