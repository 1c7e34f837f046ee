"""Writing text with a trained model."""

from dgsgpt.generation.batch import Result, generate_batch, write_batch
from dgsgpt.generation.beam import Beam, BeamResult, BeamSettings, beam_search, grow_beams
from dgsgpt.generation.context import Prompt, prepare_prompt
from dgsgpt.generation.engine import Stats, TextStream, generate, stream
from dgsgpt.generation.presets import PRESETS, preset
from dgsgpt.generation.sampling import Sampling, filter_logits, sample_token
from dgsgpt.generation.together import choices_at, divergence

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
