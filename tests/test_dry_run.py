"""Dry runs: real steps that leave no run behind, what is kept of them, and what happens to those that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from dgsgpt import dry_run, files, hardware, process
from dgsgpt.cli import main
from dgsgpt.config import RunConfig
from dgsgpt.dry_run import DryRun, fingerprint
from dgsgpt.errors import RunError
from dgsgpt.planner import plan
from dgsgpt.runs import list_runs
from dgsgpt.train import dry_run as worker

Make = Callable[..., RunConfig]


def record(**changes: Any) -> DryRun:
    values: dict[str, Any] = {
        "id": "a" * 16, "at": time.time(), "title": "tiny", "fingerprint": "f", "device": "cpu", "name": "CPU",
        "steps": 3, "total_steps": 20, "predicted_bytes": 1000,
    }  # fmt: skip
    return DryRun(**{**values, **changes})


def folder_of(root: Path, config: RunConfig, run: DryRun) -> Path:
    path = root / dry_run.FOLDER / run.id
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config.to_yaml())
    (path / dry_run.REQUEST).write_text(json.dumps(run.to_dict()))
    return path


# ---------------------------------------------------------------- the whole way
def test_a_dry_run_measures_steps_keeps_a_line_and_leaves_no_run(
    runs_dir: Path, tmp_path: Path, make_config: Make
) -> None:
    config = make_config()
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    result = CliRunner().invoke(main, ["dry-run", str(tmp_path / "tiny.yaml"), "--json", "--runs-dir", str(runs_dir)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert len(found["step_times"]) == 3
    assert found["step_s"] == pytest.approx(sum(found["step_times"][1:]) / 2)
    assert found["peak_bytes"] > 0
    assert found["memory_error"] == pytest.approx(found["peak_bytes"] / found["predicted_bytes"] - 1)
    assert found["settled"]["precision"] in ("fp32", "bf16")
    assert list_runs(runs_dir) == []
    assert list((runs_dir / dry_run.FOLDER).iterdir()) == []
    assert [run.id for run in dry_run.history(runs_dir)] == [found["id"]]
    listed = CliRunner().invoke(main, ["dry-run", "--history", "--json", "--runs-dir", str(runs_dir)])
    assert json.loads(listed.output)[0]["id"] == found["id"]


def test_predictions_are_the_planner_s_for_what_auto_has_become(runs_dir: Path, make_config: Make) -> None:
    config = make_config(**{"train.steps": 5})
    found = worker.attempt(folder_of(runs_dir, config, record(steps=1)))
    assert found.error == ""
    settled = {k: v for k, v in found.settled.items() if k != "compile"}
    assert (
        found.predicted_bytes == plan(make_config(**{f"train.{k}": v for k, v in settled.items()}), "cpu").total_bytes
    )
    assert len(found.step_times) == 1
    assert found.step_s == found.step_times[0]


# ---------------------------------------------------------------- what fails
def test_running_out_of_memory_is_told_as_the_planner_s_advice(
    runs_dir: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> dict[str, Any]:
        raise MemoryError

    monkeypatch.setattr(worker, "try_steps", run_out)
    found = worker.attempt(folder_of(runs_dir, make_config(), record()))
    assert "out of memory: the plan says this config needs about" in found.error


def test_a_user_s_error_is_the_command_s_error(runs_dir: Path, make_config: Make, tmp_path: Path) -> None:
    found = worker.attempt(folder_of(runs_dir, make_config(**{"data.corpus": str(tmp_path / "gone.txt")}), record()))
    assert "gone.txt" in found.error
    dry_run.keep(runs_dir, found)
    assert dry_run.history(runs_dir)[0].error == found.error


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    return child.pid


def test_a_process_that_was_killed_becomes_a_line_that_says_so(runs_dir: Path, make_config: Make) -> None:
    path = folder_of(runs_dir, make_config(), record())
    files.write_json(path / "proc.json", process.identify(dead_process()))
    assert dry_run.pending(runs_dir) is None
    (found,) = dry_run.history(runs_dir)
    assert "ended without a result" in found.error
    assert not path.exists()


def test_one_that_was_cancelled_leaves_nothing(runs_dir: Path, make_config: Make) -> None:
    path = folder_of(runs_dir, make_config(), record())
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    files.write_json(path / "proc.json", process.identify(child.pid))
    going = dry_run.pending(runs_dir)
    assert going is not None
    going.cancel()
    child.wait(30)
    assert dry_run.pending(runs_dir) is None
    assert dry_run.history(runs_dir) == []
    assert not path.exists()


def test_only_one_is_at_work_at_a_time(runs_dir: Path, make_config: Make) -> None:
    path = folder_of(runs_dir, make_config(), record(title="first"))
    files.write_json(path / "proc.json", process.identify(os.getpid()))
    with pytest.raises(RunError, match="a dry run of first is at work"):
        dry_run.begin(runs_dir, make_config(), hardware.detect())
    assert psutil.pid_exists(os.getpid())


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_out_of_range_is_refused(runs_dir: Path, make_config: Make, steps: int) -> None:
    with pytest.raises(RunError, match="must be 1 to 1000"):
        dry_run.begin(runs_dir, make_config(), hardware.detect(), steps)


# ---------------------------------------------------------------- kept
def test_history_is_newest_first_and_outlives_damaged_lines(runs_dir: Path) -> None:
    runs_dir.mkdir()
    assert dry_run.history(runs_dir) == []
    first, second = record(id="1" * 16, step_times=(1.0, 2.0)), record(id="2" * 16)
    dry_run.keep(runs_dir, first)
    with (runs_dir / dry_run.HISTORY).open("a") as f:
        f.write('nonsense\n{"id": 3}\n[]\n')
    dry_run.keep(runs_dir, second)
    assert dry_run.history(runs_dir) == [second, first]


def test_errors_are_shares_of_what_was_predicted() -> None:
    found = record(peak_bytes=1100, predicted_step_s=2.0, step_s=1.0, step_times=(9.0, 1.0, 1.0))
    assert found.memory_error == pytest.approx(0.1)
    assert found.time_error == pytest.approx(-0.5)
    assert found.timed == (1.0, 1.0)
    assert replace(found, predicted_step_s=None).time_error is None


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        ("train.lr", 1e-4, True),
        ("train.steps", 7, True),
        ("train.schedule.kind", "linear", True),
        ("data.val_fraction", 0.2, True),
        ("train.micro_batch_size", 2, False),
        ("train.gradient_checkpointing", "full", False),
        ("model.n_layer", 3, False),
        ("train.optimizer", "muon", False),
    ],
)
def test_configs_share_a_fingerprint_when_their_steps_cost_the_same(
    make_config: Make, path: str, value: object, same: bool
) -> None:
    assert (fingerprint(make_config()) == fingerprint(make_config(**{path: value}))) is same


def test_ctrl_c_ends_the_process_and_leaves_nothing(runs_dir: Path, tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "tiny.yaml").write_text(make_config().to_yaml())
    words = ["dry-run", str(tmp_path / "tiny.yaml"), "--steps", "1000", "--runs-dir", str(runs_dir)]
    command = subprocess.Popen([sys.executable, "-m", "dgsgpt.cli", *words])
    folder = runs_dir / dry_run.FOLDER
    while not list(folder.glob("*/status.json")) and command.poll() is None:
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130
    assert list(folder.iterdir()) == []
    assert dry_run.history(runs_dir) == []
