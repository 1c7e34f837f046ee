"""What the machine does: the run's own readings over time, and how it stands now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dgsgpt import format as fmt
from dgsgpt.hardware import Gpu, Hardware
from dgsgpt.metrics import decimate
from dgsgpt.ui import atoms, state
from dgsgpt.ui.atoms import text
from dgsgpt.ui.loss_data import columns
from dgsgpt.ui.theme import c
from dgsgpt.ui.train_shown import Shown

POINTS = 120
Curve = tuple[str, str, list[float], str]  # label, the run's metric, readings while pages looked, the figure now


def _degrees(value: float) -> str:
    return f"{value:.0f}\u00a0°C"


def _watts(value: float) -> str:
    return f"{value:.0f}\u00a0W"


def _percent(value: float) -> str:
    return fmt.percent(value / 100, 0)


def _gib(value: float) -> str:
    return fmt.gib(value) + "\u00a0GiB"


def _now(
    readings: Sequence[Any], read: Callable[[Any], float | None], write: Callable[[float], str]
) -> tuple[Any, str]:
    known = [float(value) for reading in readings if (value := read(reading)) is not None]
    return known, write(known[-1]) if known else fmt.MISSING


def curves(readings: Sequence[Hardware]) -> list[Curve]:
    """Readings of the machine while pages looked, with what the run's metrics call them; a GPU's come first."""
    gpus: list[Gpu] = [reading.gpus[0] for reading in readings if reading.gpus]
    found: list[Curve] = []
    if gpus:
        parts: tuple[tuple[str, str, Callable[[Gpu], float | None], Callable[[float], str]], ...] = (
            ("Utilisation", "sys/gpu_util", lambda g: g.utilization, _percent),
            ("Memory", "sys/gpu_mem_bytes", lambda g: g.total_bytes - g.free_bytes, _gib),
            ("Temperature", "sys/gpu_temp_c", lambda g: g.temperature_c, _degrees),
            ("Power", "sys/gpu_power_w", lambda g: g.power_w, _watts),
        )
        found += [(label, metric, *_now(gpus, read, write)) for label, metric, read, write in parts]
    found.append(("CPU", "sys/cpu_util", *_now(readings, lambda r: r.cpu_percent, _percent)))
    ram = _now(readings, lambda r: r.ram_total_bytes - r.ram_available_bytes, _gib)
    return [*found, ("RAM" if gpus else "Memory", "sys/ram_bytes", *ram)]


def rows(readings: Sequence[Hardware], frame: Any, color: str) -> tuple[list[Sequence[object]], bool]:
    """Curves with the latest figure; whether they are the run's own, which it logs every few seconds."""
    drawn: list[Sequence[object]] = []
    own = False
    for label, metric, looked, now in curves(readings):
        x, logged = columns(frame, metric)
        if len(logged) > 1:
            own, looked = True, list(decimate(x, logged, POINTS)[1])
        if looked:
            drawn.append(
                (text(label, "ink2"), atoms.spark(looked, color, width=80, height=18, fill=False), atoms.bold(now))
            )
    free = f"{fmt.size(readings[-1].disk_free_bytes)} free"
    return [*drawn, (text("Disk", "ink2"), "", atoms.bold(free))], own


def card(shown: Shown) -> None:
    """The machine's readings as small curves."""
    found = state.machine()
    more = f"first of {len(found.gpus)} · " if len(found.gpus) > 1 else ""
    atoms.head("Machine", note=more + found.name)
    drawn, own = rows(state.machine_history(), shown.metrics.columns, c("ink3"))
    atoms.table(drawn, "84px minmax(0,1fr) max-content", align="llr")
    atoms.note("Curves: over the run. Figures: now." if own else "Since this page is open.")
