from __future__ import annotations

import pytest

from dgsgpt.errors import ConfigError
from dgsgpt.hardware import Gpu, Hardware, detect
from dgsgpt.profiles import PROFILE_NAMES, choose_profile, load_profile


def machine(gpu_gb: float | None) -> Hardware:
    gpu = None if gpu_gb is None else Gpu(0, "GPU", int(gpu_gb * 1e9), int(gpu_gb * 0.9e9), None, None, None)
    return Hardware((gpu,) if gpu else (), "CPU", 8, 0.0, 32_000_000_000, 20_000_000_000, 10**12, 10**11)


@pytest.mark.parametrize(
    ("name", "batch", "context", "layers", "width"),
    [("low", 2, 512, 4, 1024), ("medium", 16, 8192, 32, 4096), ("high", 32, 16384, 40, 5120)],
)
def test_profiles_have_the_shapes_that_were_asked_for(
    name: str, batch: int, context: int, layers: int, width: int
) -> None:
    config = load_profile(name).config
    assert config.train.micro_batch_size * config.train.grad_accum_steps == batch
    assert config.model.block_size == context
    assert config.model.n_layer == layers
    assert config.model.n_embd == width


@pytest.mark.parametrize(
    ("gpu_gb", "name"),
    [
        (None, "cpu"),
        (8, "low"),
        (15, "low"),
        (19.9, "low"),
        (20, "medium"),
        (40, "medium"),
        (49.9, "medium"),
        (50, "high"),
        (141, "high"),
    ],
)
def test_the_profile_follows_the_memory_of_the_gpu(gpu_gb: float | None, name: str) -> None:
    assert choose_profile(machine(gpu_gb)) == name


def test_free_memory_is_that_of_the_training_device() -> None:
    assert machine(None).device == "cpu"
    assert machine(None).free_bytes == 20_000_000_000
    assert machine(16).device == "cuda"
    assert machine(16).free_bytes == int(14.4e9)


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="cpu, low, medium, high"):
        load_profile("huge")
    assert PROFILE_NAMES == ("cpu", "low", "medium", "high")


def test_this_machine_is_read() -> None:
    here = detect()
    assert here.cpu_cores >= 1
    assert 0 < here.ram_available_bytes <= here.ram_total_bytes
    assert 0 < here.disk_free_bytes <= here.disk_total_bytes
    assert here.name
