"""Listing many checkpoints in a fresh process, as `dgsgpt checkpoints` does, and what of it is loading the code."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Setup, Side
from benchmarks.report import Case, Figure, Target
from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import build_config
from dgsgpt.format import number
from dgsgpt.runs import create_run
from dgsgpt.supervise import child_environment

LISTED, LOADED = "process that lists", "process that loads the code"
MAX_SECONDS = 2.0
RUNS, EACH = 20, 50
QUICK_RUNS, QUICK_EACH = 2, 3
RECENT = 100  # logged steps that a checkpoint's metadata tell of, as the trainer's do
_LIST = """
import json, sys, time
begun = time.perf_counter()
from pathlib import Path
from dgsgpt import annotations
from dgsgpt.checkpoint import list_checkpoints
loaded = time.perf_counter()
found = list_checkpoints(Path(sys.argv[1]))
annotations.of_checkpoints(info.path for info in found)
times = {"load_s": loaded - begun, "list_s": time.perf_counter() - loaded}
print(json.dumps({**times, "whole": sum(info.complete for info in found), "torch": "torch" in sys.modules}))
"""
_LOAD = "import dgsgpt.annotations, dgsgpt.checkpoint"


def run(setup: Setup) -> Iterator[Case]:
    """One case: checkpoints as the trainer describes them, with tiny weights."""
    runs, each = (QUICK_RUNS, QUICK_EACH) if setup.quick else (RUNS, EACH)
    with tempfile.TemporaryDirectory(prefix="dgsgpt-checkpoints-") as folder:
        make_checkpoints(Path(folder), runs, each)
        told: list[dict[str, float]] = []
        sides = [
            Side(LISTED, lambda: told.append(list_in_a_process(Path(folder), runs * each))),
            Side(LOADED, load_in_a_process),
        ]
        times = setup.time(sides)
    case = Case(f"{number(runs * each)} checkpoints of {runs} runs", {"runs": runs, "checkpoints_each": each}, times)
    case.facts = {LISTED: {key: min(one[key] for one in told) for key in ("load_s", "list_s")}}
    case.add_ratio("time, listing / loading alone", LISTED, LOADED)
    seconds, target = times[LISTED], None if setup.quick else Target("listing", at_most=MAX_SECONDS)
    case.figures.append(
        Figure("seconds of the whole process", seconds.median_s, seconds.min_s, seconds.max_s, target=target)
    )
    case.notes = ["torch is not loaded; the files lie in the system's cache"]
    yield case


def list_in_a_process(root: Path, expected: int) -> dict[str, float]:
    """Seconds to load the code and to list, as a fresh process tells them."""
    told: dict[str, float] = json.loads(_python(_LIST, str(root)))
    assert told["whole"] == expected, f"{told['whole']} of {expected} checkpoints were listed as whole"
    assert not told["torch"], "listing has loaded torch"
    return told


def load_in_a_process() -> None:
    """What every listing begins with."""
    _python(_LOAD)


def _python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=child_environment()).stdout


def make_checkpoints(root: Path, runs: int, each: int) -> None:
    """Runs with checkpoints that are whole by names and sizes; their weights are a few bytes."""
    config = build_config({})
    for n in range(runs):
        run = create_run(root, config, f"run-{n}")
        for step in range(1, each + 1):
            path = run.path / "checkpoints" / ck.checkpoint_name(step)
            path.mkdir()
            for name in (ck.MODEL, ck.OPTIMIZER, ck.TOKENIZER, ck.STATE):
                (path / name).write_bytes(b"{}")
            (path / ck.CONFIG).write_text(config.to_yaml(), encoding="utf-8")
            files.write_json(path / ck.METADATA, _metadata(run.id, step), durable=False)
            listed = {p.name: {"bytes": p.stat().st_size, "sha256": ck.hash_file(p)} for p in sorted(path.iterdir())}
            files.write_json(path / ck.MANIFEST, {"format_version": ck.FORMAT_VERSION, "files": listed}, durable=False)


def _metadata(run_id: str, step: int) -> dict[str, object]:
    recent = [step - i / RECENT for i in range(RECENT, 0, -1)]
    told = {"run_id": run_id, "step": step, "saved_at": 1.7e9 + step, "bytes": 1000, "params": 3_200_000}
    losses = {"loss_train": 3.0 + 1 / step, "loss_val": 3.1 + 1 / step, "ppl_val": 24.5, "bpb_val": 2.1, "lr": 1e-3}
    series = {
        "recent_steps": recent, "recent_losses": [3 + 1 / (1 + r) for r in recent], "recent_lrs": [1e-3] * RECENT
    }  # fmt: skip
    return {"format_version": ck.FORMAT_VERSION, **told, **losses, **series}
