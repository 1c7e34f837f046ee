"""Real trainers killed by SIGKILL at random moments and started again: the run must not know that it happened."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import RunConfig
from dgsgpt.data.prepare import resolve
from dgsgpt.metrics import METRICS, read_events
from dgsgpt.runs import Run, create_run
from dgsgpt.supervise import child_environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL as on POSIX")

STEPS = 150
FIRST, LAST = 5, STEPS - 40  # kills are due in these steps; a few more are done until one takes effect
KILLS = {"plain": 3, "compile": 1}  # while it steps; two for the others
START_UP_S = 3.0  # about what it takes until the first step
PATIENCE_S = 60.0

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout, accumulation": {"model.dropout": 0.1, "train.grad_accum_steps": 2},
    "moe": {"model.moe": {"n_expert": 4, "balance": "bias"}},
    "bf16": {"train.precision": "bf16", "train.weight_precision": "bf16"},
    "muon, saved in the foreground": {"train.optimizer": "muon", "train.background_save": False},
    "compile": {"train.compile": "on", "model.n_layer": 1},
}


class Trainer:
    """One trainer process on a run directory; its output goes to the run's log."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._log = (run.path / "train.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dgsgpt.train", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=child_environment(),
        )

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def finish(self) -> None:
        """Wait until it has trained to the end."""
        code = self.process.wait(PATIENCE_S)
        assert code == 0, (self._run.path / "train.log").read_text()[-3000:]

    def kill_when(self, due: Callable[[], bool]) -> bool:
        """Kill it as soon as the condition holds; whether it was still at work then."""
        deadline = time.monotonic() + PATIENCE_S
        while not due() and self.process.poll() is None:
            assert time.monotonic() < deadline, (self._run.path / "train.log").read_text()[-3000:]
            time.sleep(0.001)
        self.process.send_signal(signal.SIGKILL)
        code = self.process.wait(PATIENCE_S)
        assert code in (0, -signal.SIGKILL), (self._run.path / "train.log").read_text()[-3000:]
        return code == -signal.SIGKILL


def lines(run: Run) -> int:
    path = run.path / METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def train_to_the_end(run: Run) -> Run:
    with Trainer(run) as trainer:
        trainer.finish()
    return run


def train_with_kills(run: Run, chance: random.Random, kills: int) -> int:
    """Train to the end through one kill while it starts and `kills` while it steps; returns how many took effect."""
    begun, moment = time.monotonic(), START_UP_S * chance.random()
    with Trainer(run) as trainer:
        done = int(trainer.kill_when(lambda: time.monotonic() - begun > moment))
    for step in sorted(chance.sample(range(FIRST, LAST), kills)):
        pause = 0.03 * chance.random()  # somewhere in a step, in a save or in a line of metrics

        def due(step: int = step, pause: float = pause) -> bool:
            if lines(run) < step:
                return False
            time.sleep(pause)
            return True

        with Trainer(run) as trainer:
            done += trainer.kill_when(due)
    train_to_the_end(run)
    return done


def curve(run: Run) -> list[dict[str, str]]:
    """Every line of metrics, to the last bit, but the clock."""
    rows = [json.loads(line) for line in (run.path / METRICS).read_text().splitlines()]
    exact = [{k: v for k, v in row.items() if not k.startswith(("time", "perf", "mem", "sys"))} for row in rows]
    return [{k: v.hex() if isinstance(v, float) else repr(v) for k, v in row.items()} for row in exact]


def final(run: Run) -> dict[str, Any]:
    """What the last checkpoint holds of weights, optimizer, generators and detectors."""
    path = run.checkpoints()[-1]
    assert path.name == ck.checkpoint_name(STEPS)
    health = files.read_json(path / ck.STATE)["health"]  # type: ignore[index]
    hashes = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in (ck.MODEL, ck.OPTIMIZER)}
    return {**hashes, "loss": health["loss"], "norm": health["norm"]}


@pytest.mark.slow
@pytest.mark.parametrize("feature", FEATURES)
def test_a_killed_run_equals_one_that_was_not(
    make_config: Callable[..., RunConfig], runs_dir: Path, feature: str
) -> None:
    chosen = make_config(
        **{
            "data.tokenizer.kind": "char",
            "train.steps": STEPS,
            "train.checkpoint_every": 7,
            "train.eval_every": 25,
            "train.eval_tokens": 256,
            # What these choose by themselves depends on the clock.
            "train.precision": "fp32",
            "train.compile": "off",
            **FEATURES[feature],
        }
    )
    config = resolve(chosen)  # as starting does: only the text tells how many characters there are
    whole = train_to_the_end(create_run(runs_dir, config, "whole"))
    killed = create_run(runs_dir, config, "killed")
    done = train_with_kills(killed, random.Random(feature), KILLS.get(feature, 2))
    assert done >= 2, "too few kills took effect to show anything"
    assert killed.status().state == "finished"
    assert [int(row["step"]) for row in curve(whole)] == list(range(1, STEPS + 1))
    assert curve(killed) == curve(whole)
    assert final(killed) == final(whole)
    resumed = [event["step"] for event in read_events(killed.path, ("resume",))]
    assert resumed, "no kill fell after a checkpoint"
    assert all(step % 7 == 0 for step in resumed)
