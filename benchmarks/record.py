"""Facts of the machine and of the versions, and the results folder: a dated JSON and a row of a table."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import dgsgpt
from dgsgpt import files, hardware
from dgsgpt.format import plural

RESULTS = Path(__file__).parent / "results"
TABLE = "RESULTS.md"
HEADING = """# Recorded results

One row for each `dgsgpt bench NAME --record`, the newest last; figures are ratios measured in that run, as median
(smallest to largest round). Times, settings and versions are in the JSON of the same date.

| date | benchmark | machine | figures | command |
|---|---|---|---|---|
"""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on; `load_1m` tells whether others were using the machine."""
    machine = hardware.detect()
    facts: dict[str, Any] = {
        "device": device.type,
        "cpu": machine.cpu_name,
        "cpu_cores": machine.cpu_cores,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ram_bytes": machine.ram_total_bytes,
        "load_1m": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["gpu_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return facts


def describe_versions() -> dict[str, Any]:
    """Versions of what was measured and of what it ran on."""
    return {
        "dgsgpt": dgsgpt.__version__,
        "git": _git_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _git_version() -> str | None:
    """The commit, with a mark where files differ from it; None where git does not know."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a copy of the files without their history
        return None


def command_line(words: Sequence[str]) -> str:
    """The command as typed in a shell, with the thread counts that the environment sets."""
    settings = [f"{name}={os.environ[name]}" for name in _THREADS if name in os.environ]
    return " ".join([*settings, *words])


def machine_name(report: Mapping[str, Any]) -> str:
    """Device, threads and torch in one phrase."""
    facts, torch_version = report["hardware"], report["versions"]["torch"]
    name = facts["gpu"] if facts["device"] == "cuda" else facts["cpu"]
    return f"{name}, {plural(facts['threads'], 'thread')}, torch {torch_version}"


def record(report: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write `report` as a dated JSON into `folder` (default: benchmarks/results) and append its row to the table there.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = RESULTS if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    stamp = report["date"].replace(":", "").replace("+0000", "Z")
    path = folder / f"{stamp}-{report['benchmark']}-{report['hardware']['device']}.json"
    files.write_json(path, dict(report))
    table = folder / TABLE
    before = table.read_text(encoding="utf-8") if table.exists() else HEADING
    files.write_atomic(table, (before + _row(report) + "\n").encode())
    return path


def _row(report: Mapping[str, Any]) -> str:
    """Figures with a target; all of them in a benchmark without targets."""
    figures = [(case["case"], figure) for case in report["cases"] for figure in case["figures"]]
    judged = [pair for pair in figures if pair[1]["target"]] or figures
    cells = [
        report["date"][:10],
        report["benchmark"] + (" (quick)" if report["quick"] else ""),
        machine_name(report),
        "; ".join(_phrase(case, figure) for case, figure in judged),
        f"`{report['command']}`",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _phrase(case: str, figure: Mapping[str, Any]) -> str:
    spread = "" if figure["low"] is None else f" ({figure['low']:.2f} to {figure['high']:.2f})"
    verdict = "" if figure["met"] is None else f" {figure['target']['id']} {'met' if figure['met'] else 'not met'}"
    return f"{case}: {figure['name']} {figure['value']:.2f}{spread}{verdict}"
