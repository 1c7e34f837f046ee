"""Writing text with a trained model."""

from dgsgpt.generation.engine import Prompt, Stats, TextStream, generate, prepare_prompt, stream
from dgsgpt.generation.sampling import Sampling, filter_logits, sample_token

__all__ = [
    "Prompt",
    "Sampling",
    "Stats",
    "TextStream",
    "filter_logits",
    "generate",
    "prepare_prompt",
    "sample_token",
    "stream",
]
