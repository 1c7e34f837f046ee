"""Writing text with a trained model."""

from dgsgpt.generation.engine import Prompt, Stats, TextStream, generate, prepare_prompt, stream
from dgsgpt.generation.sampling import Sampling, filter_logits, sample_token
from dgsgpt.generation.together import choices_at, divergence

__all__ = [
    "Prompt",
    "Sampling",
    "Stats",
    "TextStream",
    "choices_at",
    "divergence",
    "filter_logits",
    "generate",
    "prepare_prompt",
    "sample_token",
    "stream",
]
