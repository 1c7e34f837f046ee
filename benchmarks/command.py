"""`dgsgpt bench`: run one benchmark from beginning to end."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.catalog import BENCHMARKS, NEEDS_GPU, check_name
from benchmarks.measure import Setup
from benchmarks.record import command_line, describe_machine, describe_versions, machine_name
from benchmarks.speedrun import speedrun
from dgsgpt.errors import DgsgptError


def run_benchmark(
    name: str,
    *,
    device: str = "auto",
    seconds: float = 20.0,
    quick: bool = False,
    command: Sequence[str] = (),
    show: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run benchmark `name`, showing each case as it ends; gives the report as it is recorded.

    `seconds` is the measuring time for each pair of sides, `command` what the report says it was made by.

    Raises:
        DgsgptError: no such benchmark, or no such device here.
    """
    module = importlib.import_module(f"benchmarks.{check_name(name)}")
    setup = Setup(_pick_device(device, needs_gpu=name in NEEDS_GPU), seconds, quick)
    report = begin_report(name, setup.device, command, quick=quick) | {"seconds_per_pair": seconds}
    show(BENCHMARKS[name])
    show(machine_name(report))
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # this and the next two lines as the trainer does
    gc.collect()
    gc.freeze()  # what lives until the end need not be walked by every collection
    try:
        for case in module.run(setup):
            report["cases"].append(case.to_dict())
            for line in ("", *case.lines()):
                show(line)
    finally:
        gc.unfreeze()
        torch.set_float32_matmul_precision(precision)
    return report


def begin_report(name: str, device: torch.device, command: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """A report without cases: what was run, when and where."""
    return {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(command),
        "quick": quick,
        "hardware": describe_machine(device),
        "versions": describe_versions(),
        "cases": [],
    }


def run_speedrun(
    text: Path,
    *,
    target: float | None,
    repeats: int,
    quick: bool,
    command: Sequence[str],
    show: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The speed run, whose sides are whole processes: its report as it is recorded, and its summary.

    Raises:
        DgsgptError: the text cannot be used, or a run failed.
    """
    report = begin_report("speedrun", torch.device("cpu"), command, quick=quick)
    show(BENCHMARKS["speedrun"])
    show(machine_name(report))
    case, summary = speedrun(text, target=target, repeats=repeats, quick=quick, show=show)
    report["cases"].append(case.to_dict())
    for line in ("", *case.lines()):
        show(line)
    return report, summary


def _pick_device(choice: str, needs_gpu: bool = False) -> torch.device:
    if needs_gpu and (choice == "cpu" or not torch.cuda.is_available()):
        found = "--device cpu has none" if choice == "cpu" else "torch finds none here"
        raise DgsgptError(
            f"this benchmark needs an NVIDIA GPU, and {found}; run it with --device cuda where there is one"
        )
    if choice == "cuda" and not torch.cuda.is_available():
        raise DgsgptError("--device cuda: torch finds no GPU here; use auto or cpu")
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(choice)
