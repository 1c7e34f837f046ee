"""What this machine has and what of it is free now, without importing torch."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

# The first reading of a process is meaningless (0 %): take it now, so that the first one shown counts from here.
psutil.cpu_percent(interval=None)

# Dense bfloat16 with float32 accumulation, without sparsity, in FLOPs a second; from NVIDIA's data sheets. The first
# name that the GPU's own contains counts.
PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989.4e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "H800": 989.4e12,
    "L40S": 362e12, "L4": 121e12, "A100": 312e12, "A800": 312e12, "A10G": 70e12, "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; readings the driver does not give are None."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    utilization: float | None
    temperature_c: int | None
    power_w: float | None


@dataclass(frozen=True)
class Hardware:
    """A snapshot of the machine."""

    gpus: tuple[Gpu, ...]
    cpu_name: str
    cpu_cores: int
    cpu_percent: float
    ram_total_bytes: int
    ram_available_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int

    @property
    def device(self) -> str:
        """Where training runs by default: `cuda` or `cpu`."""
        return "cuda" if self.gpus else "cpu"

    @property
    def name(self) -> str:
        """Name of the training device."""
        return self.gpus[0].name if self.gpus else self.cpu_name

    @property
    def total_bytes(self) -> int:
        """Memory of the training device."""
        return self.gpus[0].total_bytes if self.gpus else self.ram_total_bytes

    @property
    def free_bytes(self) -> int:
        """Memory of the training device that is free now."""
        return self.gpus[0].free_bytes if self.gpus else self.ram_available_bytes


def usable_cores() -> int:
    """CPU cores this process may use: the affinity mask, not the machine's count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cpu_name() -> str:
    """Marketing name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _container_limit() -> int | None:
    """Memory limit of the container, if there is one below the machine's."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def detect_gpus() -> tuple[Gpu, ...]:
    """The GPUs the NVIDIA driver reports; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver or no device: a machine without a GPU is a normal one
        return ()
    try:
        return tuple(_read_gpu(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(pynvml, index: int) -> Gpu:  # type: ignore[no-untyped-def]
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)

    def reading(function, *args):  # type: ignore[no-untyped-def]
        try:
            return function(handle, *args)
        except pynvml.NVMLError:  # laptops and virtual GPUs hide some sensors
            return None

    utilization = reading(pynvml.nvmlDeviceGetUtilizationRates)
    power = reading(pynvml.nvmlDeviceGetPowerUsage)
    return Gpu(
        index=index,
        name=name.decode() if isinstance(name, bytes) else name,
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        utilization=float(utilization.gpu) if utilization is not None else None,
        temperature_c=reading(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        power_w=power / 1000 if power is not None else None,
    )


def peak_flops(gpu: str) -> float | None:
    """Dense bfloat16 FLOPs a second of the GPU of this name; None if it is not in the table."""
    words = gpu.replace("-", " ")
    if "Laptop" in words:  # slower under the same name
        return None
    return next((flops for name, flops in PEAK_FLOPS.items() if f" {name} " in f" {words} "), None)


def detect(path: Path | str = ".") -> Hardware:
    """Read the machine now; `path` names the disk that runs are written to."""
    ram = psutil.virtual_memory()
    limit = min(ram.total, _container_limit() or ram.total)
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    disk = psutil.disk_usage(str(place))
    return Hardware(
        gpus=detect_gpus(),
        cpu_name=cpu_name(),
        cpu_cores=usable_cores(),
        cpu_percent=psutil.cpu_percent(interval=None),
        ram_total_bytes=limit,
        ram_available_bytes=min(ram.available, limit),
        disk_total_bytes=disk.total,
        disk_free_bytes=disk.free,
    )
