"""Disks that are full or read-only: nothing valid is lost, and what happened is said in a line."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import RunConfig
from dgsgpt.metrics import METRICS, read_events, read_metrics
from dgsgpt.runs import Run, create_run
from dgsgpt.train.report import StopRequest
from dgsgpt.train.session import train_run

Make = Callable[..., RunConfig]


def train(run: Run) -> int:
    return train_run(run.path, StopRequest(run.path))


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_in_a_save_ends_the_run_and_leaves_the_checkpoint_before(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    run = create_run(runs_dir, make_config(**{"train.background_save": background}), "a")
    sync = ck._sync

    def full(path: Path) -> None:
        if "step_00000020" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    monkeypatch.setattr(ck, "_sync", full)
    assert train(run) == 2
    status = run.status()
    assert status.state == "failed"
    assert "No space left on device; free some space or lower train.keep_last" in str(status.error)
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step_00000010"]
    ck.verify(run.checkpoints()[0])
    monkeypatch.setattr(ck, "_sync", sync)
    assert train(run) == 0


def test_lines_that_find_no_room_are_lost_and_counted_but_not_the_run(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(runs_dir, make_config(**{"train.checkpoint_every": 0, "train.eval_every": 0}), "a")
    append = files.append_line

    def full(path: Path, value: Any) -> None:
        if path.name == METRICS and 5 <= value["step"] <= 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        append(path, value)

    monkeypatch.setattr(files, "append_line", full)
    assert train(run) == 0
    assert read_metrics(run.path)["step"].tolist() == [*range(1, 5), *range(9, 21)]
    (told,) = [e for e in read_events(run.path, ("health",)) if e["name"] == "disk"]
    assert told["step"] == 9
    assert told["message"] == "the disk was full: 4 lines of metrics or events could not be written"


def test_a_disk_that_cannot_be_written_is_said_in_one_line(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = create_run(runs_dir, make_config(), "a")
    append = files.append_line

    def read_only(path: Path, value: Any) -> None:
        if path.name == METRICS and value["step"] == 5:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        append(path, value)

    monkeypatch.setattr(files, "append_line", read_only)
    assert train(run) == 2
    assert f"error: {run.path}: cannot be written: Read-only file system; make it writable" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process as on POSIX")
def test_a_real_process_that_may_not_write_large_files_fails_in_one_line(make_config: Make, runs_dir: Path) -> None:
    import resource

    run = create_run(runs_dir, make_config(**{"model.n_embd": 64}), "a")
    done = subprocess.run(
        [sys.executable, "-m", "dgsgpt.train", str(run.path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 2, done.stderr
    assert re.search("cannot be saved: .*File too large", done.stdout)
    assert run.status().state == "failed"
    assert list((run.path / "checkpoints").iterdir()) == []
    assert read_metrics(run.path)["step"].max() >= 10


def test_a_broken_model_is_told_and_does_not_stop_the_trainer(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dgsgpt.evaluation import Evaluation

    nan = float("nan")
    monkeypatch.setattr("dgsgpt.train.judge.evaluate", lambda *_, **__: Evaluation(nan, nan, nan, 1, 1))
    run = create_run(runs_dir, make_config(), "a")
    assert train(run) == 0
    told = [e for e in read_events(run.path, ("health",)) if e.get("name") == "nonfinite"]
    assert told
    assert "the validation loss is nan" in told[0]["message"]
    assert ck.describe(run.checkpoints()[-1]).metadata["loss_val"] is None
