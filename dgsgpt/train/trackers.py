"""Metrics for other people's trackers beside our own files: TensorBoard, Weights & Biases, Trackio. Off by default.

Nothing leaves the machine by it: TensorBoard's files lie in the run's directory, and W&B writes offline unless the
environment says otherwise (`WANDB_MODE=online`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from dgsgpt.config import RunConfig
from dgsgpt.errors import RunError

PROJECT = "dgsgpt"
_PACKAGES = {"tensorboard": "dgsgpt[trackers]", "wandb": "wandb", "trackio": "trackio"}


class Tracker(Protocol):
    """Where metrics go besides `metrics.jsonl`."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""

    def close(self) -> None:
        """Write what is still held back."""


class NoTracker:
    """Metrics go nowhere else."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TensorBoard:
    """Event files in `runs/<id>/tensorboard`; a run that went back hides what it had written beyond `first_step`."""

    def __init__(self, run_dir: Path, config: RunConfig, first_step: int) -> None:
        _load("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1, flush_secs=10)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in config.to_yaml().splitlines()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar for each metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class Experiments:
    """W&B, or a library with its interface (`init`, `log`, `finish`) such as Trackio."""

    def __init__(self, name: str, run_dir: Path, config: RunConfig) -> None:
        self._module = _load(name)
        settings: dict[str, Any] = {"project": PROJECT, "name": run_dir.name, "config": config.to_dict()}
        if name == "wandb":
            mode = os.environ.get("WANDB_MODE", "offline")
            settings |= {"dir": str(run_dir), "mode": mode, "id": run_dir.name, "resume": "allow"}
        self._module.init(**settings)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All metrics of a step at once."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """End the tracker's run."""
        self._module.finish()


def open_tracker(run_dir: Path, config: RunConfig, first_step: int) -> Tracker:
    """What `train.tracker` names, for a run that begins or goes on at `first_step`.

    Raises:
        RunError: its package is not installed.
    """
    name = config.train.tracker
    if name == "none":
        return NoTracker()
    return TensorBoard(run_dir, config, first_step) if name == "tensorboard" else Experiments(name, run_dir, config)


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise RunError(
            f"train.tracker={name} needs a package that is not installed: `pip install '{_PACKAGES[name]}'`, or set "
            "train.tracker=none"
        ) from e
