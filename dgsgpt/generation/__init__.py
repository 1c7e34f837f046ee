"""Writing text with a trained model.

What needs torch is imported when it is asked for: the presets are listed without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgsgpt.generation.batch import Result, generate_batch, write_batch
    from dgsgpt.generation.beam import Beam, BeamResult, BeamSettings, beam_search, grow_beams
    from dgsgpt.generation.context import Prompt, prepare_prompt
    from dgsgpt.generation.engine import Stats, TextStream, generate, stream
    from dgsgpt.generation.presets import PRESETS, preset
    from dgsgpt.generation.sampling import Sampling, filter_logits, sample_token
    from dgsgpt.generation.together import choices_at, divergence

_NAMES = {
    "batch": ("Result", "generate_batch", "write_batch"),
    "beam": ("Beam", "BeamResult", "BeamSettings", "beam_search", "grow_beams"),
    "context": ("Prompt", "prepare_prompt"),
    "engine": ("Stats", "TextStream", "generate", "stream"),
    "presets": ("PRESETS", "preset"),
    "sampling": ("Sampling", "filter_logits", "sample_token"),
    "together": ("choices_at", "divergence"),
}
_PLACES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


__all__ = [
    "PRESETS",
    "Beam",
    "BeamResult",
    "BeamSettings",
    "Prompt",
    "Result",
    "Sampling",
    "Stats",
    "TextStream",
    "beam_search",
    "choices_at",
    "divergence",
    "filter_logits",
    "generate",
    "generate_batch",
    "grow_beams",
    "prepare_prompt",
    "preset",
    "sample_token",
    "stream",
    "write_batch",
]
