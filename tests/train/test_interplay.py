"""What happens to a run when several things fall together: stops, pauses, saves, damage, failures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import RunConfig
from dgsgpt.errors import CheckpointError, RunError
from dgsgpt.evaluation import Evaluation
from dgsgpt.metrics import read_events
from dgsgpt.runs import Run, create_run
from dgsgpt.supervise import SAVE_FILE, STOP_FILE
from dgsgpt.train.judge import Judge
from dgsgpt.train.report import Reporter, StopRequest
from dgsgpt.train.session import Session
from dgsgpt.train.stepper import Stepper
from tests.train.test_session import health, train

Make = Callable[..., RunConfig]


def names(run: Run) -> list[str]:
    return [p.name for p in run.checkpoints()]


def during(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something while `step` is made."""
    make = Stepper.step

    def watched(self: Stepper, index: int) -> Any:
        if index + 1 == step:
            act()
        return make(self, index)

    monkeypatch.setattr(Stepper, "step", watched)


# ---------------------------------------------------------------- ending early
def test_a_stop_does_not_decide_when_validation_has_stopped_improving(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {5: 3.0, 6: 1.0, 10: 2.9, 15: 2.8, 20: 2.7}

    def judged(self: Judge, step: int, whole: bool = False) -> Evaluation:
        return Evaluation(losses.get(step, 2.95), 20.0, 4.0, 100, 100)

    monkeypatch.setattr(Judge, "evaluate", judged)
    settings = {"train.eval_every": 5, "train.early_stop_evals": 2, "train.checkpoint_every": 0}
    run, code = train(runs_dir, make_config(**settings), "a", stop_at=6)  # where a validation is very good
    assert code == 143
    state = files.read_json(run.checkpoints()[-1] / ck.STATE) or {}
    assert (state["best_val"], state["evals_without_gain"]) == (3.0, 0)
    assert ck.describe(run.checkpoints()[-1]).metadata["loss_val"] == 1.0
    train(runs_dir, make_config(**settings), "a")
    assert run.status().step == 20
    assert run.status().message == "finished"


def test_the_loss_of_another_step_never_speaks_for_a_broken_model(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Evaluation(2.0, 7.0, 3.0, 100, 100)
    monkeypatch.setattr(Judge, "evaluate", lambda self, step, whole=False: good if step < 11 else None)
    run, _ = train(runs_dir, make_config(), "a")
    found = {i.step: i.metadata["loss_val"] for i in ck.list_checkpoints(run)}
    assert found == {10: 2.0, 20: None}


# ---------------------------------------------------------------- asking
def test_a_save_asked_for_where_one_is_due_is_made_once(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(runs_dir, make_config(), "a")
    during(monkeypatch, 10, (run.path / SAVE_FILE).touch)
    train(runs_dir, make_config(), "a")
    assert names(run) == ["step_00000010", "step_00000020"]


def test_a_paused_run_that_is_stopped_makes_no_further_step(make_config: Make, runs_dir: Path) -> None:
    run = create_run(runs_dir, make_config(), "a")

    class Pause(StopRequest):
        looks = 0

        def paused(self) -> bool:
            self.looks += session.progress.step == 7
            if self.looks == 3:
                (run.path / STOP_FILE).touch()
            return session.progress.step == 7

    session = Session(run, Reporter(run.path, max_steps=20), Pause(run.path))
    assert session.run() == 143
    assert names(run) == ["step_00000007"]
    assert run.status().step == 7
    assert not run.status().paused


def test_a_save_asked_for_while_paused_is_answered_by_the_one_that_is_there(make_config: Make, runs_dir: Path) -> None:
    run = create_run(runs_dir, make_config(), "a")

    class Pause(StopRequest):
        looks = 0

        def paused(self) -> bool:
            if session.progress.step != 4 or self.looks == 4:
                return False
            self.looks += 1
            if self.looks == 2:
                (run.path / SAVE_FILE).touch()
            return True

    session = Session(run, Reporter(run.path, max_steps=20), Pause(run.path))
    assert session.run() == 0
    assert names(run) == ["step_00000004", "step_00000010", "step_00000020"]


# ---------------------------------------------------------------- damage
def damage(path: Path) -> None:
    """Flip a bit that no size tells of."""
    data = bytearray((path / ck.MODEL).read_bytes())
    data[-1] ^= 1
    (path / ck.MODEL).write_bytes(data)


def damaged_after_step_10(make_config: Make, runs_dir: Path) -> Run:
    """A run with a whole checkpoint of step 10 and a damaged one of step 15."""
    config = make_config(**{"train.keep_last": 1, "train.eval_every": 0})
    run, _ = train(runs_dir, config, "a", stop_at=10)
    kept, aside = run.checkpoints()[0], run.path / "aside"
    kept.rename(aside)  # out of the way of `keep_last`
    train(runs_dir, config, "a", stop_at=15)
    damage(run.checkpoints()[-1])
    aside.rename(kept)
    return run


def test_a_stop_on_the_step_of_a_damaged_checkpoint_saves_it_anew(make_config: Make, runs_dir: Path) -> None:
    run = damaged_after_step_10(make_config, runs_dir)
    train(runs_dir, run.config, "a", stop_at=5)
    path, problems = ck.newest_valid(run)
    assert path is not None
    assert path.name == "step_00000015"
    assert problems == []


def test_a_checkpoint_is_saved_and_kept_where_a_damaged_one_looks_newer(make_config: Make, runs_dir: Path) -> None:
    run = damaged_after_step_10(make_config, runs_dir)
    train(runs_dir, run.config, "a", stop_at=3)
    path, _ = ck.newest_valid(run)
    assert path is not None
    assert path.name == "step_00000013"


def test_a_checkpoint_that_cannot_take_its_place_leaves_the_one_there(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**{"train.eval_every": 0})
    run, _ = train(runs_dir, config, "a")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp-"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    _, code = train(runs_dir, config, "a")  # at its end already, it saves this once more
    assert code == 2
    monkeypatch.undo()
    ck.verify(run.checkpoints()[-1])
    assert names(run)[-1] == "step_00000020"


# ---------------------------------------------------------------- failing
def test_a_run_that_fails_completes_the_save_under_way(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, save = threading.Event(), ck.save_checkpoint

    def slow(*args: Any, **kwargs: Any) -> Path:
        may_end.wait(10)
        return save(*args, **kwargs)

    def fail() -> None:
        threading.Timer(0.2, may_end.set).start()
        raise RunError("something is wrong")

    monkeypatch.setattr(ck, "save_checkpoint", slow)
    during(monkeypatch, 11, fail)
    run, code = train(runs_dir, make_config(), "a")
    assert code == 2
    assert names(run) == ["step_00000010"]
    assert [e["step"] for e in read_events(run.path, ("checkpoint",))] == [10]
    assert run.status().error == "something is wrong"


def test_a_failed_save_does_not_hide_why_the_run_failed(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Path:
        may_end.wait(10)
        raise CheckpointError("No space left on device")

    def fail() -> None:
        may_end.set()
        raise RunError("something is wrong")

    monkeypatch.setattr(ck, "save_checkpoint", slow)
    monkeypatch.setattr("dgsgpt.train.saver._has_room", lambda tensors: True)
    during(monkeypatch, 11, fail)
    run, _ = train(runs_dir, make_config(), "a")
    assert run.status().error == "something is wrong"
    assert "No space left on device" in [e["message"] for e in read_events(run.path, ("error",))]


def test_a_sample_that_cannot_be_written_costs_no_run(make_config: Make, runs_dir: Path) -> None:
    config = make_config(**{"data.tokenizer.kind": "char", "train.sample_every": 10, "train.sample_prompt": "Ω"})
    from dgsgpt.data.prepare import resolve

    run, code = train(runs_dir, resolve(config), "a")
    assert code == 0
    assert health(run) == [(10, "sample"), (20, "sample")]
