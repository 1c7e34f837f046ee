"""P1 and P2: how fast our recipe gets as far as the GPT-2-style baseline does, on the characters of a text.

Both are ordinary runs of `dgsgpt train`, each in a process of its own from nothing but the text: first the baseline
(`configs/baseline.yaml`), then `configs/speedrun.yaml` until its validation loss is at most the baseline's last. That
is asked every few steps, over the whole validation split; the time of evaluating is counted for neither side.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Timing
from benchmarks.report import Case, Figure, Target
from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.data.text import read_file
from dgsgpt.errors import DgsgptError
from dgsgpt.metrics import read_events
from dgsgpt.profiles import configs_dir
from dgsgpt.runs import Run

BASELINE, OURS = "baseline", "ours"
RECIPES = {BASELINE: "baseline.yaml", OURS: "speedrun.yaml"}
EVAL_EVERY = 5  # steps between looks at whether the target is reached
EVERYTHING = 10**9  # validation tokens: the whole split


@dataclass(frozen=True)
class Outcome:
    """What one run came to; times without evaluation."""

    step_seconds: float  # of optimizer steps
    wall_seconds: float  # from the command to its last saved checkpoint
    loss: float  # nats per character over the whole validation split
    steps: int

    def to_dict(self) -> dict[str, float]:
        """As in the JSON."""
        return {"step_seconds": self.step_seconds, "wall_seconds": self.wall_seconds, "loss": self.loss}


def speedrun(
    text: Path,
    *,
    target: float | None = None,
    repeats: int = 2,
    quick: bool = False,
    show: Callable[[str], None] = lambda line: None,
) -> tuple[Case, dict[str, Any]]:
    """Run the sides in turn; gives the case for the report and the JSON object of the last line.

    With a `target` loss there is no baseline. `quick` cuts both short, to see that it runs.

    Raises:
        DgsgptError: the text cannot be used, or a run failed.
    """
    read_file(text)  # refused here in one line, before minutes of training
    found: dict[str, list[Outcome]] = {OURS: []} if target is not None else {BASELINE: [], OURS: []}
    for number in range(repeats):
        goal = target
        for side, outcomes in found.items():
            outcome = _run(side, text, goal, quick)
            outcomes.append(outcome)
            goal = outcome.loss if side == BASELINE else goal
            show(
                f"{number + 1}. {side:9} loss {outcome.loss:.4f} after {outcome.steps:,} steps: "
                f"{outcome.step_seconds:.1f} s of steps, {outcome.wall_seconds:.1f} s in all"
            )
            if side == OURS and goal is not None and outcome.loss > goal:
                show(f"   the target of {goal:.4f} was not reached")
    return _case(text, found, target), _summary(found)


def _summary(found: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Medians of each side, and the ratios, round by round."""
    summary: dict[str, Any] = {
        side: {key: statistics.median(o.to_dict()[key] for o in outcomes) for key in outcomes[0].to_dict()}
        for side, outcomes in found.items()
    }
    if BASELINE in found:
        rounds = list(zip(found[BASELINE], found[OURS], strict=True))
        summary["step_ratio"] = statistics.median(a.step_seconds / b.step_seconds for a, b in rounds)
        summary["wall_ratio"] = statistics.median(a.wall_seconds / b.wall_seconds for a, b in rounds)
        summary["reached"] = all(b.loss <= a.loss for a, b in rounds)
    return summary


def _case(text: Path, found: dict[str, list[Outcome]], target: float | None) -> Case:
    times = {
        f"{side}, {what}": Timing(tuple(getattr(o, field) for o in outcomes))
        for side, outcomes in found.items()
        for what, field in (("steps", "step_seconds"), ("wall clock", "wall_seconds"))
    }
    case = Case(f"characters of {text.name}", {"target": target, "recipes": RECIPES}, times)
    for side, outcomes in found.items():
        losses = [o.loss for o in outcomes]
        case.figures.append(Figure(f"loss, {side}", statistics.median(losses), min(losses), max(losses)))
    if BASELINE in found:
        for what, name in (("steps", "P1"), ("wall clock", "P2")):
            bound = Target(name, at_least=10.0 if name == "P1" else 5.0)
            case.add_ratio(f"{what}, {BASELINE} / {OURS}", f"{BASELINE}, {what}", f"{OURS}, {what}", bound)
    return case


# ---------------------------------------------------------------- one run
def _run(side: str, text: Path, target: float | None, quick: bool) -> Outcome:
    settings = [f"data.corpus={json.dumps(str(text.absolute()))}"]
    if side == OURS and target is not None:
        settings += [f"train.target_loss={target!r}", f"train.eval_every={EVAL_EVERY}"]
        settings += [f"train.eval_tokens={EVERYTHING}"]
    else:
        settings += ["train.eval_every=0"]  # once, at the end
    if quick:
        settings += ["train.steps=10"]
    with tempfile.TemporaryDirectory(prefix="dgsgpt-speedrun-") as folder:
        root = Path(folder)
        command = [sys.executable, "-m", "dgsgpt.cli", "train", str(configs_dir() / RECIPES[side])]
        command += [word for setting in settings for word in ("--set", setting)]
        command += ["--runs-dir", str(root / "runs"), "--run-id", side, "--json"]
        environment = {**os.environ, "DGSGPT_DATASETS": str(root / "datasets")}
        begun = time.time()
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
        if ended.returncode != 0:
            lines = (ended.stderr.strip() or ended.stdout.strip() or "no output").splitlines()
            raise DgsgptError(f"the {side} run failed with exit code {ended.returncode}: {lines[-1]}")
        return _outcome(Run(root / "runs" / side), begun)


def _outcome(run: Run, begun: float) -> Outcome:
    last = run.checkpoints()[-1]
    metadata = files.read_json(last / ck.METADATA) or {}
    events = read_events(run.path)
    saved = next(e["time"] for e in reversed(events) if e["kind"] == "checkpoint")
    evaluating = sum(e["seconds"] for e in events if e["kind"] == "eval" and e["time"] <= saved)
    return Outcome(
        step_seconds=metadata["train_time_s"],
        wall_seconds=saved - begun - evaluating,
        loss=metadata["whole_split_eval"]["loss"],
        steps=metadata["step"],
    )
