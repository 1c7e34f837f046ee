"""Runs that nobody trained: metrics as a trainer writes them, for measuring the dashboard and for tests.

    python -m benchmarks.synthetic DEST --runs 100 --steps 100000

Configs come from the presets in `configs/`, each with several seeds; one config in three is a mixture of experts.
Curves fall, are noisy and spike; some runs have lines without a loss, some failed or were stopped. Everything follows
from the seed. `run.json` says `"synthetic": true`, there are no checkpoints, and of what was never measured nothing
is told. A run of 100,000 lines takes some 23 MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.synthetic_text import LINES_AT_ONCE, lines_of
from dgsgpt import files
from dgsgpt.config import RunConfig, build_config
from dgsgpt.metrics import EVENTS, METRICS
from dgsgpt.runs import N_COLORS, Run

BEGUN = 1_750_000_000.0  # when the first of them was made
EVALUATIONS = 400  # of a run, at most
SAMPLES = 20
SEEDS = 4  # runs of one config
STATES = ("finished", "finished", "finished", "finished", "stopped", "finished", "failed", "finished")
SHAPES: tuple[dict[str, Any], ...] = (
    {"n_layer": 4, "n_embd": 128, "n_head": 4, "block_size": 128},
    {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_kv_head": 2, "block_size": 256},
    {"n_layer": 4, "n_embd": 256, "n_head": 4, "block_size": 256, "moe": {"n_expert": 8, "n_expert_per_token": 2}},
)
RATES = (1e-3, 3e-4, 3e-3)


@dataclass(frozen=True)
class Plan:
    """One run to be made up: number, config, how it ends, and how many of its lines get written."""

    number: int
    config: RunConfig
    state: str
    lines: int

    @property
    def step(self) -> int:
        """The last step."""
        return self.lines * self.config.train.log_every

    @property
    def name(self) -> str:
        """The run's id."""
        model, train = self.config.model, self.config.train
        kind = f"moe{model.moe.n_expert}" if model.moe else "dense"
        return f"{kind}-{model.n_layer}x{model.n_embd}-lr{train.lr:g}-s{train.seed}-{self.number:04d}"


def make_runs(root: Path, n_runs: int, n_lines: int, seed: int = 1, log_every: int = 1) -> list[Run]:
    """Make `n_runs` runs of at most `n_lines` lines of metrics each below `root`, the same for the same seed.

    Runs that failed or were stopped have fewer lines. `log_every` is how many steps lie between two lines.

    Raises:
        FileExistsError: a run of that name is there already.
    """
    return [make_run(root, plan_run(number, n_lines, log_every), seed) for number in range(n_runs)]


def plan_run(number: int, n_lines: int, log_every: int = 1) -> Plan:
    """The config and the end of run `number`."""
    kind = number // SEEDS
    shape, rate = SHAPES[kind % len(SHAPES)], RATES[kind // len(SHAPES) % len(RATES)]
    steps = n_lines * log_every
    train = {
        "steps": steps, "lr": rate, "seed": number % SEEDS + 1, "log_every": log_every,
        "eval_every": max(1, n_lines // EVALUATIONS) * log_every,
        "sample_every": max(1, n_lines // SAMPLES) * log_every,
        "schedule": {"warmup_steps": min(steps // 10, 1000)},
    }  # fmt: skip
    config = build_config({"data": {"corpus": "austen"}, "model": shape, "train": train})
    state = STATES[number % len(STATES)]
    share = {"finished": 1.0, "stopped": 0.6, "failed": 0.35}[state]
    return Plan(number, config, state, max(1, round(share * n_lines)))


def make_run(root: Path, plan: Plan, seed: int = 1) -> Run:
    """Write one run directory."""
    path = root / plan.name
    path.mkdir(parents=True)
    (path / "checkpoints").mkdir()
    random = np.random.default_rng([seed, plan.number])
    facts = {
        "id": plan.name, "created_at": BEGUN + 600.0 * plan.number, "command": ["synthetic"], "synthetic": True,
        "seed": plan.config.train.seed, "color_slot": plan.number % N_COLORS, "demo": False, "parent": None,
    }  # fmt: skip
    files.write_json(path / "run.json", facts, durable=False)
    (path / "config.yaml").write_text(plan.config.to_yaml(), encoding="utf-8")
    elapsed = write_metrics(path / METRICS, plan, random)
    (path / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events(plan)), encoding="utf-8")
    (path / "train.log").write_text(f"synthetic run, {plan.state} at step {plan.step}\n", encoding="utf-8")
    files.write_json(path / "status.json", status(plan, elapsed), durable=False)
    return Run(path)


def status(plan: Plan, elapsed_s: float) -> dict[str, Any]:
    """What its trainer would have told last."""
    begun = BEGUN + 600.0 * plan.number
    error = "the loss was not finite (synthetic)" if plan.state == "failed" else None
    return {
        "state": plan.state, "step": plan.step, "max_steps": plan.config.train.steps, "started_at": begun,
        "heartbeat_at": begun + elapsed_s, "elapsed_s": elapsed_s, "eta_s": None, "message": plan.state, "error": error,
    }  # fmt: skip


def events(plan: Plan) -> Iterator[dict[str, Any]]:
    """Its events: begin, samples, a spike, and what ended it."""
    begun = BEGUN + 600.0 * plan.number
    yield {"time": begun, "step": 0, "kind": "start", "device": "cpu"}
    every = plan.config.train.sample_every
    for step in range(every, plan.step + 1, every):
        text = f" a truth of step {step}, universally acknowledged"
        yield {"time": begun + step, "step": step, "kind": "sample", "prompt": "It was", "text": text, "seed": 1}
    if plan.state == "failed":
        what = {"name": "nonfinite", "severity": "error", "message": "loss/train is not finite"}
        yield {"time": begun + plan.step, "step": plan.step, "kind": "health", **what}


# ---------------------------------------------------------------- figures
def write_metrics(path: Path, plan: Plan, random: np.random.Generator) -> float:
    """Write the lines of a run, a part at a time; gives the seconds that the last of them tells."""
    curve, seconds = _Curve(plan, random), 0.0
    with path.open("wb") as f:
        for first in range(0, plan.lines, LINES_AT_ONCE):
            columns, rare = curve.part(first, min(plan.lines, first + LINES_AT_ONCE))
            f.write(lines_of(columns, rare))
            seconds = float(columns["time_s"][-1])
    return seconds


class _Curve:
    """Figures of a run, made part after part in the order of steps."""

    def __init__(self, plan: Plan, random: np.random.Generator) -> None:
        self._plan, self._random = plan, random
        self._floor = 1.5 + 0.4 * random.random()
        self._power = 0.25 + 0.1 * random.random()
        self._step_s = 0.02 + 0.08 * random.random()
        self._spikes = np.sort(random.integers(1, plan.lines + 1, 1 + plan.lines // 20_000))
        self._nulls = random.integers(1, plan.lines + 1, 3 if plan.number % 7 == 3 else 0)

    def part(self, first: int, last: int) -> tuple[dict[str, np.ndarray], dict[int, dict[str, Any]]]:
        """Lines `first` to `last`, the end not included: columns, and by index what only some lines have."""
        plan, n = self._plan, last - first
        lines = np.arange(first + 1, last + 1)
        steps = lines * plan.config.train.log_every
        tokens = steps * plan.config.tokens_per_step
        clean = self._floor + 7.0 * (1 + steps / 20) ** -self._power
        spike = sum(
            (1.5 * np.exp(-np.clip(lines - at, 0, 1e9) / 30) * (lines >= at) for at in self._spikes), np.zeros(n)
        )
        columns = {
            "step": steps, "time_s": np.round(steps * self._step_s, 3), "tokens": tokens, "flops": tokens * 10_000_000,
            "loss/train": _single(clean + spike + self._random.normal(0, 0.04, n)), "lr": self._rate(steps),
            "grad_norm": _single(np.exp(self._random.normal(-0.9, 0.2, n)) * (1 + 4 * spike)),
            "perf/tokens_per_s": plan.config.tokens_per_step / self._step_s * self._random.normal(1, 0.02, n),
            "mem/peak_bytes": np.full(n, 649_134_080),
        }  # fmt: skip
        if plan.config.model.moe:
            columns["moe/max_load"] = _single(0.16 + 0.01 * self._random.random(n))
            columns["moe/dropped"] = np.zeros(n)
        return columns, self._rare(lines, clean)

    def _rate(self, steps: np.ndarray) -> np.ndarray:
        train, warm = self._plan.config.train, self._plan.config.train.schedule.warmup_steps
        share = np.clip((steps - warm) / max(1, train.steps - warm), 0, 1)
        falling = 0.1 + 0.45 * (1 + np.cos(math.pi * share))
        result: np.ndarray = train.lr * np.where(steps < warm, steps / max(1, warm), falling)
        return result

    def _rare(self, lines: np.ndarray, clean: np.ndarray) -> dict[int, dict[str, Any]]:
        """Evaluations, and lines whose loss was not finite: the last ones of a run that failed."""
        every = self._plan.config.train.eval_every // self._plan.config.train.log_every
        rare: dict[int, dict[str, Any]] = {}
        for at in np.flatnonzero(lines % every == 0).tolist():
            loss = float(clean[at] + 0.08 + self._random.normal(0, 0.005))
            rare[at] = {"loss/val": loss, "ppl/val": math.exp(loss), "bpb/val": loss / 2.9}
        unknown = np.isin(lines, self._nulls) | ((self._plan.state == "failed") & (lines > self._plan.lines - 2))
        for at in np.flatnonzero(unknown).tolist():
            rare.setdefault(at, {})["loss/train"] = None
        return rare


def _single(values: np.ndarray) -> np.ndarray:
    """Values as a tensor's `item()` gives them: single precision, many digits."""
    return values.astype(np.float32).astype(np.float64)


@click.command()
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--runs", default=100, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--steps", default=100_000, show_default=True, type=click.IntRange(1, 10_000_000), help="Lines of each.")
@click.option("--log-every", default=1, show_default=True, type=click.IntRange(1, 10_000), help="Steps between lines.")
@click.option("--seed", default=1, show_default=True, type=int)
def main(dest: Path, runs: int, steps: int, log_every: int, seed: int) -> None:
    """Make synthetic runs below DEST, to be shown with `dgsgpt dashboard --runs-dir DEST`."""
    with click.progressbar(range(runs), label="making runs") as numbers:
        for number in numbers:
            make_run(dest, plan_run(number, steps, log_every), seed)


if __name__ == "__main__":
    main()
