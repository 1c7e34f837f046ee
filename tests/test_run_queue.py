"""Runs one after another, by real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from dgsgpt import files, launch, process, run_queue
from dgsgpt.cli import main
from dgsgpt.config import RunConfig
from dgsgpt.errors import RunError
from dgsgpt.runs import Run, create_run
from tests import run_factory

Make = Callable[..., RunConfig]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")


def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def new_run(make_config: Make, runs_dir: Path) -> Iterator[Callable[..., Run]]:
    """Creates runs that are trained for real; what still lives at the end is killed, the runner first."""
    made: list[Run] = []

    def make(run_id: str, steps: int = 3) -> Run:
        config = make_config(**{"train.steps": steps, "train.eval_every": 0, "train.compile": "off"})
        made.append(create_run(runs_dir, config, run_id))
        return made[-1]

    yield make
    process.send(files.read_json(runs_dir / run_queue.RUNNER), signal.SIGKILL)
    for run in made:
        launch.kill_run(run)


@pytest.fixture
def no_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list alone: nothing works it off."""
    monkeypatch.setattr(run_queue, "ensure_runner", lambda root: False)


def waiting(root: Path, *names: str) -> list[Run]:
    runs = [create_run(root, run_factory.config(), name) for name in names]
    for run in runs:
        run_queue.enqueue(run)
    return runs


# ---------------------------------------------------------------- the list
@pytest.mark.usefixtures("no_runner")
def test_the_list_keeps_the_order_that_was_given(runs_dir: Path) -> None:
    waiting(runs_dir, "a", "b", "c")
    assert run_queue.read_queue(runs_dir).ids == ("a", "b", "c")
    run_queue.move(runs_dir, "c", 1)
    assert run_queue.read_queue(runs_dir).ids == ("c", "a", "b")
    run_queue.move(runs_dir, "c", 3)
    run_queue.remove(runs_dir, "a")
    queue = run_queue.read_queue(runs_dir)
    assert queue.ids == ("b", "c")
    assert queue.position("c") == 2
    assert queue.position("a") is None


@pytest.mark.usefixtures("no_runner")
def test_a_run_is_in_the_list_once(runs_dir: Path) -> None:
    (run,) = waiting(runs_dir, "a")
    with pytest.raises(RunError, match="in the queue already, at place 1"):
        run_queue.enqueue(run)
    assert run_queue.read_queue(runs_dir).ids == ("a",)


@pytest.mark.usefixtures("no_runner")
def test_what_cannot_be_started_is_refused(runs_dir: Path) -> None:
    with pytest.raises(RunError, match="has finished all"):
        run_queue.enqueue(run_factory.make_run(runs_dir, "done", "finished"))
    with pytest.raises(RunError, match="already running"):
        run_queue.enqueue(run_factory.make_run(runs_dir, "live", "running", 100))
    waiting(runs_dir, "a")
    for place in (0, 2):
        with pytest.raises(RunError, match="give 1 to 1"):
            run_queue.move(runs_dir, "a", place)
    with pytest.raises(RunError, match="not in the queue"):
        run_queue.remove(runs_dir, "b")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runs": 3}', '{"runs": [1, null, "a", "a"], "starting": 7}'])
def test_a_damaged_list_gives_what_is_whole(runs_dir: Path, content: str) -> None:
    runs_dir.mkdir()
    (runs_dir / run_queue.QUEUE).write_text(content, encoding="utf-8")
    assert run_queue.read_queue(runs_dir).ids in ((), ("a",))


@pytest.mark.usefixtures("no_runner")
def test_many_who_add_at_once_lose_nothing(runs_dir: Path) -> None:
    for name in "abcd":
        create_run(runs_dir, run_factory.config(), name)
    code = (
        "import sys; from pathlib import Path; from dgsgpt import run_queue; from dgsgpt.runs import Run\n"
        "run_queue.ensure_runner = lambda root: False\n"
        "run_queue.enqueue(Run(Path(sys.argv[1])))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(runs_dir / name)]) for name in "abcd"]
    assert [one.wait(60) for one in started] == [0, 0, 0, 0]
    assert sorted(run_queue.read_queue(runs_dir).ids) == ["a", "b", "c", "d"]


# ---------------------------------------------------------------- the runner
def test_runs_start_one_after_another_and_one_that_fails_does_not_stop_the_next(
    new_run: Callable[..., Run], runs_dir: Path
) -> None:
    first, bad, last = new_run("first"), new_run("bad"), new_run("last")
    config = (bad.path / "config.yaml").read_text(encoding="utf-8")
    (bad.path / "config.yaml").write_text(config.replace(str(bad.config.data.corpus), "/nowhere.txt"), encoding="utf-8")
    for run in (first, bad, last):
        run_queue.enqueue(run)
    until(lambda: last.status().has_ended)
    until(lambda: not run_queue.runner_lives(runs_dir))
    assert [run.status().state for run in (first, bad, last)] == ["finished", "failed", "finished"]
    assert run_queue.read_queue(runs_dir).ids == ()
    ends = [files.read_json(run.path / "exit.json") or {} for run in (first, bad, last)]
    began = [run.status().started_at or 0.0 for run in (first, bad, last)]
    assert began[1] >= ends[0]["time"]
    assert began[2] >= ends[1]["time"]


def test_the_list_is_worked_off_after_the_runner_was_killed(new_run: Callable[..., Run], runs_dir: Path) -> None:
    first, second = new_run("first", steps=100_000), new_run("second")
    run_queue.enqueue(first)
    run_queue.enqueue(second)
    until(lambda: run_queue.read_queue(runs_dir).ids == ("second",) and first.status().state == "running")
    assert process.send(files.read_json(runs_dir / run_queue.RUNNER), signal.SIGKILL)
    until(lambda: not run_queue.runner_lives(runs_dir))
    assert first.status().is_live, "a run does not need the runner"
    assert run_queue.read_queue(runs_dir).ids == ("second",)
    assert run_queue.ensure_runner(runs_dir)
    launch.stop_run(first)
    until(lambda: second.status().state == "finished")
    assert first.status().state == "stopped"


@pytest.mark.usefixtures("no_runner")
@pytest.mark.parametrize("started", [True, False])
def test_a_run_is_started_once_wherever_a_runner_is_killed(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    """Killed between writing that a run is to be started and taking it off: what counts is whether it was."""
    run, _ = waiting(runs_dir, "a", "b")
    at = time.time()
    ids = ["a", "b"]
    files.write_json(runs_dir / run_queue.QUEUE, {"runs": ids, "starting": {"run": "a", "at": at}})
    if started:
        files.write_json(run.path / "status.json", {"state": "failed", "step": 0, "max_steps": 9, "started_at": at + 1})
    seen: list[str] = []
    monkeypatch.setattr(launch, "start_run", lambda one: seen.append(one.id))
    assert run_queue.work_off(runs_dir, poll_s=0) == 0
    assert seen == (["b"] if started else ["a", "b"])


@pytest.mark.usefixtures("no_runner")
def test_a_run_that_cannot_be_started_says_why_and_the_next_one_is(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, _ = waiting(runs_dir, "gone", "b")
    gone.path.rename(runs_dir.parent / "elsewhere")
    seen: list[str] = []
    monkeypatch.setattr(launch, "start_run", lambda one: seen.append(one.id))
    run_queue.work_off(runs_dir, poll_s=0)
    queue = run_queue.read_queue(runs_dir)
    assert seen == ["b"]
    assert list(queue.problems) == ["gone"]
    assert "no run 'gone'" in queue.problems["gone"]
    run_queue.forget_problems(runs_dir)
    assert run_queue.read_queue(runs_dir).problems == {}


@pytest.mark.usefixtures("no_runner")
def test_a_held_list_starts_nothing(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(runs_dir, "a")
    seen: list[str] = []
    monkeypatch.setattr(launch, "start_run", lambda one: seen.append(one.id))
    run_queue.hold(runs_dir)
    assert run_queue.work_off(runs_dir, poll_s=0) == 0
    assert seen == []
    run_queue.release(runs_dir)
    run_queue.work_off(runs_dir, poll_s=0)
    assert seen == ["a"]


def test_two_runners_do_not_work_on_one_list(runs_dir: Path) -> None:
    runs_dir.mkdir()
    code = (
        "import sys; from pathlib import Path; from filelock import FileLock\n"
        "lock = FileLock(Path(sys.argv[1]) / '.queue-runner.lock'); lock.acquire(); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(runs_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert run_queue.work_off(runs_dir) == 2
    holder.communicate(b"", timeout=60)


# ---------------------------------------------------------------- the commands
@pytest.mark.usefixtures("no_runner")
def test_the_commands_show_and_change_the_list(runs_dir: Path, tmp_path: Path, make_config: Make) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(make_config().to_yaml(), encoding="utf-8")

    def call(*words: str) -> dict:
        result = CliRunner().invoke(main, [*words, "--json"])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    assert call("train", str(config), "--queue", "--run-id", "a")["state"] == "queued"
    call("train", str(config), "--queue", "--run-id", "b")
    assert call("queue")["runs"] == ["a", "b"]
    assert call("queue", "move", "b", "1")["runs"] == ["b", "a"]
    assert call("queue", "hold")["held"] is True
    assert call("queue", "remove", "a")["runs"] == ["b"]
    assert call("queue", "add", "a")["runs"] == ["b", "a"]
    assert call("queue", "release")["held"] is False
    refused = CliRunner().invoke(main, ["queue", "move", "b", "9"])
    assert refused.exit_code == 2
    assert "give 1 to 2" in refused.stderr
    assert not run_queue.runner_lives(runs_dir)
