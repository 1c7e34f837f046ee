"""Writing text with a trained model."""

from dgsgpt.generation.context import Prompt, prepare_prompt
from dgsgpt.generation.engine import Stats, TextStream, generate, stream
from dgsgpt.generation.presets import PRESETS, preset
from dgsgpt.generation.sampling import Sampling, filter_logits, sample_token
from dgsgpt.generation.together import choices_at, divergence

__all__ = [
    "PRESETS",
    "Prompt",
    "Sampling",
    "Stats",
    "TextStream",
    "choices_at",
    "divergence",
    "filter_logits",
    "generate",
    "prepare_prompt",
    "preset",
    "sample_token",
    "stream",
]
