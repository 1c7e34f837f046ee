"""What a run logs of the machine and of its experts."""

from __future__ import annotations

import pytest
import torch

from dgsgpt.hardware import Gpu
from dgsgpt.model import RouterStats
from dgsgpt.train import sensors
from dgsgpt.train.stepper import MAX_LOADS, router_figures, told_layers


def test_the_machine_is_read_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(sensors.time, "monotonic", lambda: clock[0])
    found = sensors.Sensors(cuda=False)
    assert set(found.read()) == {"sys/cpu_util", "sys/ram_bytes"}
    clock[0] += sensors.EVERY_S - 0.1
    assert found.read() == {}
    clock[0] += 0.2
    assert found.read()["sys/ram_bytes"] > 0


def test_the_gpu_in_use_is_read_and_hidden_sensors_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (Gpu(0, "a", 100, 40, 1.0, 30, 9.0), Gpu(1, "b", 100, 10, 97.0, None, 318.0))
    monkeypatch.setattr(sensors, "detect_gpus", lambda: gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    read = sensors.Sensors(cuda=True).read()
    assert {k: v for k, v in read.items() if "gpu" in k} == {
        "sys/gpu_util": 97.0, "sys/gpu_mem_bytes": 90.0, "sys/gpu_power_w": 318.0
    }  # fmt: skip


def test_the_load_of_every_expert_is_logged() -> None:
    stats = [
        RouterStats(torch.tensor([0.5, 0.5, 0.0]), torch.tensor(0.1), torch.tensor(0.8)),
        RouterStats(torch.tensor([0.2, 0.2, 0.6]), torch.tensor(0.3), torch.tensor(0.6)),
    ]
    figures = router_figures(stats)
    assert figures["moe/max_load"] == pytest.approx(0.6)
    assert figures["moe/dropped"] == pytest.approx(0.2)
    assert figures["moe/entropy"] == pytest.approx(0.7)
    assert [figures[f"moe/load/{layer}/{e}"] for layer in (0, 1) for e in range(3)] == [0.5, 0.5, 0, 0.2, 0.2, 0.6]
    assert router_figures([]) == {}


@pytest.mark.parametrize(("layers", "experts"), [(1, 8), (12, 8), (32, 64), (61, 256), (3, 257), (40, 100)])
def test_a_line_of_metrics_stays_short_with_the_first_and_the_last_layer_told(layers: int, experts: int) -> None:
    told = told_layers(layers, experts)
    assert len(told) * experts <= MAX_LOADS
    assert told == sorted(set(told))
    if layers * experts <= MAX_LOADS:
        assert told == list(range(layers))
    elif experts * 2 <= MAX_LOADS:
        assert (told[0], told[-1]) == (0, layers - 1)
