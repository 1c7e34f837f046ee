"""Going on from a checkpoint, and past steps that were not finite: all that was saved counts again."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgsgpt import checkpoint as ck
from dgsgpt import files, launch
from dgsgpt.config import RunConfig
from dgsgpt.metrics import read_events, read_metrics
from dgsgpt.runs import Run, create_run
from dgsgpt.train.report import Reporter, StopRequest
from dgsgpt.train.resume import compare_environments
from dgsgpt.train.session import Session
from dgsgpt.train.stepper import Stepper
from tests.train.test_session import poison, train

Make = Callable[..., RunConfig]


# ---------------------------------------------------------------- going on
def test_all_that_is_saved_is_restored(make_config: Make, runs_dir: Path) -> None:
    config = make_config(**{"train.precision": "fp16", "model.dropout": 0.1})
    run = create_run(runs_dir, config, "a")
    first = Session(run, Reporter(run.path, max_steps=20), StopRequest(run.path))
    first._set_up()
    for _ in range(7):
        first._step()
    assert first.stepper.loss_scale is not None
    first.stepper.loss_scale.restore({"scale": 512.0, "good": 5})
    first.stepper.rate_scale = 0.25
    first.progress.best_val, first.progress.evals_without_gain = 1.5, 3
    random.seed(5)
    np.random.seed(6)
    first.save()
    first.archive.close()
    kept = {k: v.clone() for k, v in {**first.stepper.updates.tensors(), "rng": torch.get_rng_state()}.items()}
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

    second = Session(Run(run.path), Reporter(run.path, max_steps=20), StopRequest(run.path))
    second._set_up()
    saved = files.read_json(run.checkpoints()[-1] / ck.STATE) or {}
    assert saved["health"]["reading"] == 7
    assert (saved["best_val"], saved["evals_without_gain"], saved["rate_scale"]) == (1.5, 3, 0.25)
    assert json.loads(files.to_json(second.archive._state(second.progress, second.monitor))) == saved
    assert second.progress == first.progress
    found = {**second.stepper.updates.tensors(), "rng": torch.get_rng_state()}
    assert found.keys() == kept.keys()
    assert all(torch.equal(v, kept[k]) for k, v in found.items())


# ---------------------------------------------------------------- going on otherwise
def test_settings_changed_for_a_resume_are_settled_anew(make_config: Make, runs_dir: Path) -> None:
    config = make_config(**{"train.micro_batch_size": 4, "train.grad_accum_steps": 1})
    run, _ = train(runs_dir, config, "a", stop_at=5)
    before = Run(run.path).facts["settled"]
    changes = ["train.micro_batch_size=2", "train.grad_accum_steps=2", "train.precision=bf16"]
    changed = launch.change_recipe(Run(run.path), changes)
    train(runs_dir, config, "a", stop_at=2)
    settled = Run(run.path).facts["settled"]
    assert (settled["micro_batch_size"], settled["grad_accum_steps"], settled["precision"]) == (2, 2, "bf16")
    back = ["train.micro_batch_size=4", "train.grad_accum_steps=1", "train.precision=auto"]
    launch.change_recipe(Run(changed.path), back)
    train(runs_dir, config, "a", stop_at=2)
    assert Run(run.path).facts["settled"] == before


def test_a_longer_run_stays_as_it_was_settled(make_config: Make, runs_dir: Path) -> None:
    run, _ = train(runs_dir, make_config(), "a", stop_at=5)
    facts = files.read_json(run.path / "run.json") or {}
    mine = {**facts["settled"], "precision": "bf16"}
    files.write_json(run.path / "run.json", {**facts, "settled": mine})
    launch.change_recipe(Run(run.path), ["train.steps=30"])
    train(runs_dir, make_config(), "a", stop_at=2)
    assert Run(run.path).facts["settled"] == mine


def test_only_what_both_tell_of_a_machine_is_compared() -> None:
    assert compare_environments({"threads": 2}, {"threads": 2, "compile": "on"}) is None
    assert compare_environments({"compile": "off"}, {"compile": "on"}) == (
        "not bit-exact from here on: compile off -> on"
    )


# ---------------------------------------------------------------- steps that are not finite
def test_float16_tells_a_loss_that_no_scale_can_mend(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {7})
    run, code = train(runs_dir, make_config(**{"train.precision": "fp16", "train.on_nonfinite": "stop"}), "a")
    assert code == 2
    assert "the loss is not finite at step 7" in str(run.status().error)


def test_a_device_that_decides_itself_is_quoted_for_what_it_knows(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {7})
    begin = Stepper.__init__

    def leave(self: Stepper, *args: Any) -> None:
        begin(self, *args)
        self.decides_here = False

    monkeypatch.setattr(Stepper, "__init__", leave)
    run, code = train(runs_dir, make_config(**{"train.log_every": 5}), "a")
    assert code == 0
    (event,) = [e for e in read_events(run.path, ("health",)) if e.get("name") == "nonfinite"]
    assert event["step"] == 10
    assert event["message"].startswith("loss or gradient was not finite before step 10")


def test_weights_that_moved_before_a_bad_gradient_are_owned_up_to(make_config: Make, runs_dir: Path) -> None:
    run = create_run(runs_dir, make_config(**{"train.optimizer_in_backward": True, "train.grad_clip": None}), "a")
    session = Session(run, Reporter(run.path, max_steps=20), StopRequest(run.path))
    session._set_up()
    session.shop.model.embed.weight.register_hook(lambda gradient: gradient * float("inf"))
    session._step()
    (event,) = [e for e in read_events(run.path, ("health",)) if e.get("name") == "nonfinite"]
    assert "only weights whose gradients came before it were updated" in event["message"]


def test_the_time_left_after_going_back_is_that_of_the_steps_made(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**{"train.on_nonfinite": "rollback"})
    train(runs_dir, config, "a", stop_at=10)
    poison(monkeypatch, {20}, once=True)
    told: list[float] = []
    status = Reporter.status

    def watched(self: Reporter, **fields: Any) -> None:
        if "step_s" in fields:
            told.append(fields["step_s"])
        status(self, **fields)

    monkeypatch.setattr(Reporter, "status", watched)
    train(runs_dir, config, "a")
    assert len(told) == 10 + 10
    assert told[9] < 5 * told[8]  # and not all seconds since the start


# ---------------------------------------------------------------- what a GPU does later
def test_a_clock_counts_what_the_device_still_had_to_do(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: Stepper) -> None:
        time.sleep(0.05)

    monkeypatch.setattr(Stepper, "wait", late)
    run, _ = train(runs_dir, make_config(**{"train.log_every": 5, "train.eval_every": 0, "train.steps": 10}), "a")
    frame = read_metrics(run.path)
    assert frame["step"].tolist() == [1, 5, 10]
    assert (frame["time_s"].diff().iloc[1:] >= 0.05).all()


def test_a_checkpoint_is_read_into_the_memory_of_the_host(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = train(runs_dir, make_config(), "a", stop_at=5)
    load, places = ck.load_tensors, []

    def watched(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
        places.append(device)
        return load(path, device)

    monkeypatch.setattr(ck, "load_tensors", watched)
    session = Session(run, Reporter(run.path, max_steps=20), StopRequest(run.path))
    session._set_up()
    session.shop.device = torch.device("meta")  # a place that nothing could come back from
    session.archive.restore(run.checkpoints()[-1])
    assert places == ["cpu"] * 4
