"""Trackers of others: what they are given, and that they can neither end a run nor be there unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dgsgpt.config import RunConfig
from dgsgpt.errors import RunError
from dgsgpt.metrics import read_events, read_metrics
from dgsgpt.runs import create_run
from dgsgpt.train.report import Reporter, StopRequest
from dgsgpt.train.session import train_run
from dgsgpt.train.trackers import NoTracker, open_tracker

Make = Callable[..., RunConfig]


class Library(ModuleType):
    """Stands for W&B: remembers what it was told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.told: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> None:
        self.begun.append(settings)

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library("wandb")
    monkeypatch.setitem(sys.modules, "wandb", made)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return made


def config_of(make_config: Make, tracker: str) -> RunConfig:
    changes = {"train.steps": 4, "train.eval_every": 2, "train.checkpoint_every": 2, "train.compile": "off"}
    return make_config(**changes, **{"train.tracker": tracker})


def test_tensorboard_reads_the_metrics_of_the_run(make_config: Make, runs_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = create_run(runs_dir, config_of(make_config, "tensorboard"), "a")
    assert train_run(run.path, StopRequest(run.path)) == 0
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    frame = read_metrics(run.path)
    for name in ("loss/train", "loss/val", "lr"):
        own = frame[["step", name]].dropna()
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in seen] == own["step"].tolist()
        assert [value for _, value in seen] == pytest.approx(own[name].tolist(), rel=1e-6)


def test_a_run_that_goes_on_hides_what_it_had_written_beyond(make_config: Make, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config_of(make_config, "tensorboard")
    for first, steps, value in ((0, (1, 2, 3), 1.0), (1, (2,), 5.0)):
        tracker = open_tracker(tmp_path, config, first)
        for step in steps:
            tracker.log(step, {"loss/train": value})
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/train")] == [(1, 1.0), (2, 5.0)]


def test_wandb_is_offline_unless_asked_and_gets_every_line(make_config: Make, runs_dir: Path, library: Library) -> None:
    run = create_run(runs_dir, config_of(make_config, "wandb"), "a")
    assert train_run(run.path, StopRequest(run.path)) == 0
    (begun,) = library.begun
    assert begun["mode"] == "offline"
    assert begun["config"]["model"]["n_layer"] == 2
    assert [step for step, _ in library.told] == read_metrics(run.path)["step"].tolist()
    assert library.finished == 1


def test_a_tracker_that_fails_is_told_and_does_not_end_the_run(
    make_config: Make, runs_dir: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(values: Mapping[str, float], step: int) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(library, "log", fail)
    run = create_run(runs_dir, config_of(make_config, "wandb"), "a")
    assert train_run(run.path, StopRequest(run.path)) == 0
    told = [event for event in read_events(run.path, ("health",)) if event["name"] == "tracker"]
    assert len(told) == 1
    assert "ConnectionError: no network" in told[0]["message"]
    assert len(read_metrics(run.path)) == 4


def test_values_that_are_not_finite_are_left_out(tmp_path: Path, library: Library, make_config: Make) -> None:
    reporter = Reporter(tmp_path, max_steps=1)
    reporter.track(open_tracker(tmp_path, config_of(make_config, "wandb"), 0))
    reporter.log(1, {"loss/train": float("nan"), "lr": 0.1, "grad_norm": None})
    assert library.told == [(1, {"lr": 0.1})]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_missing_is_one_line(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError, match=rf"train.tracker={name} needs a package.*pip install"):
        open_tracker(runs_dir, config_of(make_config, name), 0)


def test_nothing_is_loaded_unasked(make_config: Make) -> None:
    assert isinstance(open_tracker(Path(), make_config(), 0), NoTracker)
    code = (
        "import sys, json, dgsgpt.train.session\n"
        "print(json.dumps([m for m in ('tensorboard', 'wandb', 'trackio') if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
