"""What the machine does while it trains, for the metrics: GPU by the driver where there is one, else CPU and RAM."""

from __future__ import annotations

import os
import time

import psutil

from dgsgpt.hardware import Gpu, detect_gpus

EVERY_S = 5.0  # asking the driver takes milliseconds, and nobody needs the temperature of every step


class Sensors:
    """Reads the machine now and then."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._read_at = float("-inf")

    def read(self) -> dict[str, float]:
        """`sys/…` figures, percentages from 0 to 100; nothing where the last reading is a few seconds old."""
        if time.monotonic() - self._read_at < EVERY_S:
            return {}
        self._read_at = time.monotonic()
        ram = psutil.virtual_memory()
        figures = {"sys/cpu_util": psutil.cpu_percent(interval=None), "sys/ram_bytes": float(ram.total - ram.available)}
        gpus = detect_gpus() if self._cuda else ()
        return figures | gpu_figures(gpus[min(used_gpu(), len(gpus) - 1)]) if gpus else figures


def used_gpu() -> int:
    """The driver's number of the first GPU this process may use."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return int(first) if first.isdigit() else 0


def gpu_figures(gpu: Gpu) -> dict[str, float]:
    """One GPU's readings; those it hides are left out."""
    found = {
        "sys/gpu_util": gpu.utilization,
        "sys/gpu_mem_bytes": float(gpu.total_bytes - gpu.free_bytes),
        "sys/gpu_temp_c": gpu.temperature_c,
        "sys/gpu_power_w": gpu.power_w,
    }
    return {name: float(value) for name, value in found.items() if value is not None}
