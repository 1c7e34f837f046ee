"""Named settings of sampling: a start for who does not want to think about each rule."""

from __future__ import annotations

import difflib

from dgsgpt.errors import DgsgptError

# Each names every rule, so that choosing one leaves nothing over from the one before.
PRESETS: dict[str, dict[str, float | int | None]] = {
    "greedy": {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None, "repetition_penalty": 1.0},
    "precise": {"temperature": 0.3, "top_k": None, "top_p": 0.9, "min_p": None, "repetition_penalty": 1.0},
    "balanced": {"temperature": 0.8, "top_k": None, "top_p": 0.95, "min_p": None, "repetition_penalty": 1.0},
    "creative": {"temperature": 1.2, "top_k": None, "top_p": None, "min_p": 0.05, "repetition_penalty": 1.1},
}


def preset(name: str) -> dict[str, float | int | None]:
    """The settings of a preset, by the names of `Sampling`.

    Raises:
        DgsgptError: no preset has this name.
    """
    if name in PRESETS:
        return dict(PRESETS[name])
    near = difflib.get_close_matches(name.lower(), PRESETS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise DgsgptError(f"preset={name!r} is unknown; there are {', '.join(PRESETS)}{hint}")


__all__ = ["PRESETS", "preset"]
