"""Saving beside training: what is written is the moment of asking, and failures are told."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dgsgpt.errors import CheckpointError
from dgsgpt.runs import Run
from dgsgpt.train.saver import Saver


def saver(tmp_path: Path, background: bool = True) -> Saver:
    (tmp_path / "checkpoints").mkdir()
    return Saver(Run(tmp_path), keep_last=2, background=background)


def test_training_goes_on_while_the_copy_is_written(tmp_path: Path) -> None:
    may_end, weight = threading.Event(), torch.ones(3)
    seen: list[Tensor] = []

    def write(model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
        may_end.wait(10)
        seen.append(model["w"])
        return tmp_path / "checkpoints" / "step_00000001"

    s = saver(tmp_path)
    s.save(1, {"w": weight}, {}, write)
    assert s.poll() is None
    weight += 1  # the next step
    may_end.set()
    saved = s.poll(wait=True)
    assert saved is not None
    assert saved.step == 1
    assert seen[0].tolist() == [1.0, 1.0, 1.0]
    assert s.poll() is None


@pytest.mark.parametrize("why", ["off", "no memory for a copy"])
def test_without_background_the_checkpoint_is_there_when_save_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why != "off":
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8))
    weight, seen = torch.ones(3), []

    def write(model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
        seen.append(model["w"])
        return tmp_path / "checkpoints" / "step_00000001"

    s = saver(tmp_path, background=why != "off")
    s.save(1, {"w": weight}, {}, write)
    assert seen[0] is weight  # no copy
    assert s.poll() is not None


def test_a_failed_save_is_told_at_the_next_look(tmp_path: Path) -> None:
    def write(model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
        raise CheckpointError("No space left on device")

    s = saver(tmp_path)
    s.save(1, {}, {}, write)
    with pytest.raises(CheckpointError, match="No space left"):
        s.poll(wait=True)
    assert s.poll() is None
