from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt import files, process
from dgsgpt.config import build_config
from dgsgpt.errors import RunError
from dgsgpt.runs import N_COLORS, Run, check_run_id, create_run, list_runs, name_for, open_run, suggest_run_id

CONFIG = build_config({})


def put_status(run: Run, state: str, **more: object) -> None:
    files.write_json(
        run.path / "status.json", {"state": state, "step": 3, "max_steps": 10, "started_at": time.time(), **more}
    )


def myself() -> dict:
    return process.identify(os.getpid())


def test_a_new_run_is_queued_and_complete(runs_dir: Path) -> None:
    run = create_run(runs_dir, CONFIG, "first", command=["dgsgpt", "train", "x.yaml"])
    assert run.status().state == "queued"
    assert run.config == CONFIG
    assert {"id", "created_at", "command", "versions", "hardware", "git", "seed", "parent"} <= set(run.facts)
    assert open_run(runs_dir, "first") == run


@pytest.mark.parametrize("bad", ["", ".hidden", "a/b", "../x", "a b", "x" * 65, "a\n", "CON", "nul.txt", "ä", "-x"])
def test_unsafe_names_are_refused(runs_dir: Path, bad: str) -> None:
    with pytest.raises(RunError):
        check_run_id(bad)
    with pytest.raises(RunError):
        create_run(runs_dir, CONFIG, bad)
    with pytest.raises(RunError):
        open_run(runs_dir, bad)
    assert list_runs(runs_dir) == []


@given(st.text(max_size=80))
def test_a_suggested_name_is_always_allowed(stem: str) -> None:
    assert check_run_id(suggest_run_id(Path("/nonexistent"), stem))


def test_a_taken_name_is_refused_with_a_free_one(runs_dir: Path) -> None:
    create_run(runs_dir, CONFIG, "a")
    with pytest.raises(RunError, match=r"exists already.*try 'a-2'"):
        create_run(runs_dir, CONFIG, "a")
    assert create_run(runs_dir, CONFIG).id == name_for(CONFIG)
    assert create_run(runs_dir, CONFIG).id == name_for(CONFIG) + "-2"


def test_a_missing_run_names_those_there_are(runs_dir: Path) -> None:
    with pytest.raises(RunError, match="there are none yet"):
        open_run(runs_dir, "x")
    create_run(runs_dir, CONFIG, "a")
    with pytest.raises(RunError, match="there are a"):
        open_run(runs_dir, "x")


def test_the_newest_run_comes_first_and_strangers_are_left_out(runs_dir: Path) -> None:
    for name in ("a", "b", "c"):
        create_run(runs_dir, CONFIG, name)
    (runs_dir / "no-run").mkdir()
    (runs_dir / "file").touch()
    assert [r.id for r in list_runs(runs_dir)] == ["c", "b", "a"]


def test_recent_runs_wear_different_colours_for_ever(runs_dir: Path) -> None:
    made = [create_run(runs_dir, CONFIG, f"r{i}") for i in range(N_COLORS)]
    slots = [r.color_slot for r in made]
    assert sorted(slots) == list(range(N_COLORS))
    create_run(runs_dir, CONFIG, "later")
    assert [Run(r.path).color_slot for r in made] == slots


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_an_end_that_was_written_is_believed(runs_dir: Path, state: str) -> None:
    run = create_run(runs_dir, CONFIG, "a")
    put_status(run, state)
    assert run.status().state == state
    assert run.status().has_ended


def test_a_live_process_with_a_heartbeat_runs(runs_dir: Path) -> None:
    run = create_run(runs_dir, CONFIG, "a")
    put_status(run, "running", heartbeat_at=time.time())
    files.write_json(run.path / "proc.json", myself())
    assert run.status().state == "running"
    assert run.status().is_live


def test_without_heartbeat_it_is_stalled(runs_dir: Path) -> None:
    run = create_run(runs_dir, CONFIG, "a")
    put_status(run, "running", heartbeat_at=time.time() - 3600)
    files.write_json(run.path / "proc.json", myself())
    assert run.status().state == "stalled"


def test_slow_steps_are_not_a_stall(runs_dir: Path) -> None:
    run = create_run(runs_dir, CONFIG, "a")
    put_status(run, "running", heartbeat_at=time.time() - 300, step_s=60)
    files.write_json(run.path / "proc.json", myself())
    assert run.status().state == "running"


def test_a_process_gone_without_a_word_is_lost(runs_dir: Path) -> None:
    run = create_run(runs_dir, CONFIG, "a")
    put_status(run, "running", heartbeat_at=time.time())
    assert run.status().state == "lost"
    files.write_json(run.path / "proc.json", {**myself(), "start_ticks": 1})  # the pid is now a stranger's
    assert run.status().state == "lost"


def test_an_exit_record_tells_how_it_failed(runs_dir: Path) -> None:
    run = create_run(runs_dir, CONFIG, "a")
    put_status(run, "running")
    files.write_json(run.path / "exit.json", {"code": None, "signal": "SIGKILL", "time": 0})
    assert run.status().state == "failed"
    assert "SIGKILL" in str(run.status().error)


def test_the_moment_before_the_process_reports_is_starting(runs_dir: Path) -> None:
    run = create_run(runs_dir, CONFIG, "a")
    put_status(run, "starting")
    assert run.status().state == "starting"
    put_status(run, "starting", started_at=time.time() - 3600)
    assert run.status().state == "lost"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": 5, "step": "x"}'])
def test_a_damaged_status_never_raises(runs_dir: Path, damage: str) -> None:
    run = create_run(runs_dir, CONFIG, "a")
    (run.path / "status.json").write_text(damage)
    assert isinstance(run.status().state, str)


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot create a run"):
        create_run(tmp_path / "file" / "runs", CONFIG)


def test_a_full_disk_leaves_no_half_run(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("dgsgpt.runs.files.write_atomic", full)
        with pytest.raises(RunError, match="No space left on device"):
            create_run(runs_dir, CONFIG, "a")
    assert create_run(runs_dir, CONFIG, "a").id == "a"
