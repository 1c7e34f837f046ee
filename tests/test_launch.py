"""Real processes: starting, stopping, killing, finding again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dgsgpt import checkpoint as ck
from dgsgpt import files, launch, process
from dgsgpt.config import RunConfig
from dgsgpt.errors import RunError
from dgsgpt.metrics import METRICS, read_events, read_metrics
from dgsgpt.runs import Run, create_run

Make = Callable[..., RunConfig]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")


@pytest.fixture
def make_run(make_config: Make, runs_dir: Path) -> Iterator[Callable[..., Run]]:
    """Creates runs; whatever still lives at the end is killed."""
    made: list[Run] = []

    def make(run_id: str = "a", steps: int = 100_000, **changes: object) -> Run:
        config = make_config(**{"train.steps": steps, "train.checkpoint_every": 20, "train.eval_every": 0, **changes})
        made.append(create_run(runs_dir, config, run_id))
        return made[-1]

    yield make
    for run in made:
        launch.kill_run(run)


def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def steps_done(run: Run) -> int:
    return int(read_metrics(run.path)["step"].max()) if (run.path / METRICS).exists() else 0


def proc(run: Run) -> dict:
    return files.read_json(run.path / "proc.json") or {}


def test_a_detached_run_trains_is_found_again_and_stops_with_a_save(make_run: Callable[..., Run]) -> None:
    run = make_run()
    launch.start_run(run)
    assert run.status().is_live
    until(lambda: steps_done(run) >= 3)
    found = Run(run.path)  # as another process would open it
    assert found.status().state == "running"
    launch.stop_run(found)
    assert launch.wait_run(found, 60)
    status = found.status()
    assert status.state == "stopped"
    assert "asked to stop" in status.message
    last = ck.describe(found.checkpoints()[-1])
    assert last.step == status.step >= 3
    ck.verify(last.path)
    assert files.read_json(run.path / "exit.json") == {
        "code": 143,
        "signal": None,
        "time": pytest.approx(time.time(), abs=60),
    }


def test_the_trainer_has_a_session_and_a_log_of_its_own(make_run: Callable[..., Run]) -> None:
    run = make_run()
    launch.start_run(run)
    until(lambda: steps_done(run) >= 1)
    trainer, supervisor = proc(run)["trainer"]["pid"], proc(run)["pid"]
    assert os.getsid(trainer) == trainer
    assert os.getsid(supervisor) == supervisor
    assert psutil.Process(trainer).cmdline()[1:] == ["-m", "dgsgpt.train", str(run.path)]
    assert any("step 1 " in line for line in run.log_tail())


def test_a_run_outlives_the_process_that_started_it(make_run: Callable[..., Run]) -> None:
    run = make_run()
    starter = (
        "import sys; from pathlib import Path; from dgsgpt import launch; from dgsgpt.runs import Run;"
        "launch.start_run(Run(Path(sys.argv[1]))); import time; time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter, str(run.path)], start_new_session=True)
    until(lambda: steps_done(run) >= 1)
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    seen = steps_done(run)
    until(lambda: steps_done(run) > seen + 5)
    assert run.status().state == "running"


def test_a_run_started_from_two_places_at_once_is_trained_once(make_run: Callable[..., Run]) -> None:
    """Two tabs, or a tab and a command: whoever is second finds it live, or finds its lock held."""
    run = make_run(steps=40)
    code = (
        "import sys, time; from pathlib import Path; from dgsgpt import launch; from dgsgpt.runs import Run\n"
        "from dgsgpt.errors import RunError\n"
        "launch.check_startable = lambda run: None  # both have looked before either has started\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time())); launch.start_run(Run(Path(sys.argv[1])))"
    )
    at = str(time.time() + 3)
    starters = [subprocess.Popen([sys.executable, "-c", code, str(run.path), at]) for _ in range(2)]
    assert [one.wait(60) for one in starters] == [0, 0]
    until(lambda: run.status().state == "finished")
    until(lambda: not process.is_alive(proc(run)))
    assert [event["kind"] for event in read_events(run.path, ("start", "resume"))] == ["start"]
    assert read_metrics(run.path)["step"].tolist() == list(range(1, 41))
    assert any("already worked on" in line for line in run.log_tail(1000))


def test_kill_9_loses_only_the_steps_since_the_checkpoint(make_run: Callable[..., Run]) -> None:
    whole = make_run("whole", steps=90)
    launch.start_run(whole)
    assert launch.wait_run(whole, 90)
    run = make_run("killed", steps=90)
    launch.start_run(run)
    until(lambda: steps_done(run) >= 45)
    assert process.send(proc(run)["trainer"], signal.SIGKILL)
    assert launch.wait_run(run, 30)
    assert run.status().state == "failed"
    assert "SIGKILL" in str(run.status().error)
    launch.resume_run(run)
    assert launch.wait_run(run, 90)
    assert run.status().state == "finished"

    def curve(r: Run) -> list[tuple[int, float]]:
        return [
            (row["step"], row["loss/train"]) for row in map(json.loads, (r.path / METRICS).read_text().splitlines())
        ]

    assert curve(run) == curve(whole)


def test_losing_both_processes_is_a_lost_run_that_can_go_on(make_run: Callable[..., Run]) -> None:
    run = make_run(steps=60)
    launch.start_run(run)
    until(lambda: steps_done(run) >= 25)
    identity = proc(run)
    os.kill(identity["pid"], signal.SIGKILL)
    process.send(identity["trainer"], signal.SIGKILL)
    until(lambda: run.status().state == "lost")
    launch.resume_run(run)
    assert launch.wait_run(run, 60)
    assert run.status().state == "finished"


def test_a_trainer_whose_supervisor_is_gone_saves_and_ends(make_run: Callable[..., Run]) -> None:
    run = make_run()
    launch.start_run(run)
    until(lambda: steps_done(run) >= 3)
    identity = proc(run)
    os.kill(identity["pid"], signal.SIGKILL)
    until(lambda: not process.is_alive(identity["trainer"]))
    assert run.status().state == "stopped"
    assert "supervisor is gone" in run.status().message
    assert run.checkpoints()


def test_a_suspended_trainer_still_hears_the_stop(make_run: Callable[..., Run]) -> None:
    run = make_run()
    launch.start_run(run)
    until(lambda: steps_done(run) >= 1)
    process.send(proc(run)["trainer"], signal.SIGSTOP)
    launch.stop_run(run)
    assert launch.wait_run(run, 30)
    assert run.status().state == "stopped"


def test_a_stop_right_after_the_start_leaves_no_half_run(make_run: Callable[..., Run]) -> None:
    run = make_run()
    launch.start_run(run)
    until(lambda: (run.path / "proc.json").exists())
    launch.stop_run(run)
    assert launch.wait_run(run, 60)
    assert run.status().state == "stopped"
    assert all(ck.describe(p).complete for p in run.checkpoints())


def test_a_second_start_is_refused(make_run: Callable[..., Run]) -> None:
    run = make_run()
    launch.start_run(run)
    with pytest.raises(RunError, match="already"):
        launch.start_run(run)
    until(lambda: steps_done(run) >= 1)
    # Even a supervisor started past that check finds the lock taken.
    second = subprocess.run(
        [sys.executable, "-m", "dgsgpt.supervise", str(run.path), "t"], capture_output=True, text=True
    )
    assert second.returncode == 2
    assert f"process {proc(run)['pid']}" in second.stderr
    assert run.status().state == "running"


def test_a_run_saves_when_asked_and_a_paused_one_waits(make_run: Callable[..., Run]) -> None:
    run = make_run(**{"train.checkpoint_every": 0})
    launch.start_run(run)
    until(lambda: steps_done(run) >= 3)
    assert run.checkpoints() == []
    launch.save_now(run)
    until(lambda: len(run.checkpoints()) == 1)
    launch.pause_run(run)
    until(lambda: run.status().paused)
    step = run.status().step
    with pytest.raises(RunError, match=r"paused already; `dgsgpt resume a` lets it go on"):
        launch.pause_run(run)
    assert ck.describe(run.checkpoints()[-1]).step == step
    beat = run.status().heartbeat_at
    until(lambda: run.status().heartbeat_at != beat)  # it waits, and is well
    assert run.status().state == "running"
    assert steps_done(run) == step
    launch.continue_run(run)
    until(lambda: steps_done(run) > step)
    assert not run.status().paused
    with pytest.raises(RunError, match="not paused"):
        launch.continue_run(run)
    launch.pause_run(run)
    until(lambda: run.status().paused)
    launch.stop_run(run)  # also a paused run hears a stop
    assert launch.wait_run(run, 60)
    assert run.status().state == "stopped"
    assert not run.status().paused


def test_finished_and_idle_runs_say_why_they_cannot(make_run: Callable[..., Run]) -> None:
    run = make_run(steps=5)
    with pytest.raises(RunError, match="nothing to stop"):
        launch.stop_run(run)
    with pytest.raises(RunError, match="nothing to pause"):
        launch.pause_run(run)
    with pytest.raises(RunError, match="nothing to save"):
        launch.save_now(run)
    launch.start_run(run)
    assert launch.wait_run(run, 60)
    with pytest.raises(RunError, match="finished all 5 steps"):
        launch.resume_run(run)


def test_a_trainer_that_dies_at_once_shows_its_last_words(make_run: Callable[..., Run]) -> None:
    run = make_run()
    (run.path / "config.yaml").write_text("model: {n_head: 5}\n")
    fresh = Run(run.path)
    files.write_json(
        run.path / "status.json", {"state": "starting", "step": 0, "max_steps": 5, "started_at": time.time()}
    )
    done = subprocess.run([sys.executable, "-m", "dgsgpt.supervise", str(run.path), "t"], timeout=60)
    assert done.returncode == 2
    assert fresh.status().state == "failed"
    assert "model.n_head=5" in str(fresh.status().error)
    assert any("model.n_head=5" in line for line in fresh.log_tail())
