"""Run directories for page tests, written by the same functions the trainer uses; nothing is trained."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from dgsgpt import files, process
from dgsgpt.config import RunConfig, build_config
from dgsgpt.metrics import MetricsWriter
from dgsgpt.runs import Run, create_run

CONFIG: dict[str, Any] = {
    "data": {"corpus": "austen", "tokenizer": {"kind": "byte"}},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32},
    "train": {"steps": 1000, "micro_batch_size": 4, "schedule": {"warmup_steps": 50}, "log_every": 10},
}


def config(moe: bool = False, **train: Any) -> RunConfig:
    """A tiny config; keywords go to its `train` section."""
    model = {**CONFIG["model"], "moe": {"n_expert": 4}} if moe else CONFIG["model"]
    return build_config({**CONFIG, "model": model, "train": {**CONFIG["train"], **train}})


def loss_at(step: int) -> float:
    """A falling curve with a deterministic ripple."""
    return 2.2 + 3.3 * math.exp(-step / 120) + 0.05 * math.sin(step * 1.7)


def log_steps(run: Run, first: int, last: int, every: int = 10) -> None:
    """Write metrics for a range of steps, a validation each hundred."""
    writer = MetricsWriter(run.path)
    loads = {f"moe/load/{layer}/{e}": 0.2 + 0.1 * (layer + 1) * (e == 1) for layer in (0, 1) for e in range(4)}
    moe = {"moe/max_load": 0.4, "moe/dropped": 0.0, "moe/entropy": 0.9, **loads} if run.config.model.moe else {}
    for step in range(first, last + 1, every):
        loss = loss_at(step)
        val = {"loss/val": loss + 0.04, "ppl/val": math.exp(loss + 0.04), "bpb/val": (loss + 0.04) / math.log(2) / 2.1}
        writer.log(
            step,
            {
                "time_s": step * 0.05,
                "tokens": step * 128,
                "flops": step * 128 * 6e5,
                "loss/train": loss,
                "lr": 1e-3 * min(1.0, step / 50),
                "grad_norm": 0.5 + 0.1 * math.sin(step),
                "perf/tokens_per_s": 2500.0 + step % 70,
                "mem/peak_bytes": 400 << 20,
                **moe,
                **(val if step % 100 == 0 else {}),
            },
        )


def write_status(run: Run, state: str, step: int, **fields: Any) -> None:
    """What the trainer would say; a live state belongs to this very process."""
    now = time.time()
    status = {"state": state, "step": step, "max_steps": run.config.train.steps, "started_at": now - 60}
    status |= {"heartbeat_at": now, "elapsed_s": 50.0, "eta_s": 30.0, "step_s": 0.05, "message": "training", **fields}
    files.write_json(run.path / "status.json", status)
    if state in ("starting", "running", "stopping"):
        files.write_json(run.path / "proc.json", process.identify(os.getpid()))


def add_checkpoint(run: Run, step: int, loss_val: float | None = 2.5, best: bool = False) -> Path:
    """A checkpoint's descriptions without weights: enough for lists, not for opening."""
    path = run.path / "checkpoints" / f"step_{step:08d}"
    path.mkdir(parents=True)
    saved = {"run_id": run.id, "step": step, "saved_at": time.time() - 240, "loss_val": loss_val, "bytes": 1 << 20}
    files.write_json(path / "metadata.json", {"format_version": 1, **saved, "best": best})
    MetricsWriter(run.path).event("checkpoint", step, path=path.name, best=best)
    return path


def make_run(root: Path, run_id: str, state: str = "finished", step: int = 1000, **options: Any) -> Run:
    """A run with metrics up to `step`, samples and log, in a given state.

    Options: `config`, `demo`, `checkpoints` (steps), `status` (more fields of status.json).
    """
    run = create_run(
        root, options.get("config") or config(), run_id, ["dgsgpt", "train"], demo=options.get("demo", False)
    )
    log_steps(run, 10, step)
    writer = MetricsWriter(run.path)
    for at in range(200, step + 1, 400):
        writer.event("sample", at, prompt="It was", text=f" a truth of step {at}, universally acknowledged", seed=1)
    for at in options.get("checkpoints", ()):
        add_checkpoint(run, at, loss_at(at) + 0.04, best=at == max(options["checkpoints"]))
    (run.path / "train.log").write_text(f"12:00:00 step {step}  loss {loss_at(step):.4f}\n", encoding="utf-8")
    write_status(run, state, step, **options.get("status", {}))
    return run
