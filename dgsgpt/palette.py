"""Colours by role and the palettes of runs, light and dark; chosen to be told apart by colour-blind eyes, too.

Red is for failures only; a run's colour comes from the slot stored with it, never from its place in a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["light", "dark"]

SANS = '"Source Sans", sans-serif'
MONO = '"Source Code Pro", monospace'
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Palette:
    """Every colour of one mode: `roles` by name, `runs` by slot, `sequential` from ground to blue."""

    mode: Mode
    roles: dict[str, str]
    runs: tuple[str, ...]
    sequential: tuple[str, ...]

    def __getitem__(self, role: str) -> str:
        return self.roles[role]

    def run(self, slot: int) -> str:
        """The colour of a run by its stored slot; beyond eight the dash pattern tells runs apart."""
        return self.runs[slot % len(self.runs)]

    def dash(self, slot: int) -> str:
        """The line pattern of a run by its stored slot: solid for the first eight."""
        return _DASHES[slot // len(self.runs) % len(_DASHES)]

    def scale(self) -> list[tuple[float, str]]:
        """The sequential ramp as a plotly colour scale."""
        return [(i / (len(self.sequential) - 1), color) for i, color in enumerate(self.sequential)]


# Roles: bg page, sunk wells, line borders, grid rules, ink values, ink2 labels, ink3 notes, accent what lives or
# was chosen, tint its ground, good better or fits, warn tight or stalled, bad failed or worse, idle the rest.
LIGHT = Palette(
    "light",
    {
        "bg": "#ffffff", "sunk": "#f6f5f2", "line": "#e3e0da", "grid": "#efede8",
        "ink": "#1f1d1a", "ink2": "#57534c", "ink3": "#716d65",
        "accent": "#1f6fd6", "accentbg": "#e6f0fc", "tint": "#e6f0fc", "tintink": "#1a5db4",
        "good": "#1f6b40", "goodbg": "#e6f4ea", "warn": "#8a5200", "warnbg": "#fdf1dc",
        "bad": "#b02525", "badbg": "#fdecea", "idle": "#57534c", "idlebg": "#f0eeea",
    },
    ("#1f6fd6", "#e73480", "#086850", "#759c1f", "#5b307a", "#02a0ce", "#7c670d", "#752a25"),
    ("#f4f8fd", "#deebf9", "#c3dbf4", "#a2c7ee", "#7eb0e6", "#5897dd", "#357fd3", "#2068bd", "#18529a", "#123d74"),
)  # fmt: skip
DARK = Palette(
    "dark",
    {
        "bg": "#171614", "sunk": "#211f1c", "line": "#35322d", "grid": "#282520",
        "ink": "#ece9e4", "ink2": "#b8b3a9", "ink3": "#8f8a80",
        "accent": "#58a6ff", "accentbg": "#152a45", "tint": "#152a45", "tintink": "#8cc2ff",
        "good": "#7fd1a3", "goodbg": "#16301f", "warn": "#f0bd62", "warnbg": "#382a12",
        "bad": "#ff8f89", "badbg": "#3b1c1a", "idle": "#b8b3a9", "idlebg": "#2a2723",
    },
    ("#58a6ff", "#f084a6", "#369074", "#a2cc85", "#8c68aa", "#65f6e9", "#a9871c", "#f8e92e"),
    ("#1b2430", "#1d3148", "#1f3f62", "#23507f", "#2a629c", "#3576b9", "#478cd5", "#64a5ec", "#8cc0fa", "#bcdcff"),
)  # fmt: skip


def rgba(hex_color: str, alpha: float) -> str:
    """A `#rrggbb` colour with transparency."""
    red, green, blue = (int(hex_color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
