"""What a report tells of a run, gathered from its directory as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from dgsgpt import format as fmt
from dgsgpt.annotations import read as read_words
from dgsgpt.checkpoint import CheckpointInfo, best_of, list_checkpoints
from dgsgpt.config import RunConfig
from dgsgpt.errors import ConfigError, DgsgptError
from dgsgpt.evaluation import kept
from dgsgpt.metrics import read_events, read_metrics
from dgsgpt.planner import plan
from dgsgpt.rules import flatten
from dgsgpt.runs import Run

MAX_SAMPLES, MAX_EVENTS, MAX_CHECKPOINTS, MAX_EVALUATIONS = 8, 60, 40, 40
_KINDS = ("start", "resume", "pause", "continue", "stop", "finish", "health", "error")

Row = tuple[str, str]


@dataclass(frozen=True)
class Told:
    """One run as a report shows it; `yaml` is empty and `problem` says why where its config cannot be read."""

    run: Run
    title: str
    state: str
    note: str
    tags: tuple[str, ...]
    frame: pd.DataFrame
    figures: list[Row]
    facts: list[Row]
    settings: dict[str, Any]
    yaml: str
    problem: str
    samples: list[dict[str, str]] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    checkpoints: list[tuple[str, ...]] = field(default_factory=list)
    evaluations: list[tuple[str, ...]] = field(default_factory=list)


def gather(run: Run) -> Told:
    """Read all that a report shows of `run`; what is damaged is left out and said."""
    said, status, frame, events = read_words(run).run, run.status(), read_metrics(run.path), read_events(run.path)
    config, problem = _config(run)
    return Told(
        run=run,
        title=said.name or run.id,
        state=status.state,
        note=said.note,
        tags=said.tags,
        frame=frame,
        figures=_figures(frame, config, status.step, status.max_steps, status.elapsed_s),
        facts=_facts(run, config),
        settings=flatten(config.model_dump()) if config else {},
        yaml=config.to_yaml() if config else "",
        problem="; ".join(filter(None, (problem, status.error or ""))),
        samples=_samples(events),
        events=_events(events),
        checkpoints=_checkpoints(list_checkpoints(run)),
        evaluations=_evaluations(run),
    )


def _config(run: Run) -> tuple[RunConfig | None, str]:
    try:
        return run.config, ""
    except ConfigError as e:
        return None, str(e)


# ---------------------------------------------------------------- figures
def known(frame: pd.DataFrame, key: str) -> list[float]:
    """All finite values of a metric in the order of steps."""
    return [v for v in frame[key].tolist() if math.isfinite(v)] if key in frame else []


def _figures(frame: pd.DataFrame, config: RunConfig | None, step: int, max_steps: int, elapsed_s: float) -> list[Row]:
    val, bpb, train = (known(frame, key) for key in ("loss/val", "bpb/val", "loss/train"))
    speed, tokens, flops, peak = (
        known(frame, key) for key in ("perf/tokens_per_s", "tokens", "flops", "mem/peak_bytes")
    )
    rows = [("Steps", f"{fmt.number(step)} of {fmt.number(max_steps)}" if max_steps else fmt.number(step))]
    if val:
        at = int(frame["step"][frame["loss/val"].astype(float).argmin()])
        rows.append(("Best validation loss", f"{fmt.loss(min(val))} nats/token at step {fmt.number(at)}"))
        rows.append(("Its perplexity", fmt.perplexity(math.exp(min(min(val), 700.0)))))
    rows += [("Best bits per byte", fmt.loss(min(bpb)))] if bpb else []
    rows += [("Last training loss", fmt.loss(train[-1]))] if train else []
    rows += [("Tokens", fmt.si(tokens[-1]))] if tokens else []
    rows += [("Training FLOPs", fmt.scientific(flops[-1]))] if flops else []
    rows += [("Trained for", fmt.duration(elapsed_s))] if elapsed_s else []
    rows += [("Throughput, median", f"{fmt.si(sorted(speed)[len(speed) // 2])} tok/s")] if speed else []
    rows += [("Peak memory", f"{fmt.gib(max(peak))} GiB")] if peak else []
    return rows + _size(config)


def _size(config: RunConfig | None) -> list[Row]:
    if config is None:
        return []
    try:
        cost = plan(config)
    except DgsgptError:  # a run that cannot be planned is reported all the same
        return []
    active = f", {fmt.si(cost.active_params)} active" if cost.active_params != cost.params else ""
    return [("Parameters", fmt.si(cost.params) + active)]


# ---------------------------------------------------------------- facts
def _facts(run: Run, config: RunConfig | None) -> list[Row]:
    """What it takes to make the run again."""
    facts = run.facts
    versions, hardware, git, data = (_mapping(facts.get(key)) for key in ("versions", "hardware", "git", "data"))
    rows: list[tuple[str, Any]] = [
        ("Created", facts.get("created")),
        ("Command", " ".join(map(str, facts.get("command") or []))),
        ("Seed", facts.get("seed")),
        ("Data", config.data.corpus.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if config else None),
        ("Data fingerprint", data.get("fingerprint")),
        ("Tokenizer sha256", data.get("tokenizer_sha256")),
        ("Machine", ", ".join(str(v) for v in (hardware.get("name"), hardware.get("platform")) if v)),
        ("CPU cores", hardware.get("cpu_cores")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Source", (git.get("commit") or "") + (" with changes" if git.get("dirty") else "") if git else None),
        ("Parent", _parent(facts.get("parent"))),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _parent(value: Any) -> str | None:
    parent = _mapping(value)
    named = parent.get("run") or parent.get("run_id")
    return f"{named}, step {parent.get('step', '?')}" if named else None


# ---------------------------------------------------------------- lists
def _samples(events: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The first, the last and some between, evenly."""
    found = [event for event in events if event.get("kind") == "sample"]
    last = len(found) - 1
    chosen = sorted({round(i * last / (MAX_SAMPLES - 1)) for i in range(MAX_SAMPLES)}) if found else []
    return [
        {
            "step": fmt.number(_step(found[i])),
            "prompt": str(found[i].get("prompt") or ""),
            "text": str(found[i].get("text") or ""),
        }
        for i in chosen
    ]


def _step(event: dict[str, Any]) -> int:
    value = event.get("step")
    return value if isinstance(value, int) else 0


def _events(events: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    found = [event for event in events if event.get("kind") in _KINDS]
    return [
        (fmt.number(_step(event)), str(event.get("kind")), str(event.get("message") or event.get("path") or ""))
        for event in found[-MAX_EVENTS:]
    ]


def _checkpoints(infos: Sequence[CheckpointInfo]) -> list[tuple[str, ...]]:
    best = best_of(infos)
    return [
        (
            fmt.number(info.step),
            fmt.loss(_number(info.metadata.get("loss_val"))),
            fmt.loss(_number(info.metadata.get("bpb_val"))),
            fmt.size(info.bytes) if info.bytes else fmt.MISSING,
            info.problem or ("best" if best and info.path == best.path else ""),
        )
        for info in infos[:MAX_CHECKPOINTS]
    ]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _evaluations(run: Run) -> list[tuple[str, ...]]:
    found, _ = kept.read(run)
    return [
        (
            fmt.number(one.step),
            one.text_name,
            fmt.loss(one.bpb),
            fmt.loss(one.result("loss")),
            fmt.perplexity(one.result("ppl")),
            fmt.si(one.result("tokens")),
        )
        for one in found[-MAX_EVALUATIONS:]
    ]
